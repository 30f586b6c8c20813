"""ECAPA-TDNN speaker verification in JAX.

Start here: `load` a model, `embed` and `verify` recordings with it. In your own jit: `embed`, `cosine`, `score_matrix`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Type checkers and editors read the imports, Python reads the table below them; a test compares the two and `__all__`.
if TYPE_CHECKING:
    from ecapa_jax.api import load as load
    from ecapa_jax.audio.recordings import NoSpeechWarning as NoSpeechWarning
    from ecapa_jax.audio.recordings import SilenceWarning as SilenceWarning
    from ecapa_jax.compat.modelscope import SpeakerVerificationPipeline as SpeakerVerificationPipeline
    from ecapa_jax.compat.modelscope import pipeline as pipeline
    from ecapa_jax.config import EcapaConfig as EcapaConfig
    from ecapa_jax.config import FbankConfig as FbankConfig
    from ecapa_jax.config import ModelConfig as ModelConfig
    from ecapa_jax.config import StdConfig as StdConfig
    from ecapa_jax.diarization.diarize import diarize as diarize
    from ecapa_jax.diarization.result import Diarization as Diarization
    from ecapa_jax.diarization.result import Speaker as Speaker
    from ecapa_jax.diarization.streaming import Diarizer as Diarizer
    from ecapa_jax.diarization.turns import Turn as Turn
    from ecapa_jax.encoder import SpeakerEncoder as SpeakerEncoder
    from ecapa_jax.errors import AudioError as AudioError
    from ecapa_jax.errors import BundleError as BundleError
    from ecapa_jax.errors import ConfigError as ConfigError
    from ecapa_jax.errors import ConversionError as ConversionError
    from ecapa_jax.errors import DiarizationError as DiarizationError
    from ecapa_jax.errors import DownloadError as DownloadError
    from ecapa_jax.errors import EcapaError as EcapaError
    from ecapa_jax.errors import ScoringError as ScoringError
    from ecapa_jax.features.fbank import fbank as fbank
    from ecapa_jax.functional import abstract as abstract
    from ecapa_jax.functional import apply as apply
    from ecapa_jax.functional import embed as embed
    from ecapa_jax.functional import fold as fold
    from ecapa_jax.functional import init as init
    from ecapa_jax.functional import minimum_samples as minimum_samples
    from ecapa_jax.presets import PRESETS as PRESETS
    from ecapa_jax.scoring.cosine import cosine as cosine
    from ecapa_jax.scoring.cosine import score_matrix as score_matrix
    from ecapa_jax.scoring.normalisation import CohortStatistics as CohortStatistics
    from ecapa_jax.scoring.normalisation import as_norm as as_norm
    from ecapa_jax.scoring.normalisation import cohort_statistics as cohort_statistics
    from ecapa_jax.scoring.normalisation import s_norm as s_norm
    from ecapa_jax.scoring.normalisation import t_norm as t_norm
    from ecapa_jax.scoring.normalisation import z_norm as z_norm
    from ecapa_jax.scoring.scorer import Scorer as Scorer
    from ecapa_jax.scoring.scorer import Verification as Verification
    from ecapa_jax.scoring.search import search as search

__version__: str  # read from the installed distribution on first use, in `__getattr__`

_MODULE_OF = {
    "load": "ecapa_jax.api",
    "NoSpeechWarning": "ecapa_jax.audio.recordings",
    "SilenceWarning": "ecapa_jax.audio.recordings",
    "SpeakerVerificationPipeline": "ecapa_jax.compat.modelscope",
    "pipeline": "ecapa_jax.compat.modelscope",
    "EcapaConfig": "ecapa_jax.config",
    "FbankConfig": "ecapa_jax.config",
    "ModelConfig": "ecapa_jax.config",
    "StdConfig": "ecapa_jax.config",
    "Diarization": "ecapa_jax.diarization.result",
    "Speaker": "ecapa_jax.diarization.result",
    "Diarizer": "ecapa_jax.diarization.streaming",
    "Turn": "ecapa_jax.diarization.turns",
    "diarize": "ecapa_jax.diarization.diarize",
    "SpeakerEncoder": "ecapa_jax.encoder",
    "AudioError": "ecapa_jax.errors",
    "BundleError": "ecapa_jax.errors",
    "ConfigError": "ecapa_jax.errors",
    "ConversionError": "ecapa_jax.errors",
    "DiarizationError": "ecapa_jax.errors",
    "DownloadError": "ecapa_jax.errors",
    "EcapaError": "ecapa_jax.errors",
    "ScoringError": "ecapa_jax.errors",
    "fbank": "ecapa_jax.features.fbank",
    "abstract": "ecapa_jax.functional",
    "apply": "ecapa_jax.functional",
    "embed": "ecapa_jax.functional",
    "fold": "ecapa_jax.functional",
    "init": "ecapa_jax.functional",
    "minimum_samples": "ecapa_jax.functional",
    "PRESETS": "ecapa_jax.presets",
    "cosine": "ecapa_jax.scoring.cosine",
    "score_matrix": "ecapa_jax.scoring.cosine",
    "CohortStatistics": "ecapa_jax.scoring.normalisation",
    "as_norm": "ecapa_jax.scoring.normalisation",
    "cohort_statistics": "ecapa_jax.scoring.normalisation",
    "s_norm": "ecapa_jax.scoring.normalisation",
    "t_norm": "ecapa_jax.scoring.normalisation",
    "z_norm": "ecapa_jax.scoring.normalisation",
    "Scorer": "ecapa_jax.scoring.scorer",
    "Verification": "ecapa_jax.scoring.scorer",
    "search": "ecapa_jax.scoring.search",
}

__all__ = [
    "PRESETS",
    "AudioError",
    "BundleError",
    "CohortStatistics",
    "ConfigError",
    "ConversionError",
    "Diarization",
    "DiarizationError",
    "Diarizer",
    "DownloadError",
    "EcapaConfig",
    "EcapaError",
    "FbankConfig",
    "ModelConfig",
    "NoSpeechWarning",
    "Scorer",
    "ScoringError",
    "SilenceWarning",
    "Speaker",
    "SpeakerEncoder",
    "SpeakerVerificationPipeline",
    "StdConfig",
    "Turn",
    "Verification",
    "abstract",
    "apply",
    "as_norm",
    "cohort_statistics",
    "cosine",
    "diarize",
    "embed",
    "fbank",
    "fold",
    "init",
    "load",
    "minimum_samples",
    "pipeline",
    "s_norm",
    "score_matrix",
    "search",
    "t_norm",
    "z_norm",
]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import ecapa_jax` costs nothing."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("ecapa-jax")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ecapa_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
