"""One call to a model: `load` for an encoder, `pipeline` for ModelScope's call and result."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ecapa_jax.encoder import Dtype, SpeakerEncoder
from ecapa_jax.errors import AudioError, BundleError, ConfigError
from ecapa_jax.io.address import is_address
from ecapa_jax.io.audio import AudioSource
from ecapa_jax.io.bundle import load_bundle, read_document
from ecapa_jax.onnx_file import is_onnx, read_onnx
from ecapa_jax.presets import PRESETS
from ecapa_jax.programs import kept_shapes
from ecapa_jax.scorer import ScoringName, checked_threshold


def default_bundle() -> Path:
    """Directory of the packaged default model."""
    return Path(str(resources.files("ecapa_jax") / "default_model"))


def resolve(
    model: str | os.PathLike[str] | None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """The bundle directory of a model name; None is the packaged default model.

    Args:
      model: a bundle directory, or an address: `hf:org/name`, `modelscope:org/name`, both with `@revision` where
        wanted, or `https://host/file`. What it names is fetched and converted once; later no network is used for it.
      cache_dir: where that is kept; None is the user's cache folder.
      progress: show a bar while fetching, on a terminal.

    Raises:
      BundleError: the name is a preset, whose weights are not packaged.
      DownloadError: the address is wrong or can't be fetched, or the cache can't be written.
      ConversionError: what the address names is of no supported family.
    """
    if model is None:
        return default_bundle()
    name = os.fspath(model)
    if not os.path.exists(name):  # not Path.exists, which raises where a folder above may not be entered
        if name in PRESETS:
            raise BundleError(
                f"{name} is a preset without packaged weights: get its checkpoint from the publisher and run "
                f"'ecapa-jax convert CHECKPOINT --family {name} -o BUNDLE'"
            )
        if is_address(name):
            from ecapa_jax.convert.remote import bundle_folder

            return bundle_folder(name, cache_dir=cache_dir, progress=progress)
    return Path(name)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: Dtype = "float32",
    scoring: ScoringName = "publisher",
    devices: Sequence[jax.Device] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    programs_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SpeakerEncoder:
    """Loads a model.

    Args:
      model: a bundle directory, a `.onnx` file as `ecapa-jax export` writes it, or an address as `resolve` takes it;
        None is the packaged default model.
      dtype: compute dtype, `float32` or `bfloat16`; `auto` is bfloat16 where the device is faster in it.
      scoring: the model's own (`publisher`), or `cosine`, `cosine_less_mean`, `half` or `two_views` in its place.
      devices: devices that share each batch; None is all local ones.
      cache_dir: where models of addresses are kept; None is the user's cache folder.
      programs_dir: where compiled programs are kept for the next process; None keeps none. Files in it are run: it must
        be yours alone to write.
      progress: show a bar while one is fetched, on a terminal.

    Raises:
      BundleError: there is no whole bundle or file.
      ConfigError: there is no such dtype, an ONNX file is to run on other devices or in another dtype, or the scoring
        needs what the model does not bring.
      DownloadError, ConversionError: as `resolve`.
    """
    path = resolve(model, cache_dir=cache_dir, progress=progress)
    if is_onnx(path):
        encoder = _load_onnx(path, dtype, devices)
        encoder.scorer = encoder.scorer.named(scoring)
        return encoder
    programs = None if programs_dir is None else Path(programs_dir)
    shapes = None if programs is None else functools.partial(kept_shapes, programs)
    bundle = load_bundle(path, abstract=shapes)
    encoder = SpeakerEncoder.from_bundle(bundle, devices=devices, dtype=dtype, programs=programs)
    encoder.scorer = encoder.scorer.named(scoring)
    return encoder


def _load_onnx(path: Path, dtype: Dtype, devices: Sequence[jax.Device] | None) -> SpeakerEncoder:
    from ecapa_jax.onnx_encoder import OnnxEncoder

    if dtype == "bfloat16" or devices is not None:
        what = "on the devices it is given" if devices is not None else f"in {dtype}"
        raise ConfigError(f"{path} can't run {what}: an ONNX file runs on the processor in its own precision")
    return OnnxEncoder(path)


def provenance(model: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What a bundle or an ONNX file says of its origin.

    Raises:
      BundleError: there is no whole bundle or file.
      DownloadError, ConversionError: as `resolve`.
    """
    path = resolve(model)
    return read_onnx(path).provenance if is_onnx(path) else read_document(path)["provenance"]


