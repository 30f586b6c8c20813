"""Tests of `threshold`, `cohort` and `calibrate`: what they write to a bundle, and the input that they refuse."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecapa_jax import api
from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.errors import ScoringError
from ecapa_jax.evaluation.operating import ThresholdRule, choose_threshold, operating_point
from ecapa_jax.scoring.counts import Cost
from ecapa_jax.scoring.llr import cllr
from ecapa_jax.scoring.metrics import error_rates, far_frr, min_dcf
from ecapa_jax.scoring.scorer import Scorer
from helpers.bundles import POINT, contents
from helpers.cli import run, run_refused, write_wav
from helpers.sounds import sound

KEPT = {"operating_points.json", "model.json", "README.md", "scoring.npz"}


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "bundle")


@pytest.fixture
def shared_encoder(monkeypatch: pytest.MonkeyPatch, encoder) -> None:
    """Makes all bundles use one compiled function, each with its own scoring."""

    def load(model, scoring="publisher", **_):
        loaded, mine = load_bundle(model), copy.copy(encoder)
        mine.scorer = Scorer(loaded.scoring, loaded.embedding_mean, loaded.cohort).with_scoring(scoring)
        return mine

    monkeypatch.setattr(api, "load", load)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Writes a list with scores: 60 targets and 140 non-targets, with ties."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) < 60
    values = np.round(rng.normal(0.2 + 0.25 * labels, 0.12), 2)
    lines = [f"m{n} t{n} {'target' if mark else 'nontarget'} {values[n]:.2f}" for n, mark in enumerate(labels)]
    path = tmp_path / "scores.txt"
    path.write_text("\n".join(lines))
    return path


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = [line.split() for line in path.read_text().splitlines()]
    return np.array([float(row[3]) for row in rows]), np.array([row[2] == "target" for row in rows])


def write_speakers(root: Path, names: str) -> list[str]:
    """Writes two different recordings per speaker: a tone of the speaker's frequency, in noise."""
    files = []
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for take in range(2):
            rng = np.random.default_rng([number, take])
            tone = np.sin(2 * np.pi * (200 + 150 * number) * np.arange(14400) / 16000)
            samples = 0.3 * sound(0.9) + 0.2 * tone + 0.002 * rng.standard_normal(14400)
            files.append(f"{name}/{take}.wav")
            write_wav(root / files[-1], samples.astype(np.float32))
    return files


def write_trials(path: Path, files: list[str]) -> Path:
    lines = [f"{int(a.split('/')[0] == b.split('/')[0])} {a} {b}" for n, a in enumerate(files) for b in files[n + 1 :]]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--eer"], ThresholdRule(eer=True)),
        (["--far", "0.05"], ThresholdRule(far=0.05)),
        (["--cost", "0.05,10,1"], ThresholdRule(cost=Cost(p_target=0.05, c_miss=10.0))),
    ],
)
def test_threshold_from_scores(capsys, bundle, scores, arguments, rule):
    before = contents(bundle)
    result = run(capsys, "threshold", "--trials", scores, *arguments, "--model", bundle, "--json")
    assert (result.code, result.err) == (0, "")
    values, labels = read(scores)
    loaded = load_bundle(bundle)
    point = loaded.operating_points[0]
    assert loaded.scoring.threshold == point["threshold"] == choose_threshold(values, labels, rule)
    assert (point["far"], point["frr"]) == far_frr(values, labels, point["threshold"])
    assert (point["trials"], point["n_trials"], point["n_targets"]) == ("scores", 200, 60)
    assert loaded.operating_points[1:] == [POINT]
    after = contents(bundle)
    assert after.keys() == before.keys()
    assert {path.name for path in after if after[path] != before[path]} <= KEPT
    assert not list(bundle.parent.glob(".*"))

    again = run(capsys, "threshold", "--trials", scores, *arguments, "--model", bundle, "--json")
    assert again.json == result.json
    assert load_bundle(bundle).operating_points == loaded.operating_points


