"""Tests of the conversion of probabilities to segments, as in silero-vad's get_speech_timestamps."""

from __future__ import annotations

import numpy as np
import pytest

from ecapa_jax.errors import ConfigError
from ecapa_jax.vad import segments_from_probabilities
from ecapa_jax.vad.network import FRAME, RATE
from ecapa_jax.vad.segments import SegmentOptions
from helpers.detector import GOLDEN, random_options, random_probabilities


def samples_of(segments) -> np.ndarray:
    return np.array([(round(one.start * RATE), round(one.end * RATE)) for one in segments], np.int64).reshape(-1, 2)


def probability_runs(*pairs: tuple[float, int]) -> np.ndarray:
    return np.concatenate([np.full(count, level, np.float32) for level, count in pairs])


@pytest.mark.parametrize("seed", range(60))
def test_segments_of_random_probabilities_equal_silero(seed):
    with np.load(GOLDEN) as stored:
        expected = stored[f"{seed}/spans"]
    options = SegmentOptions(**random_options(seed))
    found = segments_from_probabilities(random_probabilities(seed), None, options)
    np.testing.assert_array_equal(samples_of(found), expected)


def test_speech_between_pauses_gives_a_padded_segment():
    (found,) = segments_from_probabilities(probability_runs((0.1, 10), (0.9, 20), (0.1, 20)))
    assert found.start == pytest.approx(10 * FRAME / RATE - 0.03)
    assert found.end == pytest.approx(30 * FRAME / RATE + 0.03)


def test_short_speech_is_dropped_and_short_pauses_are_filled():
    assert segments_from_probabilities(probability_runs((0.1, 10), (0.9, 7), (0.1, 20))) == []
    assert len(segments_from_probabilities(probability_runs((0.9, 20), (0.1, 3), (0.9, 20), (0.1, 9)))) == 1
    assert len(segments_from_probabilities(probability_runs((0.9, 20), (0.1, 9), (0.9, 20), (0.1, 9)))) == 2


def test_speech_continues_but_does_not_start_between_the_thresholds():
    assert segments_from_probabilities(probability_runs((0.4, 50))) == []
    (found,) = segments_from_probabilities(probability_runs((0.9, 10), (0.4, 50)))
    assert found.end == 60 * FRAME / RATE


def test_speech_at_the_end_ends_with_the_recording():
    (found,) = segments_from_probabilities(probability_runs((0.1, 10), (0.9, 20)), 30 * FRAME - 100)
    assert found.end == (30 * FRAME - 100) / RATE


def test_empty_input_and_silence_have_no_segments():
    assert segments_from_probabilities(np.zeros(0, np.float32)) == []
    assert segments_from_probabilities(np.zeros(50, np.float32)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0.0),
        ("threshold", 1.5),
        ("threshold", float("nan")),
        ("neg_threshold", -0.1),
        ("min_speech_duration_ms", -1.0),
        ("min_silence_duration_ms", float("inf")),
        ("speech_pad_ms", float("nan")),
        ("max_speech_duration_s", 0.0),
        ("min_silence_at_max_speech_ms", -3.0),
    ],
)
def test_error_names_the_option_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        SegmentOptions(**{name: value})
