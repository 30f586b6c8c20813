"""Tests of the bootstrap: weighted trials equal repeated trials, and intervals have the stated coverage."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring import bootstrap, llr, metrics
from ecapa_jax.scoring.counts import Cost, Counts, SortedTrials
from helpers.trials import tied_trials

COST = Cost(p_target=0.05, c_fa=2.0)


def compute_metrics(counts: Counts) -> list[float]:
    return [counts.eer(), counts.min_dcf(COST), counts.frr_at_far(0.2), *counts.far_frr(0.5)]


def metrics_of_repeated_trials(scores, labels):
    return [
        metrics.eer(scores, labels),
        metrics.min_dcf(scores, labels, p_target=0.05, c_fa=2.0),
        metrics.frr_at_far(scores, labels, 0.2),
        *metrics.far_frr(scores, labels, 0.5),
    ]


@settings(max_examples=80, deadline=None)
@given(tied_trials(), st.data())
def test_weight_n_equals_n_copies_of_a_trial(data, rest):
    scores, labels = data
    weights = np.array(rest.draw(st.lists(st.integers(0, 3), min_size=len(scores), max_size=len(scores))), np.int64)
    weights[np.argmax(labels == 1)] = 1  # at least one trial of each kind remains
    weights[np.argmax(labels == 0)] = 2
    trials = SortedTrials.of(scores, labels)
    counts = trials.count_weighted(weights[trials.targets], weights[trials.nontargets])
    expected = metrics_of_repeated_trials(np.repeat(scores, weights), np.repeat(labels, weights))
    np.testing.assert_allclose(compute_metrics(counts), expected, rtol=1e-14)


def make_trials(seed, n_speakers=12, files=4, spread=1.0):
    """Returns all pairs of files. The trials of a speaker share a random shift, so they are not independent."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(n_speakers), files)
    a, b = np.triu_indices(len(speaker), 1)
    labels = speaker[a] == speaker[b]
    shift = rng.normal(0, spread, n_speakers)
    scores = 2.5 * labels + shift[speaker[a]] / 2 + shift[speaker[b]] / 2 + rng.normal(0, 1, len(a))
    return scores, labels, speaker[a], speaker[b]


def test_resample_repeats_the_trials_of_drawn_speakers():
    scores, labels, a, b = make_trials(0)
    trials, units = SortedTrials.of(scores, labels), bootstrap.Units.of(a, b)
    seen = []

    def record_weights(counts: Counts) -> list[float]:
        seen.append((counts.target_weights.copy(), counts.nontarget_weights.copy()))
        return compute_metrics(counts)

    samples = bootstrap.resample([trials], units, record_weights, n=20, seed=3)
    rng = np.random.default_rng(3)
    for sample, (targets, nontargets) in zip(samples[:, 0], seen, strict=True):
        drawn = np.bincount(rng.integers(12, size=12), minlength=12)
        copies = np.where(a == b, drawn[a], drawn[a] * drawn[b])
        np.testing.assert_array_equal(targets, copies[trials.targets])
        np.testing.assert_array_equal(nontargets, copies[trials.nontargets])
        np.testing.assert_allclose(
            sample, metrics_of_repeated_trials(np.repeat(scores, copies), np.repeat(labels, copies))
        )


