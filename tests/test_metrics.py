"""Tests of error rates against brute force, scikit-learn, speakerlab and speechbrain."""

import itertools
import sys
import time
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring import metrics
from helpers.trials import brute_points, rng_trials, tied_trials

quick = settings(max_examples=60, deadline=None)


def brute_eer(scores, labels):
    points = list(brute_points(scores, labels))
    for (_, far, frr), (_, next_far, next_frr) in itertools.pairwise(points):
        if frr < far and next_frr >= next_far:
            part = (far - frr) / ((far - frr) + (next_frr - next_far))
            return float(far + part * (next_far - far))
    raise AssertionError("no crossing")


@quick
@given(tied_trials())
def test_operating_points_equal_brute_force(data):
    rates = metrics.error_rates(*data)
    expected = list(brute_points(*data))
    np.testing.assert_array_equal(rates.thresholds, [point[0] for point in expected])
    np.testing.assert_array_equal(rates.far, [float(point[1]) for point in expected])
    np.testing.assert_array_equal(rates.frr, [float(point[2]) for point in expected])
    for threshold, far, frr in expected:
        assert metrics.far_frr(*data, threshold) == (float(far), float(frr))


@quick
@given(tied_trials())
def test_eer_equals_brute_force(data):
    assert metrics.eer(*data) == brute_eer(*data)


@quick
@given(tied_trials(), st.floats(0.001, 0.999), st.floats(0.1, 10), st.floats(0.1, 10))
def test_min_dcf_equals_brute_force(data, p_target, c_miss, c_fa):
    cost = min(c_miss * p_target * frr + c_fa * (1 - p_target) * far for _, far, frr in brute_points(*data))
    expected = float(cost) / min(c_miss * p_target, c_fa * (1 - p_target))
    result = metrics.min_dcf(*data, p_target=p_target, c_miss=c_miss, c_fa=c_fa)
    assert result == pytest.approx(expected, rel=1e-12)
    assert 0 <= result <= 1


@quick
@given(tied_trials())
def test_eer_threshold_minimizes_the_gap_between_far_and_frr(data):
    threshold = metrics.eer_threshold(*data)
    far, frr = metrics.far_frr(*data, threshold)
    assert abs(far - frr) == pytest.approx(min(abs(float(a - b)) for _, a, b in brute_points(*data)), abs=1e-12)
    assert min(data[0]) <= threshold <= max(data[0])


@quick
@given(tied_trials(), st.randoms(use_true_random=False))
def test_order_of_trials_does_not_change_the_rates(data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    moved = data[0][order], data[1][order]
    assert metrics.eer(*moved) == metrics.eer(*data)
    assert metrics.min_dcf(*moved) == metrics.min_dcf(*data)
    assert metrics.eer_threshold(*moved) == metrics.eer_threshold(*data)


@quick
@given(tied_trials(), st.sampled_from([lambda s: 3 * s - 7, lambda s: s**3, np.exp, lambda s: 1 / (1 + np.exp(-s))]))
def test_monotonic_map_of_scores_does_not_change_the_rates(data, rising):
    scores, labels = data
    assert metrics.eer(rising(scores), labels) == metrics.eer(scores, labels)
    assert metrics.min_dcf(rising(scores), labels) == metrics.min_dcf(scores, labels)
    before, after = metrics.error_rates(scores, labels), metrics.error_rates(rising(scores), labels)
    np.testing.assert_array_equal(after.far, before.far)
    np.testing.assert_array_equal(after.frr, before.frr)


@quick
@given(tied_trials(), st.floats(0.01, 0.99))
def test_negated_scores_with_swapped_labels_have_the_same_rates(data, p_target):
    scores, labels = data
    flipped = -scores, 1 - labels
    assert metrics.eer(*flipped) == pytest.approx(metrics.eer(scores, labels), rel=1e-14)
    there = metrics.min_dcf(scores, labels, p_target=p_target, c_miss=2.0, c_fa=3.0)
    back = metrics.min_dcf(*flipped, p_target=1 - p_target, c_miss=3.0, c_fa=2.0)
    assert back == pytest.approx(there, rel=1e-12)


@quick
@given(tied_trials())
def test_rates_are_monotonic_and_reach_both_extremes(data):
    rates = metrics.error_rates(*data)
    assert (np.diff(rates.thresholds) > 0).all()
    assert (np.diff(rates.far) <= 0).all()
    assert (np.diff(rates.frr) >= 0).all()
    assert (rates.far[0], rates.frr[0], rates.far[-1], rates.frr[-1]) == (1, 0, 0, 1)
    assert 0 <= metrics.eer(*data) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_eer_and_roc_curve_equal_scikit_learn(seed):
    sk = pytest.importorskip("sklearn.metrics")
    scores, labels = rng_trials(seed, 97 + seed, 211)
    if seed % 2:
        scores = np.round(scores, 1)  # ties
    far, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    gap = (1 - tpr) - far
    high = int(np.argmax(gap <= 0))
    part = gap[high - 1] / (gap[high - 1] - gap[high])
    assert metrics.eer(scores, labels) == pytest.approx(far[high - 1] + part * (far[high] - far[high - 1]), abs=1e-12)
    rates = metrics.error_rates(scores, labels)
    np.testing.assert_allclose(rates.far[::-1], far, atol=1e-15)
    np.testing.assert_allclose(1 - rates.frr[::-1], tpr, atol=1e-15)
    area = np.trapezoid(1 - rates.frr[::-1], rates.far[::-1])
    assert area == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)


