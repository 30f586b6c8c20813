"""Tests of speech detection against silero-vad: its ONNX files, its get_speech_timestamps, and the conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from ecapa_jax import vad
from ecapa_jax.convert.silero import read_silero
from ecapa_jax.errors import ConversionError
from ecapa_jax.vad import recordings
from ecapa_jax.vad.network import RATE
from ecapa_jax.vad.segments import SegmentOptions
from ecapa_jax.vad.weights import packaged_weights
from helpers.cli import run, run_refused
from helpers.detector import golden_waveforms, random_options, random_probabilities
from helpers.nonspeech import SOUNDS, nonspeech

pytestmark = pytest.mark.peers
pytest.importorskip("onnxruntime", reason="needs onnxruntime (make peers installs it)")
torch = pytest.importorskip("torch", reason="needs PyTorch (make peers installs it)")
silero = pytest.importorskip("silero_vad", reason="needs silero-vad (make peers installs it)")

FILES = Path(silero.__file__).parent / "data"
SHARED = Path(__file__).parents[3] / "shared" / "data"
BOUND = 1e-5


@pytest.fixture(scope="module")
def model():
    return silero.load_silero_vad(onnx=True)


def silero_probabilities(model, samples: np.ndarray) -> np.ndarray:
    model.reset_states()
    return model.audio_forward(torch.from_numpy(samples), RATE)[0].numpy()


def our_probabilities(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities of JAX and of NumPy."""
    in_jax = np.asarray(vad.speech_probabilities(samples[None], np.array([len(samples)], np.int32)))[0]
    return in_jax, recordings.stream_probabilities([samples])[0]


def check_probabilities(model, samples: np.ndarray) -> np.ndarray:
    expected = silero_probabilities(model, samples)
    for found in our_probabilities(samples):
        assert np.abs(found - expected).max() <= BOUND
    return expected


def test_probabilities_of_speech_and_other_sounds_equal_silero(model):
    assert max(check_probabilities(model, samples).max() for samples in golden_waveforms().values()) > 0.99
    for seed, kind in enumerate(SOUNDS):
        check_probabilities(model, nonspeech(kind, 40 + seed, 2.003))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs the speech of ../shared")
def test_probabilities_and_segments_of_real_recordings_equal_silero(model):
    speech = sorted((SHARED / "speechocean762").rglob("*.flac"))[::300]
    speech += sorted((SHARED / "librispeech_test_other").rglob("*.flac"))[::40]
    noises = sorted((SHARED / "aug_noise").rglob("*.flac"))[::4]
    for path in speech + noises:
        samples = soundfile.read(path, dtype="float32")[0][: 12 * RATE]
        check_probabilities(model, samples)
        for options in ({}, random_options(len(samples))):
            found = vad.speech_segments(samples, **options)
            expected = silero.get_speech_timestamps(torch.from_numpy(samples), model, **options)
            pairs = [{"start": round(one.start * RATE), "end": round(one.end * RATE)} for one in found]
            assert pairs == expected


def test_segments_of_random_probabilities_equal_silero():
    from silero_vad.utils_vad import get_speech_timestamps_from_probs

    for seed in range(100, 400):
        probabilities = random_probabilities(seed)
        n_samples = len(probabilities) * 512 - seed
        options = random_options(seed)
        found = vad.segments_from_probabilities(probabilities, n_samples, SegmentOptions(**options))
        pairs = [{"start": round(one.start * RATE), "end": round(one.end * RATE)} for one in found]
        expected = get_speech_timestamps_from_probs(probabilities.tolist(), audio_length_samples=n_samples, **options)
        assert pairs == expected


@pytest.mark.parametrize("name", ["silero_vad.onnx", "silero_vad_16k_op15.onnx"])
def test_packaged_weights_equal_those_of_the_wheel(capsys, tmp_path, name):
    for key, array in read_silero(FILES / name).items():
        np.testing.assert_array_equal(array, packaged_weights()[key])
    out = tmp_path / "detector.safetensors"
    assert "309,633 parameters" in run(capsys, "convert", FILES / name, "-o", out).out
    for key, array in vad.load_weights(out).items():
        np.testing.assert_array_equal(array, packaged_weights()[key])
    assert "--force" in run_refused(capsys, tmp_path, "convert", FILES / name, "-o", out)
    assert run(capsys, "convert", FILES / name, "-o", out, "--force").code == 0
    assert ".safetensors" in run_refused(capsys, tmp_path, "convert", FILES / name, "-o", tmp_path / "bundle")


def test_onnx_file_without_tensor_names_is_refused():
    with pytest.raises(ConversionError, match=r"has no decoder.rnn.weight_ih \[512, 128\].*give silero_vad.onnx"):
        read_silero(FILES / "silero_vad_16k_sequence.onnx")
