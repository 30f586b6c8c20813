"""Tests of stereo calls with one speaker per channel, and of recordings from a pipe."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ecapa_jax.audio.decoding import channel_from_text
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import CorpusError
from helpers.bundles import make
from helpers.cli import PROGRAM, run, run_refused

AUDIO = Path(__file__).parents[2] / "examples" / "audio"
RATE = 16000


@pytest.fixture(scope="module")
def stereo_call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with two voices, one on each channel."""
    sides = [soundfile.read(AUDIO / f"{name}_1.flac", dtype="int16")[0][:24000] for name in ("rms", "slt")]
    path = tmp_path_factory.mktemp("call") / "call.wav"
    soundfile.write(path, np.stack(sides, axis=1), RATE)
    for name, side in zip(("left", "right"), sides, strict=True):
        soundfile.write(path.with_name(f"{name}.wav"), side, RATE)
    return path


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder.from_bundle(make())


@pytest.mark.parametrize(
    ("text", "channel"),
    [("left", "left"), ("RIGHT", "right"), ("mean", "mean"), ("first", "first"), ("1", 0), ("2", 1), ("12", 11)]
    + [("0", None), ("-1", None), ("", None), ("both", None), ("1.5", None), ("²", None)],
)
def test_channel_names_are_parsed(text, channel):
    assert channel_from_text(text) == channel


def test_embed_uses_the_channel(encoder, stereo_call):
    left, right = encoder.embed([stereo_call.with_name("left.wav"), stereo_call.with_name("right.wav")])
    np.testing.assert_array_equal(encoder.embed(stereo_call, channel="left")[0], left)
    np.testing.assert_array_equal(encoder.embed(stereo_call, channel="right")[0], right)
    np.testing.assert_array_equal(encoder.embed(stereo_call, channel=1)[0], right)
    samples, _ = soundfile.read(stereo_call, dtype="int16")
    np.testing.assert_array_equal(encoder.embed(samples, channel="right")[0], right)
    with pytest.raises(Exception, match="channel 3 is asked for, and the recording has 2"):
        encoder.embed(stereo_call, channel=2)


def test_channel_options_of_verify_and_embed(capsys, stereo_call, tmp_path):
    """The right channel has the right speaker. An invalid option is refused before the model is loaded."""
    same = run(
        capsys, "verify", stereo_call, stereo_call.with_name("right.wav"), "--channel", "right", "--json", "--quiet"
    )
    assert same.code == 0, same.err
    assert same.json["score"] > 0.999
    done = run(capsys, "embed", stereo_call, "-o", tmp_path / "a.npz", "--channel", "2", "--quiet")
    assert done.code == 0
    assert "must be left" in run_refused(
        capsys, stereo_call.parent, "verify", stereo_call, stereo_call, "--channel", "both"
    )
    assert "channel 3 is asked for" in run_refused(
        capsys, stereo_call.parent, "verify", stereo_call, stereo_call, "--channel", "3"
    )


def test_channel_column_of_a_manifest(capsys, encoder, stereo_call, tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    listed = tmp_path / "calls.csv"
    listed.write_text(f"id,path,channel\na,{stereo_call},left\nb,{stereo_call},2\nc,{stereo_call},\n")
    done = run(capsys, "embed", "--manifest", listed, "--output", tmp_path / "out", "--quiet")
    assert done.code == 0, done.err
    rows = {row["id"]: row["embedding"] for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert rows["a"] == rows["c"] != rows["b"]  # the packaged model uses the first channel
    lines = tmp_path / "calls.jsonl"
    lines.write_text(f"{json.dumps({'path': str(stereo_call), 'channel': 'right'})}\n")
    assert run(capsys, "embed", "--manifest", lines, "--output", tmp_path / "out2", "--quiet").code == 0
    (row,) = pq.read_table(tmp_path / "out2").to_pylist()
    np.testing.assert_allclose(row["embedding"], rows["b"], rtol=1e-4, atol=1e-4)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(f"path,channel\n{stereo_call},both\n")
    from ecapa_jax.corpus.manifest import read_manifest

    with pytest.raises(CorpusError, match=r"wrong\.csv:2: its channel is 'both'"):
        read_manifest(wrong)


def run_with_input(data: bytes, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([PROGRAM, *map(str, arguments)], input=data, capture_output=True, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def as_ogg(path: Path) -> bytes:
    samples, rate = soundfile.read(path)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="OGG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["flac", "ogg"])
def test_verify_reads_standard_input(kind):
    first = AUDIO / "rms_1.flac"
    data = first.read_bytes() if kind == "flac" else as_ogg(first)
    done = run_with_input(data, "verify", "-", first, "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"] > 0.98


def test_embed_reads_standard_input(tmp_path):
    done = run_with_input(
        (AUDIO / "rms_1.flac").read_bytes(), "embed", "-", AUDIO / "rms_1.flac", "-o", tmp_path / "a.npz"
    )
    assert done.returncode == 0, done.stderr
    first, second = np.load(tmp_path / "a.npz")["embeddings"]
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "is empty"), (b"no sound at all" * 20, "is not audio")],
    ids=["empty", "text"],
)
def test_pipe_without_a_recording_is_refused(data, words):
    done = run_with_input(data, "verify", "-", AUDIO / "rms_1.flac")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_standard_input_can_be_named_only_once(capsys, tmp_path):
    assert "holds one recording" in run_refused(capsys, tmp_path, "verify", "-", "-")
    assert "holds one recording" in run_refused(capsys, tmp_path, "embed", "-", "-", "-o", tmp_path / "a.npz")