def test_rates_of_perfectly_separated_scores():
    scores, labels = [0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0]
    assert metrics.eer(scores, labels) == 0
    assert metrics.eer_threshold(scores, labels) == pytest.approx(0.55)
    assert metrics.min_dcf(scores, labels) == 0


def test_rates_of_reversed_scores():
    assert metrics.eer([0.1, 0.9], [1, 0]) == 1
    assert metrics.min_dcf([0.1, 0.9], [1, 0]) == 1


def test_rates_of_equal_scores():
    scores, labels = np.full(10, 0.5), np.arange(10) % 2
    assert metrics.eer(scores, labels) == 0.5
    assert metrics.min_dcf(scores, labels) == 1
    assert metrics.eer_threshold(scores, labels) == 0.5


def test_rates_of_a_small_example():
    # At 0.5, one of four non-targets is accepted and one of two targets is rejected.
    scores = [0.9, 0.4, 0.6, 0.3, 0.2, 0.1]
    labels = [True, True, False, False, False, False]
    assert metrics.far_frr(scores, labels, 0.5) == (0.25, 0.5)
    assert metrics.eer(scores, labels) == 0.25
    # At 0.9, no non-target is accepted and half of the targets are rejected. At 0.4, a quarter of the non-targets is
    # accepted and no target is rejected.
    assert metrics.min_dcf(scores, labels, p_target=0.01) == pytest.approx(0.5)
    assert metrics.min_dcf(scores, labels, p_target=0.5) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(1.0, np.nextafter(1.0, 2)), (-1.5e308, 1.7e308), (0.0, 5e-324), (-0.0, 1e-300), (-5e-324, 5e-324)],
)
def test_threshold_between_adjacent_floats(lower, upper):
    threshold = metrics.eer_threshold([lower, upper], [0, 1])
    assert lower < threshold <= upper
    assert metrics.far_frr([lower, upper], [0, 1], threshold) == (0, 0)


def test_signed_zeros_are_equal_scores():
    assert len(metrics.error_rates([0.0, -0.0], [0, 1]).thresholds) == 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("mark", [bool, np.uint8, np.float32])
