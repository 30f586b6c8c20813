"""Tests of `open_audio`: a stream has exactly the samples of `load_audio`, and its memory does not grow."""

import os
import tracemalloc
import warnings

import numpy as np
import pytest
import soundfile

from ecapa_jax.audio import decoding, load
from ecapa_jax.audio.load import LongAudio, load_audio, open_audio
from ecapa_jax.errors import AudioError
from helpers.av_files import encoded, tone
from helpers.sounds import COMPLETE, RATE, encode, sound


def open_and_load(source, longest=0.3, **options):
    options = {"sample_rate": None, "target_rate": RATE, "channel": "first", **options}
    return open_audio(source, longest=longest, **options), load_audio(source, **options)


def check_stream_equals_load(source, **options):
    """Checks that the stream has the samples of `load_audio` every time it is read."""
    stream, expected = open_and_load(source, **options)
    assert isinstance(stream, LongAudio)
    for _ in range(2):
        blocks = list(stream)
        assert len(blocks) > 1
        np.testing.assert_array_equal(np.concatenate(blocks), expected)
    assert not stream.is_silent


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(decoding, "_BLOCK", 2001)
    monkeypatch.setattr(load, "_BLOCK", 1999)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", COMPLETE)
def test_file_formats(tmp_path, kind):
    path = tmp_path / "recording"
    path.write_bytes(COMPLETE[kind])
    check_stream_equals_load(path)
    check_stream_equals_load(path.read_bytes())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampled_stream_equals_load(tmp_path, rate):
    path = tmp_path / "a.flac"
    path.write_bytes(encode(sound(1.3, rate, 2), "FLAC", rate=rate))
    check_stream_equals_load(path)
    check_stream_equals_load(str(path), channel="mean")
    with path.open("rb") as file:
        stream = open_audio(file, sample_rate=None, target_rate=RATE, channel="first", longest=0.3)
    np.testing.assert_array_equal(
        np.concatenate(list(stream)), load_audio(path, sample_rate=None, target_rate=RATE, channel="first")
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("matroska", "aac")])
def test_formats_decoded_by_pyav(container, codec):
    check_stream_equals_load(encoded(tone(channels=2), container, codec), channel="mean")


@pytest.mark.usefixtures("small_blocks")
def test_pipe_can_be_streamed_twice():
    """A pipe can be read only once, but a stream must be readable any number of times."""
    output, feed = os.pipe()
    with os.fdopen(output, "rb"):
        with os.fdopen(feed, "wb") as sink:
            sink.write(COMPLETE["flac"])
        options = {"sample_rate": None, "target_rate": RATE, "channel": "first"}
        stream = open_audio(f"/dev/fd/{output}", longest=0.3, **options)
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate(list(stream)), load_audio(COMPLETE["flac"], **options))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
def test_array_stream_equals_load(dtype):
    samples = sound(1.0, channels=2)
    scaled = samples if dtype.startswith("float") else np.clip(samples * 127 + 128 * (dtype == "uint8"), 0, 255)
    check_stream_equals_load(scaled.astype(dtype), sample_rate=44100, channel="mean")


def test_short_recording_is_returned_as_an_array():
    found, expected = open_and_load(COMPLETE["wav"], longest=1.0)
    np.testing.assert_array_equal(found, expected)
    found, expected = open_and_load(sound(), longest=1.0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("small_blocks")
def test_errors_late_in_a_recording_are_raised(tmp_path):
    samples = sound(2.0)
    samples[30000] = np.nan
    for source in (encode(samples, subtype="FLOAT"), samples):
        stream = open_audio(source, sample_rate=None, target_rate=RATE, channel="first", longest=0.5)
        with pytest.raises(AudioError, match="sample 30000 is nan"):
            list(stream)
    path = tmp_path / "cut.flac"
    content = encode(sound(2.0), "FLAC")
    path.write_bytes(content[: len(content) * 3 // 4])
    stream = open_audio(path, sample_rate=None, target_rate=RATE, channel="first", longest=0.5)
    with pytest.raises(AudioError, match=r"cut\.flac: .*truncated"):
        list(stream)
    path.unlink()
    with pytest.raises(AudioError, match="no such file"):
        list(stream)


@pytest.mark.usefixtures("small_blocks")
def test_is_silent_is_known_after_the_stream_is_read():
    silent = np.full(RATE, 0.25, np.float32)
    stream, _ = open_and_load(silent)
    assert not stream.is_silent
    list(stream)
    assert stream.is_silent
    silent[-1] = 0
    stream, _ = open_and_load(silent)
    list(stream)
    assert not stream.is_silent


def test_unfinished_iteration_releases_thread_and_pipe(tmp_path):
    """If iteration stops at the first block, the MP3 decoder's thread and pipe are closed.

    Warnings about unclosed resources are errors in this test suite.
    """
    path = tmp_path / "a.mp3"
    path.write_bytes(encode(sound(20.0), "MP3"))
    for _ in range(3):
        stream = open_audio(path, sample_rate=None, target_rate=RATE, channel="first", longest=5.0)
        assert isinstance(stream, LongAudio)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del stream


def test_memory_is_bounded_for_a_long_file(tmp_path):
    """The recording has 20 minutes of 16-bit samples at 22.05 kHz: 53 MB in the file, 106 MB as floats."""
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 22050, 1, "PCM_16") as file:
        for _ in range(120):
            file.write(np.resize(sound(1.0, 22050), 220500))
    assert path.stat().st_size > 50e6
    tracemalloc.start()
    try:
        stream = open_audio(path, sample_rate=None, target_rate=RATE, channel="first", longest=60.0)
        n_samples = sum(map(len, stream))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"{peak / 1e6:.0f} MB at most")
    assert n_samples == 1200 * RATE
    assert peak < 30e6
