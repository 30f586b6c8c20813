"""`ecapa-jax export BUNDLE --to onnx -o model.onnx`: exports, quantises and measures a model."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ecapa_jax.errors import ConfigError
from ecapa_jax.onnx_file import INSTALL, KEY

if TYPE_CHECKING:
    import onnx

    from ecapa_jax.bundle.bundle import Bundle

Input = Literal["waveform", "features", "sherpa"]
Quantize = Literal["int8", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Options of an ONNX file.

    Attributes:
      takes: kind of input of the model.
      quantize: precision of the weights; None is float32.
      calibration: folder of speech for int8; None is the packaged demo speech.
      trials: trial list on which the quantised model is compared with the float32 model.
      audio_root: folder to which the paths in the list are relative.
    """

    takes: Input = "waveform"
    quantize: Quantize | None = None
    calibration: str | None = None
    trials: str | None = None
    audio_root: str = ""

    def check(self) -> None:
        """Checks what can be checked before any work.

        Raises:
          ConfigError: two options exclude each other, or onnx or onnxruntime is not installed.
        """
        if self.calibration is not None and self.quantize != "int8":
            raise ConfigError("--calibration is for --quantize int8: only int8 is calibrated")
        if self.trials is not None and (self.quantize is None or self.takes != "waveform"):
            raise ConfigError("--trials is for --quantize with --input waveform: it measures what quantisation changes")
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise ConfigError(INSTALL) from error


def make_onnx(bundle: Bundle, options: OnnxOptions) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Returns the model to write, and what the command prints about it.

    Raises:
      ConfigError: the options don't fit the model, or there is nothing to calibrate with.
      AudioError, TrialError: a recording or list can't be read.
    """
    from onnx import helper

    from ecapa_jax.convert.onnx.export import export_onnx
    from ecapa_jax.convert.onnx.metadata import card, metadata
    from ecapa_jax.convert.onnx.sherpa import export_sherpa

    exact = export_sherpa(bundle) if options.takes == "sherpa" else export_onnx(bundle, options.takes)
    model, about = exact, {prop.key: prop.value for prop in exact.metadata_props}
    measured: dict[str, Any] = {}
    if options.quantize is not None:
        model = _quantize(bundle, exact, options)
        about |= {name: metadata(bundle, options.takes, options.quantize)[name] for name in (KEY, "precision")}
        helper.set_model_props(model, about)
        if options.trials is not None:
            measured = _compare_precisions(exact, model, options)
            about |= {name: str(value) for name, value in measured.items()}
            helper.set_model_props(model, about)
    model.doc_string = card(about)
    return model, {"input": options.takes, "precision": options.quantize or "float32", **measured}


def _quantize(bundle: Bundle, model: onnx.ModelProto, options: OnnxOptions) -> onnx.ModelProto:
    from ecapa_jax.convert.onnx.calibration import calibration_feeds, demo_recordings, find_recordings
    from ecapa_jax.convert.onnx.quantize import to_float16, to_int8

    if options.quantize == "float16":
        return to_float16(model)
    if options.calibration is None:
        paths = demo_recordings()
        warnings.warn(
            f"int8 is calibrated on the packaged demo speech, {len(paths)} recordings of synthetic voices: pass speech "
            f"like that of your users with --calibration DIR",
            UserWarning,
            stacklevel=2,
        )
    else:
        paths = find_recordings(options.calibration)
    return to_int8(model, calibration_feeds(bundle.config, bundle.variables, options.takes, paths))


def _compare_precisions(exact: onnx.ModelProto, model: onnx.ModelProto, options: OnnxOptions) -> dict[str, Any]:
    """Measures on the trial list how much quantisation changes scores and error rate."""
    from ecapa_jax.evaluation.report import list_name
    from ecapa_jax.evaluation.run import score_lists
    from ecapa_jax.evaluation.trials import read_trials
    from ecapa_jax.onnx_encoder import OnnxEncoder
    from ecapa_jax.scoring.metrics import eer

    trials, scores = read_trials(options.trials or ""), []
    with tempfile.TemporaryDirectory() as folder:
        for name, one in (("exact", exact), ("small", model)):
            path = Path(folder, f"{name}.onnx")
            path.write_bytes(one.SerializeToString())
            cache = Path(folder, f"{name}.sqlite")
            (scored,) = score_lists(OnnxEncoder(path), [trials], options.audio_root or ".", cache)
            scores.append(next(iter(scored.scores.values())))
    before, after = (eer(one, trials.known_labels) for one in scores)
    return {
        "trials": list_name(trials.path),
        "eer_float32": f"{100 * before:.2f} %",
        "eer": f"{100 * after:.2f} %",
        "score_change": f"{np.abs(scores[1] - scores[0]).max():.4f}",
    }
