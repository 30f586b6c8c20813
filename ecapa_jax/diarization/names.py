"""Gives the speakers of a recording the names of enrolled people, and enrols speakers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from ecapa_jax.diarization.result import Diarization
from ecapa_jax.errors import StoreError
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.scoring.scorer import check_threshold

_CANDIDATES = 50


def link_speakers(result: Diarization, store: SpeakerStore, threshold: float | None = None) -> Diarization:
    """Renames speakers who are enrolled. A person is at most one of the speakers; unknown speakers keep their names.

    Args:
      result: diarization by the model of the store.
      store: the enrolled people.
      threshold: smallest cosine at which a speaker counts as an enrolled person; None takes the threshold of the model.

    Raises:
      ConfigError: the threshold lies outside [-1, 1].
      StoreError: neither the caller nor the model gives a threshold, or the store can't be read.
    """
    if not result.speakers:
        return result
    lowest = store.threshold if threshold is None else check_threshold(threshold)
    if lowest is None:
        raise StoreError("this model has no threshold to recognise enrolled people with: give one (--threshold)")
    rows = store.search(np.stack([speaker.embedding for speaker in result.speakers]), top=_CANDIDATES)
    people = list(dict.fromkeys(candidate.name for row in rows for candidate in row if candidate.score >= lowest))
    if not people:
        return result
    scores = np.full((len(rows), len(people)), -2.0)
    for index, row in enumerate(rows):
        for candidate in row:
            if candidate.score >= lowest:
                scores[index, people.index(candidate.name)] = candidate.score
    names, name_scores = {}, {}
    for row_index, column in zip(*linear_sum_assignment(-scores), strict=True):
        if scores[row_index, column] >= lowest:
            speaker = result.speakers[row_index].name
            names[speaker], name_scores[speaker] = people[column], float(scores[row_index, column])
    return result.rename(names, name_scores)


def enroll_speakers(result: Diarization, store: SpeakerStore, names: Mapping[str, str], source: str) -> int:
    """Enrols speakers of a recording in a store.

    Args:
      result: diarization by the model of the store.
      store: the store in which the speakers are enrolled.
      names: name of each person by name of the speaker, such as `speaker_2`.
      source: name of the recording, which the store keeps for people.

    Returns:
      The number of new embeddings.

    Raises:
      StoreError: the recording has no speaker of this name, or the store can't be written.
    """
    by_name = {speaker.name: speaker for speaker in result.speakers}
    for name in names:
        if name not in by_name:
            raise StoreError(f"{source} has no speaker {name!r}; it has {', '.join(by_name) or 'no speakers'}")
    embeddings = np.stack([by_name[name].embedding for name in names])
    return store.enroll_embeddings(list(names.values()), embeddings, source=source)
