"""Tests of recordings from recorders, speech servers and other programs: joined, unfinished, cut, of any dtype."""

import contextlib
import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

import ecapa_jax
from ecapa_jax.audio.recordings import as_list
from helpers.sounds import RATE, assert_refused, assert_refused_without_type_checks, encode, load, sound

MP3, FLAC = ("MP3", "MPEG_LAYER_III"), ("FLAC", None)
LONGER = sound(1.3)[::-1].copy()
KINDS = [MP3, ("OGG", "OPUS"), ("OGG", "VORBIS"), FLAC, ("WAV", None), ("RF64", None), ("WAV", "FLOAT")]


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_joined_files_are_read_to_the_end(kind, subtype):
    first, second = encode(sound(), kind, subtype), encode(LONGER, kind, subtype)
    alone = [load(first), load(second)]
    np.testing.assert_array_equal(load(first + second), np.concatenate(alone))
    np.testing.assert_array_equal(load(second + first + second), np.concatenate([alone[1], *alone]))


@pytest.mark.parametrize(("kind", "subtype"), [MP3, FLAC, ("WAV", None)])
def test_joined_files_of_two_rates_are_refused(kind, subtype):
    assert_refused(
        encode(sound(), kind, subtype) + encode(sound(), kind, subtype, rate=8000), "16000 and 8000 Hz; split it"
    )


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "OPUS"), FLAC, ("WAV", None)])
def test_truncated_joined_file_is_refused(kind, subtype):
    assert_refused(encode(sound(), kind, subtype) + encode(LONGER, kind, subtype)[:-3000], "truncated")


@pytest.mark.parametrize("cut", [10, 777, 1500])
def test_mp3_without_its_beginning_is_read(cut):
    content = encode(sound(3), *MP3)
    n_missing = load(content).size - load(content[cut:]).size
    assert abs(n_missing) < 5 * 1152


def _unfinished_files():
    samples = encode(sound(), "AU")
    yield "au", samples[:8] + bytes(4) + samples[12:], samples
    wav = encode(sound())
    yield "wav", wav[:4] + struct.pack("<I", 36) + wav[8:40] + bytes(4) + wav[44:], wav
    rifx = encode(sound(), "WAV", "PCM_16", endian="BIG")
    yield "rifx", rifx[: rifx.index(b"data") + 4] + bytes(4) + rifx[rifx.index(b"data") + 8 :], rifx
    rf64 = encode(sound(), "RF64")
    ds64 = rf64.index(b"ds64") + 16
    yield "rf64", rf64[:ds64] + bytes(8) + rf64[ds64 + 8 :], rf64
    aiff = encode(sound(), "AIFF")
    comm, ssnd = aiff.index(b"COMM") + 10, aiff.index(b"SSND") + 4
    yield "aiff", aiff[:comm] + bytes(4) + aiff[comm + 4 : ssnd] + struct.pack(">I", 8) + aiff[ssnd + 4 :], aiff


@pytest.mark.parametrize(("content", "complete"), [pytest.param(*rest, id=name) for name, *rest in _unfinished_files()])
def test_file_with_unfinished_header_is_read_to_the_end(content, complete):
    with pytest.warns(UserWarning, match="never finished") as caught:
        waveform = load(content)
    np.testing.assert_array_equal(waveform, load(complete))
    assert Path(ecapa_jax.__file__).parent not in Path(caught[0].filename).parents


@pytest.mark.parametrize("tail", [b"", b"LIST\4\0\0\0INFO"])
def test_wav_without_samples_is_refused(tail):
    assert_refused(encode(sound())[:40] + bytes(4) + tail, "no samples")


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
@pytest.mark.parametrize("gain", [300, 32767])
def test_samples_of_another_integer_width_are_refused(dtype, gain):
    assert_refused(np.rint(2 * sound(0.2) * gain).astype(dtype), "divide by 32768")


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.bool_, np.complex64])
def test_unsupported_dtypes_are_refused(dtype):
    assert_refused(np.ones(1600, dtype), "give int8, int16, int32, uint8 or a float dtype")


def test_full_scale_integers_are_read():
    x = sound(0.2)
    for dtype, scale, shift in (
        (np.int8, 127, 0),
        (np.uint8, 127, 128),
        (np.int16, 32767, 0),
        (np.int32, 2**31 - 1, 0),
    ):
        loaded = load(np.rint(x.astype(np.float64) * scale + shift).astype(dtype))
        np.testing.assert_allclose(loaded, x, atol=2 / scale + 1e-6)


