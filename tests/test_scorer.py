"""Tests of each publisher's scoring against NumPy."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import ecapa_jax
from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.convert.run import convert
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import BundleError, ConfigError, ConversionError
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.scorer import NAMED, WINDOW_SAMPLES, Scorer
from helpers.bundles import make
from helpers.checkpoints import modelscope
from helpers.cli import run, write_wav
from helpers.sounds import sound

pytestmark = pytest.mark.usefixtures("every_sound_is_speech")

MEAN = np.random.default_rng(5).standard_normal(192).astype(np.float32)
TWO_VIEWS = Scoring(views="whole_and_windows")


def make_embeddings(seed: int, n: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 192)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_cosine_half_and_mean_subtraction_equal_numpy():
    a, b = make_embeddings(0)[0], make_embeddings(1)[0]
    expected = {
        Scoring(): cosine(a, b),
        Scoring(score_map="half"): (cosine(a, b) + 1) / 2,
        Scoring(subtract_mean=True): cosine(a - MEAN, b - MEAN),
        Scoring(subtract_mean=True, score_map="half"): (cosine(a - MEAN, b - MEAN) + 1) / 2,
    }
    for scoring, value in expected.items():
        assert Scorer(scoring, MEAN).score(a[None], b[None]) == pytest.approx(value, abs=1e-6), scoring


def test_two_views_score_equals_taoruijie():
    """The reference normalizes the rows and averages the mean scores of the full recordings and of the windows."""
    a, b = make_embeddings(0, 6), make_embeddings(1, 6)
    unit_a, unit_b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (a, b))
    expected = (np.mean(unit_a[:1] @ unit_b[:1].T) + np.mean(unit_a[1:] @ unit_b[1:].T)) / 2
    assert Scorer(TWO_VIEWS).score(a, b) == pytest.approx(expected, abs=1e-6)
    assert Scorer(TWO_VIEWS).score(a, b) != pytest.approx(cosine(a[0], b[0]), abs=1e-3)


@pytest.mark.parametrize("n_samples", [700, 20000, 48239, 48240, 48241, 48244, 48247, 100003])
def test_views_equal_taoruijie(n_samples):
    audio = np.random.default_rng(n_samples).standard_normal(n_samples).astype(np.float32)
    whole, *windows = Scorer(TWO_VIEWS).views(audio)
    assert whole is audio
    size = 300 * 160 + 240
    padded = audio
    if len(padded) <= size:
        padded = np.pad(padded, (0, size - len(padded)), "wrap")
    expected = [padded[int(start) : int(start) + size] for start in np.linspace(0, len(padded) - size, num=5)]
    assert len(windows) == len(expected) == 5
    for window, other in zip(windows, expected, strict=True):
        np.testing.assert_array_equal(window, other)


def test_score_refuses_a_wrong_number_of_views():
    with pytest.raises(ConfigError, match="6 embedding"):
        Scorer(TWO_VIEWS).score(make_embeddings(0), make_embeddings(1))
    with pytest.raises(ConfigError, match="1 embedding"):
        Scorer(Scoring()).score(make_embeddings(0, 6), make_embeddings(1, 6))


def test_with_scoring_converts_the_threshold_only_if_the_scores_are_related():
    nemo = Scorer(Scoring(threshold=0.7, score_map="half"), MEAN)
    assert nemo.with_scoring("publisher") is nemo
    assert nemo.with_scoring("half").scoring.threshold == 0.7
    assert nemo.with_scoring("cosine").scoring.threshold == pytest.approx(0.4)
    assert nemo.with_scoring("two_views").scoring.threshold is None
    assert nemo.with_scoring("cosine_less_mean").scoring.threshold is None
    back = Scorer(Scoring(threshold=0.4)).with_scoring("half").scoring
    assert (back.score_map, back.threshold) == ("half", pytest.approx(0.7))
    assert Scorer(Scoring(), MEAN).with_scoring("half").scoring.threshold is None
    with pytest.raises(ConfigError, match="--embedding-mean"):
        Scorer(Scoring()).with_scoring("cosine_less_mean")


def test_scale_describes_the_score():
    assert {name: Scorer(scoring, MEAN).scale for name, scoring in NAMED.items()} == {
        "cosine": "cosine, from -1 to 1",
        "cosine_less_mean": "cosine less the mean embedding, from -1 to 1",
        "half": "(cosine + 1) / 2, from 0 to 1",
        "two_views": "mean of two views' cosines, from -1 to 1",
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scoring = Scoring(threshold=0.7, score_map="half")
    return save_bundle(make(scoring=scoring, embedding_mean=MEAN), tmp_path_factory.mktemp("b") / "bundle")


@pytest.fixture(scope="module")
def encoder(bundle: Path) -> SpeakerEncoder:
    return ecapa_jax.load(bundle)


def test_verify_uses_the_scoring_of_the_publisher_or_of_the_caller(encoder):
    a, b = sound(0.9), np.float32(0.1) * np.random.default_rng(1).standard_normal(14400).astype(np.float32)
    first, second = encoder.embed([a, b])
    answer = encoder.verify(a, b)
    assert answer.score == pytest.approx((cosine(first, second) + 1) / 2, abs=1e-6)
    assert (answer.threshold, answer.same_speaker) == (0.7, answer.score >= 0.7)
    plain = encoder.verify(a, b, scoring="cosine")
    assert plain.score == pytest.approx(cosine(first, second), abs=1e-6)
    assert plain.same_speaker is answer.same_speaker
    less = encoder.verify(a, b, scoring="cosine_less_mean")
    assert less.score == pytest.approx(cosine(first - MEAN, second - MEAN), abs=1e-6)
    assert less.same_speaker is None
    pipeline = ecapa_jax.SpeakerVerificationPipeline(encoder)
    assert pipeline([a, b]) == {"score": round(answer.score, 5), "text": "yes" if answer.same_speaker else "no"}


def test_embed_views_equals_embeddings_of_single_views(encoder):
    """Each recording has six embeddings, which equal those of the single views."""
    a, b = sound(4.0), sound(0.9)[::-1].copy()
    views = encoder.embed_views([a, b], scorer=encoder.scorer.with_scoring("two_views"))
    assert views.shape == (2, 6, 192)
    alone = encoder.embed([a[4000 : 4000 + WINDOW_SAMPLES], np.resize(b, WINDOW_SAMPLES)])
    starts = np.linspace(0, len(a) - WINDOW_SAMPLES, 5).astype(int)
    assert starts[2] == (len(a) - WINDOW_SAMPLES) // 2
    np.testing.assert_allclose(views[1, 1:], np.broadcast_to(alone[1], (5, 192)), atol=1e-4 * np.abs(alone[1]).max())
    np.testing.assert_allclose(views[:, 0], encoder.embed([a, b]), atol=1e-4 * np.abs(alone).max())
    unit = views.astype(np.float64) / np.linalg.norm(views.astype(np.float64), axis=-1, keepdims=True)
    expected = (unit[0, 0] @ unit[1, 0] + np.mean(unit[0, 1:] @ unit[1, 1:].T)) / 2
    assert encoder.verify(a, b, scoring="two_views").score == pytest.approx(expected, abs=1e-5)


def test_command_line_uses_the_scoring_of_the_publisher_or_of_the_option(
    capsys, tmp_path, bundle, encoder, monkeypatch
):
    a, b = write_wav(tmp_path / "a.wav"), write_wav(tmp_path / "b.wav", sound(0.9)[::-1].copy())
    score = encoder.verify(a, b).score
    result = run(capsys, "verify", a, b, "--model", bundle)
    assert result.out.splitlines()[0] == f"score         {score:.4f}   ((cosine + 1) / 2, from 0 to 1)"
    assert "threshold     0.7000" in result.out
    plain = run(capsys, "verify", a, b, "--model", bundle, "--scoring", "cosine")
    assert plain.out.splitlines()[0] == f"score         {2 * score - 1:.4f}   (cosine, from -1 to 1)"
    assert "threshold     0.4000" in plain.out


def test_bundle_stores_scoring_and_old_bundles_load(bundle, tmp_path):
    scoring = Scoring(threshold=0.7, score_map="half")
    assert load_bundle(bundle).scoring == scoring
    path = save_bundle(make(), tmp_path / "old") / "model.json"
    document = json.loads(path.read_text())
    document["scoring"] = {"threshold": 0.25, "subtract_mean": False}
    path.write_text(json.dumps(document))
    assert load_bundle(path.parent).scoring == Scoring(threshold=0.25)
    for broken in ({"threshold": 0.25}, {**dataclasses.asdict(scoring), "views": "three"}):
        document["scoring"] = broken
        path.write_text(json.dumps(document))
        with pytest.raises(BundleError, match="scoring"):
            load_bundle(path.parent)


def test_convert_accepts_a_mean_embedding(capsys, tmp_path):
    source = modelscope(tmp_path / "published")
    np.save(tmp_path / "mean.npy", MEAN)
    out = tmp_path / "bundle"
    assert run(capsys, "convert", source, "-o", out, "--embedding-mean", tmp_path / "mean.npy").code == 0
    loaded = load_bundle(out)
    assert loaded.scoring.subtract_mean
    assert loaded.scoring.threshold is None
    np.testing.assert_array_equal(loaded.embedding_mean, MEAN)
    for name, content in (("short.npy", MEAN[:5]), ("nan.npy", MEAN * np.nan), ("int.npy", np.arange(192))):
        np.save(tmp_path / name, content)
        result = run(capsys, "convert", source, "-o", tmp_path / "x", "--embedding-mean", tmp_path / name)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "192 finite floats" in result.err
    (tmp_path / "text.npy").write_text("none")
    for name in ("text.npy", "missing.npy"):
        result = run(capsys, "convert", source, "-o", tmp_path / "x", "--embedding-mean", tmp_path / name)
        assert (result.code, name in result.err) == (2, True)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConversionError, match="192 finite"):
        convert(source, embedding_mean=MEAN[None])
