"""How wrong a diarization is: DER and its parts, JER, numbers of speakers, and intervals, by pyannote.metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ecapa_jax.diarization.turns import Turn
from ecapa_jax.errors import DiarizationError

RESAMPLES = 1000
FEWEST_RECORDINGS = 3
"""Recordings that an interval needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """How wrong the turns of one or more recordings are; rates are shares of the reference's speech.

    Attributes:
      recordings: how many.
      seconds: speech of the reference that is scored; speech of two speakers at once counts twice.
      der: diarization error rate, `miss + false_alarm + confusion`.
      miss: speech that nobody is given.
      false_alarm: what is given to somebody and is no speech.
      confusion: what is given to the wrong speaker.
      jer: Jaccard error rate, each speaker counting alike.
      speakers: in the reference, summed over recordings.
      found: in the result, summed over recordings.
      counts_right: recordings with the right number of speakers.
      low, high: interval of the DER, 95 %, recordings drawn anew; None with fewer than `FEWEST_RECORDINGS`.
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
    """Compares turns with those of a reference.

    Args:
      reference, hypothesis: turns by recording. A recording that the hypothesis lacks counts as silence.
      collar: seconds on each side of a reference's boundary that are not scored.
      parts: which parts of each recording are scored, as `read_uem` gives them; None scores from the first turn to the
        last.
      seed: of the interval's draws.

    Returns:
      Of all recordings together, and by recording.

    Raises:
      DiarizationError: pyannote.metrics is not installed, there is no reference, the hypothesis is of other recordings,
        or `parts` lacks one.
    """
    if not reference:
        raise DiarizationError("the reference holds no turns; give one that does")
    unknown = sorted(set(hypothesis) - set(reference))
    if unknown:
        raise DiarizationError(
            f"the result has {unknown[0]!r}, which the reference lacks (it has {_some(reference)}); compare files of "
            "the same recordings"
        )
    if parts is not None and (missing := sorted(set(reference) - set(parts))):
        raise DiarizationError(
            f"the UEM file has no part of {missing[0]!r} (it has {_some(parts)}); give the one of these recordings"
        )
    if not collar >= 0:
        raise DiarizationError(f"the collar is {collar}; it must be 0 or more seconds")
    found = {
        name: _compare(turns, hypothesis.get(name, ()), collar, None if parts is None else parts[name])
        for name, turns in reference.items()
    }
    listed = list(found.values())
    overall = _rate(listed)
    if len(listed) >= FEWEST_RECORDINGS:
        rng = np.random.default_rng(seed)
        draws = rng.integers(len(listed), size=(RESAMPLES, len(listed)))
        errors = np.array([part.miss + part.false_alarm + part.confusion for part in listed])
        totals = np.array([part.total for part in listed])
        rates = errors[draws].sum(axis=1) / np.maximum(totals[draws].sum(axis=1), 1e-9)
        low, high = np.quantile(rates, [0.025, 0.975])
        overall = dataclasses.replace(overall, low=float(low), high=float(high))
    return overall, {name: _rate([part]) for name, part in found.items()}


def _some(names: Mapping[str, Any]) -> str:
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

    def annotation(turns: Sequence[Turn]) -> Any:
        result = Annotation()
        for index, turn in enumerate(turns):
            result[Segment(turn.start, turn.end), index] = turn.speaker
        return result

    if parts is None:
        everything = [*reference, *hypothesis]
        parts = [(min(turn.start for turn in everything), max(turn.end for turn in everything))]
    scored = Timeline([Segment(start, end) for start, end in parts])
    # pyannote's collar is the whole width around a boundary, half of it on each side.
    options = {"collar": 2 * collar, "skip_overlap": False}
    one, other = annotation(reference), annotation(hypothesis)
    der = DiarizationErrorRate(**options)(one, other, uem=scored, detailed=True)
    jer = JaccardErrorRate(**options)(one, other, uem=scored, detailed=True)
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


def _rate(found: Sequence[_Parts]) -> ErrorRate:
    total = max(sum(part.total for part in found), 1e-9)
    miss, false_alarm, confusion = (
        sum(getattr(part, name) for part in found) / total for name in ("miss", "false_alarm", "confusion")
    )
    speakers = sum(part.speaker_count for part in found)
    return ErrorRate(
        recordings=len(found),
        seconds=round(sum(part.total for part in found), 3),
        der=miss + false_alarm + confusion,
        miss=miss,
        false_alarm=false_alarm,
        confusion=confusion,
        jer=sum(part.speaker_error for part in found) / max(speakers, 1e-9),
        speakers=sum(part.reference for part in found),
        found=sum(part.hypothesis for part in found),
        counts_right=sum(part.reference == part.hypothesis for part in found),
    )
