"""Converts the files `ecapa_tdnn.bin` and `ecapa-tdnn.ckpt` of 3D-Speaker and ModelScope, with `configuration.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ecapa_jax.convert.family import Companions, Family, Published, Source
from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.config import Scoring

FILES = ("ecapa_tdnn.bin", "ecapa-tdnn.ckpt")
TRAINED = "embedding_model.ckpt"
CONFIGURATION = "configuration.json"
MODEL_TYPE = "ecapa-tdnn-sv"


def _read_configuration(weights: Path) -> dict[str, Any] | None:
    """Reads the `model` part of configuration.json; None if there is no such file or it describes other weights."""
    path = weights.parent / CONFIGURATION
    if not path.is_file():
        return None
    try:
        model = json.loads(path.read_text("utf-8"))["model"]
        named = model["pretrained_model"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = show(f"{type(error).__name__}: {error}")
        raise ConversionError(f"{path} is not a ModelScope configuration ({reason}): correct or remove it") from error
    return model if named == weights.name else None


def recognises(source: Source) -> bool:
    """Recognises published file names, the folder of a training run, or a configuration.json that names this file."""
    if "backbone." in source.prefix:
        return False  # a self-supervised model, which has another front end
    if source.path.name == TRAINED and source.path.parent.name.startswith("CKPT-EPOCH-"):
        return True
    return source.path.name in FILES or _read_configuration(source.path) is not None


def companions(source: Source) -> Companions:
    """Reads threshold and sample rate from configuration.json, or returns the 3D-Speaker preset if there is no file.

    Reference: `modelscope.pipelines.audio.speaker_verification_light_pipeline` (yesOrno_thr).
    """
    model = _read_configuration(source.path)
    preset = PRESETS["3dspeaker"]
    if model is None:
        return Companions(config=preset)
    path = source.path.parent / CONFIGURATION
    kind, options, threshold = (model.get(key) for key in ("type", "model_config", "yesOrno_thr"))
    if kind not in (MODEL_TYPE, None):
        raise ConversionError(f"{path}: model type {show(repr(kind))} is not supported; supported: {MODEL_TYPE!r}")
    rate = options.get("sample_rate") if isinstance(options, dict) else None
    if rate not in (preset.fbank.sample_rate, None):
        raise ConversionError(f"{path}: sample_rate {show(repr(rate))} is not supported; supported: 16000")
    if threshold is None:
        return Companions(config=preset)
    if type(threshold) not in (int, float) or not -1 <= threshold <= 1:
        raise ConversionError(f"{path}: yesOrno_thr is {show(repr(threshold))}; a cosine threshold lies in [-1, 1]")
    return Companions(config=preset, scoring=Scoring(threshold=float(threshold)))


FAMILY = Family(
    name="3dspeaker",
    title="3D-Speaker / ModelScope",
    files=FILES,
    signature=sb_layout.SIGNATURE,
    ignored=sb_layout.IGNORED,
    rules=sb_layout.rules,
    infer=sb_layout.infer,
    companions=companions,
    recognises=recognises,
    published=(
        Published(
            preset="3dspeaker",
            file="ecapa_tdnn.bin",  # ecapa-tdnn.ckpt was trained on CN-Celeb or 3D-Speaker
            licence="Apache-2.0",
            figures={
                "VoxCeleb1-O EER %": 0.862,
                "VoxCeleb1-O minDCF (p 0.01)": 0.094,
                "source": "model card of speech_ecapa-tdnn_sv_en_voxceleb_16k",
            },
        ),
    ),
)
