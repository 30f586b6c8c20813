"""Tests of error rates with turns whose errors are known."""

import pytest

from ecapa_jax.diarization.error_rate import error_rates
from ecapa_jax.diarization.turns import Turn
from ecapa_jax.errors import DiarizationError

pytest.importorskip("pyannote.metrics", reason="needs pyannote.metrics: pip install 'ecapa-jax[diarize]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

REFERENCE = [Turn(0, 10, "ann"), Turn(10, 20, "bob")]


def test_speaker_names_do_not_affect_the_error():
    overall, _ = error_rates({"a": REFERENCE}, {"a": [Turn(0, 10, "1"), Turn(10, 20, "2")]})
    assert overall.der == overall.jer == 0
    assert (overall.speakers, overall.found, overall.counts_right) == (2, 2, 1)


def test_miss_false_alarm_and_confusion_are_reported():
    result = [Turn(0, 8, "1"), Turn(10, 20, "2"), Turn(20, 21, "2")]
    overall, each = error_rates({"a": REFERENCE}, {"a": result})
    assert overall.miss == pytest.approx(0.1)
    assert overall.false_alarm == pytest.approx(0.05)
    assert overall.confusion == 0
    assert each["a"].der == overall.der == pytest.approx(0.15)
    swapped, _ = error_rates({"a": REFERENCE}, {"a": [Turn(0, 10, "1"), Turn(10, 15, "1"), Turn(15, 20, "2")]})
    assert swapped.confusion == pytest.approx(0.25)


def test_collar_applies_to_each_side():
    late = {"a": [Turn(0.2, 10.2, "1"), Turn(10.2, 20.2, "2")]}
    assert error_rates({"a": REFERENCE}, late)[0].der > 0.01
    assert error_rates({"a": REFERENCE}, late, collar=0.25)[0].der == 0
    assert error_rates({"a": REFERENCE}, late, collar=0.15)[0].der > 0


def test_only_uem_parts_are_scored():
    wrong = {"a": [Turn(0, 10, "1")]}
    assert error_rates({"a": REFERENCE}, wrong, parts={"a": [(0.0, 10.0)]})[0].der == 0


def test_missing_recording_counts_as_silence_and_interval_needs_three_recordings():
    reference = dict.fromkeys("abc", REFERENCE)
    overall, each = error_rates(reference, {"a": REFERENCE, "b": REFERENCE})
    assert each["c"].miss == 1
    assert overall.low <= overall.der <= overall.high
    assert error_rates({"a": REFERENCE}, {"a": REFERENCE})[0].low is None


@pytest.mark.parametrize(
    ("result", "options", "says"),
    [
        ({"b": REFERENCE}, {}, "which the reference lacks"),
        ({"a": REFERENCE}, {"parts": {"other": [(0.0, 1.0)]}}, "no part of 'a'"),
        ({"a": REFERENCE}, {"collar": -1.0}, "collar"),
    ],
)
def test_invalid_input_is_refused(result, options, says):
    with pytest.raises(DiarizationError, match=says):
        error_rates({"a": REFERENCE}, result, **options)
