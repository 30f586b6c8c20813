"""Tests of `ecapa-jax evaluate`: its figures, scores and plots, and the input that it refuses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from ecapa_jax.evaluation import files
from ecapa_jax.scoring import metrics
from ecapa_jax.scoring.normalisation import as_norm
from helpers.cli import run, write_wav
from helpers.sounds import RATE

pytestmark = pytest.mark.usefixtures("one_encoder")

SPEAKERS, FILES = 4, 4  # 16 files of one length are one batch and compile once


def voice(speaker: int, take: int) -> np.ndarray:
    """Returns harmonics of the speaker's pitch, in noise."""
    rng = np.random.default_rng(100 * speaker + take)
    time = np.arange(int(0.9 * RATE)) / RATE
    pitch = 100 * 1.35**speaker * (1 + 0.01 * take)
    tones = sum(np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k for k in range(1, 12))
    return (0.1 * tones + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Writes `s0/0.wav` to `s3/3.wav`, and `list.txt` with all pairs."""
    root = tmp_path_factory.mktemp("corpus")
    names = [f"s{speaker}/{take}.wav" for speaker in range(SPEAKERS) for take in range(FILES)]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        write_wav(root / name, voice(int(name[1]), int(name[3])))
    lines = [f"{int(a[:2] == b[:2])} {a} {b}" for at, a in enumerate(names) for b in names[at + 1 :]]
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the module, so that each recording is embedded once."""
    return tmp_path_factory.mktemp("cache") / "embeddings.sqlite"


@pytest.fixture
def evaluate(capsys, corpus, cache):
    """Returns a function that runs the command on the corpus and returns its report or its result."""

    def command(*options, trials="list.txt", json_too=True, resamples=50):
        what = () if trials is None else ("--trials", corpus / trials, "--audio-root", corpus, "--cache", cache)
        shape = ("--json",) if json_too else ()
        return run(capsys, "evaluate", *what, "--resamples", resamples, *shape, *options)

    return command


def test_scores_equal_those_of_verify(evaluate, corpus, encoder, tmp_path):
    result = evaluate("--output", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    report = result.json["lists"][0]
    assert (report["n_trials"], report["n_targets"], report["n_names"], report["n_speakers"]) == (120, 24, 16, 4)
    rows = [line.split("\t") for line in (tmp_path / "out" / "scores.tsv").read_text().splitlines()]
    assert rows[0] == ["enrol", "test", "label", "score"]
    assert [f"{label} {a} {b}" for a, b, label, _ in rows[1:]] == (corpus / "list.txt").read_text().splitlines()
    names = sorted({name for row in rows[1:] for name in row[:2]})
    embeddings = dict(zip(names, encoder.embed([corpus / name for name in names]), strict=True))
    expected = [encoder.score(embeddings[a], embeddings[b]) for a, b, _, _ in rows[1:]]
    scores, labels = np.array([float(row[3]) for row in rows[1:]]), np.array([int(row[2]) for row in rows[1:]])
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    figures = report["figures"]
    assert figures["eer"]["value"] == metrics.eer(scores, labels)
    assert figures["min_dcf_0.01"]["value"] == metrics.min_dcf(scores, labels)
    assert (figures["far"]["value"], figures["frr"]["value"]) == metrics.far_frr(scores, labels, 0.25)
    assert figures["eer"]["low"] <= figures["eer"]["value"] <= figures["eer"]["high"]
    assert "bootstrap of 4 speakers" in report["notes"][0]


def test_report_writes_its_files(evaluate, tmp_path):
    out = tmp_path / "out"
    text = evaluate("--output", out, json_too=False)
    assert text.code == 0
    assert text.out.strip() == (out / "report.txt").read_text().strip()
    assert "EER" in text.out
    plots = sorted(path.name for path in out.glob("*.png"))
    assert plots == ["calibration.png", "det.png", "score_histogram.png"]
    for name in plots:
        content = (out / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert len(content) > 5000
    assert json.loads((out / "report.json").read_text())[0]["n_trials"] == 120
    assert "holds a report" in evaluate("--output", out).err
    assert evaluate("--output", out, "--force").code == 0


def test_report_without_matplotlib_has_no_plots(evaluate, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = evaluate("--output", tmp_path / "out")
    assert (result.code, result.err) == (0, "no plots: plots need matplotlib: pip install 'ecapa-jax[evaluate]'\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.tsv", "report.txt", "report.json"}


def test_scores_file_gives_the_same_figures(evaluate, tmp_path):
    measured = evaluate("--output", tmp_path / "out").json["lists"][0]["figures"]
    again = evaluate("--scores", tmp_path / "out" / "scores.tsv", "--threshold", 0.25, trials=None)
    assert again.json["lists"][0]["figures"] == measured
    as_llr = evaluate("--scores", tmp_path / "out" / "scores.tsv", "--llr", trials=None).json["lists"][0]["figures"]
    assert 0 < as_llr["min_cllr"]["value"] < as_llr["cllr"]["value"]
    assert as_llr["act_dcf_0.01"]["value"] >= as_llr["min_dcf_0.01"]["value"]


def test_cached_recordings_are_not_embedded_again(evaluate, corpus, encoder, tmp_path, monkeypatch):
    assert evaluate().code == 0
    for name in ("list.txt", "s0/0.wav"):  # the cache also recognizes the content at another path
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((corpus / name).read_bytes())
    (tmp_path / "s0" / "1.wav").write_bytes((corpus / "s0" / "1.wav").read_bytes())
    monkeypatch.setattr(encoder, "_dispatch", lambda *_: pytest.fail("embedded again"))
    assert evaluate().code == 0
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "0.wav").write_bytes((corpus / "s1" / "0.wav").read_bytes())
    (tmp_path / "short.txt").write_text("1 s0/0.wav s0/1.wav\n0 s0/0.wav s1/0.wav\n")
    assert evaluate("--audio-root", tmp_path, "--trials", tmp_path / "short.txt", resamples=0).code == 0


def test_interrupted_run_resumes(evaluate, encoder, tmp_path, monkeypatch):
    own = tmp_path / "own.sqlite"
    real = encoder.embed_stream

    def interrupt_embedding(waveforms):
        for number, (indices, rows) in enumerate(real(waveforms)):
            yield indices[:5], rows[:5]
            if number == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "embed_stream", interrupt_embedding)
    stopped = evaluate("--cache", own)
    assert (stopped.code, stopped.out) == (75, "")
    assert "5 more recordings are in" in stopped.err
    asked = []
    monkeypatch.setattr(encoder, "embed_stream", real)
    monkeypatch.setattr(files, "_sha256", lambda path, real=files._sha256: asked.append(path) or real(path))
    embedded = []
    real_views = encoder.scorer.views
    monkeypatch.setattr(encoder.scorer, "views", lambda waveform: embedded.append(1) or real_views(waveform))
    whole = evaluate("--cache", own)
    assert (whole.code, len(asked), len(embedded)) == (0, 16, 11)
    expected = evaluate().json["lists"][0]["figures"]["eer"]["value"]
    assert whole.json["lists"][0]["figures"]["eer"]["value"] == expected


def test_enrolment_models_are_scored_by_their_mean_embedding(evaluate, corpus, encoder, tmp_path):
    """The score is the cosine with the mean of the model's embeddings, each scaled to length 1."""
    models = {f"m{speaker}": [f"s{speaker}/{take}.wav" for take in range(3)] for speaker in range(SPEAKERS)}
    (tmp_path / "enrolment").write_text("".join(f"{name} {' '.join(group)}\n" for name, group in models.items()))
    lines = [f"{m} s{t}/3.wav {'target' if m == f'm{t}' else 'nontarget'}" for m in models for t in range(SPEAKERS)]
    (tmp_path / "trials").write_text("\n".join(lines))
    options = ("--enrolment", tmp_path / "enrolment", "--trials", tmp_path / "trials", "--output", tmp_path / "out")
    result = evaluate(*options)
    assert result.code == 0
    assert "no speaker is known, so files are drawn" in result.json["lists"][0]["notes"][0]
    rows = [line.split("\t") for line in (tmp_path / "out" / "scores.tsv").read_text().splitlines()[1:]]
    for model, test, _, score in rows:
        group = encoder.embed([corpus / name for name in models[model]])
        mean = (group / np.linalg.norm(group, axis=1, keepdims=True)).mean(axis=0)
        assert float(score) == pytest.approx(encoder.score(mean, encoder.embed(corpus / test)[0]), abs=2e-6)
    (tmp_path / "enrolment").write_text("m0 s0/0.wav\n")
    assert "3 of 4 enrolled names have no line in the enrolment file, such as m1" in evaluate(*options, "--force").err


def test_as_norm_equals_brute_force(evaluate, corpus, encoder, tmp_path):
    names = [f"s{speaker}/{take}.wav" for speaker in (2, 3) for take in range(FILES)]
    (tmp_path / "cohort").write_text("".join(f"{name} x{name[:2]}{name[3]}\n" for name in names))
    pairs = [("s0/0.wav", "s0/1.wav"), ("s0/0.wav", "s1/1.wav"), ("s1/2.wav", "s1/3.wav")]
    (tmp_path / "trials").write_text("".join(f"{int(a[1] == b[1])} {a} {b}\n" for a, b in pairs))
    result = evaluate("--trials", tmp_path / "trials", "--cohort", tmp_path / "cohort", "--top-n", 5,
                      "--output", tmp_path / "out", resamples=0)  # fmt: skip
    assert result.code == 0
    assert [report["system"] for report in result.json["lists"]] == ["plain", "as-norm"]
    assert "far" not in result.json["lists"][1]["figures"]  # the model's threshold does not apply to these scores
    lines = (tmp_path / "out" / "scores_as-norm.tsv").read_text().splitlines()[1:]
    found = [float(line.split("\t")[3]) for line in lines]
    a, b = (encoder.embed([corpus / pair[side] for pair in pairs]) for side in (0, 1))
    cohort = encoder.embed([corpus / name for name in names])
    expected = as_norm(a, b, cohort / np.linalg.norm(cohort, axis=1, keepdims=True), top_n=5)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # the standard deviations of this cohort are near 0.001
    refused = evaluate("--cohort", tmp_path / "cohort")
    assert (refused.code, "8 recordings of the cohort are also in the trials" in refused.err) == (2, True)
    (tmp_path / "cohort").write_text("s2/0.wav s0\ns3/0.wav s1\n")
    refused = evaluate("--trials", tmp_path / "trials", "--cohort", tmp_path / "cohort")
    assert (refused.code, "2 speaker(s) of the trials are also in the cohort (s0, s1)" in refused.err) == (2, True)


def test_breakdown_and_baseline_are_reported(evaluate, corpus, tmp_path):
    lines = (corpus / "list.txt").read_text().splitlines()
    rows = [line.split() for line in lines]
    table = [f"{a},{b},{label},{'low' if a[1] in '01' else 'high'}" for label, a, b in rows]
    (tmp_path / "t.csv").write_text("enrol,test,label,pitch\n" + "\n".join(table))
    assert evaluate("--output", tmp_path / "out").code == 0
    result = evaluate("--trials", tmp_path / "t.csv", "--by", "pitch", "duration", "--baseline",
                      tmp_path / "out" / "scores.tsv").json["lists"][0]  # fmt: skip
    assert [group["value"] for group in result["groups"]["pitch"]] == ["high", "low"]
    assert sum(group["n_trials"] for group in result["groups"]["pitch"]) == 120
    assert [(group["value"], group["n_trials"]) for group in result["groups"]["duration"]] == [("0-2 s", 120)]
    assert result["groups"]["duration"][0]["eer"] == result["figures"]["eer"]["value"]
    assert result["against"]["eer"] == {"value": 0, "low": 0, "high": 0, "p_value": 1}
    assert "no column gender to break figures down by; it has: duration, pitch" in evaluate(
        "--trials", tmp_path / "t.csv", "--by", "gender"
    ).err  # fmt: skip


def test_several_lists_are_reported_in_a_table(evaluate, corpus, tmp_path):
    (tmp_path / "other.txt").write_text("".join((corpus / "list.txt").read_text().splitlines(True)[:60]))
    result = evaluate("--trials", corpus / "list.txt", tmp_path / "other.txt", "--output", tmp_path / "out",
                      json_too=False)  # fmt: skip
    rows = [line for line in result.out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| list", "| list", "| other"]
    assert (tmp_path / "out" / "other" / "report.json").is_file()


def test_missing_audio_is_reported_before_any_recording_is_embedded(evaluate, corpus, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "embed_stream", lambda _: pytest.fail("work was done"))
    (tmp_path / "trials").write_text("1 s0/0.wav s0/9.wav\n0 s0/0.wav s9/0.wav\n0 s1/0.wav s9/1.wav\n")
    result = evaluate("--trials", tmp_path / "trials", "--missing", tmp_path / "missing.txt")
    assert result.code == 2
    assert f"3 of 5 recordings are not in {corpus}: s0/9.wav, s9/0.wav, s9/1.wav" in result.err
    assert (tmp_path / "missing.txt").read_text() == "s0/9.wav\ns9/0.wav\ns9/1.wav\n"


def test_unreadable_recording_does_not_affect_the_others(evaluate, corpus, tmp_path):
    for number in range(4):
        write_wav(tmp_path / f"{number}.wav", voice(7, number))
    (tmp_path / "0.wav").write_bytes(b"RIFF no wave")
    (tmp_path / "1.wav").write_bytes(b"")
    (tmp_path / "trials").write_text("1 0.wav 1.wav\n0 2.wav 3.wav\n")
    result = evaluate("--trials", tmp_path / "trials", "--audio-root", tmp_path, "--cache", tmp_path / "own")
    assert result.code == 2
    assert "0.wav" in result.err
    assert "1 more recordings can't be embedded" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scores", "x.tsv"), "give trial lists or a scores file"),
        (("--preset", "voxceleb1-o"), "120 trials, VoxCeleb1-O (cleaned) has 37611"),
        (("--p-target", "1.5"), "p_target is 1.5"),
        (("--far", "2"), "false acceptance rate is 2.0"),
        (("--confidence", "95"), "confidence is 95.0"),
        (("--resamples", "-1"), "-1 resamples"),
        (("--cache", "/dev/null/x"), "no folder /dev/null"),
        (("--audio-root", "nowhere"), "nowhere is not a folder"),
        (("--baseline", "nothing.tsv"), "nothing.tsv can't be read"),
        (("--output", "no/where"), "no folder"),
    ],
)
def test_invalid_options_are_refused(evaluate, options, message):
    result = evaluate(*options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_file_that_is_not_a_cache_is_refused(evaluate, tmp_path):
    (tmp_path / "text").write_text("hello" * 1000)
    result = evaluate("--cache", tmp_path / "text")
    assert (result.code, "is damaged or not an embedding cache" in result.err) == (2, True)
    assert (tmp_path / "text").read_text() == "hello" * 1000


def test_speakers_are_read_from_a_map(evaluate, tmp_path):
    names = [f"s{speaker}/{take}.wav" for speaker in range(SPEAKERS) for take in range(FILES)]
    (tmp_path / "utt2spk").write_text("".join(f"{name} {name[:2]}\n" for name in names))
    assert "4 speakers" in evaluate("--utt2spk", tmp_path / "utt2spk").json["lists"][0]["notes"][0]
    (tmp_path / "utt2spk").write_text("".join(f"{name} {name}\n" for name in names))
    assert "says otherwise" in evaluate("--utt2spk", tmp_path / "utt2spk").err
