"""Runs an evaluation: scores every trial of some lists. Everything is checked before the work starts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int64

from ecapa_jax.config import Short
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import TrialError
from ecapa_jax.evaluation.cache import EmbeddingCache
from ecapa_jax.evaluation.files import Progress, embed_files, find_files, locate
from ecapa_jax.evaluation.scores import (
    average_enrolments,
    finish_scores,
    map_cosines,
    normalise,
    score_pairs,
    speaker_vectors,
)
from ecapa_jax.evaluation.trials import Trials
from ecapa_jax.scoring.cosine import unit
from ecapa_jax.scoring.normalisation import check_no_overlap, speaker_means


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortRecordings:
    """The recordings of a cohort, with which scores are normalised.

    Attributes:
      speakers: speaker of each recording, by its path below `root`.
      root: folder of the cohort.
      top_n: number of most similar speakers that count; None is all.
    """

    speakers: Mapping[str, str]
    root: Path
    top_n: int | None = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """A list with its scores.

    Attributes:
      trials: the list.
      scores: scores by system: `model` if the model normalises or calibrates; `plain`; `as-norm` with a cohort.
      sides: quality measures (`MEASURES`) of the enrolment and test side of each trial, by name.
      seconds: [trials], duration of the shorter side; that of an enrolment model is the sum over its utterances.
      n_files: number of recordings that the list needs.
    """

    trials: Trials
    scores: Mapping[str, Float64[np.ndarray, " trials"]]
    seconds: Float64[np.ndarray, " trials"]
    n_files: int
    sides: Mapping[str, Float64[np.ndarray, "2 trials"]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class _ListedRecordings:
    """The recordings of all lists, each path once."""

    rows: dict[Path, int] = dataclasses.field(default_factory=dict)

    def add(self, paths: Sequence[Path]) -> list[int]:
        return [self.rows.setdefault(path, len(self.rows)) for path in paths]


def score_lists(
    encoder: SpeakerEncoder,
    lists: Sequence[Trials],
    root: str | os.PathLike[str],
    cache_path: str | os.PathLike[str],
    *,
    enrolment: Mapping[str, Sequence[str]] | None = None,
    cohort: CohortRecordings | None = None,
    short: Short = "error",
    vad: bool = False,
    missing_to: Path | None = None,
    places: Mapping[str, str] | None = None,
    progress: Progress = lambda *_: None,
) -> list[Scored]:
    """Embeds every recording once and scores every trial.

    Args:
      encoder: the model, with its scoring.
      lists: trial lists. Their names are paths below `root`, or on the enrolment side names of `enrolment`.
      root: folder of the audio.
      cache_path: file of the embedding cache.
      enrolment: utterances of each enrolment model; None if the lists enrol single recordings.
      cohort: cohort for normalised scores in addition to the plain ones.
      short, vad: as for `SpeakerEncoder.embed`.
      missing_to: file to which the names of all missing recordings are written.
      places: paths of the recordings, if the lists name them by ids.
      progress: called from time to time.

    Raises:
      TrialError: recordings or models are missing, or recordings of the cohort are in a list.
      ScoringError: speakers of the cohort, or of the cohort in the model, are in a list.
      AudioError, Stopped: as `embed_files`.
    """
    _check_own_cohort(encoder, lists)
    models = [_find_models(trials, enrolment) for trials in lists]
    names = [_list_files(trials, groups) for trials, groups in zip(lists, models, strict=True)]
    cohort_names = list(cohort.speakers) if cohort else []
    every = list(dict.fromkeys(name for group in names for name in group))
    find_files(every, root, missing_to, places)
    wanted = _ListedRecordings()
    rows = [wanted.add(locate(group, root, places)) for group in names]
    cohort_rows = wanted.add(find_files(cohort_names, cohort.root, missing_to, places)) if cohort else []
    if cohort:
        _check_cohort(cohort, lists, set(cohort_rows) & {row for group in rows for row in group}, list(wanted.rows))
    shape = encoder.scorer.n_views, encoder.config.ecapa.embedding_dim
    model = f"{encoder.fingerprint}:{shape[0]}" + (":vad" if vad else "")
    with EmbeddingCache(cache_path, model, shape) as cache:
        embedded = embed_files(encoder, list(wanted.rows), cache, short=short, vad=vad, progress=progress)
    vectors = speaker_vectors(encoder, embedded.embeddings)
    means = _cohort_means(encoder, embedded.embeddings[cohort_rows, 0], cohort) if cohort else None
    magnitudes = np.linalg.norm(embedded.embeddings[:, 0].astype(np.float64), axis=1)
    scored = []
    for trials, groups, files, at in zip(lists, models, names, rows, strict=True):
        own = dict(zip(files, at, strict=True))
        model_rows = [[own[name] for name in group] for group in groups.values()]
        pairs = _find_pairs(trials, list(groups), own)
        sides = _measure_sides(embedded.seconds, magnitudes, model_rows, pairs)
        top_n = None if cohort is None else cohort.top_n
        scores = _score_kinds(encoder, average_enrolments(vectors, model_rows), vectors, pairs, sides, means, top_n)
        scored.append(Scored(trials, scores, sides["duration"].min(axis=0), len(set(at)), sides))
    return scored


def _score_kinds(
    encoder: SpeakerEncoder,
    enrol: Float[Array, "models parts embedding"],
    vectors: Float[Array, "files parts embedding"],
    pairs: Int64[np.ndarray, "2 trials"],
    sides: Mapping[str, Float64[np.ndarray, "2 trials"]],
    means: Float[Array, "cohort embedding"] | None,
    top_n: int | None,
) -> dict[str, Float64[np.ndarray, " trials"]]:
    """Scores the trials of a list in each way: as the model scores if that is more than a cosine, plain, normalised."""
    cosines = score_pairs(enrol, vectors, pairs)
    scores = {"plain": map_cosines(encoder, cosines)}
    if means is not None:
        scores["as-norm"] = normalise(cosines, enrol, vectors, pairs, means, top_n)
    if not encoder.scorer.scoring.bounded:
        scores = {"model": finish_scores(encoder.scorer, cosines, enrol, vectors, pairs, sides), **scores}
    return scores


def _cohort_means(
    encoder: SpeakerEncoder, embeddings: Float32[np.ndarray, "files embedding"], cohort: CohortRecordings
) -> Float[Array, "cohort embedding"]:
    _, rows = speaker_means(embeddings, list(cohort.speakers.values()))
    return unit(encoder.scorer.centre(rows))


def _check_own_cohort(encoder: SpeakerEncoder, lists: Sequence[Trials]) -> None:
    if encoder.scorer.scoring.normalisation != "none" and encoder.scorer.cohort is not None:
        for trials in lists:
            check_no_overlap(encoder.scorer.cohort.speakers, trials.speakers or ())


def _measure_sides(
    seconds: np.ndarray, magnitudes: np.ndarray, model_rows: Sequence[Sequence[int]], pairs: np.ndarray
) -> dict[str, Float64[np.ndarray, "2 trials"]]:
    """Returns duration and magnitude of both sides of each trial.

    The duration of an enrolment model is the sum over its recordings; its magnitude is the mean.
    """
    return {
        "duration": _select_sides(seconds, [seconds[group].sum() for group in model_rows], pairs),
        "magnitude": _select_sides(magnitudes, [magnitudes[group].mean() for group in model_rows], pairs),
    }


def _select_sides(files: np.ndarray, models: Sequence[float], pairs: np.ndarray) -> Float64[np.ndarray, "2 trials"]:
    """Selects the values of the enrolment side and of the test side of each trial."""
    return np.stack([np.asarray(models, np.float64)[pairs[0]], files[pairs[1]]])


def _find_models(trials: Trials, enrolment: Mapping[str, Sequence[str]] | None) -> dict[str, Sequence[str]]:
    """Finds the utterances of each enrolled name."""
    names = [trials.names[number] for number in np.unique(trials.enrol)]
    if enrolment is None:
        return {name: (name,) for name in names}
    if missing := [name for name in names if name not in enrolment]:
        raise TrialError(
            f"{trials.path}: {len(missing)} of {len(names)} enrolled names have no line in the enrolment file, such as "
            f"{missing[0]}"
        )
    return {name: enrolment[name] for name in names}


def _list_files(trials: Trials, models: Mapping[str, Sequence[str]]) -> list[str]:
    tested = [trials.names[number] for number in np.unique(trials.test)]
    return list(dict.fromkeys([*(name for group in models.values() for name in group), *tested]))


def _find_pairs(trials: Trials, models: Sequence[str], files: Mapping[str, int]) -> np.ndarray:
    model_at = {name: row for row, name in enumerate(models)}
    enrol = np.array([model_at.get(name, -1) for name in trials.names], np.int64)
    test = np.array([files.get(name, -1) for name in trials.names], np.int64)
    return np.stack([enrol[trials.enrol], test[trials.test]])


def _check_cohort(cohort: CohortRecordings, lists: Sequence[Trials], shared: set[int], paths: Sequence[Path]) -> None:
    if shared:
        raise TrialError(f"{len(shared)} recordings of the cohort are also in the trials, such as {paths[min(shared)]}")
    for trials in lists:
        check_no_overlap(cohort.speakers.values(), trials.speakers or ())
