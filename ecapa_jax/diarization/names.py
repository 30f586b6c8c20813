"""Names for the speakers of a recording: who of them is enrolled in a store."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from ecapa_jax.diarization.result import Diarization
from ecapa_jax.errors import StoreError
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.scoring.scorer import checked_threshold

_CANDIDATES = 50


def link_speakers(result: Diarization, store: SpeakerStore, threshold: float | None = None) -> Diarization:
    """Names speakers who are enrolled; one person is at most one of them, and whoever is unknown keeps the name.

    Args:
      result: as `diarize` gives it, with the store's model.
      store: who is enrolled.
      threshold: least cosine to be somebody; None takes the model's.

    Raises:
      ConfigError: the threshold lies outside [-1, 1].
      StoreError: there is no threshold, or the store can't be read.
    """
    if not result.speakers:
        return result
    least = store.threshold if threshold is None else checked_threshold(threshold)
    if least is None:
        raise StoreError("this model has no threshold to recognise enrolled people with: give one (--threshold)")
    rows = store.search(np.stack([speaker.embedding for speaker in result.speakers]), top=_CANDIDATES)
    people = list(dict.fromkeys(candidate.name for row in rows for candidate in row if candidate.score >= least))
    if not people:
        return result
    scores = np.full((len(rows), len(people)), -2.0)
    for index, row in enumerate(rows):
        for candidate in row:
            if candidate.score >= least:
                scores[index, people.index(candidate.name)] = candidate.score
    names, found = {}, {}
    for row_index, column in zip(*linear_sum_assignment(-scores), strict=True):
        if scores[row_index, column] >= least:
            speaker = result.speakers[row_index].name
            names[speaker], found[speaker] = people[column], float(scores[row_index, column])
    return result.renamed(names, found)


def enroll_speakers(result: Diarization, store: SpeakerStore, names: Mapping[str, str], source: str) -> int:
    """Adds speakers of a recording to a store under names that somebody gave them.

    Args:
      result: as `diarize` gives it, with the store's model.
      store: where they go.
      names: the person's name by the speaker's, as `speaker_2`.
      source: the recording, for the reader of the store.

    Returns:
      How many were new.

    Raises:
      StoreError: there is no such speaker, or the store can't be written.
    """
    by_name = {speaker.name: speaker for speaker in result.speakers}
    for name in names:
        if name not in by_name:
            raise StoreError(f"there is no {name!r} in {source}; it has {', '.join(by_name) or 'no speakers'}")
    embeddings = np.stack([by_name[name].embedding for name in names])
    return store.enroll_embeddings(list(names.values()), embeddings, source=source)
