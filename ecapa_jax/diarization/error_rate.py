"""Measures the errors of a diarization by pyannote.metrics: DER and its parts, JER, and numbers of speakers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecapa_jax.diarization.turns import Turn
from ecapa_jax.errors import DiarizationError

RESAMPLES = 1000
FEWEST_RECORDINGS = 3
"""Smallest number of recordings for which an interval is computed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """The errors of the turns of one or more recordings. Rates are shares of the speech in the reference.

    Attributes:
      recordings: number of recordings.
      seconds: duration of the scored speech in the reference; speech of two people at once counts twice.
      der: diarization error rate, `miss + false_alarm + confusion`.
      miss: speech that is assigned to nobody.
      false_alarm: time without speech that is assigned to somebody.
      confusion: speech that is assigned to the wrong speaker.
      jer: Jaccard error rate, in which all speakers count equally.
      speakers: number of speakers in the reference, summed over recordings.
      found: number of speakers in the result, summed over recordings.
      counts_right: number of recordings with the right number of speakers.
      low, high: 95 % bootstrap interval of the DER over recordings; None with fewer than `FEWEST_RECORDINGS`.
    """

    recordings: int
    seconds: float
    der: float
    miss: float
    false_alarm: float
    confusion: float
    jer: float
    speakers: int
    found: int
    counts_right: int
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class _Parts:
    total: float
    miss: float
    false_alarm: float
    confusion: float
    speaker_error: float
    speaker_count: float
    reference: int
    hypothesis: int


def error_rates(
    reference: Mapping[str, Sequence[Turn]],
    hypothesis: Mapping[str, Sequence[Turn]],
    *,
    collar: float = 0.0,
    parts: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    seed: int = 0,
) -> tuple[ErrorRate, dict[str, ErrorRate]]:
    """Compares turns with the turns of a reference.

    Args:
      reference, hypothesis: turns by name of the recording. A recording that the hypothesis lacks counts as silence.
      collar: seconds on each side of a boundary in the reference that are not scored.
      parts: the parts of each recording that are scored, as `read_uem` returns them; None scores from the first turn to
        the last.
      seed: seed of the bootstrap.

    Returns:
      The errors of all recordings together, and the errors by recording.

    Raises:
      DiarizationError: pyannote.metrics is not installed, the reference is empty, the hypothesis has a recording that
        the reference lacks, or `parts` lacks a recording of the reference.
    """
    if not reference:
        raise DiarizationError("the reference holds no turns; give one that does")
    unknown = sorted(set(hypothesis) - set(reference))
    if unknown:
        raise DiarizationError(
            f"the result has {unknown[0]!r}, which the reference lacks (it has {_list_some(reference)}); compare "
            "files of the same recordings"
        )
    if parts is not None and (missing := sorted(set(reference) - set(parts))):
        raise DiarizationError(
            f"the UEM file has no part of {missing[0]!r} (it has {_list_some(parts)}); give a UEM file of these "
            "recordings"
        )
    if not collar >= 0:
        raise DiarizationError(f"the collar is {collar}; it must be 0 or more seconds")
    compared = {
        name: _compare(turns, hypothesis.get(name, ()), collar, None if parts is None else parts[name])
        for name, turns in reference.items()
    }
    listed = list(compared.values())
    overall = _sum_parts(listed)
    if len(listed) >= FEWEST_RECORDINGS:
        rng = np.random.default_rng(seed)
        draws = rng.integers(len(listed), size=(RESAMPLES, len(listed)))
        errors = np.array([part.miss + part.false_alarm + part.confusion for part in listed])
        totals = np.array([part.total for part in listed])
        rates = errors[draws].sum(axis=1) / np.maximum(totals[draws].sum(axis=1), 1e-9)
        low, high = np.quantile(rates, [0.025, 0.975])
        overall = dataclasses.replace(overall, low=float(low), high=float(high))
    return overall, {name: _sum_parts([part]) for name, part in compared.items()}


def _list_some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def _compare(
    reference: Sequence[Turn],
    hypothesis: Sequence[Turn],
    collar: float,
    parts: Sequence[tuple[float, float]] | None,
) -> _Parts:
    try:
        from pyannote.core import Annotation, Segment, Timeline
        from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate
    except ImportError as error:
        raise DiarizationError("error rates need pyannote.metrics: pip install 'ecapa-jax[diarize]'") from error

    def make_annotation(turns: Sequence[Turn]) -> Any:
        result = Annotation()
        for index, turn in enumerate(turns):
            result[Segment(turn.start, turn.end), index] = turn.speaker
        return result

    if parts is None:
        everything = [*reference, *hypothesis]
        parts = [(min(turn.start for turn in everything), max(turn.end for turn in everything))]
    scored = Timeline([Segment(start, end) for start, end in parts])
    # The collar of pyannote.metrics is the whole width around a boundary, with half of it on each side.
    options: dict[str, Any] = {"collar": 2 * collar, "skip_overlap": False}
    wanted, found = make_annotation(reference), make_annotation(hypothesis)
    der = DiarizationErrorRate(**options)(wanted, found, uem=scored, detailed=True)
    jer = JaccardErrorRate(**options)(wanted, found, uem=scored, detailed=True)
    return _Parts(
        der["total"],
        der["missed detection"],
        der["false alarm"],
        der["confusion"],
        jer["speaker error"],
        jer["speaker count"],
        len({turn.speaker for turn in reference}),
        len({turn.speaker for turn in hypothesis}),
    )


def _sum_parts(parts: Sequence[_Parts]) -> ErrorRate:
    total = max(sum(part.total for part in parts), 1e-9)
    miss, false_alarm, confusion = (
        sum(getattr(part, name) for part in parts) / total for name in ("miss", "false_alarm", "confusion")
    )
    n_speakers = sum(part.speaker_count for part in parts)
    return ErrorRate(
        recordings=len(parts),
        seconds=round(sum(part.total for part in parts), 3),
        der=miss + false_alarm + confusion,
        miss=miss,
        false_alarm=false_alarm,
        confusion=confusion,
        jer=sum(part.speaker_error for part in parts) / max(n_speakers, 1e-9),
        speakers=sum(part.reference for part in parts),
        found=sum(part.hypothesis for part in parts),
        counts_right=sum(part.reference == part.hypothesis for part in parts),
    )
