"""Tests with realistic input: music, one word, one speaker, telephone rates, stereo, NaN, and a killed run.

They use the packaged networks and model. Most of them disable overlap detection.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import soundfile
import soxr

import ecapa_jax
from ecapa_jax.diarization import clustering
from ecapa_jax.diarization.diarize import diarize
from ecapa_jax.diarization.rttm import read_rttm
from ecapa_jax.diarization.settings import DiarizationSettings
from ecapa_jax.errors import AudioError
from helpers.cli import contents, run, run_refused, write_wav
from helpers.detector import AUDIO
from helpers.nonspeech import nonspeech

RATE = 16000
PAUSE = np.zeros(RATE // 2, np.float32)


@pytest.fixture(scope="module")
def encoder():
    return ecapa_jax.load()


@pytest.fixture(scope="module")
def parts():
    """A woman and a man who alternate."""
    return [soundfile.read(AUDIO / f"{name}.flac", dtype="float32")[0] for name in ("slt_1", "awb_1", "slt_2")]


@pytest.fixture(scope="module")
def talk(parts):
    return np.concatenate([piece for part in parts for piece in (part, PAUSE)])


def boundaries(turns):
    return np.array([(turn.start, turn.end) for turn in turns])


@pytest.mark.parametrize("overlap", [False, True])
def test_music_and_other_sounds_have_no_speakers(encoder, overlap):
    for kind in ("chords", "hum", "beeps", "pink", "keypad"):  # overlap detection mistakes beeps and keys for voices
        found = diarize(encoder, nonspeech(kind, 1), overlap=overlap)
        assert (found.turns, found.exclusive, found.speakers) == ([], [], []), kind
        assert found.duration == 3.0


def test_quiet_speech_is_detected(encoder, parts):
    found = diarize(encoder, parts[0] * 10 ** (-50 / 20))
    assert sum(turn.end - turn.start for turn in found.turns) > 3


def test_one_word_gives_one_turn_of_one_speaker(encoder, parts):
    word = np.concatenate([PAUSE, parts[0][RATE // 2 : RATE + 1600], PAUSE])
    found = diarize(encoder, word, overlap=False)
    assert len(found.turns) == len(found.speakers) == 1
    assert found.turns[0].start == pytest.approx(0.5, abs=0.25)
    for speakers in (2, 3):  # a given number is used even if it is wrong
        assert len({turn.speaker for turn in diarize(encoder, word, speakers).turns}) == speakers


@pytest.mark.parametrize("minutes", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_long_recording_of_one_speaker_gives_one_cluster(minutes):
    """The test clusters embeddings of a drifting voice in blocks, whose clusters must be merged."""
    rng = np.random.default_rng(0)
    windows = minutes * 60 * 4 // 3
    voice, drift = rng.standard_normal(192), np.cumsum(rng.standard_normal((windows, 192)) * 0.005, axis=0)
    rows = (voice + drift + 0.7 * rng.standard_normal((windows, 192))).astype(np.float32)
    spans = np.arange(windows)[:, None] * 75 + np.array([0, 150])
    labels = clustering.cluster(rows, spans, clustering.SpeakerCount(), DiarizationSettings())
    assert (labels == 0).all()


def test_speech_at_8_khz_has_the_turns_of_16_khz(encoder, talk):
    wide = diarize(encoder, talk, 2, overlap=False)
    narrow = diarize(encoder, soxr.resample(talk, RATE, 8000), 2, overlap=False, sample_rate=8000)
    assert len(wide.turns) == len(narrow.turns) == 3
    assert [turn.speaker for turn in narrow.turns] == ["speaker_1", "speaker_2", "speaker_1"]
    np.testing.assert_allclose(boundaries(narrow.turns), boundaries(wide.turns), atol=0.3)


def test_one_speaker_per_channel(encoder, parts, capsys, tmp_path):
    stereo, at = np.zeros((sum(map(len, parts)), 2), np.float32), 0
    for index, part in enumerate(parts):
        stereo[at : at + len(part), index % 2] = part
        at += len(part)
    ends = np.cumsum([len(part) for part in parts]) / RATE
    left, right = (diarize(encoder, stereo, 1, overlap=False, channel=channel) for channel in (0, 1))
    assert all(turn.end <= ends[0] + 0.2 or turn.start >= ends[1] - 0.2 for turn in left.turns)
    assert all(ends[0] - 0.2 <= turn.start and turn.end <= ends[1] + 0.2 for turn in right.turns)
    both = diarize(encoder, stereo, 2, overlap=False, channel="mean")
    assert len(both.speakers) == 2
    soundfile.write(tmp_path / "call.wav", stereo, RATE)
    result = run(capsys, "diarize", tmp_path / "call.wav", "--channel", "2", "--fast", "--speakers", "1", "--quiet")
    (tmp_path / "right.rttm").write_text(result.out)
    turns = read_rttm(tmp_path / "right.rttm")["call"]
    np.testing.assert_allclose(boundaries(turns), boundaries(right.turns), atol=0.05)
    assert "channel 3" in run_refused(capsys, tmp_path, "diarize", tmp_path / "call.wav", "--channel", "3", "--fast")


def test_recording_with_nan_is_refused(encoder, talk, capsys, tmp_path, monkeypatch):
    from ecapa_jax.diarization import recordings

    broken = talk.copy()
    broken[len(broken) // 2] = np.nan
    soundfile.write(tmp_path / "broken.wav", broken, RATE, subtype="FLOAT")
    for held in (1200.0, 1.0):
        monkeypatch.setattr(recordings, "LONGEST_HELD", held)
        with pytest.raises(AudioError, match="nan"):
            diarize(encoder, tmp_path / "broken.wav", overlap=False)
    out = tmp_path / "out"
    out.mkdir()
    message = run_refused(capsys, tmp_path, "diarize", tmp_path / "broken.wav", "-o", out, "--fast")
    assert "broken.wav" in message


def test_silent_recording_gives_empty_output_files(capsys, tmp_path):
    write_wav(tmp_path / "nothing.wav", np.zeros(2 * RATE, np.float32))
    kinds = ("rttm", "json", "srt", "vtt", "csv")
    result = run(capsys, "diarize", tmp_path / "nothing.wav", "-o", tmp_path / "out", "--fast", "--format", *kinds)
    assert result.code == 0
    assert "no speech was found" in result.err
    assert (tmp_path / "out" / "nothing.rttm").read_text() == ""
    found = json.loads((tmp_path / "out" / "nothing.json").read_text())
    assert (found["turns"], found["speakers"], found["duration"]) == ([], [], 2.0)


SLOW = """
    import sys, time
    import numpy as np
    from ecapa_jax.cli.main import main
    from ecapa_jax.diarization.result import Diarization, Speaker
    from ecapa_jax.diarization.turns import Turn
    import ecapa_jax.diarization.diarize as module

    def slow(encoder, source, speakers=None, **options):
        time.sleep(float(sys.argv[1]) if source.endswith("b.wav") else 0)
        turns = [Turn(0.0, 1.0, "speaker_1")]
        return Diarization(turns, turns, [Speaker("speaker_1", np.ones(192, np.float32), 1.0)], 2.0)

    module.diarize = slow
    sys.exit(main(sys.argv[2:]))
