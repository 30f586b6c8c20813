"""Tests of score normalization and search against brute force in float64, and of their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ecapa_jax
from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring import normalisation, search
from ecapa_jax.scoring.cosine import score_matrix, unit
from ecapa_jax.scoring.normalisation import cohort_statistics

DIM = 16
quick = settings(max_examples=25, deadline=None)


def make_embeddings(seed, *shape, offset=0.3):
    """Returns embeddings that are not centred and have different lengths, as those of a network do."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(0, 1, (*shape, 1)))
    return (lengths * (offset + rng.standard_normal((*shape, DIM)))).astype(np.float32)


def brute_cosines(a, b):
    """Returns the cosine of every pair in float64."""
    a, b = (x.astype(np.float64) for x in (a, b))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


def brute_statistics(rows, cohort, top_n, ddof=0):
    top = np.sort(brute_cosines(rows, cohort), axis=1)[:, ::-1][:, :top_n]
    return top.mean(axis=1), top.std(axis=1, ddof=ddof)


COHORT = make_embeddings(0, 40)
ROWS = make_embeddings(1, 7)
statistics = jax.jit(cohort_statistics, static_argnames=("top_n", "unbiased", "block"))


@pytest.mark.parametrize("top_n", [None, 2, 5, 39, 40, 300])
@pytest.mark.parametrize("unbiased", [False, True])
def test_cohort_statistics_equal_brute_force(top_n, unbiased):
    got = statistics(ROWS, COHORT, top_n=top_n, unbiased=unbiased)
    mean, std = brute_statistics(ROWS, COHORT, top_n, ddof=int(unbiased))
    errors = np.abs(got.mean - mean).max(), np.abs(got.std - std).max()
    print(f"top_n {top_n}: mean {errors[0]:.1e}, std {errors[1]:.1e}")
    assert max(errors) < 5e-7


@quick
@given(st.integers(0, 2**31), st.sampled_from([(3, 5, 2), (7, 40, 10), (7, 40, None)]))
def test_cohort_statistics_equal_brute_force_for_any_embeddings(seed, shape):
    n, m, top_n = shape
    rows, cohort = make_embeddings(seed, n, offset=0.0), make_embeddings(seed + 1, m, offset=0.0)
    got = statistics(rows, cohort, top_n=top_n)
    mean, std = brute_statistics(rows, cohort, top_n)
    np.testing.assert_allclose(got.mean, mean, atol=1e-6)
    np.testing.assert_allclose(got.std, std, atol=2e-6)


@pytest.mark.parametrize("block", [1, 2, 3, 6, 7, 1000])
def test_block_size_does_not_change_the_statistics(block):
    whole, blocked = statistics(ROWS, COHORT, top_n=10), statistics(ROWS, COHORT, top_n=10, block=block)
    np.testing.assert_allclose(blocked.mean, whole.mean, atol=2e-7)
    np.testing.assert_allclose(blocked.std, whole.std, atol=2e-7)


def test_statistics_of_a_large_cohort_use_little_memory():
    n, m = 20_000, 10_000
    shapes = (jax.ShapeDtypeStruct((size, DIM), np.float32) for size in (n, m))
    memory = statistics.lower(*shapes, top_n=300).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend tells no memory")
    print(f"temporaries {memory.temp_size_in_bytes / 2**20:.0f} MiB, all scores {n * m / 2**18:.0f} MiB")
    assert memory.temp_size_in_bytes < 4 * 4 * normalisation.BLOCK_SCORES < 4 * n * m


@quick
@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_scale_and_order_of_embeddings_do_not_change_the_statistics(seed, scale):
    rng = np.random.default_rng(seed)
    changed = rng.permutation(COHORT) * rng.uniform(0.1, 10, (len(COHORT), 1)).astype(np.float32)
    got, same = statistics(np.float32(scale) * ROWS, changed, top_n=10), statistics(ROWS, COHORT, top_n=10)
    np.testing.assert_allclose(got.mean, same.mean, atol=1e-6)
    np.testing.assert_allclose(got.std, same.std, atol=1e-6)


