"""3D-Speaker and ModelScope: `ecapa_tdnn.bin`, `ecapa-tdnn.ckpt`, with `configuration.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ecapa_jax.convert.family import Companions, Family
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.errors import ConversionError
from ecapa_jax.io.bundle import Scoring
from ecapa_jax.presets import PRESETS

FILES = ("ecapa_tdnn.bin", "ecapa-tdnn.ckpt")


def _configuration(weights: Path) -> dict[str, Any] | None:
    """The `model` part of configuration.json, if there is one that speaks of these weights."""
    path = weights.parent / "configuration.json"
    if not path.is_file():
        return None
    try:
        model = json.loads(path.read_text())["model"]
        named = model["pretrained_model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path} is not a ModelScope configuration ({error!r}): remove it or mend it") from error
    return model if named == weights.name else None


def recognises(weights: Path) -> bool:
    """By the published file names, or by a configuration.json that names this file."""
    return weights.name in FILES or _configuration(weights) is not None


def companions(weights: Path) -> Companions:
    """Threshold and sample rate of configuration.json; the 3D-Speaker preset without it.

    Reference: `modelscope.pipelines.audio.speaker_verification_light_pipeline` (yesOrno_thr).
    """
    model = _configuration(weights)
    preset = PRESETS["3dspeaker"]
    if model is None:
        return Companions(config=preset)
    kind = model.get("type", "ecapa-tdnn-sv")
    if "ecapa" not in str(kind):
        raise ConversionError(f"{weights.parent / 'configuration.json'} says model type {kind!r}, not ECAPA-TDNN")
    rate = model.get("model_config", {}).get("sample_rate", preset.fbank.sample_rate)
    if rate != preset.fbank.sample_rate:
        raise ConversionError(f"{weights.parent / 'configuration.json'} says {rate} Hz; the front end is for 16000 Hz")
    threshold = model.get("yesOrno_thr")
    if threshold is not None and not (isinstance(threshold, int | float) and -1 <= threshold <= 1):
        raise ConversionError(f"{weights.parent / 'configuration.json'}: yesOrno_thr is {threshold!r}, not in [-1, 1]")
    return Companions(config=preset, scoring=Scoring(threshold=threshold))


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
    licence="Apache-2.0",
    published={
        "VoxCeleb1-O EER %": 0.862,
        "VoxCeleb1-O minDCF (p 0.01)": 0.094,
        "source": "model card of speech_ecapa-tdnn_sv_en_voxceleb_16k",
    },
)
