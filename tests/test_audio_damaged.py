"""Tests of `load_audio` with files that are truncated, or whose header has a wrong length or none."""

import contextlib
import io
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.audio import decoding
from ecapa_jax.audio import load as audio
from ecapa_jax.errors import AudioError
from helpers.sounds import COMPLETE, RATE, assert_refused, encode, load, sound


@pytest.mark.parametrize("kind", COMPLETE)
def test_truncated_files_are_refused(tmp_path, kind):
    data = COMPLETE[kind]
    load(data)
    path = tmp_path / "cut"
    for part in (0.003, 0.01, 0.1, 0.37, 0.5, 0.77, 0.9, 0.99, 0.999):
        # A cut between two MP3 frames is detected by the frame count, any other cut by the incomplete frame.
        path.write_bytes(data[: max(16, min(int(len(data) * part), len(data) - 2))])
        message = assert_refused(path, "truncated|is not audio")
        assert message.startswith(f"{path}: ")
        assert part < 0.01 or "truncated" in message
    assert_refused(data[:-2], "truncated")


def test_truncated_flac_is_refused_at_any_length():
    data = COMPLETE["flac"]
    for end in np.linspace(100, len(data) - 1, 40).astype(int):
        assert_refused(data[:end], "truncated")


def patch_bytes(data, offset, replacement):
    return data[:offset] + replacement + data[offset + len(replacement) :]


def set_flac_length(flac, n_frames=0):
    """Replaces the number of frames in a FLAC header; a program that writes to a pipe leaves 0 there."""
    wide = int.from_bytes(flac[18:26], "big") >> 36 << 36 | n_frames
    return patch_bytes(flac, 18, wide.to_bytes(8, "big"))


@pytest.mark.parametrize("length", [2**32 - 1, 2**31 - 1, 0x7FFFF000, 2**31 + 36, 2**32 - 37])
def test_wav_without_length_is_read_to_the_end(length):
    data = patch_bytes(encode(sound()), 40, length.to_bytes(4, "little"))
    np.testing.assert_array_equal(load(data), load(encode(sound())))


def test_au_without_length_is_read_to_the_end():
    data = patch_bytes(COMPLETE["au"], 8, b"\xff" * 4)
    assert load(data).size == RATE


def test_flac_without_length_is_read_to_the_end(monkeypatch):
    data = set_flac_length(COMPLETE["flac"])
    np.testing.assert_array_equal(load(data), load(COMPLETE["flac"]))
    monkeypatch.setattr(decoding, "_BLOCK", 1000)
    np.testing.assert_array_equal(load(data), load(COMPLETE["flac"]))
    assert_refused(data[:-100], "truncated")


def test_trailing_bytes_are_ignored():
    for kind in ("wav", "rf64", "aiff", "au", "ogg", "opus", "flac"):
        for tail in (b"\0", b"TAG" + bytes(125), bytes(5000)):
            np.testing.assert_array_equal(load(COMPLETE[kind] + tail), load(COMPLETE[kind]))


def test_file_that_was_never_finalized():
    with pytest.warns(UserWarning, match="never finished"):
        np.testing.assert_array_equal(load(patch_bytes(COMPLETE["wav"], 40, bytes(4))), load(COMPLETE["wav"]))
    assert_refused(encode(np.zeros(0, np.float32)), "no samples")


