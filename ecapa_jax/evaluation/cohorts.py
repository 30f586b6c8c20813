"""Makes a cohort from recordings: finds the speakers, and embeds their recordings for a bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ecapa_jax.config import Short
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import TrialError
from ecapa_jax.evaluation.cache import EmbeddingCache
from ecapa_jax.evaluation.files import Progress, embed_files, find_files
from ecapa_jax.evaluation.trials import read_speakers
from ecapa_jax.files.recordings import find_audio
from ecapa_jax.scoring.config import Cohort
from ecapa_jax.scoring.normalisation import speaker_means


def read_cohort(source: str | os.PathLike[str], root: str | os.PathLike[str]) -> dict[Path, str]:
    """Finds recordings and their speakers.

    Args:
      source: a folder with one folder per speaker, which contains recordings at any depth; or a file with
        `recording speaker` on each line.
      root: folder to which the paths in the file are relative.

    Raises:
      TrialError: there are no recordings, some are missing, or the file is damaged.
    """
    if not os.path.isdir(source):
        speakers = read_speakers(source)
        paths = find_files(list(speakers), root)
        return dict(zip(paths, speakers.values(), strict=True))
    folder = Path(source)
    found = {
        path: path.relative_to(folder).parts[0]
        for path in find_audio(folder)
        if len(path.relative_to(folder).parts) > 1
    }
    if not found:
        raise TrialError(f"{folder} has no recordings in folders: give a folder with one folder per speaker")
    return found


def embed_cohort(
    encoder: SpeakerEncoder,
    speakers: Mapping[Path, str],
    cache_path: str | os.PathLike[str],
    *,
    by_speaker: bool = True,
    short: Short = "error",
    progress: Progress = lambda *_: None,
) -> Cohort:
    """Embeds a cohort: one row per speaker, which is the mean of the embeddings, or one row per recording.

    Raises:
      TrialError: there would be only one row.
      AudioError, Stopped: as `embed_files`.
    """
    shape = (1, encoder.config.ecapa.embedding_dim)
    with EmbeddingCache(cache_path, f"{encoder.fingerprint}:1", shape) as cache:
        embedded = embed_files(encoder, list(speakers), cache, short=short, progress=progress)
    rows, names = embedded.embeddings[:, 0], list(speakers.values())
    if by_speaker:
        names, rows = speaker_means(rows, names)
    if len(rows) < 2:
        raise TrialError(f"normalisation needs a cohort of at least two speakers, this one has {len(rows)}")
    return Cohort(rows, tuple(names))
