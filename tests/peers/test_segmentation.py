"""Tests of overlap detection against the same network in PyTorch, with the packaged weights."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from ecapa_jax.convert.segmentation import read_segmentation, sinc_filters
from ecapa_jax.diarization import segmentation
from ecapa_jax.errors import ConversionError
from helpers.segmentation_files import pytorch_state, with_filters

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="needs PyTorch (make peers installs it)")

SHARED = Path(__file__).parents[3] / "shared" / "conversations"


def tensors_of(arrays):
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


class PyanNet(torch.nn.Module):
    """pyannote's network, built from PyTorch layers; the filters of its first layer are an argument."""

    def __init__(self, filters):
        super().__init__()
        self.filters = torch.from_numpy(np.array(filters.T[:, None]))
        nn = torch.nn
        self.sincnet = nn.Module()
        self.sincnet.wav_norm1d = nn.InstanceNorm1d(1, affine=True)
        self.sincnet.conv1d = nn.ModuleList([nn.Identity(), nn.Conv1d(80, 60, 5), nn.Conv1d(60, 60, 5)])
        self.sincnet.norm1d = nn.ModuleList([nn.InstanceNorm1d(width, affine=True) for width in (80, 60, 60)])
        self.lstm = nn.LSTM(60, 128, 4, bidirectional=True, batch_first=True)
        self.linear = nn.ModuleList([nn.Linear(256, 128), nn.Linear(128, 128)])
        self.classifier = nn.Linear(128, 7)

    def forward(self, waveforms):
        functional = torch.nn.functional
        x = self.sincnet.wav_norm1d(waveforms[:, None])
        for index, (conv, norm) in enumerate(zip(self.sincnet.conv1d, self.sincnet.norm1d, strict=True)):
            x = functional.conv1d(x, self.filters, stride=10).abs() if index == 0 else conv(x)
            x = functional.leaky_relu(norm(functional.max_pool1d(x, 3)))
        x, _ = self.lstm(x.transpose(1, 2))
        for dense in self.linear:
            x = functional.leaky_relu(dense(x))
        return functional.log_softmax(self.classifier(x), dim=-1)


def original(weights, dtype):
    network = PyanNet(weights["sinc"]["kernel"])
    network.load_state_dict(tensors_of(pytorch_state(weights)))
    network.filters = network.filters.to(dtype)
    return network.to(dtype).eval()


@pytest.mark.shared
def test_log_probabilities_of_real_speech_equal_pytorch():
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/conversations")
    names = sorted(SHARED.glob("*.flac"))
    sounds = np.stack([soundfile.read(name, dtype="float32")[0][:160000] for name in names])
    weights = segmentation.load_weights()
    with torch.no_grad():
        double = original(weights, torch.float64)(torch.from_numpy(sounds).double()).numpy()
        single = original(weights, torch.float32)(torch.from_numpy(sounds)).numpy()
    found = np.asarray(jax.jit(segmentation.log_probabilities)(weights, sounds))
    assert (found.argmax(axis=-1) == single.argmax(axis=-1)).all()
    probable = double > np.log(0.01)  # in float32, the logarithm of a tiny probability is almost arbitrary
    error, theirs = np.abs(found - double), np.abs(single - double)
    print(f"float32: {error[probable].max():.1e} (PyTorch {theirs[probable].max():.1e}); all classes {error.max():.1e} "
          f"({theirs.max():.1e}); probabilities {np.abs(np.exp(found) - np.exp(double)).max():.1e}")  # fmt: skip
    assert np.abs(np.exp(found) - np.exp(double)).max() <= 1e-4
    assert error.max() <= max(2 * theirs.max(), 1e-3)


def test_log_probabilities_in_float64_equal_pytorch():
    rng = np.random.default_rng(0)
    sounds = 0.1 * rng.standard_normal((2, 48000)) * np.linspace(0, 1, 48000)
    weights = segmentation.load_weights()
    with torch.no_grad():
        expected = original(weights, torch.float64)(torch.from_numpy(sounds)).numpy()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: array.astype(np.float64), weights)
        found = np.asarray(jax.jit(segmentation.log_probabilities)(wide, sounds))
    assert found.shape == (2, segmentation.n_frames(48000), 7)
    assert np.abs(found - expected).max() <= 1e-8


def checkpoint(path, **changes):
    """Writes a file in pyannote's layout, with random filters."""
    state = tensors_of(with_filters(pytorch_state(segmentation.load_weights())))
    state.update(changes)
    torch.save({"state_dict": {name: value for name, value in state.items() if value is not None}}, path)
    return state


def test_checkpoint_is_converted(tmp_path):
    state = checkpoint(tmp_path / "a.bin")
    weights = segmentation.nest_weights(read_segmentation(tmp_path / "a.bin"))
    packaged = segmentation.load_weights()
    for ours, theirs in zip(jax.tree.leaves(weights["lstm"]), jax.tree.leaves(packaged["lstm"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    bank = [state[f"sincnet.conv1d.0.filterbank.{name}"].numpy() for name in ("low_hz_", "band_hz_", "n_", "window_")]
    np.testing.assert_array_equal(weights["sinc"]["kernel"], sinc_filters(*bank))


def test_filters_equal_asteroid(tmp_path):
    filterbanks = pytest.importorskip("asteroid_filterbanks", reason="needs asteroid-filterbanks")
    theirs = filterbanks.ParamSincFB(80, 251, stride=10, sample_rate=16000, min_low_hz=50, min_band_hz=50)
    state = theirs.state_dict()
    ours = sinc_filters(*(state[name].numpy() for name in ("low_hz_", "band_hz_", "n_", "window_")))
    np.testing.assert_allclose(ours, theirs.filters().detach().numpy()[:, 0].T, atol=2e-6)


def test_other_network_is_refused(tmp_path):
    checkpoint(tmp_path / "a.bin", **{"classifier.weight": None})
    with pytest.raises(ConversionError, match=r"classifier\.weight"):
        read_segmentation(tmp_path / "a.bin")
