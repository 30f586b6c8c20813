"""Tests of `ecapa-jax diarize` and `der`: input and output files, and errors in one line."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest

import ecapa_jax.diarization.diarize as diarize_module
from ecapa_jax.cli import diarize as cli_diarize
from ecapa_jax.diarization.result import Diarization, Speaker
from ecapa_jax.diarization.rttm import read_rttm, rttm_text
from ecapa_jax.diarization.turns import Turn
from ecapa_jax.errors import AudioError
from helpers.cli import run, run_refused, write_wav
from helpers.detector import AUDIO


@pytest.fixture
def talks_folder(tmp_path):
    """A folder with three recordings."""
    folder = tmp_path / "talks"
    folder.mkdir()
    for name in "abc":
        write_wav(folder / f"{name}.wav")
    return folder


@pytest.fixture
def diarize_calls(monkeypatch):
    """Replaces `diarize`: every recording has two speakers, and `bad.wav` can't be read. Returns the list of calls."""
    calls = []
    turns = [Turn(0.0, 1.5, "speaker_1"), Turn(1.25, 2.0, "speaker_2")]
    exclusive = [Turn(0.0, 1.5, "speaker_1"), Turn(1.5, 2.0, "speaker_2")]
    rows = np.eye(2, 192, dtype=np.float32)

    def fake(encoder, source, speakers=None, **options):
        calls.append(source)
        if source.endswith("bad.wav"):
            raise AudioError(f"{source}: can't be decoded; get it again")
        people = [Speaker(f"speaker_{index + 1}", rows[index], 1.5) for index in range(2)]
        return Diarization(turns, exclusive, people, 2.0)

    monkeypatch.setattr("ecapa_jax.diarization.diarize.diarize", fake)
    return calls


def test_two_speakers_of_a_real_conversation_are_separated(capsys, tmp_path):
    import soundfile

    first, second = (soundfile.read(AUDIO / name, dtype="float32")[0] for name in ("slt_1.flac", "rms_1.flac"))
    soundfile.write(tmp_path / "talk.wav", np.concatenate([first, np.zeros(8000, np.float32), second]), 16000)
    result = run(capsys, "diarize", tmp_path / "talk.wav", "--speakers", "2", "--fast", "--quiet")
    assert result.code == 0
    (tmp_path / "out.rttm").write_text(result.out)
    turns = read_rttm(tmp_path / "out.rttm")["talk"]
    assert len({turn.speaker for turn in turns}) == 2
    change = (len(first) + 4000) / 16000
    right = sum((turn.end <= change + 0.3) == (turn.speaker == turns[0].speaker) for turn in turns)
    assert right == len(turns)


def test_recordings_with_results_are_skipped(capsys, talks_folder, tmp_path, diarize_calls):
    out = tmp_path / "out"
    result = run(capsys, "diarize", talks_folder, "-o", out, "--format", "rttm", "json")
    assert result.code == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{n}.{s}" for n in "abc" for s in ("json", "rttm")]
    assert "3 of 3" in result.err
    (out / "b.json").unlink()
    assert run(capsys, "diarize", talks_folder, "-o", out, "--format", "rttm", "json").code == 0
    assert len(diarize_calls) == 4  # only b was diarized again
    assert json.loads((out / "b.json").read_text())["speakers"][1]["name"] == "speaker_2"
    run(capsys, "diarize", talks_folder, "-o", out, "--force")
    assert len(diarize_calls) == 7


def test_unreadable_recording_does_not_stop_the_others(capsys, talks_folder, tmp_path, diarize_calls):
    write_wav(talks_folder / "bad.wav")
    out = tmp_path / "out"
    result = run(capsys, "diarize", talks_folder, "-o", out)
    assert result.code == 2
    assert "1 of 4 recordings could not be read" in result.err
    assert sorted(path.name for path in out.iterdir()) == ["a.rttm", "b.rttm", "c.rttm"]


def test_exclusive_turns_do_not_overlap(capsys, talks_folder, diarize_calls):
    result = run(capsys, "diarize", talks_folder / "a.wav", "--exclusive", "--format", "csv")
    assert result.out.splitlines() == ["start,end,speaker", "0.000,1.500,speaker_1", "1.500,2.000,speaker_2"]


def test_json_is_one_object(capsys, talks_folder, diarize_calls):
    value = run(capsys, "diarize", talks_folder, "--json", "--quiet").json
    assert [one["duration"] for one in value["recordings"]] == [2.0] * 3
    assert value["failed"] == []


def test_speakers_in_the_store_are_named(capsys, talks_folder, tmp_path, diarize_calls):
    store = tmp_path / "team.db"
    enroll = run(capsys, "diarize", talks_folder / "a.wav", "--store", store, "--enroll", "speaker_2=Bob")
    assert enroll.code == 0
    assert "Bob" in enroll.out
    found = run(capsys, "diarize", talks_folder / "b.wav", "--store", store, "--threshold", "0.5")
    assert [line.split()[7] for line in found.out.splitlines()] == ["speaker_1", "Bob"]
    assert (
        "speaker_9" in run(capsys, "diarize", talks_folder / "a.wav", "--store", store, "--enroll", "speaker_9=X").err
    )