def test_threshold_rules_equal_brute_force(scores):
    values, labels = read(scores)
    candidates = np.append(np.unique(values), np.inf)
    for far in (0.0, 0.01, 0.3):
        chosen = choose_threshold(values, labels, ThresholdRule(far=far))
        good = [t for t in candidates if (values[~labels] >= t).mean() <= far]
        assert far_frr(values, labels, chosen) == far_frr(values, labels, min(good))
    cost = Cost(p_target=0.3, c_miss=2.0)
    point = operating_point(choose_threshold(values, labels, ThresholdRule(cost=cost)), values, labels, trials="x")
    reached = (cost.miss * point["frr"] + cost.false_alarm * point["far"]) / min(cost.miss, cost.false_alarm)
    assert reached == pytest.approx(min_dcf(values, labels, p_target=0.3, c_miss=2.0), abs=1e-12)
    assert error_rates(values, labels).far.min() == 0


def test_rule_that_rejects_every_trial_is_refused():
    with pytest.raises(ScoringError, match="only rejecting every trial"):
        choose_threshold([0.1, 0.9], [1, 0], ThresholdRule(far=0.0))


def test_threshold_writes_another_bundle(capsys, bundle, scores):
    before = contents(bundle)
    out = bundle.parent / "out"
    text = run(capsys, "threshold", "--trials", scores, "--eer", "--model", bundle, "-o", out).out
    assert f"{out}: threshold" in text
    assert "by equal error rate" in text
    assert contents(bundle) == before
    assert load_bundle(out).scoring.threshold != load_bundle(bundle).scoring.threshold
    assert "exists" in run_refused(capsys, out, "threshold", "--trials", scores, "--eer", "--model", bundle, "-o", out)
    assert run(capsys, "threshold", "--trials", scores, "--eer", "--model", bundle, "-o", out, "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exactly one of"),
        (["--eer", "--far", "0.1"], "exactly one of"),
        (["--far", "1.5"], "at least 0 and below 1"),
        (["--cost", "0.01,1"], "must be p_target,c_miss,c_fa"),
        (["--cost", "2,1,1"], "p_target is 2.0"),
    ],
)
def test_threshold_refuses_invalid_rules(capsys, bundle, scores, arguments, words):
    assert words in run_refused(capsys, bundle, "threshold", "--trials", scores, "--model", bundle, *arguments)


@pytest.mark.parametrize("verb", ["threshold", "calibrate", "cohort"])
def test_packaged_model_can_not_be_changed(capsys, tmp_path, scores, verb):
    arguments = [tmp_path] if verb == "cohort" else ["--trials", scores]
    arguments += ["--eer"] if verb == "threshold" else []
    assert "packaged model can't be changed" in run_refused(capsys, tmp_path, verb, *arguments)