def test_z_norm_of_the_cohort_has_mean_0_and_deviation_1():
    scores = score_matrix(ROWS, COHORT)
    normalised = ecapa_jax.z_norm(scores, statistics(ROWS, COHORT)[:, None])
    np.testing.assert_allclose(jnp.mean(normalised, axis=1), 0, atol=2e-5)
    np.testing.assert_allclose(jnp.std(normalised, axis=1), 1, atol=2e-5)


def test_as_norm_equals_wespeaker():
    """score_norm.py computes 0.5 ((s - mean_e) / std_e + (s - mean_t) / std_t), with np.std over the top N scores."""
    a, b = make_embeddings(2, 7), make_embeddings(3, 7)
    score = np.diag(brute_cosines(a, b))
    (mean_a, std_a), (mean_b, std_b) = (brute_statistics(x, COHORT, 10) for x in (a, b))
    expected = 0.5 * ((score - mean_a) / std_a + (score - mean_b) / std_b)
    got = jax.jit(lambda *x: ecapa_jax.as_norm(*x, top_n=10))(a, b, COHORT)
    print(f"AS-norm error {np.abs(got - expected).max():.1e} of {np.abs(expected).max():.1f}")
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_z_t_and_s_norm_equal_speechbrain():
    """speaker_verification_cosine.py uses torch.std (N - 1).

    It applies z-norm to the enrolment recording and t-norm to the test recording.
    """
    a, b = make_embeddings(2, 7), make_embeddings(3, 7)
    score = np.diag(brute_cosines(a, b))
    (mean_a, std_a), (mean_b, std_b) = (brute_statistics(x, COHORT, None, ddof=1) for x in (a, b))
    of_a, of_b = (statistics(x, COHORT, unbiased=True) for x in (a, b))
    z, t = (score - mean_a) / std_a, (score - mean_b) / std_b
    raw = score.astype(np.float32)
    np.testing.assert_allclose(ecapa_jax.z_norm(raw, of_a), z, atol=2e-5)
    np.testing.assert_allclose(ecapa_jax.t_norm(raw, of_b), t, atol=2e-5)
    np.testing.assert_allclose(ecapa_jax.s_norm(raw, of_a, of_b), (z + t) / 2, atol=2e-5)


def test_as_norm_accepts_any_batch_shape_and_is_symmetric():
    a, b = make_embeddings(2, 2, 3), make_embeddings(3, 2, 3)
    got = ecapa_jax.as_norm(a, b, COHORT, top_n=10)
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, ecapa_jax.as_norm(b, a, COHORT, top_n=10), atol=1e-5)
    np.testing.assert_allclose(got[1, 2], ecapa_jax.as_norm(a[1, 2], b[1, 2], COHORT, top_n=10), atol=1e-5)
    matrix = ecapa_jax.s_norm(
        score_matrix(a[0], b[0]),
        statistics(a[0], COHORT, top_n=10)[:, None],
        statistics(b[0], COHORT, top_n=10)[None],
    )
    np.testing.assert_allclose(jnp.diag(matrix), got[0], atol=1e-5)


def test_cohort_with_duplicate_embeddings_gives_finite_scores():
    cohort = np.stack([COHORT[0], COHORT[0]])
    for top_n in (None, 2):
        assert np.isfinite(ecapa_jax.as_norm(ROWS, ROWS, cohort, top_n=top_n)).all()


@pytest.mark.parametrize(("cohort", "top_n"), [(COHORT[:1], None), (COHORT[:0], None), (COHORT, 1), (COHORT, 0)])
def test_cohort_without_a_deviation_is_refused(cohort, top_n):
    with pytest.raises(ScoringError, match="at least 2 are needed"):
        cohort_statistics(ROWS, cohort, top_n)


