"""ECAPA-TDNN speaker verification in JAX.

Start here: `load` a model, `embed` and `verify` recordings with it. In your own jit: `embed`, `cosine`, `score_matrix`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecapa_jax.api import SpeakerVerificationPipeline, load, pipeline
    from ecapa_jax.config import EcapaConfig, FbankConfig, ModelConfig, StdConfig
    from ecapa_jax.diarization.diarize import diarize
    from ecapa_jax.diarization.result import Diarization, Speaker
    from ecapa_jax.diarization.streaming import Diarizer
    from ecapa_jax.diarization.turns import Turn
    from ecapa_jax.encoder import SilenceWarning, SpeakerEncoder
    from ecapa_jax.errors import (
        AudioError,
        BundleError,
        ConfigError,
        ConversionError,
        DiarizationError,
        DownloadError,
        EcapaError,
        ScoringError,
    )
    from ecapa_jax.features.fbank import fbank
    from ecapa_jax.functional import abstract, apply, embed, fold, init, minimum_samples
    from ecapa_jax.presets import PRESETS
    from ecapa_jax.scorer import Scorer, Verification
    from ecapa_jax.scoring.cosine import cosine, score_matrix
    from ecapa_jax.scoring.normalisation import CohortStatistics, as_norm, cohort_statistics, s_norm, t_norm, z_norm
    from ecapa_jax.scoring.search import search

_HOME = {
    "ecapa_jax.api": ("SpeakerVerificationPipeline", "load", "pipeline"),
    "ecapa_jax.config": ("EcapaConfig", "FbankConfig", "ModelConfig", "StdConfig"),
    "ecapa_jax.diarization.diarize": ("diarize",),
    "ecapa_jax.diarization.result": ("Diarization", "Speaker"),
    "ecapa_jax.diarization.streaming": ("Diarizer",),
    "ecapa_jax.diarization.turns": ("Turn",),
    "ecapa_jax.encoder": ("SilenceWarning", "SpeakerEncoder"),
    "ecapa_jax.errors": (
        "AudioError",
        "BundleError",
        "ConfigError",
        "ConversionError",
        "DiarizationError",
        "DownloadError",
        "EcapaError",
        "ScoringError",
    ),
    "ecapa_jax.features.fbank": ("fbank",),
    "ecapa_jax.functional": ("abstract", "apply", "embed", "fold", "init", "minimum_samples"),
    "ecapa_jax.presets": ("PRESETS",),
    "ecapa_jax.scorer": ("Scorer", "Verification"),
    "ecapa_jax.scoring.cosine": ("cosine", "score_matrix"),
    "ecapa_jax.scoring.normalisation": (
        "CohortStatistics",
        "as_norm",
        "cohort_statistics",
        "s_norm",
        "t_norm",
        "z_norm",
    ),
    "ecapa_jax.scoring.search": ("search",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import ecapa_jax` costs nothing."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ecapa_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
