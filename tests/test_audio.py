"""Tests of `load_audio` with every source, dtype, channel and sample rate."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ecapa_jax.audio import decoding, files
from ecapa_jax.audio.load import is_silent, name_of
from helpers.sounds import COMPLETE, RATE, assert_refused, assert_refused_without_type_checks, encode, load, sound

# Decoding


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_32", 2**-24),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("WAVEX", "PCM_16", 2**-15),
        ("RF64", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("AU", "PCM_16", 2**-15),
        ("W64", "PCM_16", 2**-15),
        ("CAF", "PCM_16", 2**-15),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.1),
        ("MP3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_file_formats_decode_to_the_original_samples(kind, subtype, error):
    x = sound()
    y = load(encode(x, kind, subtype))
    assert y.dtype == np.float32
    assert y.shape == x.shape
    assert np.abs(y - x).max() <= error
    assert np.corrcoef(x, y)[0, 1] > 0.99


def test_integer_files_are_divided_by_their_full_range():
    codes = np.array([-(2**15), -1, 0, 1, 2**15 - 1] * 100, np.int16)
    np.testing.assert_array_equal(load(encode(codes)), codes / np.float32(2**15))
    eight = encode(codes, subtype="PCM_U8")
    np.testing.assert_array_equal(load(eight), (np.frombuffer(eight[-500:], np.uint8) - np.float32(128)) / 128)


@pytest.mark.parametrize("name", ["a.wav", "unknown", "a.raw", "ünï cödé.wav", "a.mp3"])
def test_path_bytes_and_file_object_give_equal_samples(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encode(sound()))
    expected = load(path.read_bytes())
    for source in (path, str(path), np.str_(path), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(load(source), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(load(file), expected)
    np.testing.assert_array_equal(load(io.BytesIO(path.read_bytes())), expected)


def test_named_pipe_is_read():
    output, feed = os.pipe()
    with os.fdopen(output, "rb"), os.fdopen(feed, "wb") as sink:
        sink.write(encode(sound(0.1)))
        sink.close()
        assert load(f"/dev/fd/{output}").size == 1600


@pytest.mark.parametrize(
    ("kind", "channels"), [("WAV", 2), ("WAV", 5), ("FLAC", 2), ("FLAC", 5), ("OGG", 2), ("OGG", 5), ("MP3", 2)]
)
def test_channel_option_selects_or_averages_file_channels(kind, channels):
    x = sound(channels=channels)
    data = encode(x, kind)
    assert np.corrcoef(load(data), x[:, 0])[0, 1] > 0.99
    assert np.corrcoef(load(data, channel="mean"), x.mean(axis=1))[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_block_size_does_not_change_the_samples(monkeypatch, kind):
    data = encode(sound(channels=2), kind)
    expected = load(data, channel="mean")
    monkeypatch.setattr(decoding, "_BLOCK", 2001)
    np.testing.assert_array_equal(load(data, channel="mean"), expected)


def test_decoding_in_threads_equals_sequential_decoding():
    sources = [encode(sound(0.5), kind) for kind in ("MP3", "OGG", "FLAC", "WAV")] * 6
    with ThreadPoolExecutor(8) as pool:
        for got, expected in zip(pool.map(load, sources), map(load, sources), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_import_does_not_load_audio_libraries():
    names = "{'soundfile', 'soxr', 'librosa'}"
    code = f"import sys, ecapa_jax.audio.load; assert not {names} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Arrays


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int8, [-128, 0, 127], [-1, 0, 127 / 128]),
        (np.uint8, [0, 128, 255], [-1, 0, 127 / 128]),
        (np.int16, [-32768, 1, 32767], [-1, 2**-15, 1 - 2**-15]),
        (np.dtype(">i2"), [-32768, 1, 32767], [-1, 2**-15, 1 - 2**-15]),
        (np.int32, [-(2**31), 0, 2**30], [-1, 0, 0.5]),
        (np.float16, [0.5, -0.25, 2], [0.5, -0.25, 2]),
        (np.float32, [0.5, -0.25, 2], [0.5, -0.25, 2]),
        (np.float64, [0.1, -0.25, 2], [np.float32(0.1), -0.25, 2]),
    ],
)
def test_array_dtypes_are_scaled_to_float32(dtype, values, expected):
    for array in (np.array(values, dtype), np.array([values, values], dtype).T):
        y = load(array)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, np.array(expected, np.float32))


@pytest.mark.parametrize(
    "dtype", [bool, np.int64, np.uint16, np.uint32, np.uint64, np.complex64, object, "U1", jnp.bfloat16]
)
def test_unsupported_dtypes_are_refused(dtype):
    assert_refused(np.zeros(100, dtype), "int8, int16, int32, uint8 or a float")


def test_jax_arrays_are_accepted():
    x = sound(0.1)
    np.testing.assert_array_equal(load(jnp.asarray(x)), x)
    np.testing.assert_array_equal(load(jnp.asarray(x), sample_rate=8000), load(x, sample_rate=8000))


def test_channel_option_selects_or_averages_array_channels():
    x = sound(0.1, channels=3)
    np.testing.assert_array_equal(load(x), x[:, 0])
    np.testing.assert_allclose(load(x, channel="mean"), x.mean(axis=1), atol=1e-7)
    assert load(x[:, :1], channel="mean").shape == (1600,)
    assert load(np.zeros((64, 32), np.float32)).shape == (64,)
    assert load(np.zeros((1, 1600), np.float32)).shape == (1600,)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 1600), np.float32), "transpose"),
        (np.zeros((40, 64), np.float32), "more than 32 channels"),
        (np.zeros((2, 3, 4), np.float32), "give .samples. or .samples, channels."),
        (np.float32(0.5), "give .samples. or .samples, channels."),
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        (np.zeros((2, 0), np.int64), "no samples"),
        (np.array([0, np.nan, np.inf]), "sample 1 is nan"),
        (np.array([0, 1, -np.inf], np.float16), "sample 2 is -inf"),
        (sound(0.1) * 32768, "divide by 32768"),
        (np.array([1e300, 0.0]), "divide by 32768"),
    ],
)
def test_invalid_arrays_are_refused(array, match):
    assert_refused(array, match)


def test_array_that_numpy_can_not_convert_is_refused():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("needs grad\ncall detach")

    assert "needs grad call detach" in assert_refused(Tensor(), "NumPy array")


def test_nan_in_an_unused_channel_is_ignored():
    x = sound(0.1, channels=2)
    x[:, 1] = np.nan
    np.testing.assert_array_equal(load(x), x[:, 0])
    assert_refused(x, "sample 0 is nan", channel="mean")


@pytest.mark.parametrize("source", [[0.1, 0.2], None, 3, {"file": "a.wav"}, ("a.wav",)])
def test_other_types_are_refused(source):
    assert_refused_without_type_checks(source, r"numpy\.asarray")


def test_is_silent_for_constant_and_empty_waveforms():
    assert is_silent(np.zeros(10, np.float32))
    assert is_silent(np.full(10, 0.25, np.float32))
    assert is_silent(np.zeros(0, np.float32))
    assert not is_silent(sound(0.01))


# Rates


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 192000])
@pytest.mark.parametrize("target", [8000, 16000])
def test_resampling_preserves_a_tone(rate, target):
    def tone(at):
        time = np.arange(at) / at
        return (0.5 * np.sin(2 * np.pi * 440 * time) * np.sin(np.pi * time) ** 2).astype(np.float32)

    y = load(tone(rate), sample_rate=rate, target_rate=target)
    assert y.shape == (target,)
    assert np.abs(y - tone(target)).max() < 1e-4
    from_file = load(encode(tone(rate), subtype="FLOAT", rate=rate), target_rate=target)
    np.testing.assert_array_equal(from_file, y)


def test_resampling_removes_frequencies_above_nyquist():
    time = np.arange(48000) / 48000
    high = np.sin(2 * np.pi * 11000 * time).astype(np.float32)
    assert np.abs(load(high, sample_rate=48000)[200:-200]).max() < 1e-4


def test_sample_rate_of_an_array():
    x = sound(0.1)
    np.testing.assert_array_equal(load(x, sample_rate=RATE), x)
    np.testing.assert_array_equal(load(x), x)
    assert load(x, sample_rate=32000).shape == (800,)


@pytest.mark.parametrize("rate", [0, -16000, 99, 1_000_001])
def test_sample_rates_out_of_range_are_refused(rate):
    assert_refused(sound(0.1), f"sample rate {rate} Hz is outside", sample_rate=rate)
    assert_refused(sound(0.1), "target_rate: sample rate", sample_rate=RATE, target_rate=rate)


def test_file_with_sample_rate_out_of_range_is_refused():
    assert_refused(encode(sound(0.1), rate=50), "sample rate 50 Hz")
    assert_refused(encode(sound(0.1), rate=2_000_000), "sample rate 2000000 Hz")


def test_waveform_too_short_to_resample_is_refused():
    assert_refused(np.zeros(1, np.float32), "too short", sample_rate=192000, target_rate=8000)


# Invalid files


def test_invalid_paths_are_refused(tmp_path):
    for missing in (tmp_path / "no.wav", str(tmp_path / "no.wav")):
        assert assert_refused(missing, "no such file").startswith(f"{missing}: ")
    assert_refused(tmp_path, "is a directory")
    assert_refused("a\0.wav", "null")
    assert_refused("x" * 5000, "can't be read")


def test_invalid_file_contents_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"")
    assert assert_refused(path, "is empty").startswith(f"{path}: ")
    path.write_text("This is not a sound, whatever its name says.\n" * 50)
    assert assert_refused(path, "is not audio").startswith(f"{path}: ")
    assert_refused(b"", "bytes: is empty")
    assert_refused(bytes(1000), "is not audio")
    assert_refused(encode(np.array([0, np.nan, 0], np.float32), subtype="FLOAT"), "sample 1 is nan")
    assert_refused(encode(sound(0.1) * 32768, subtype="FLOAT"), "divide by 32768")
    assert load(encode(sound(0.1) * 20, subtype="FLOAT")).max() > 1


def test_file_without_read_permission_is_refused(tmp_path, monkeypatch):
    def deny_access(*args):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.wav").write_bytes(COMPLETE["wav"])
    monkeypatch.setattr(files, "open", deny_access, raising=False)  # root may read files without permission
    assert assert_refused(tmp_path / "a.wav", "permission denied").startswith(f"{tmp_path / 'a.wav'}: ")


def test_invalid_file_objects_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(COMPLETE["wav"])
    with path.open(encoding="utf-8") as file:
        assert_refused_without_type_checks(file, "binary file")
    with path.open("ab") as file:
        assert_refused_without_type_checks(file, "binary file")
    assert_refused_without_type_checks(file, "binary file")
    assert_refused_without_type_checks(io.StringIO("RIFF"), "can't take audio from str")


# Names of sources in messages


def test_name_of_removes_credentials_and_queries(tmp_path):
    assert name_of("a/b.wav") == "a/b.wav"
    assert name_of(Path("a/b.wav")) == "a/b.wav"
    assert name_of("https://me:secret@host:81/a.wav?token=secret#x") == "https://host:81/a.wav"
    assert name_of("http://host?token=secret@x") == "http://host"
    assert name_of(b"RIFF") == name_of(bytearray(3)) == "bytes"
    assert name_of(np.zeros(3)) == name_of(jnp.zeros(3)) == "array"
    assert name_of(io.BytesIO()) == "BytesIO"
    with (tmp_path / "c.wav").open("wb") as file:
        assert name_of(file) == str(tmp_path / "c.wav")