@pytest.mark.parametrize(
    "data",
    [
        set_flac_length(COMPLETE["flac"], 2**36 - 1),
        patch_bytes(COMPLETE["wav"], 40, (2**30).to_bytes(4, "little")),
        patch_bytes(COMPLETE["rf64"], 28, (2**41).to_bytes(8, "little")),
    ],
    ids=["flac", "wav", "rf64"],
)
def test_wrong_length_in_header_does_not_allocate_memory(data):
    assert_refused(data, "longer than 6 hours|truncated")
    tracemalloc.start()
    try:
        assert_refused(data, "truncated", max_seconds=1e9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_recording_longer_than_max_seconds_is_refused():
    assert load(COMPLETE["wav"], max_seconds=1.0).size == RATE
    for data in (COMPLETE["wav"], COMPLETE["mp3"], set_flac_length(COMPLETE["flac"])):
        assert_refused(data, "longer than 0.9 seconds", max_seconds=0.9)


def test_file_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(COMPLETE["wav"])
    monkeypatch.setattr(audio, "_MAX_BYTES", 1000)
    assert_refused(path, "is larger than")


# MP3


def remove_mp3_header(mp3):
    """Makes the length header of an MP3 unreadable; its frame then decodes to silence."""
    assert (b"Xing" in mp3[:200]) != (b"Info" in mp3[:200])
    return mp3.replace(b"Xing", bytes(4), 1).replace(b"Info", bytes(4), 1)


@pytest.mark.parametrize("kind", ["mp3", "mp3_vbr"])
def test_mp3_without_length_is_read_to_the_end(kind):
    data = remove_mp3_header(COMPLETE[kind])
    y = load(data)
    assert RATE + 576 <= y.size <= RATE + 4 * 576
    lag = 576 + 1105  # silent frame + encoder delay
    assert np.corrcoef(y[lag : lag + RATE], sound()[: y.size - lag])[0, 1] > 0.99
    assert_refused(data[:-50], "truncated")


def test_soundfile_reports_wrong_length_for_mp3_without_header():
    with soundfile.SoundFile(io.BytesIO(remove_mp3_header(COMPLETE["mp3_vbr"]))) as file:
        assert abs(file.frames - RATE) > 2000


def id3_tag(size):
    return b"ID3\x03\x00\x00" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + bytes(size)


@pytest.mark.parametrize("kind", ["mp3", "mp3_vbr"])
@pytest.mark.parametrize("header", [True, False])
def test_mp3_tags_and_padding_are_ignored(kind, header):
    data = COMPLETE[kind] if header else remove_mp3_header(COMPLETE[kind])
    expected = load(data)
    for before, after in [
        (id3_tag(100), b""),
        (id3_tag(300_000), b""),
        (id3_tag(50) + id3_tag(9000), b""),
        (b"", b"TAG" + bytes(125)),
    ]:
        np.testing.assert_array_equal(load(before + data + after), expected)
    # Without a length header, mpg123 searches 1024 bytes for another frame.
    np.testing.assert_array_equal(load(data + bytes(200_000 if header else 900)), expected)


def test_mp3_frame_count_may_include_the_header_frame():
    data = COMPLETE["mp3"]
    at = (data.find(b"Xing") if b"Xing" in data else data.find(b"Info")) + 8
    count = int.from_bytes(data[at : at + 4], "big")
    assert load(patch_bytes(data, at, (count + 1).to_bytes(4, "big"))).size >= RATE
    assert_refused(patch_bytes(data, at, (count + 5).to_bytes(4, "big")), "truncated")


def test_descriptors_and_threads_are_released():
    def count_descriptors_and_threads():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    if not Path("/proc/self/fd").exists():
        pytest.skip("counts descriptors in /proc")
    data = COMPLETE["mp3"]
    load(data)
    before = count_descriptors_and_threads()
    for source in (data, data + bytes(500_000), data[:-50], data[:300], remove_mp3_header(data)):
        with contextlib.suppress(AudioError):
            load(source)
        with contextlib.suppress(AudioError):
            load(source, max_seconds=0.1)
    assert count_descriptors_and_threads() == before


# Random damage


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(COMPLETE)), st.data())
def test_damaged_files_raise_audio_error_or_decode_to_finite_samples(kind, data):
    damaged = bytearray(COMPLETE[kind])
    reach = data.draw(st.sampled_from([64, 400, len(damaged)]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, reach - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(AudioError):
        assert np.isfinite(load(bytes(damaged))).all()


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"\xff\xfb", b".snd"])
)
def test_random_bytes_are_refused(noise, magic):
    with pytest.raises(AudioError):
        load(magic + noise)
