"""Tests of `whiten`: its estimate against scikit-learn, and the bundle that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import ShrunkCovariance

import ecapa_jax
from ecapa_jax.bundle.bundle import Bundle, load_bundle
from ecapa_jax.bundle.whitening import whitened
from ecapa_jax.errors import ScoringError
from ecapa_jax.scoring.whitening import FEWEST, estimate_whitening
from helpers import families
from helpers.cli import run, run_refused, write_wav


def make_embeddings(n: int = 400, dim: int = 24) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)).astype(np.float32)


def make_noise(seed: int, seconds: float) -> np.ndarray:
    """Returns noise whose spectrum depends on the seed."""
    rng = np.random.default_rng(seed)
    return np.convolve(rng.normal(size=int(seconds * 16000)) / 50, rng.normal(size=8), "same").astype(np.float32)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.5, 1.0])
def test_whitening_inverts_the_covariance_of_scikit_learn(shrinkage: float) -> None:
    """The matrix is symmetric, and its square is proportional to the precision matrix."""
    rows = make_embeddings()
    whitening = estimate_whitening(rows, shrinkage)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    expected = ShrunkCovariance(shrinkage=shrinkage).fit(rows * (lengths.mean() / lengths))
    scale = np.trace(expected.covariance_) / rows.shape[1]
    error = np.abs(whitening.matrix @ whitening.matrix / scale - expected.precision_).max()
    print(f"shrinkage {shrinkage}: largest error {error / np.abs(expected.precision_).max():.1e} of the largest value")
    assert error < 1e-9 * np.abs(expected.precision_).max()
    np.testing.assert_allclose(whitening.matrix, whitening.matrix.T, atol=1e-12)
    np.testing.assert_allclose(whitening.mean, expected.location_, rtol=1e-6, atol=1e-9)


def test_full_whitening_gives_equal_variances() -> None:
    rows = make_embeddings()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    covariance = np.cov(estimate_whitening(rows, 0.0)(rows), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance, np.eye(24) * covariance[0, 0], atol=1e-6 * covariance[0, 0])


@pytest.mark.parametrize(
    ("rows", "shrinkage", "words"),
    [
        (make_embeddings(), 1.5, "from 0 to 1"),
        (make_embeddings(), float("nan"), "from 0 to 1"),
        (make_embeddings(FEWEST - 1), 0.5, "too few"),
        (np.zeros((200, 8), np.float32), 0.5, "zero or not finite"),
        (np.full((200, 8), np.nan, np.float32), 0.5, "zero or not finite"),
        (np.repeat(make_embeddings(200, 4), 2, axis=1), 0.0, "do not vary"),
    ],
    ids=["share", "nan", "few", "zero", "not_finite", "flat"],
)
def test_invalid_embeddings_and_shrinkage_are_refused(rows: np.ndarray, shrinkage: float, words: str) -> None:
    with pytest.raises(ScoringError, match=words):
        estimate_whitening(rows, shrinkage)


@pytest.mark.parametrize("family", ["rdino", "taoruijie"])
def test_whitening_is_merged_into_the_network(family: str) -> None:
    """The families differ in whether a normalization follows the projection."""
    bundle = Bundle(config=families.config(family), variables=families.variables(family))
    waveforms = [make_noise(seed, 0.5) for seed in range(4)]
    before = ecapa_jax.SpeakerEncoder.from_bundle(bundle).embed(waveforms, sample_rate=16000)
    dim = before.shape[1]
    whitening = estimate_whitening(before.mean(axis=0) + make_embeddings(400, dim) * before.std(), 0.3)
    after = ecapa_jax.SpeakerEncoder.from_bundle(whitened(bundle, whitening, 0.3, 400)).embed(
        waveforms, sample_rate=16000
    )
    error = np.abs(after - whitening(before)).max() / np.abs(after).max()
    print(f"{family}: largest error {error:.1e} of the largest value")
    assert error < 2e-5


def test_whiten_writes_a_bundle(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "few").mkdir()
    for seed in range(FEWEST):
        write_wav(tmp_path / "audio" / f"{seed}.wav", make_noise(seed, 0.3))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{seed}.wav\n" for seed in range(FEWEST)))
    common = ["--model", model, "--cache", tmp_path / "cache.sqlite", "--json", "--quiet"]
    made = run(capsys, "whiten", tmp_path / "audio", "-o", tmp_path / "new", "--shrinkage", "0.3", *common)
    assert (made.code, made.json["recordings"], made.json["shrinkage"]) == (0, FEWEST, 0.3)
    again = run(capsys, "whiten", listed, "--audio-root", tmp_path / "audio", "-o", tmp_path / "same", *common)
    assert again.code == 0
    bundle = load_bundle(tmp_path / "new")
    assert (bundle.scoring.threshold, bundle.operating_points) == (None, [])
    assert f"{FEWEST} recordings, shrinkage 0.3" in bundle.provenance["notes"][-1]
    few = write_wav(tmp_path / "few" / "a.wav").parent
    assert "too few" in run_refused(capsys, tmp_path / "few", "whiten", few, "-o", tmp_path / "few" / "b", *common)
    (tmp_path / "no").mkdir()
    assert "no recordings" in run_refused(
        capsys, tmp_path / "no", "whiten", tmp_path / "no", "-o", tmp_path / "no" / "b", *common
    )
    assert "packaged model can't be changed" in run_refused(capsys, tmp_path, "whiten", few)