def test_score_and_label_dtypes(dtype, mark):
    scores, labels = np.array([3, 1, 2, 0], dtype), np.array([1, 1, 0, 0], mark)
    assert metrics.eer(scores, labels) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, 0.2], [1], "2 scores and 1 labels"),
        ([0.1, np.nan], [1, 0], "score 1 is nan"),
        ([-np.inf, 0.0], [1, 0], "score 0 is -inf"),
        ([0.1, 0.2], [1, 1], "2 target and 0 non-target"),
        ([0.1, 0.2], [0, 0], "0 target and 2 non-target"),
        ([], [], "0 target and 0 non-target"),
        ([0.1, 0.2], [1, 2], "label 1 is 2"),
        ([0.1, 0.2], [1, -1], "label 1 is -1"),
        ([0.1, 0.2], [1, np.nan], "label 1 is nan"),
        ([[0.1], [0.2]], [1, 0], r"scores have shape \(2, 1\)"),
        ([0.1, 0.2], ["target", "nontarget"], "labels have shape"),
        ([0.1, [0.2, 0.3]], [1, 0], "scores are not an array"),
        ([0.1j, 0.2], [1, 0], "complex"),
    ],
)
@pytest.mark.parametrize("function", ["error_rates", "eer", "eer_threshold", "min_dcf", "far_frr"])
def test_invalid_trials_are_refused(function, scores, labels, message):
    arguments = (0.5,) if function == "far_frr" else ()
    with pytest.raises(ScoringError, match=message) as caught:
        getattr(metrics, function)(scores, labels, *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"p_target": 0.0}, {"p_target": 1.0}, {"p_target": np.nan}, {"c_miss": 0.0}, {"c_fa": np.inf}]
)
def test_invalid_costs_are_refused(values):
    with pytest.raises(ScoringError, match="must be"):
        metrics.min_dcf([0.1, 0.9], [0, 1], **values)


def test_far_frr_at_infinite_and_nan_thresholds():
    assert metrics.far_frr([0.1, 0.9], [0, 1], -np.inf) == (1, 0)
    assert metrics.far_frr([0.1, 0.9], [0, 1], np.inf) == (0, 1)
    with pytest.raises(ScoringError, match="NaN"):
        metrics.far_frr([0.1, 0.9], [0, 1], np.nan)


def test_metrics_of_600_000_trials_take_less_than_2_seconds():
    scores, labels = rng_trials(0, 40_000, 560_000)
    start = time.process_time()
    metrics.eer(scores, labels)
    metrics.min_dcf(scores, labels)
    assert time.process_time() - start < 2  # about 0.2 s on an idle core


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_speakerlab(seed, monkeypatch):
    # speakerlab's module also plots, and imports matplotlib for that.
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    peer = pytest.importorskip("speakerlab.utils.score_metrics")
    scores, labels = rng_trials(seed)
    fnr, fpr = peer.compute_pmiss_pfa_rbst(scores, labels)
    assert metrics.eer(scores, labels) == pytest.approx(peer.compute_eer(fnr, fpr), abs=1e-6)
    for p_target in (0.01, 0.05):
        expected = peer.compute_c_norm(fnr, fpr, p_target)
        assert metrics.min_dcf(scores, labels, p_target=p_target) == pytest.approx(expected, abs=1e-6)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_speechbrain(seed):
    peer = pytest.importorskip("speechbrain.utils.metric_stats")
    torch = pytest.importorskip("torch")
    scores, labels = rng_trials(seed)
    sides = [torch.tensor(scores[labels == mark]) for mark in (1, 0)]
    expected, threshold = peer.EER(*sides)
    # SpeechBrain's EER is the mean of both rates at the closest operating point, in float32.
    assert metrics.eer(scores, labels) == pytest.approx(expected, abs=0.5 / 150 + 1e-6)
    # SpeechBrain also rejects a score that equals the threshold.
    assert np.mean(metrics.far_frr(scores, labels, float(np.nextafter(threshold, np.inf)))) == pytest.approx(
        expected, abs=1e-6
    )
    ours = metrics.far_frr(scores, labels, metrics.eer_threshold(scores, labels))
    assert np.mean(ours) == pytest.approx(expected, abs=1e-6)
    cost, _ = peer.minDCF(*sides, c_miss=1.0, c_fa=1.0, p_target=0.01)
    assert metrics.min_dcf(scores, labels) * 0.01 == pytest.approx(cost, abs=1e-6)
