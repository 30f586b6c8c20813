"""Tests of calibration: it equals scikit-learn's solution, minimizes Cllr, and refuses invalid input."""

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ecapa_jax.errors import ConfigError, ScoringError
from ecapa_jax.scoring.calibration import calibrate, fit, quality
from ecapa_jax.scoring.config import Calibration
from ecapa_jax.scoring.counts import Cost
from ecapa_jax.scoring.llr import cllr, min_cllr

quick = settings(max_examples=40, deadline=None)
COSTS = [Cost(p_target=0.5), Cost(p_target=0.01), Cost(p_target=0.05, c_miss=10.0)]


def make_trials(seed, n_targets=300, n_others=900, spread=1.0):
    """Returns scores, labels, and the durations and magnitudes of both recordings of each trial.

    The scores are like cosines. They separate the trials less if the shorter recording is short.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n_targets + n_others) < n_targets
    seconds, magnitudes = (np.exp(rng.normal(at, 0.6, (2, len(labels)))) for at in (1.0, 3.0))
    noise = spread * 0.12 / np.sqrt(seconds.min(axis=0))
    scores = 0.1 + 0.3 * labels + noise * rng.standard_normal(len(labels))
    return scores, labels, seconds, magnitudes


def columns(*measures):
    return np.concatenate([quality(*measure) for measure in measures], axis=1)


def fit_with_sklearn(design, labels, cost, ridge=0.0):
    """Returns the offset and weights that scikit-learn finds for the same objective."""
    prior = cost.miss / (cost.miss + cost.false_alarm)
    share = np.where(labels, prior / labels.sum(), (1 - prior) / (~labels).sum())
    model = LogisticRegression(C=1 / ridge if ridge else np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(design, labels, sample_weight=share)
    return np.array([model.intercept_[0] - np.log(prior / (1 - prior)), *model.coef_[0]])


def weights_of(fitted):
    return np.array([fitted.offset, fitted.weight, *fitted.measure_weights])


@pytest.mark.parametrize("cost", COSTS)
def test_fit_equals_scikit_learn(cost):
    scores, labels, seconds, magnitudes = make_trials(0)
    expected = fit_with_sklearn(scores[:, None], labels, cost)
    error = np.abs(weights_of(fit(scores, labels, cost=cost)) - expected) / np.abs(expected)
    print(f"score only: weights differ by {error.max():.1e}")
    assert error.max() < 1e-7

    qualities = columns(seconds, magnitudes)
    expected = fit_with_sklearn(np.column_stack([scores, qualities]), labels, cost)
    got = weights_of(fit(scores, labels, qualities, measures=("duration", "magnitude"), cost=cost))
    print(f"with qualities: weights differ by {np.abs(got - expected).max() / np.abs(expected).max():.1e}")
    np.testing.assert_allclose(got, expected, atol=1e-7 * np.abs(expected).max())


def test_ridge_equals_scikit_learn_on_standardized_columns():
    scores, labels, *_ = make_trials(0)
    standard = (scores - scores.mean()) / scores.std()
    offset, weight = fit_with_sklearn(standard[:, None], labels, COSTS[0], ridge=0.1)
    got = fit(scores, labels, ridge=0.1)
    np.testing.assert_allclose(got.weight, weight / scores.std(), rtol=1e-6)
    np.testing.assert_allclose(got.offset, offset - weight * scores.mean() / scores.std(), rtol=1e-6)


@quick
@given(st.integers(0, 2**31), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_fit_has_the_lowest_cllr_of_all_affine_maps(seed, offset, weight):
    scores, labels, *_ = make_trials(seed, 60, 120)
    assume(scores[labels].min() < scores[~labels].max())  # perfectly separated trials have no optimal map
    fitted = fit(scores, labels)
    best = cllr(fitted.offset + fitted.weight * scores, labels)
    other = cllr((fitted.offset + offset) + fitted.weight * (1 + weight) * scores, labels)
    assert min_cllr(scores, labels) <= best <= other + 1e-12


@quick
@given(st.integers(0, 2**31), st.floats(0.01, 100), st.floats(-10, 10))
def test_affine_change_of_scores_does_not_change_the_ratios(seed, scale, shift):
    scores, labels, *_ = make_trials(seed, 60, 120)
    # The ridge is needed because some seeds give perfectly separated trials.
    fitted, changed = fit(scores, labels, ridge=1e-3), fit(scale * scores + shift, labels, ridge=1e-3)
    ratios = fitted.offset + fitted.weight * scores
    np.testing.assert_allclose(changed.offset + changed.weight * (scale * scores + shift), ratios, atol=1e-5)


@quick
@given(st.integers(0, 2**31), st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8))
def test_ratio_never_falls_when_the_score_rises(seed, scores):
    values, labels, seconds, _ = make_trials(seed, 60, 120)
    fitted = fit(values, labels, quality(*seconds), measures=("duration",), ridge=1e-3)
    same = quality(np.full(8, 2.0), np.full(8, 5.0))
    ratios = calibrate(fitted, np.sort(np.array(scores, np.float32)), same)
    assert (np.diff(ratios) >= 0).all()


def test_calibration_lowers_the_cost_of_another_list():
    scores, labels, seconds, _ = make_trials(1)
    plain, informed = fit(scores, labels), fit(scores, labels, quality(*seconds), measures=("duration",))
    other, marks, lengths, _ = make_trials(2, 2000, 6000)
    apply = jax.jit(calibrate, static_argnums=0)
    costs = [
        cllr(np.asarray(apply(plain, other.astype(np.float32))), marks),
        cllr(np.asarray(apply(informed, other.astype(np.float32), quality(*lengths))), marks),
    ]
    least = min_cllr(other, marks)
    print(f"Cllr: raw {cllr(other, marks):.3f}, plain {costs[0]:.3f}, with duration {costs[1]:.3f}, least {least:.3f}")
    assert costs[0] < least + 0.03
    assert costs[1] < costs[0]


def test_quality_is_symmetric_and_finite():
    a, b = np.array([1.0, 0.0, 8.0]), np.array([4.0, 2.0, 8.0])
    np.testing.assert_array_equal(quality(a, b), quality(b, a))
    np.testing.assert_allclose(quality(a, b), np.log([[1, 4], [1e-3, 2], [8, 8]]), rtol=1e-6)


def test_constant_measure_has_weight_zero():
    scores, labels, *_ = make_trials(0)
    same = quality(np.full(len(scores), 3.0), np.full(len(scores), 3.0))
    fitted = fit(scores, labels, same, measures=("duration",))
    assert fitted.measure_weights == (0.0, 0.0)
    np.testing.assert_allclose(weights_of(fitted)[:2], weights_of(fit(scores, labels)), rtol=1e-6)


def test_identical_columns_share_one_weight():
    """If both utterances of every trial have the same duration, two columns are equal and the weights stay finite."""
    scores, labels, seconds, _ = make_trials(0)
    fitted = fit(scores, labels, quality(seconds[0], seconds[0]), measures=("duration",))
    np.testing.assert_allclose(*fitted.measure_weights, rtol=1e-6)


@quick
@given(st.sampled_from([1, 4]), st.sampled_from([1, 3]), st.sampled_from([0.0, 1e-6, 0.1]))
def test_separated_trials_are_refused_without_a_ridge(n_targets, n_others, gap):
    scores = np.concatenate([0.5 + gap + 0.1 * np.arange(n_targets), 0.5 - 0.1 * np.arange(n_others)])
    labels = np.arange(len(scores)) < n_targets
    assume(np.ptp(scores) > 0)
    with pytest.raises(ScoringError, match="without an error"):
        fit(scores, labels)
    ratios = calibrate(fit(scores, labels, ridge=1e-3), scores)
    assert ratios[:n_targets].min() >= ratios[n_targets:].max()


def test_separation_by_a_quality_measure_is_refused():
    scores, labels, *_ = make_trials(0, 30, 30)
    seconds = np.where(labels, 5.0, 1.0) * np.linspace(1, 1.5, 60)
    with pytest.raises(ScoringError, match="without an error"):
        fit(scores, labels, quality(seconds, seconds), measures=("duration",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.ones(1200)}, "at least one of each"),
        ({"scores": -make_trials(0)[0]}, "don't score higher"),
        ({"scores": np.zeros(1200)}, "don't score higher"),
        ({"scores": np.full(1200, np.nan)}, "all scores must be finite"),
        ({"qualities": np.zeros((1200, 2))}, r"1200 trials and 0 measures need \(1200, 0\)"),
        ({"measures": ("duration",)}, r"1 measures need \(1200, 2\)"),
        ({"measures": ("duration",), "qualities": np.full((1200, 2), np.inf)}, "not finite"),
        ({"measures": ("loudness",), "qualities": np.ones((1200, 2))}, "is not a quality measure"),
    ],
)
def test_fit_refuses_invalid_input(changes, message):
    scores, labels, *_ = make_trials(0)
    with pytest.raises(ScoringError, match=message):
        fit(**{"scores": scores, "labels": labels, **changes})


def test_calibrate_refuses_wrong_columns():
    fitted = Calibration(offset=0.0, weight=1.0, measures=("duration",), measure_weights=(0.1, 0.2))
    for qualities in (None, np.ones((3, 4))):
        with pytest.raises(ScoringError, match="uses duration: it needs 2 quality columns"):
            calibrate(fitted, np.zeros(3), qualities)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": -1.0}, "positive"),
        ({"offset": np.nan}, "finite"),
        ({"measures": ("duration",), "measure_weights": (1.0,)}, "not 2 each"),
        ({"measures": ("loudness",), "measure_weights": (1.0, 1.0)}, "known: duration, magnitude"),
    ],
)
def test_calibration_refuses_invalid_fields(changes, message):
    with pytest.raises(ConfigError, match=message):
        Calibration(**{"offset": 0.0, "weight": 1.0, **changes})


def test_fit_is_deterministic():
    scores, labels, seconds, _ = make_trials(3)
    order = np.random.default_rng(0).permutation(len(scores))
    fits = [fit(scores, labels, quality(*seconds), measures=("duration",)) for _ in range(2)]
    assert fits[0] == fits[1]
    shuffled = fit(scores[order], labels[order], quality(*seconds[:, order]), measures=("duration",))
    np.testing.assert_allclose(weights_of(shuffled), weights_of(fits[0]), rtol=1e-6)