def test_mean_is_subtracted_before_the_cosine():
    mean = ROWS.mean(axis=0)
    np.testing.assert_array_equal(normalisation.subtract_mean(ROWS, mean), ROWS - mean)


def test_speaker_means_average_each_speaker():
    names, means = normalisation.speaker_means(ROWS[:4], ["b", "a", "b", "c"])
    assert names == ["a", "b", "c"]
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, [ROWS[1], (ROWS[0] + ROWS[2]) / 2, ROWS[3]], rtol=1e-6)
    with pytest.raises(ScoringError, match="embeddings: 7, speakers: 1"):
        normalisation.speaker_means(ROWS, ["a"])


def test_speakers_in_both_cohort_and_trials_are_refused():
    normalisation.check_no_overlap(["a", "b"], ["c", "d"])
    with pytest.raises(ScoringError, match=r"2 speaker\(s\).*\(a, c\)"):
        normalisation.check_no_overlap(["a", "b", "c"], iter(["c", "a", "e"]))


def brute_search(queries, enrolled, k):
    """Searches with the float32 scores, so that ties are equal; the lower row comes first."""
    scores = np.asarray(score_matrix(queries, enrolled))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("k", [1, 5, 40])
def test_search_equals_brute_force(k):
    scores, rows = search.search(ROWS, unit(COHORT), k)
    expected, order = brute_search(ROWS, COHORT, k)
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, expected, atol=3e-7)


@quick
@given(st.integers(0, 2**31), st.integers(1, 40))
def test_search_never_returns_padding(seed, count):
    enrolled = np.array(unit(make_embeddings(seed, 40)))
    enrolled[count:] = np.nan
    scores, rows = search.search(ROWS, enrolled, 5, count)
    real = min(count, 5)
    expected, order = brute_search(ROWS, enrolled[:count], real)
    np.testing.assert_array_equal(rows[:, :real], order)
    np.testing.assert_allclose(scores[:, :real], expected, atol=3e-7)
    assert (np.asarray(scores[:, real:]) == -np.inf).all()


def test_search_returns_equal_embeddings_in_row_order():
    enrolled = unit(np.repeat(COHORT[:4], 3, axis=0))
    _, rows = search.search(COHORT[2:3], enrolled, 3)
    np.testing.assert_array_equal(rows, [[6, 7, 8]])


def test_search_compiles_once_for_a_growing_store():
    search.search(ROWS[:1], unit(COHORT), 3, 10)
    before = search.search._cache_size()
    search.search(ROWS[1:2], unit(COHORT), 3, 11)
    assert search.search._cache_size() == before


def test_query_block_size_does_not_change_the_result(monkeypatch):
    whole = search.search(ROWS, unit(COHORT), 4)
    monkeypatch.setattr(search, "BLOCK_SCORES", 2 * len(COHORT))
    blocked = jax.jit(search.search.__wrapped__, static_argnums=2)(ROWS, unit(COHORT), 4)
    np.testing.assert_array_equal(blocked[1], whole[1])
    np.testing.assert_allclose(blocked[0], whole[0], atol=2e-7)


@pytest.mark.parametrize("k", [0, 41])
def test_search_refuses_invalid_k(k):
    with pytest.raises(ScoringError, match="must be from 1 to 40"):
        search.search(ROWS, unit(COHORT), k)


@pytest.mark.parametrize("block_scores", [1, 80, 119, 10_000])
def test_score_blocks_equal_the_score_matrix(block_scores):
    parts = list(search.score_blocks(ROWS, COHORT, block_scores=block_scores))
    assert [part.start for part, _ in parts[1:]] == [part.stop for part, _ in parts[:-1]]
    assert all(scores.size <= max(block_scores, len(COHORT)) for _, scores in parts)
    whole = np.concatenate([scores for _, scores in parts])
    np.testing.assert_allclose(whole, brute_cosines(ROWS, COHORT), atol=5e-7)
