"""Tests of ROCCH-EER, Cllr, actual cost, FRR at FAR and DET corners against brute force and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring import llr, metrics
from ecapa_jax.scoring.counts import Cost, SortedTrials
from helpers.trials import brute_points, rng_trials, tied_trials

quick = settings(max_examples=60, deadline=None)
sk_isotonic = pytest.importorskip("sklearn.isotonic")


def hull_eer_by_brute_force(scores, labels):
    """Returns the lowest point with FAR = FRR on the segments between all pairs of operating points."""
    points = [(float(far), float(frr)) for _, far, frr in brute_points(scores, labels)]
    best = 1.0
    for (a, b), (c, d) in itertools.product(points, points):
        if a - b >= 0 >= c - d:
            part = (a - b) / ((a - b) - (c - d)) if (a - b) != (c - d) else 0.0
            best = min(best, a + part * (c - a))
    return best


@quick
@given(tied_trials())
def test_rocch_eer_equals_brute_force(data):
    assert metrics.rocch_eer(*data) == pytest.approx(hull_eer_by_brute_force(*data), abs=1e-12)
    assert metrics.rocch_eer(*data) <= metrics.eer(*data) + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_pool_adjacent_violators_equals_isotonic_regression(seed):
    scores, labels = rng_trials(seed)
    scores = np.round(scores, 1) if seed % 2 else scores
    pooled = llr.pool(SortedTrials.of(scores, labels))
    expected = sk_isotonic.IsotonicRegression(out_of_bounds="clip").fit(scores, labels).predict(scores)
    run = np.searchsorted(pooled.lowest, scores, side="right") - 1
    share = pooled.targets / (pooled.targets + pooled.nontargets)
    np.testing.assert_allclose(share[run], expected, atol=1e-12)
    assert pooled.targets.sum() == labels.sum()
    assert pooled.nontargets.sum() == len(labels) - labels.sum()


def test_min_cllr_equals_cllr_of_the_isotonic_fit():
    scores, labels = rng_trials(1)
    fit = sk_isotonic.IsotonicRegression(out_of_bounds="clip").fit(scores, labels).predict(scores)
    # Runs of only targets or only non-targets have infinite ratios. Their trials cost nothing and are omitted.
    odds = np.log(labels.sum() / (len(labels) - labels.sum()))
    with np.errstate(divide="ignore"):
        ratios = np.log(fit) - np.log1p(-fit) - odds
    losses = np.where(labels == 1, np.logaddexp(0, -ratios), np.logaddexp(0, ratios)) / np.log(2)
    expected = (losses[labels == 1].mean() + losses[labels == 0].mean()) / 2
    assert metrics.rocch_eer(scores, labels) < expected < 1
    assert llr.min_cllr(scores, labels) == pytest.approx(expected, abs=1e-12)


@quick
@given(tied_trials())
def test_min_cllr_is_at_most_cllr_of_any_monotonic_map(data):
    scores, labels = data
    least = llr.min_cllr(scores, labels)
    assert 0 <= least <= 1 + 1e-12
    for slope, offset in itertools.product((0.01, 0.5, 2.0), (-2.0, 0.0, 2.0)):
        assert llr.cllr(slope * scores + offset, labels) >= least - 1e-12


def test_cllr_of_known_values():
    assert llr.cllr([0.0, 0.0], [1, 0]) == 1.0
    assert llr.cllr([1000.0, -1000.0], [1, 0]) == 0.0
    assert llr.cllr([-1000.0, 1000.0], [1, 0]) == pytest.approx(1000 / np.log(2))
    assert llr.cllr([np.log(3), -np.log(3)], [1, 0]) == pytest.approx(np.log2(4 / 3))
    assert llr.min_cllr([3.0, 1.0], [1, 0]) == 0.0
    assert llr.min_cllr([1.0, 3.0], [1, 0]) == 1.0


def test_actual_cost_is_close_to_minimum_cost_for_exact_likelihood_ratios():
    rng = np.random.default_rng(0)
    targets, others = rng.normal(4, np.sqrt(8), 20_000), rng.normal(-4, np.sqrt(8), 20_000)  # exact ratios
    scores, labels = np.concatenate([targets, others]), np.repeat([1, 0], 20_000)
    for p_target in (0.5, 0.1):
        least = metrics.min_dcf(scores, labels, p_target=p_target)
        assert least <= metrics.act_dcf(scores, labels, p_target=p_target) <= least + 0.02
        assert metrics.act_dcf(scores + 3, labels, p_target=p_target) > least + 0.05
    assert llr.min_cllr(scores, labels) <= llr.cllr(scores, labels) <= llr.min_cllr(scores, labels) + 0.01


@quick
@given(tied_trials(), st.floats(0.001, 0.999), st.floats(0.1, 10), st.integers(-7, 7).map(float))
def test_act_dcf_equals_the_cost_at_the_threshold(data, p_target, c_fa, threshold):
    far, frr = metrics.far_frr(*data, threshold)
    expected = (p_target * frr + c_fa * (1 - p_target) * far) / min(p_target, c_fa * (1 - p_target))
    result = metrics.act_dcf(*data, threshold, p_target=p_target, c_fa=c_fa)
    assert result == pytest.approx(expected, rel=1e-12)
    assert result >= metrics.min_dcf(*data, p_target=p_target, c_fa=c_fa) - 1e-12
    bayes = float(np.log(c_fa * (1 - p_target) / p_target))
    far, frr = metrics.far_frr(*data, bayes)
    own = (p_target * frr + c_fa * (1 - p_target) * far) / min(p_target, c_fa * (1 - p_target))
    assert metrics.act_dcf(*data, p_target=p_target, c_fa=c_fa) == pytest.approx(own, rel=1e-9)


@quick
@given(tied_trials(), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]))
def test_frr_at_far_equals_brute_force(data, far):
    expected = min(float(frr) for _, accepted, frr in brute_points(*data) if accepted <= far)
    assert metrics.frr_at_far(*data, far) == expected


@quick
@given(tied_trials())
def test_det_corners_define_the_whole_curve(data):
    rates, corners = metrics.error_rates(*data), metrics.det_points(*data)
    kept = np.isin(rates.thresholds, corners.thresholds)
    np.testing.assert_array_equal(rates.far[kept], corners.far)
    np.testing.assert_array_equal(rates.frr[kept], corners.frr)
    order = np.argsort(corners.frr - corners.far, kind="stable")
    along = rates.frr - rates.far
    np.testing.assert_allclose(np.interp(along, (corners.frr - corners.far)[order], corners.far[order]), rates.far)


@pytest.mark.parametrize("seed", range(3))
def test_det_curve_equals_scikit_learn(seed):
    sk = pytest.importorskip("sklearn.metrics")
    scores, labels = rng_trials(seed)
    scores = np.round(scores, 1) if seed else scores
    far, frr, thresholds = sk.det_curve(labels, scores)
    rates = metrics.error_rates(scores, labels)
    at = np.searchsorted(rates.thresholds, thresholds)
    np.testing.assert_allclose(rates.far[at], far, atol=1e-12)
    np.testing.assert_allclose(rates.frr[at], frr, atol=1e-12)


def test_invalid_values_are_refused():
    with pytest.raises(ScoringError, match=r"false acceptance rate is 1\.5"):
        metrics.frr_at_far([0.1, 0.9], [0, 1], 1.5)
    with pytest.raises(ScoringError, match="NaN"):
        metrics.act_dcf([0.1, 0.9], [0, 1], np.nan)
    with pytest.raises(ScoringError, match="2 target and 0 non-target"):
        llr.cllr([0.1, 0.2], [1, 1])
    assert Cost(p_target=0.5).bayes_threshold == 0