"""


def test_killed_run_resumes(tmp_path):
    (tmp_path / "talks").mkdir()
    for name in "abc":
        write_wav(tmp_path / "talks" / f"{name}.wav")
    out = tmp_path / "out"
    command = ["diarize", str(tmp_path / "talks"), "-o", str(out), "--format", "rttm", "json"]

    def start_run(seconds):
        arguments = [sys.executable, "-c", textwrap.dedent(SLOW), str(seconds), *command]
        return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})

    killed = start_run(600)
    until = time.monotonic() + 120
    while not (out / "a.json").is_file():
        assert killed.poll() is None, killed.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert {path.name for path in out.iterdir()} == {"a.rttm", "a.json"}
    stale = out / ".b.rttm.partial-0123456789abcdef"
    stale.write_text("half a line")  # simulates a process that was killed while it wrote
    done = start_run(0)
    said = done.communicate(timeout=120)[1]
    assert done.returncode == 0, said
    assert "1 of 3 recordings have results already" in said
    assert {path.name for path in out.iterdir()} == {f"{name}.{kind}" for name in "abc" for kind in ("rttm", "json")}
    assert read_rttm(out / "c.rttm")["c"][0].end == 1.0


LINE = "SPEAKER talk 1 {} {} <NA> <NA> {} <NA> <NA>\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (LINE.format(0, 10, "ann") + LINE.format(5, 10, "ann"), "line 2"),
        (LINE.format(5, 10, "ann") + LINE.format(0, 20, "ann"), "line 1"),
        (LINE.format(0, 10, "ann") + LINE.format(12, -2, "bob"), "line 2"),
        (LINE.format(-1, 10, "ann"), "line 1"),
        (LINE.format(0, "inf", "ann"), "line 1"),
        ("", "no turns"),
    ],
)
def test_der_refuses_invalid_turns(capsys, tmp_path, lines, says):
    pytest.importorskip("pyannote.metrics", reason="needs pyannote.metrics: pip install 'ecapa-jax[diarize]'")
    (tmp_path / "good.rttm").write_text(LINE.format(0, 10, "ann"))
    (tmp_path / "bad.rttm").write_text(lines)
    assert says in run_refused(capsys, tmp_path, "der", tmp_path / "bad.rttm", tmp_path / "good.rttm")


def test_der_refuses_an_invalid_uem(capsys, tmp_path):
    pytest.importorskip("pyannote.metrics", reason="needs pyannote.metrics: pip install 'ecapa-jax[diarize]'")
    turns = tmp_path / "a.rttm"
    turns.write_text(LINE.format(0, 10, "ann"))
    uem = tmp_path / "a.uem"
    for text, says in (("other 1 0 10\n", "no part of 'talk'"), ("talk 1 10 5\n", "line 1"), ("talk 0 10\n", "line 1")):
        uem.write_text(text)
        assert says in run_refused(capsys, tmp_path, "der", turns, turns, "--uem", uem)
    assert "can't be read" in run_refused(capsys, tmp_path, "der", turns, turns, "--uem", tmp_path / "none.uem")
    uem.write_text("talk 1 20 30\n")
    result = run(capsys, "der", turns, turns, "--uem", uem)
    assert result.code in (0, 2)
    assert "Traceback" not in result.err
    assert contents(tmp_path)
