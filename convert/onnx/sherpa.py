"""Exports an ONNX model for the `SpeakerEmbeddingExtractor` of sherpa-onnx, which computes the features itself.

sherpa-onnx computes Kaldi features with frames centred on each hop, a povey window, and an upper edge 400 Hz below half
the sample rate. For the framework `nemo` it computes the features of librosa. The export approximates the features of a
family of this kind: the mel bands of the family have other centres, so each of them is interpolated between the two
nearest bands of sherpa-onnx. This linear map of the bands becomes part of the convolution of the stem.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float64
from onnx import TensorProto, helper

from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.config import FbankConfig
from ecapa_jax.convert.onnx.export import to_numpy, write_from_frames
from ecapa_jax.convert.onnx.graph import Graph
from ecapa_jax.convert.onnx.metadata import card, metadata
from ecapa_jax.errors import ConfigError
from ecapa_jax.features.constants import hz_to_mel
from ecapa_jax.folding import fold
from ecapa_jax.onnx_file import EMBEDDINGS

BELOW_NYQUIST = 400.0
"""Difference in Hz between half the sample rate and the highest mel edge of sherpa-onnx."""

_KALDI: dict[str, Any] = {
    "remove_dc": True,
    "preemphasis": 0.97,
    "preemphasis_mode": "frame",
    "mel_scale": "kaldi",
    "mel_shape": "mel",
    "mel_source": "computed",
    "f_min": 20.0,
    "n_mels": 80,
    "log": "ln",
    "top_db": None,
    "normalization": "mean",
    "pad_to": 1,
}
_NEMO: dict[str, Any] = {
    "window": "hann",
    "remove_dc": False,
    "preemphasis": 0.97,
    "mel_scale": "slaney",
    "mel_shape": "hz_area",
    "f_min": 0.0,
    "n_mels": 80,
    "log": "ln",
    "top_db": None,
    "normalization": "mean_std",
}


def framework(config: FbankConfig) -> str:
    """Returns the framework of sherpa-onnx that computes such features: `3d-speaker`, `wespeaker` or `nemo`.

    Raises:
      ConfigError: no framework of sherpa-onnx computes such features.
    """
    wrong = {name: _describe_difference(config, fields) for name, fields in (("Kaldi", _KALDI), ("NeMo", _NEMO))}
    sizes = (config.frame_length, config.frame_shift, config.fft_size)
    kaldi_sizes = (config.sample_rate // 40, config.sample_rate // 100)
    power = 1 << (kaldi_sizes[0] - 1).bit_length()
    if not wrong["NeMo"] and sizes == (*kaldi_sizes, power):
        return "nemo"
    if wrong["Kaldi"] or sizes != (*kaldi_sizes, power) or config.waveform_scale not in (1.0, 32768.0):
        reason = wrong["Kaldi"] or f"frames of {sizes[0]} samples every {sizes[1]} samples, or the waveform scale"
        raise ConfigError(
            f"sherpa-onnx can't make this model's features (they differ from Kaldi's: {reason}): export the model with "
            f"--input waveform, which includes the front end"
        )
    if config.framing not in ("snip_edges", "kaldi_reflect"):
        raise ConfigError(
            f"sherpa-onnx can't make this model's features (framing {config.framing}): export the model with "
            f"--input waveform, which includes the front end"
        )
    return "3d-speaker" if config.waveform_scale == 1 else "wespeaker"


def _describe_difference(config: FbankConfig, fields: dict[str, Any]) -> str:
    values = {name: getattr(config, name) for name in fields}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != fields[name])


def sherpa_front_end(config: FbankConfig) -> FbankConfig:
    """Returns the front end that sherpa-onnx uses for a model with the framework `3d-speaker` or `wespeaker`."""
    f_max = config.sample_rate / 2 - BELOW_NYQUIST
    return dataclasses.replace(config, framing="kaldi_reflect", window="povey", window_periodic=False, f_max=f_max)


def band_map(config: FbankConfig) -> Float64[np.ndarray, "theirs ours"]:
    """Computes the weights of sherpa-onnx's bands in each band of the model, by interpolation between the centres."""
    low, ours, theirs = hz_to_mel(
        config, np.array([config.f_min, config.f_max, config.sample_rate / 2 - BELOW_NYQUIST])
    )
    bands = np.arange(1, config.n_mels + 1)
    at = np.clip(bands * (ours - low) / (theirs - low), 1, config.n_mels)
    return np.maximum(0.0, 1.0 - np.abs(at[None] - bands[:, None]))


def export_sherpa(bundle: Bundle) -> onnx.ModelProto:
    """Makes the ONNX model of a bundle for sherpa-onnx, with its metadata.

    Raises:
      ConfigError: sherpa-onnx can't compute features like those of the model.
    """
    config = bundle.config
    kind = framework(config.fbank)
    variables = to_numpy(fold(config, to_numpy(bundle.variables)))
    conv = variables["params"]["stem"]["conv"]
    kernel = np.einsum("to,koc->ktc", band_map(config.fbank), np.float64(conv["kernel"])).astype(np.float32)
    variables["params"]["stem"] = {**variables["params"]["stem"], "conv": {**conv, "kernel": kernel}}
    graph, dim = Graph(), config.ecapa.embedding_dim
    if kind == "nemo":  # the extractor for NeMo needs two outputs and uses the second
        inputs: list[tuple[str, Any, list[Any]]] = [
            ("audio_signal", TensorProto.FLOAT, [1, 80, "frames"]),
            ("length", TensorProto.INT64, [1]),
        ]
        found = write_from_frames(graph, bundle, variables, "audio_signal")
        outputs = ["logits", EMBEDDINGS]
    else:
        inputs = [("x", TensorProto.FLOAT, [1, "frames", 80])]
        found = write_from_frames(graph, bundle, variables, graph.op("Transpose", "x", perm=[0, 2, 1]))
        outputs = [EMBEDDINGS]
    for name in outputs:
        graph.op("Identity", found, name=name)
    about = metadata(bundle, "sherpa") | _make_sherpa_metadata(bundle, kind)
    model = graph.make_model(
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, dim]) for name in outputs],
        name="ecapa_tdnn",
        text=card(about),
    )
    helper.set_model_props(model, about)
    return model


def _make_sherpa_metadata(bundle: Bundle, kind: str) -> dict[str, str]:
    """Makes the metadata that sherpa-onnx reads."""
    fbank = bundle.config.fbank
    found = {
        "framework": kind,
        "output_dim": str(bundle.config.ecapa.embedding_dim),
        "sample_rate": str(fbank.sample_rate),
        "normalize_samples": str(int(fbank.waveform_scale == 1)),
        "language": str(bundle.provenance.get("language", "not stated")),
        "feature_normalize_type": "global-mean",
    }
    if kind == "nemo":
        found |= {
            "feature_normalize_type": "per_feature",
            "feat_dim": str(fbank.n_mels),
            "window_size_ms": str(1000 * fbank.frame_length // fbank.sample_rate),
            "window_stride_ms": str(1000 * fbank.frame_shift // fbank.sample_rate),
            "window_type": "hann" if fbank.window_periodic else "hanning",
        }
    return found