@pytest.mark.parametrize("shape", [(1, 1600), (1600, 1), (1600,)])
def test_one_row_or_column_is_one_recording(shape):
    np.testing.assert_array_equal(load(sound(0.1).reshape(shape)), sound(0.1))


@pytest.mark.parametrize("shape", [(3, 1600), (2, 400), (40, 1600), (900, 40), (33, 33)])
def test_batch_is_refused(shape):
    assert_refused(np.zeros(shape, np.float32), r"list\(array\)")


@pytest.mark.parametrize(("text", "rate"), [("16000", 16000), ("8000", 8000), ("44100.0", 44100)])
def test_sample_rate_may_be_text(text, rate):
    x = sound(0.1)
    np.testing.assert_array_equal(load(x, sample_rate=text), load(x, sample_rate=rate))


@pytest.mark.parametrize("text", ["16k", "", "nan", "16000.5"])
def test_invalid_sample_rate_text_is_refused(text):
    assert_refused(sound(0.1), "number; give it in Hz", sample_rate=text)


def test_hugging_face_dataset_rows_are_accepted(tmp_path):
    x, file = sound(0.1), tmp_path / "a.wav"
    file.write_bytes(encode(x))
    np.testing.assert_array_equal(load({"array": x, "sampling_rate": 8000}), load(x, sample_rate=8000))
    np.testing.assert_array_equal(load({"path": None, "array": x, "sampling_rate": RATE}, sample_rate=RATE), x)
    np.testing.assert_array_equal(load({"bytes": encode(x), "path": "gone.wav"}), load(file))
    np.testing.assert_array_equal(load({"bytes": None, "path": str(file)}), load(file))
    row = {"array": x, "sampling_rate": 8000}
    assert as_list(row) == [row]
    assert_refused({"array": x}, "sampling_rate is missing")
    assert_refused(row, "leave one out", sample_rate=RATE)
    assert_refused({"array": None, "path": None}, "give one of them")


def test_torch_tensors_with_gradient_or_bfloat16_are_accepted():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(sound(0.1))
    np.testing.assert_array_equal(load(x.clone().requires_grad_()), sound(0.1))
    np.testing.assert_array_equal(load(x.to(torch.bfloat16)), x.to(torch.bfloat16).float().numpy())


def test_channel_names_select_channels():
    x = sound(0.1, channels=2)
    np.testing.assert_array_equal(load(x, channel="left"), x[:, 0])
    np.testing.assert_array_equal(load(x, channel="right"), x[:, 1])
    assert_refused(x, "channel 6 is asked for, and the recording has 2", channel=5)
    assert_refused(x[:, 0], "channel 2 is asked for, and the recording has 1", channel=1)
    np.testing.assert_array_equal(load(x[:, 0], channel="right"), x[:, 0])  # one channel of a call, as a mono recording


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_devices_are_refused(path):
    assert_refused(path, "is a device")


def test_named_pipe_is_read_and_times_out_without_a_writer(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encode(LONGER),))
    writer.start()
    np.testing.assert_array_equal(load(path), load(encode(LONGER)))
    writer.join()
    monkeypatch.setattr("ecapa_jax.audio.files._WAIT_SECONDS", 0.1)
    assert_refused(path, "nobody writes")


def test_endless_pipe_is_refused(monkeypatch):
    monkeypatch.setattr("ecapa_jax.audio.files.MAX_STREAM_BYTES", 1 << 16)
    output, feed = os.pipe()

    def write():
        with contextlib.suppress(BrokenPipeError), os.fdopen(feed, "wb", buffering=0) as sink:
            while True:
                sink.write(bytes(1 << 16))

    writer = threading.Thread(target=write)
    writer.start()
    assert_refused(f"/dev/fd/{output}", "has no end")
    os.close(output)
    writer.join()


def test_standard_input_is_read(monkeypatch, tmp_path):
    (tmp_path / "a.wav").write_bytes(encode(LONGER))
    with (tmp_path / "a.wav").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        np.testing.assert_array_equal(load("-"), load(encode(LONGER)))
    assert_refused("-", "standard input is closed")


def test_stream_of_bytes_is_not_a_mapping():
    np.testing.assert_array_equal(load(io.BytesIO(encode(LONGER))), load(encode(LONGER)))
    assert_refused_without_type_checks({"sampling_rate": RATE}, "can't take audio from dict")