class SpeakerVerificationPipeline:
    """ModelScope's speaker-verification pipeline: its call and its result.

    Reference: `modelscope.pipelines.audio.speaker_verification_light_pipeline.SpeakerVerificationPipeline`. Unlike
    there, `thr` holds for one call only.
    """

    def __init__(self, encoder: SpeakerEncoder):
        self.encoder = encoder

    def __call__(
        self,
        in_audios: Sequence[str | os.PathLike[str] | np.ndarray],
        save_dir: str | None = None,
        output_emb: bool = False,
        thr: float | None = None,
    ) -> dict[str, Any]:
        """Scores two recordings.

        Args:
          in_audios: paths, URLs, or 1-D arrays at the model's rate (integers are divided by 32768).
          save_dir: writes each path's embedding to `save_dir/<file name without suffix>.npy`.
          output_emb: returns `{"outputs": result, "embs": [n, embedding_dim]}`.
          thr: threshold on the scale of the score, for a cosine in [-1, 1]; None takes the model's.

        Returns:
          `{"score": the model's score rounded to 5 digits, "text": "yes" or "no"}`; for other than two inputs
          `{"text": "No similarity score output"}`.

        Raises:
          ConfigError: (a ValueError) `thr` is out of the score's range, or neither given nor known to the model.
          AudioError: (a ValueError) an input can't be read or is of another type.
        """
        threshold = self.encoder.scoring.threshold if thr is None else checked_threshold(thr, self.encoder.scoring)
        if threshold is None:
            raise ConfigError("this model publishes no threshold: pass thr, a score in [-1, 1]")
        views = self.encoder.embed_views([_modelscope_input(audio) for audio in in_audios])
        embeddings = views[:, 0]
        if save_dir is not None:
            _save(Path(save_dir), in_audios, embeddings)
        result: dict[str, Any] = {"text": "No similarity score output"}
        if len(views) == 2:
            score = round(self.encoder.score(views[0], views[1]), 5)
            result = {"score": score, "text": "yes" if score >= threshold else "no"}
        return {"outputs": result, "embs": embeddings} if output_emb else result


def pipeline(
    task: Literal["speaker-verification"], model: str | os.PathLike[str] | None = None
) -> SpeakerVerificationPipeline:
    """ModelScope's `pipeline("speaker-verification", model=...)` on a bundle.

    Raises:
      ConfigError: another task is asked for.
      BundleError: there is no whole bundle.
    """
    if task != "speaker-verification":
        raise ConfigError(f"task {task!r} is not built; built: speaker-verification")
    return SpeakerVerificationPipeline(load(model))


def _modelscope_input(audio: Any) -> AudioSource:
    if isinstance(audio, np.ndarray):
        if audio.ndim != 1:
            raise AudioError(f"an array input has shape {audio.shape}; the pipeline takes [samples]")
        return (audio / 32768.0).astype(np.float32) if audio.dtype.kind == "i" else audio.astype(np.float32)
    if isinstance(audio, str | os.PathLike):
        return audio
    raise AudioError(f"an input is a {type(audio).__name__}; the pipeline takes paths, URLs and NumPy arrays")


def _save(directory: Path, audios: Sequence[Any], embeddings: np.ndarray) -> None:
    names = {
        index: os.path.basename(os.fspath(audio)).rsplit(".", 1)[0]
        for index, audio in enumerate(audios)
        if isinstance(audio, str | os.PathLike)
    }
    if len(set(names.values())) < len(names):
        raise ConfigError(f"two inputs have one file name ({', '.join(names.values())}): one would be lost")
    directory.mkdir(parents=True, exist_ok=True)
    for index, name in names.items():
        np.save(directory / f"{name}.npy", embeddings[index])
