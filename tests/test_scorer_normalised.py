"""Tests of a model's own cohort and calibration: a pair is scored by the definitions, and a bundle stores both."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import ecapa_jax
from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.errors import ConfigError
from ecapa_jax.scoring.config import Calibration, Cohort, Scoring
from ecapa_jax.scoring.scorer import Scorer, check_threshold
from helpers.bundles import make
from helpers.sounds import sound

pytestmark = pytest.mark.usefixtures("every_sound_is_speech")

RNG = np.random.default_rng(7)
MEAN = RNG.standard_normal(192).astype(np.float32)
COHORT = Cohort(RNG.standard_normal((20, 192)).astype(np.float32), tuple(f"speaker {n}" for n in range(20)))
CALIBRATION = Calibration(
    offset=-2.0, weight=0.5, measures=("magnitude", "duration"), measure_weights=(0.3, -0.1, 0.7, 0.2)
)
PLAIN = Calibration(offset=-2.0, weight=9.0)


def brute_score(a, b, mean=None, top_n=None, calibration=None, seconds=(1.0, 1.0)):
    """Computes mean subtraction, cosine, AS-norm and calibration in float64."""
    raw = [x.astype(np.float64) for x in (a, b)]
    shift = 0 if mean is None else mean.astype(np.float64)
    left, right, *cohort = (x / np.linalg.norm(x) for x in np.stack([*raw, *COHORT.embeddings]) - shift)
    score = left @ right
    if top_n:
        tops = [np.sort(np.stack(cohort) @ side)[-top_n:] for side in (left, right)]
        score = np.mean([(score - top.mean()) / top.std() for top in tops])
    if calibration:
        values = {"duration": seconds, "magnitude": [np.linalg.norm(side) for side in raw]}
        columns = [np.log(value) for name in calibration.measures for value in sorted(values[name])]
        score = calibration.offset + calibration.weight * score + columns @ np.array(calibration.measure_weights)
    return score


@pytest.mark.parametrize("subtract_mean", [False, True])
@pytest.mark.parametrize("top_n", [None, 5])
@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_score_of_a_pair_equals_brute_force(subtract_mean, top_n, calibration):
    if top_n is None and calibration is None:
        pytest.skip("a cosine: test_scorer.py")
    a, b = RNG.standard_normal((2, 192)).astype(np.float32)
    scoring = Scoring(
        subtract_mean=subtract_mean,
        normalisation="s_norm" if top_n else "none",
        top_n=top_n,
        calibration=calibration,
    )
    got = Scorer(scoring, MEAN, COHORT).score(a[None], b[None], (3.0, 0.7))
    expected = brute_score(a, b, MEAN if subtract_mean else None, top_n, calibration, (3.0, 0.7))
    print(f"{scoring.score_type}: {got:.6f}, error {abs(got - expected):.1e}")
    assert got == pytest.approx(expected, abs=2e-5)


def test_s_norm_without_top_n_uses_the_whole_cohort():
    a, b = RNG.standard_normal((2, 192)).astype(np.float32)
    got = Scorer(Scoring(normalisation="s_norm"), None, COHORT).score(a[None], b[None])
    assert got == pytest.approx(brute_score(a, b, top_n=20), abs=2e-5)


def test_missing_cohort_or_calibration_is_reported():
    with pytest.raises(ConfigError, match="brings none: see ecapa-jax cohort"):
        Scorer(Scoring(normalisation="s_norm"))
    a = COHORT.embeddings[:1]
    with pytest.raises(ConfigError, match=r"pass seconds=\(a, b\)"):
        Scorer(Scoring(calibration=CALIBRATION)).score(a, a)


def test_threshold_is_checked_on_the_scale_of_the_score():
    unbounded = [Scoring(normalisation="s_norm"), Scoring(calibration=PLAIN)]
    assert [check_threshold(7.0, scoring) for scoring in unbounded] == [7.0, 7.0]
    assert Scoring(threshold=-3.5, calibration=PLAIN).threshold == -3.5
    with pytest.raises(ConfigError, match="log-likelihood ratio"):
        check_threshold(float("inf"), Scoring(calibration=PLAIN))
    for scoring in (Scoring(), Scoring(score_map="half")):
        with pytest.raises(ConfigError, match=r"in \[-1, 1\].*the score is .*cosine"):
            check_threshold(7.0, scoring)


def test_threshold_is_dropped_for_another_type_of_score():
    scorer = Scorer(Scoring(threshold=0.5, calibration=PLAIN), MEAN, COHORT)
    assert scorer.with_scoring("cosine").scoring == Scoring()
    assert scorer.with_scoring("publisher").scoring.threshold == 0.5


def test_scale_describes_the_score():
    normalised = Scoring(normalisation="s_norm", top_n=300)
    assert Scorer(normalised, MEAN, COHORT).scale == (
        "cosine, AS-norm with the cohort's top 300, in standard deviations"
    )
    whole = dataclasses.replace(normalised, top_n=None, calibration=CALIBRATION, subtract_mean=True)
    assert Scorer(whole, MEAN, COHORT).scale == (
        "cosine less the mean embedding, S-norm with the cohort, calibrated to a log-likelihood ratio with magnitude "
        "and duration"
    )


def test_bundle_stores_cohort_and_calibration_and_verify_uses_them(tmp_path):
    scoring = Scoring(threshold=1.5, normalisation="s_norm", top_n=5, calibration=CALIBRATION)
    path = save_bundle(make(scoring=scoring, cohort=COHORT), tmp_path / "bundle")
    loaded = load_bundle(path)
    assert loaded.scoring == scoring
    assert loaded.cohort.speakers == COHORT.speakers
    np.testing.assert_array_equal(loaded.cohort.embeddings, COHORT.embeddings)
    assert "AS-norm with the cohort's top 5" in (path / "README.md").read_text()

    encoder = ecapa_jax.load(path)
    a, b = sound(0.9), sound(0.9)[::-1].copy()
    answer = encoder.verify(a, b)
    expected = brute_score(*encoder.embed([a, b]), top_n=5, calibration=CALIBRATION, seconds=(0.9, 0.9))
    assert answer.score == pytest.approx(expected, abs=1e-4)
    assert (answer.score_type, answer.threshold) == ("llr", 1.5)
    assert answer.same_speaker is (answer.score >= 1.5)
    assert encoder.verify(a, b, scoring="cosine").score_type == "cosine"
    assert encoder.verify(a, b, threshold=-100.0).same_speaker is True