def test_results_depend_on_the_seed_only():
    scores, labels, a, b = make_trials(1)
    trials, units = SortedTrials.of(scores, labels), bootstrap.Units.of(a, b)
    first, again, other = (bootstrap.resample([trials], units, compute_metrics, n=5, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_intervals_by_speaker_contain_the_true_rate_and_intervals_by_file_do_not():
    """Computes 90 % intervals of the false acceptance rate for 40 lists; a much longer list gives the true rate."""
    truth = metrics.far_frr(*make_trials(999, n_speakers=300, spread=1.5)[:2], 1.0)[0]
    covered = {"speaker": 0, "file": 0}
    for seed in range(40):
        scores, labels, a, b = make_trials(seed, n_speakers=24, spread=1.5)
        trials = SortedTrials.of(scores, labels)
        files = np.triu_indices(24 * 4, 1)
        for kind, units in (("speaker", bootstrap.Units.of(a, b)), ("file", bootstrap.Units.of(*files))):
            samples = bootstrap.resample([trials], units, lambda counts: [counts.far_frr(1.0)[0]], n=100, seed=seed)
            interval = bootstrap.intervals(samples[:, 0], 0.9)[0]
            covered[kind] += interval.low <= truth <= interval.high
    print(f"coverage of 90 % intervals: {covered['speaker'] / 40:.0%} by speaker, {covered['file'] / 40:.0%} by file")
    assert covered["speaker"] / 40 >= 0.75
    assert covered["file"] / 40 < 0.75


def test_paired_differences_between_two_systems():
    scores, labels, a, b = make_trials(2, n_speakers=30)
    noise = np.random.default_rng(0).normal(0, 1, len(scores))
    systems = {name: SortedTrials.of(values, labels) for name, values in
               (("good", scores), ("worse", scores + noise), ("same", scores * 3 + 1))}  # fmt: skip
    units = bootstrap.Units.of(a, b)
    worse = bootstrap.differences([systems["good"], systems["worse"]], units, compute_metrics, n=100)[0]
    assert worse.value == pytest.approx(metrics.eer(scores + noise, labels) - metrics.eer(scores, labels))
    assert 0 < worse.low <= worse.value <= worse.high
    assert worse.p_value == pytest.approx(2 / 101)
    same = bootstrap.differences([systems["good"], systems["same"]], units, compute_metrics, n=20)[0]
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    back = bootstrap.differences([systems["worse"], systems["good"]], units, compute_metrics, n=100)[0]
    assert (back.low, back.high) == pytest.approx((-worse.high, -worse.low))


def test_invalid_units_and_trials_are_refused():
    trials = SortedTrials.of([0.1, 0.9, 0.5], [0, 1, 0])
    with pytest.raises(ScoringError, match="2 different speakers or files"):
        bootstrap.resample([trials], bootstrap.Units.of(["a", "a", "a"], ["b", "a", "b"]), compute_metrics)
    with pytest.raises(ScoringError, match="3 trials and 2 pairs"):
        bootstrap.resample([trials], bootstrap.Units.of([0, 1], [2, 3]), compute_metrics)
    with pytest.raises(ScoringError, match="confidence is 95"):
        bootstrap.intervals(np.zeros((3, 1)), 95.0)
    other = SortedTrials.of([0.1, 0.9, 0.5], [1, 0, 0])
    units = bootstrap.Units.of([0, 1, 2], [1, 1, 3])
    with pytest.raises(ScoringError, match="different trials"):
        bootstrap.differences([trials, other], units, compute_metrics)


def test_units_can_be_names_or_numbers():
    names = bootstrap.Units.of(["x", "y", "x"], ["y", "y", "z"])
    numbers = bootstrap.Units.of([0, 1, 0], [1, 1, 2])
    assert names.n == numbers.n == 3
    np.testing.assert_array_equal(names.enrol, numbers.enrol)
    np.testing.assert_array_equal(names.test, numbers.test)


def test_intervals_of_600_000_trials_take_less_than_2_seconds():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(600_000) < 300_000)
    scores = rng.normal(size=600_000) + 4 * labels
    a = rng.integers(1251, size=600_000)
    b = np.where(labels, a, (a + rng.integers(1, 1251, size=600_000)) % 1251)
    start = time.process_time()
    trials = SortedTrials.of(scores, labels)
    counts = trials.count()
    counts.eer(), counts.min_dcf(COST), llr.pooled_cllr(llr.pool(trials))
    assert time.process_time() - start < 2  # about 0.15 s on an idle core
    start = time.process_time()
    bootstrap.resample([trials], bootstrap.Units.of(a, b), lambda c: [c.eer(), c.min_dcf(COST)], n=20)
    assert time.process_time() - start < 2  # about 0.1 s on an idle core