@pytest.mark.usefixtures("shared_encoder")
def test_cohort_calibrate_threshold_verify(capsys, bundle, tmp_path):
    """Each verb reads the bundle that the previous verb wrote, and verify uses the result."""
    write_speakers(tmp_path / "others", "uvwx")
    files = write_speakers(tmp_path / "mine", "abcde")
    trials = write_trials(tmp_path / "dev.txt", files)
    cache = ["--cache", tmp_path / "cache.sqlite"]
    audio = ["--audio-root", tmp_path / "mine", *cache, "--model", bundle, "--json"]

    made = run(capsys, "cohort", tmp_path / "others", "--top-n", "3", *cache, "--model", bundle, "--json", "--quiet")
    assert (made.code, made.json["rows"], made.json["speakers"]) == (0, 4, 4)
    normalised = load_bundle(bundle)
    assert normalised.cohort.speakers == ("u", "v", "w", "x")
    assert (normalised.scoring.score_type, normalised.scoring.top_n) == ("normalised", 3)
    assert (normalised.scoring.threshold, normalised.operating_points) == (None, [])

    chosen = run(capsys, "threshold", "--trials", trials, "--eer", *audio)
    assert (chosen.code, chosen.json["score_type"]) == (0, "normalised")
    assert load_bundle(bundle).scoring.threshold == chosen.json["threshold"]

    done = run(capsys, "calibrate", "--trials", trials, *audio, "--ridge", "0.01", "--measures", "magnitude")
    assert done.code == 0, done.err
    scoring = load_bundle(bundle).scoring
    assert scoring.calibration.measures == ("magnitude",)
    assert (scoring.threshold, scoring.score_type, scoring.normalisation) == (0.0, "llr", "s_norm")
    np.testing.assert_array_equal(load_bundle(bundle).cohort.embeddings, normalised.cohort.embeddings)

    labels, ratios = [], []
    for line in trials.read_text().splitlines()[::7]:
        label, a, b = line.split()
        answer = run(capsys, "verify", tmp_path / "mine" / a, tmp_path / "mine" / b, "--model", bundle, "--json").json
        assert answer["score_type"] == "llr"
        labels.append(label == "1")
        ratios.append(answer["score"])
    evaluated = run(capsys, "evaluate", "--trials", trials, "--output", tmp_path / "result", "--resamples", "0", *audio)
    assert evaluated.code == 0, evaluated.err
    own = evaluated.json["lists"][0]
    assert own["system"] == "model"
    assert done.json["cllr"] == pytest.approx(
        cllr(*_score_trials(bundle, trials, tmp_path)), abs=1e-4
    )  # other rows of a batch change a cosine by about 1e-6
    listed = [
        float(line.split("\t")[-1]) for line in (tmp_path / "result" / "scores_model.tsv").read_text().split("\n")[1:-1]
    ]
    np.testing.assert_allclose(listed[::7], ratios, rtol=1e-3, atol=1e-3)


def _score_trials(bundle: Path, trials: Path, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores every trial with `Scorer.score`, one by one."""
    encoder = api.load(bundle)
    rows = [line.split() for line in trials.read_text().splitlines()]
    names = sorted({name for row in rows for name in row[1:]})
    embeddings = dict(zip(names, encoder.embed([root / "mine" / name for name in names]), strict=True))
    scores = [encoder.score(embeddings[a], embeddings[b], (0.9, 0.9)) for _, a, b in rows]
    return np.array(scores), np.array([row[0] == "1" for row in rows])


@pytest.mark.usefixtures("shared_encoder")
def test_speakers_in_both_cohort_and_trials_are_refused(capsys, bundle, tmp_path):
    files = write_speakers(tmp_path / "mine", "abc")
    trials = write_trials(tmp_path / "dev.txt", files)
    cache = ["--cache", tmp_path / "cache.sqlite"]
    assert run(capsys, "cohort", tmp_path / "mine", "--top-n", "0", *cache, "--model", bundle, "--quiet").code == 0
    arguments = ["--trials", trials, "--audio-root", tmp_path / "mine", *cache, "--model", bundle]
    assert "speaker(s) of the trials are also in the cohort" in run_refused(
        capsys, bundle, "threshold", "--eer", *arguments
    )


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (lambda root: None, [], "no recordings in folders"),
        (lambda root: write_speakers(root, "a"), [], "at least two speakers"),
        (lambda root: write_speakers(root, "ab"), ["--top-n", "1"], "at least 2, or 0"),
        (lambda root: (root / "list").write_text("a/0.wav a\nb/0.wav b"), ["list"], "2 of 2 recordings are not in"),
    ],
)
@pytest.mark.usefixtures("shared_encoder")
def test_cohort_refuses_invalid_input(capsys, bundle, tmp_path, make, arguments, words):
    root = tmp_path / "others"
    root.mkdir()
    make(root)
    source = root / "list" if arguments == ["list"] else root
    arguments = ["--audio-root", root] if arguments == ["list"] else arguments
    cache = ["--cache", tmp_path / "cache.sqlite"]
    before = json.loads((bundle / "model.json").read_text())
    assert words in run_refused(capsys, bundle, "cohort", source, *arguments, *cache, "--model", bundle)
    assert json.loads((bundle / "model.json").read_text()) == before
