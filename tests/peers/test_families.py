"""Tests against the PyTorch modules of NeMo, ESPnet-SPK, WeSpeaker, SpeechBrain and RDINO."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from ecapa_jax import functional
from ecapa_jax.config import FbankConfig
from ecapa_jax.features.fbank import fbank
from ecapa_jax.presets import MEL_INSTANCE
from helpers import families, oracle, parity

torch = pytest.importorskip("torch")
transforms = pytest.importorskip("torchaudio.transforms")
pytest.importorskip("espnet2.spk.pooling.abs_pooling")

from helpers import originals  # noqa: E402

pytestmark = pytest.mark.peers

EMBED = jax.jit(functional.embed, static_argnums=0)
FBANK = jax.jit(fbank, static_argnums=0)
SIZE = 40000


def _sounds() -> dict[str, np.ndarray]:
    """Returns sounds of two frames and more: odd lengths, whole hops, and one hop around a multiple of 16 frames."""
    every = parity.golden_signals()
    speech = every["slt_1"][8000:]
    lengths = (321, 479, 480, 1601, 2399, 2400, 2559, 2560, 2561, 16000, 20479, 33333)
    return {
        **{f"{n} samples": speech[:n] for n in lengths},
        "clipped": every["clipped"],
        "wide_range": parity.wide_range(SIZE),
        "silence": every["silence"],
    }


@functools.cache
def _original(family: str) -> originals.Original:
    return originals.ORIGINALS[family](families.config(family), families.tensors(family))


def _check_features(config: FbankConfig, ours: np.ndarray, theirs: np.ndarray, waveform: np.ndarray, name: str) -> None:
    """Checks that our features are at most twice as far from float64 as theirs, or within rounding of it."""
    truth = oracle.fbank(config, waveform)
    own, original = (float(np.abs(x - truth).max()) for x in (ours, theirs))
    print(f"{name:<28} features {own:.1e}, the original's {original:.1e}", end=" ")
    assert own <= max(2 * original, parity.FEATURE_BOUND)


SILENCE_IN_DOUBLE = ("nemo", "nemo-2.5", "rdino")
"""These families divide the rounding error of a constant by a number close to zero."""


@pytest.mark.parametrize("family", SILENCE_IN_DOUBLE)
def test_silence_equals_the_original_in_float64(family: str) -> None:
    config, variables = families.config(family), families.variables(family)
    waveform = _sounds()["silence"]
    original = originals.ORIGINALS[family](config, families.tensors(family), torch.float64)
    _, theirs = original(waveform)
    ours = np.asarray(EMBED(config, variables, *parity.pad_batch([waveform], SIZE)))[0]
    error = parity.relative_error(ours, theirs)
    print(f"{family}: silence, ours in float32, the original in float64: {error:.1e}")
    assert theirs.dtype == np.float64
    assert parity.same_embedding(ours, theirs)


@pytest.mark.filterwarnings("ignore:.*autocast:FutureWarning")  # espnet, with recent torch
@pytest.mark.parametrize("family", originals.ORIGINALS)
def test_equals_the_original(family: str) -> None:
    """All sounds are in one batch padded with NaN. The original embeds them one by one."""
    config, variables = families.config(family), families.variables(family)
    shortest = functional.minimum_samples(config)
    sounds = {name: waveform for name, waveform in _sounds().items() if len(waveform) >= shortest}
    batch = parity.pad_batch(sounds.values(), SIZE)
    features, mask = FBANK(config.fbank, *batch, variables["constants"])
    embeddings = np.asarray(EMBED(config, variables, *batch))
    for row, (name, waveform) in enumerate(sounds.items()):
        their_features, theirs = _original(family)(waveform)
        ours = np.asarray(features[row, : int(mask[row].sum())])
        assert ours.shape == their_features.shape
        _check_features(config.fbank, ours, their_features, waveform, f"{family} {name}")
        print(f"embedding {parity.relative_error(embeddings[row], theirs):.1e}")
        if name != "silence" or family not in SILENCE_IN_DOUBLE:
            assert parity.same_embedding(embeddings[row], theirs)


def test_instance_normalised_mel_equals_torchaudio() -> None:
    """This is the front end of RDINO and SDPN."""
    mel = transforms.MelSpectrogram(sample_rate=16000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
    norm = torch.nn.InstanceNorm1d(80)
    sounds = _sounds()
    features, mask = FBANK(MEL_INSTANCE, *parity.pad_batch(sounds.values(), SIZE))
    for row, (name, waveform) in enumerate(sounds.items()):
        theirs = norm((mel(torch.from_numpy(waveform)[None]) + 1e-6).log())[0].T.numpy()
        ours = np.asarray(features[row, : int(mask[row].sum())])
        assert ours.shape == theirs.shape
        _check_features(MEL_INSTANCE, ours, theirs, waveform, f"instance {name}")
        print()