def test_one_enrolled_speaker_names_at_most_one_speaker(capsys, talks_folder, tmp_path, diarize_calls):
    store = tmp_path / "team.db"
    run(capsys, "diarize", talks_folder / "a.wav", "--store", store, "--enroll", "speaker_2=Bob")
    found = run(capsys, "diarize", talks_folder / "b.wav", "--store", store, "--threshold", "-1")
    assert sorted(line.split()[7] for line in found.out.splitlines()) == ["Bob", "speaker_1"]


def test_plot_is_written(capsys, talks_folder, tmp_path, diarize_calls):
    pytest.importorskip("matplotlib")
    assert run(capsys, "diarize", talks_folder / "a.wav", "--plot", tmp_path / "t.png").code == 0
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--enroll", "speaker_1=Ann"), "--store"),
        (("--store", "x.db", "--enroll", "Ann"), "SPEAKER=NAME"),
        (("--format", "rttm", "json"), "-o DIR"),
        (("--channel", "both"), "--channel"),
        (("--channel", "0"), "--channel"),
    ],
)
def test_invalid_options_are_refused(capsys, talks_folder, diarize_calls, options, says):
    assert says in run_refused(capsys, talks_folder, "diarize", talks_folder / "a.wav", *options)


def test_recordings_with_equal_names_are_refused(capsys, talks_folder, tmp_path, diarize_calls):
    (talks_folder / "more").mkdir()
    write_wav(talks_folder / "more" / "a.wav")
    assert "both" in run_refused(capsys, talks_folder, "diarize", talks_folder, "-o", tmp_path / "out")
    assert "one recording" in run_refused(capsys, talks_folder, "diarize", talks_folder, "--plot", "x.png")


def test_empty_folder_is_refused(capsys, tmp_path):
    (tmp_path / "none").mkdir()
    assert "no recordings in" in run_refused(capsys, tmp_path, "diarize", tmp_path / "none")


@pytest.fixture
def interrupted_diarize(diarize_calls, monkeypatch):
    """Makes the replaced `diarize` interrupt this process first, as Ctrl+C does."""
    make_turns = diarize_module.diarize

    def diarize(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return make_turns(*arguments, **options)

    monkeypatch.setattr(diarize_module, "diarize", diarize)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may ignore SIGINT
    yield
    signal.signal(signal.SIGINT, before)


def test_first_interrupt_ends_the_run_after_the_current_recording(capfd, talks_folder, tmp_path, interrupted_diarize):
    result = run(capfd, "diarize", talks_folder, "-o", tmp_path / "out")
    assert result.code == 75
    assert "1 of 3" in result.err
    assert "stopping after this recording" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.rttm"]


def test_interrupt_ends_a_run_over_one_recording_at_once(capsys, talks_folder, tmp_path, interrupted_diarize):
    result = run(capsys, "diarize", talks_folder / "a.wav", "-o", tmp_path / "out")
    assert result.code == 130
    assert not list((tmp_path / "out").iterdir())


def write_turns(path, *turns):
    path.write_text(rttm_text("talk", [Turn(*turn) for turn in turns]))
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_der_reports_error_rates(capsys, tmp_path):
    pytest.importorskip("pyannote.metrics", reason="needs pyannote.metrics: pip install 'ecapa-jax[diarize]'")
    reference = write_turns(tmp_path / "r.rttm", (0, 10, "ann"), (10, 20, "bob"))
    result = write_turns(tmp_path / "h.rttm", (0, 10, "1"), (10, 18, "2"))
    value = run(capsys, "der", reference, result, "--json").json
    assert value["all"]["der"] == pytest.approx(0.1)
    assert value["recordings"]["talk"]["miss"] == pytest.approx(0.1)
    (tmp_path / "x.uem").write_text("talk 1 0 10\n")
    text = run(capsys, "der", reference, result, "--uem", tmp_path / "x.uem").out
    assert text.splitlines()[1].split()[:2] == ["talk", "0.00"]
    (tmp_path / "x.uem").write_text("other 1 0 10\n")
    assert "no part of 'talk'" in run_refused(capsys, tmp_path, "der", reference, result, "--uem", tmp_path / "x.uem")


def test_der_error_names_the_line(capsys, tmp_path):
    reference = write_turns(tmp_path / "r.rttm", (0, 10, "ann"))
    bad = tmp_path / "h.rttm"
    bad.write_text("SPEAKER talk 1 5 -1 <NA> <NA> x <NA> <NA>\n")
    assert "line 1: the duration is -1 s" in run_refused(capsys, tmp_path, "der", reference, bad)
    assert cli_diarize._stem("https://host/a/b.wav?x=1") == "b"
