"""Tests of windows of a recording, and of long recordings in `SpeakerEncoder`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ecapa_jax import batching
from ecapa_jax import encoder as encoder_module
from ecapa_jax.audio.windows import cut
from ecapa_jax.encoder import SilenceWarning, SpeakerEncoder
from ecapa_jax.errors import AudioError, ConfigError
from helpers import parity
from helpers.long_models import RATE, random_variables, small_mels, sound

pytestmark = pytest.mark.usefixtures("every_sound_is_speech")


@given(
    n_samples=st.integers(1, 60),
    size=st.integers(1, 20),
    hop=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
def test_windows_of_a_stream_equal_slices(n_samples, size, hop, cuts):
    """A full window starts at every hop, and one more ends with the recording if samples remain.

    A recording shorter than a window gives one window.
    """
    hop = min(hop, size)
    samples = np.arange(n_samples, dtype=np.float32)
    found = list(cut(np.split(samples, sorted(cuts)), size, hop))
    starts = list(range(0, n_samples - size + 1, hop))
    if not starts or starts[-1] + size < n_samples:
        starts.append(max(n_samples - size, 0))
    assert [start for start, _ in found] == starts
    for start, window in found:
        np.testing.assert_array_equal(window, samples[start : start + size])
    assert set(np.concatenate([window for _, window in found])) == set(samples)


def test_windows_of_a_stream_use_little_memory():
    blocks = (np.zeros(1000, np.float32) for _ in range(1000))
    assert max(len(window.base) for _, window in cut(blocks, 300, 100)) <= 2000


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    config = small_mels(framing="snip_edges")
    return SpeakerEncoder(config, random_variables(config))


def test_embed_windows_equals_embeddings_of_slices(encoder, tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, sound(3.2), RATE)
    waveform = encoder.read(path)
    found = encoder.embed_windows(path, 1.0, 0.5)
    starts = [0, 0.5, 1.0, 1.5, 2.0, 2.2]
    assert found.starts.tolist() == starts
    expected = encoder.embed([waveform[round(start * RATE) : round((start + 1) * RATE)] for start in starts])
    assert parity.same_embeddings(found.embeddings, expected)
    np.testing.assert_allclose(found.mean, found.embeddings.mean(axis=0), rtol=1e-5, atol=1e-6)
    short = encoder.embed_windows(waveform[:5000], 1.0)
    assert (short.starts.tolist(), short.embeddings.shape) == ([0.0], (1, 12))


@pytest.mark.parametrize(
    ("window", "hop", "match"),
    [
        (0.001, 0.001, "too short: this model needs"),
        (float("nan"), 1.0, "too short"),
        (-1.0, -1.0, "too short"),
        (float("inf"), 1.0, "too short"),
        (1.0, 0.0, "above 0 and at most the window"),
        (1.0, 1e-9, "above 0"),
        (1.0, 1.5, "at most the window, 1 s"),
        (1.0, float("nan"), "above 0"),
    ],
)
def test_invalid_windows_are_refused(encoder, window, hop, match):
    with pytest.raises(ConfigError, match=match):
        encoder.embed_windows(sound(2.0), window, hop)


@pytest.fixture
def limit_batches_to_one_second(monkeypatch):
    """Treats recordings above one second as long, so that the tests do not have to embed minutes."""
    for module in (batching, encoder_module):
        monkeypatch.setattr(module, "MAX_BATCH_SECONDS", 1.0)


@pytest.fixture(scope="module")
def whole_embeddings(encoder, tmp_path_factory):
    """Returns files of several lengths and sample rates with their embeddings by the one-pass function."""
    folder = tmp_path_factory.mktemp("recordings")
    waveform, paths = sound(4.0), []
    for name, samples, rate in [
        ("long.flac", waveform, 16000),
        ("short.wav", waveform[20000:30000], 16000),
        ("stereo.wav", np.stack([waveform, -waveform], axis=1)[:40000], 44100),
        ("low.wav", waveform[:24000], 8000),
    ]:
        paths.append(folder / name)
        soundfile.write(paths[-1], samples, rate)
    return paths, encoder.embed(paths)


@pytest.mark.usefixtures("limit_batches_to_one_second")
def test_long_files_are_embedded_in_chunks_automatically(encoder, whole_embeddings, monkeypatch):
    paths, expected = whole_embeddings
    n_long = 0
    embed_long = encoder._embed_long

    def count_blocks(blocks):
        nonlocal n_long
        n_long += 1
        return embed_long(blocks)

    monkeypatch.setattr(encoder, "_embed_long", count_blocks)
    assert parity.same_embeddings(encoder.embed(paths), expected)
    assert n_long == 2  # the stereo file has 0.9 s
    waveforms = [encoder.read(path) for path in paths]
    assert parity.same_embeddings(encoder.embed(waveforms), expected)
    assert parity.same_embeddings(encoder.embed_views(paths)[:, 0], expected)
    rows = {
        at: row
        for indices, part in encoder.embed_stream(iter(waveforms))
        for at, row in zip(indices, part, strict=True)
    }
    assert parity.same_embeddings([rows[index] for index in range(4)], expected)
    assert n_long == 8
    assert encoder.verify(paths[0], paths[0], threshold=0.5).score == pytest.approx(1.0)


@pytest.mark.usefixtures("limit_batches_to_one_second")
def test_errors_in_long_recordings_are_raised(encoder, tmp_path):
    waveform = sound(3.0).copy()
    waveform[40000] = np.inf
    with pytest.raises(AudioError, match="sample 40000 is inf"):
        encoder.embed(waveform)
    with pytest.raises(AudioError, match="sample 40000 is inf"):
        encoder.embed_windows(waveform, 1.0)
    with pytest.warns(SilenceWarning, match="array has no signal"):
        encoder.embed(np.full(40000, 0.1, np.float32))
    with pytest.warns(SilenceWarning, match="array has no signal"):
        encoder.embed_windows(np.zeros(40000, np.float32), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.embed(sound(3.0))
