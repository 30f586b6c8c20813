"""Tests of `ecapa-jax enroll`, `identify`, `list` and `remove`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecapa_jax import api
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.scorer import Scorer
from helpers.cli import run, run_refused
from helpers.corpora import write_speech


@pytest.fixture(autouse=True)
def one_encoder(monkeypatch: pytest.MonkeyPatch, encoder: SpeakerEncoder) -> None:
    monkeypatch.setattr(api, "load", lambda *_, **__: encoder)


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return [write_speech(tmp_path / f"{seed}.wav", 0.8, seed) for seed in range(3)]


def test_enroll_identify_list_and_remove(capsys, tmp_path, clips) -> None:
    store = ["--store", tmp_path / "team.db"]
    assert run(capsys, "enroll", "Ann", clips[0], clips[1], *store).out == "Ann: 2 recordings added\n"
    assert run(capsys, "enroll", "Ann", clips[0], *store).out == "Ann: 0 recordings added, 1 enrolled before\n"
    done = run(capsys, "enroll", " Bob 'ünï' ", clips[2], *store, "--json").json
    assert done == {
        "name": "Bob 'ünï'", "added": 1, "known": 0, "store": str(tmp_path / "team.db"), "model": "default",
    }  # fmt: skip
    answer = run(capsys, "identify", clips[2], *store, "--json").json
    assert (answer["speaker"], answer["threshold"], answer["file"]) == ("Bob 'ünï'", 0.5, str(clips[2]))
    assert [candidate["name"] for candidate in answer["candidates"]] == ["Bob 'ünï'", "Ann"]
    assert answer["candidates"][0]["score"] == pytest.approx(1, abs=1e-5)
    text = run(capsys, "identify", clips[2], *store, "--top", 1)
    assert (text.code, text.out, text.err) == (0, "Bob 'ünï'   (threshold 0.5000)\n 1.0000  Bob 'ünï'\n", "")
    assert run(capsys, "list", *store).out == "     2  Ann\n     1  Bob 'ünï'\n"
    assert run(capsys, "list", *store, "--json").json["speakers"][0] == {"name": "Ann", "utterances": 2}
    assert run(capsys, "remove", "Bob 'ünï'", *store).out == "Bob 'ünï': removed, 1 recording\n"
    assert run(capsys, "remove", "Ann", *store, "--json").json["utterances"] == 2
    assert run(capsys, "list", *store).out == "nobody is enrolled\n"
    nobody = run(capsys, "identify", clips[2], *store)
    assert (nobody.out, nobody.err) == ("unknown   (threshold 0.5000)\n", "nobody is enrolled in this store\n")


def test_speaker_below_the_threshold_is_unknown(capsys, tmp_path, clips) -> None:
    store = ["--store", tmp_path / "team.db"]
    run(capsys, "enroll", "Ann", *clips, *store)
    best = run(capsys, "identify", clips[0], *store, "--json").json["candidates"][0]["score"]
    assert run(capsys, "identify", clips[0], *store, "--json", f"--threshold={best}").json["speaker"] == "Ann"
    above = run(capsys, "identify", clips[0], *store, "--json", f"--threshold={np.nextafter(best, 2)}").json
    assert above["speaker"] is None
    assert above["candidates"][0]["name"] == "Ann"
    shown = run(capsys, "identify", clips[0], *store, f"--threshold={np.nextafter(best, 2)}").out
    assert shown.startswith("unknown   (threshold ")


def test_identify_without_a_threshold_makes_no_decision(capsys, tmp_path, clips, encoder, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "scorer", Scorer(Scoring()))
    store = ["--store", tmp_path / "team.db"]
    run(capsys, "enroll", "Ann", clips[0], *store)
    result = run(capsys, "identify", clips[0], *store)
    assert result.out == " 1.0000  Ann\n"
    assert result.err == "this model has no threshold: pass --threshold to get a decision\n"


def test_refused_commands_write_nothing(capsys, tmp_path, clips) -> None:
    new, full = ["--store", tmp_path / "new.db"], ["--store", tmp_path / "team.db"]
    run(capsys, "enroll", "Ann", clips[0], *full)
    silent = write_speech(tmp_path / "silent.wav", 0.5, gain=0)
    for arguments, words in (
        (["enroll", "Ann", *new], "no recordings given"),
        (["enroll", "", clips[0], *new], "a speaker's name is empty"),
        (["enroll", "a\nb", clips[0], *new], "which is not text"),
        (["enroll", "Ann", clips[0], tmp_path / "gone.wav", *new], "no such file"),
        (["enroll", "Ann", silent, *new], "has no signal"),
        (["enroll", "Ann", clips[0], "--store", tmp_path / "no" / "where.db"], "can't be opened"),
        (["enroll", "Ann", clips[0], "--store", clips[1]], "is not a speaker store, or is damaged"),
        (["identify", clips[0], *new], "no such speaker store"),
        (["identify", silent, *full], "has no signal"),
        (["identify", clips[0], *full, "--threshold", "2"], "lies in [-1, 1]"),
        (["identify", clips[0], *full, "--top", "0"], "ask for 1 or more"),
        (["list", *new], "no such speaker store"),
        (["remove", "Bob", *full], "no speaker is named 'Bob'"),
        (["remove", "", *full], "a speaker's name is empty"),
    ):
        assert words in run_refused(capsys, tmp_path, *arguments)


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("enroll", ("NAME FILES...", "--store STORE", "--short", "--model")),
        ("identify", ("FILE", "--store STORE", "--top N", "--threshold X", "the model's", "--model")),
        ("list", ("--store STORE",)),
        ("remove", ("NAME", "--store STORE")),
    ],
)
def test_help_names_the_options(capsys, verb, expected) -> None:
    shown = " ".join(run(capsys, verb, "--help").out.replace("│", " ").split())
    for text in (*expected, "--json", "--quiet", "--debug"):
        assert text in shown
    assert "None" not in shown
    assert verb in run(capsys, "--help").out
