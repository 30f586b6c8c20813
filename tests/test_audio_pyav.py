"""Tests of formats that libsndfile can't read: PyAV makes the files, and PyAV or librosa decodes them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from ecapa_jax.audio import ffmpeg
from ecapa_jax.audio.load import load_audio
from ecapa_jax.errors import AudioError
from helpers.av_files import RATE, encoded, tone

MP4 = b"\0\0\0\x1cftypM4A " + bytes(100)


def load(content: bytes | Path, **options) -> np.ndarray:
    return load_audio(content, sample_rate=None, **{"target_rate": RATE, "channel": "first", **options})


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("adts", "aac"), ("matroska", "aac")])
def test_decoded_file_has_the_duration_and_level_of_the_original(container, codec):
    """The codec may add frames. Another test compares the samples with those of ffmpeg."""
    original = tone()
    decoded = load(encoded(original, container, codec))
    n = min(len(decoded), original.shape[1])
    assert abs(len(decoded) - original.shape[1]) <= 3 * 1024
    middle = slice(4000, n - 4000)
    energy = np.sqrt(np.mean(decoded[middle] ** 2))
    assert energy == pytest.approx(0.3 / np.sqrt(2), rel=0.02)


def test_channel_option_selects_or_averages_channels():
    content = encoded(tone(channels=2), "ipod", "aac")
    first, mean = load(content), load(content, channel="mean")
    power = np.abs(np.fft.rfft(first[8000:24000]))
    assert np.argmax(power) == 440
    both = np.abs(np.fft.rfft(mean[8000:24000]))
    assert both[660] == pytest.approx(both[440], rel=0.1)


def test_wav_with_g722_is_decoded():
    """Telephone systems record G.722, which libsndfile can't decode."""
    waveform = load(encoded(tone(), "wav", "g722"))
    assert abs(len(waveform) - len(load(encoded(tone(), "ipod", "aac")))) < 4000
    power = np.abs(np.fft.rfft(waveform[8000:24000]))
    assert np.argmax(power) == 440


needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


def decode_with_ffmpeg(path: Path) -> np.ndarray:
    """Returns the 16-bit samples that ffmpeg decodes, divided by 32768."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "s16le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16) / 32768


@needs_ffmpeg
def test_samples_equal_ffmpeg(tmp_path):
    path = tmp_path / "a.m4a"
    path.write_bytes(encoded(tone(), "ipod", "aac"))
    np.testing.assert_allclose(load(path), decode_with_ffmpeg(path), atol=2 / 32768)


@needs_ffmpeg
def test_samples_of_librosa_equal_ffmpeg(tmp_path, monkeypatch):
    pytest.importorskip("audioread", reason="librosa has no audioread here, by which it asks ffmpeg")
    path = tmp_path / "a.m4a"
    path.write_bytes(encoded(tone(), "ipod", "aac"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # audioread imports modules that Python 3.13 removes
        np.testing.assert_allclose(load(path), decode_with_ffmpeg(path), atol=2 / 32768)


def test_too_long_and_damaged_files_are_refused():
    content = encoded(tone(3.0), "ipod", "aac")
    with pytest.raises(AudioError, match="longer than"):
        load(content, max_seconds=1.0)
    with pytest.raises(AudioError, match="it is damaged"):
        load(content[: len(content) // 4])


def test_librosa_decodes_if_pyav_is_not_installed(monkeypatch):
    samples = tone(channels=2)

    def decode(path, *, sr, mono, duration):
        assert Path(path).read_bytes() == MP4
        assert (sr, mono) == (None, False)
        return samples, RATE

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "librosa", types.SimpleNamespace(load=decode))
    np.testing.assert_array_equal(load(MP4), samples[0])
    with pytest.raises(AudioError, match="longer than"):
        load(MP4, max_seconds=0.5)


def test_error_without_a_decoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "librosa", None)
    for content, kind in ((MP4, "MP4/M4A"), (b"\x1aE\xdf\xa3" + bytes(100), "WebM/Matroska")):
        with pytest.raises(AudioError, match=rf"{kind} can't be decoded .*ecapa-jax\[av\].*convert it to WAV"):
            load(content)


def test_text_files_are_not_passed_to_the_decoder(monkeypatch):
    monkeypatch.setattr(ffmpeg, "decode", lambda *args: pytest.fail("was asked"))
    with pytest.raises(AudioError, match="is not audio"):
        load(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
