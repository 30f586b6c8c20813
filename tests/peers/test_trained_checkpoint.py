"""Tests of a trained checkpoint on real speech against the PyTorch pipeline with which it was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import ecapa_jax
from ecapa_jax.api import default_bundle
from ecapa_jax.convert.export import source_tensors, write_torch
from ecapa_jax.convert.run import convert
from ecapa_jax.encoder import SpeakerEncoder
from helpers.parity import COSINE_BOUND, EMBEDDING_BOUND

pytestmark = [pytest.mark.peers, pytest.mark.shared]

SHARED = Path(__file__).parents[3] / "shared"
CHECKPOINT = SHARED / "checkpoints" / "ecapa_tdnn_c256.bin"
N_UTTERANCES = 50


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """The same complete files of many speakers and several corpora in every run."""
    if not CHECKPOINT.is_file():
        pytest.skip(f"needs {CHECKPOINT.relative_to(SHARED.parent)}, which is not here")
    corpora = ("librispeech_test_other", "speechocean762", "csukuangfj_sr_data")
    found = [path for corpus in corpora for path in sorted((SHARED / "data" / corpus).glob("*/*.flac"))]
    return [found[index] for index in np.linspace(0, len(found) - 1, N_UTTERANCES).astype(int)]


@pytest.fixture(scope="module")
def theirs(files: list[Path]) -> np.ndarray:
    return embed_with_pytorch(CHECKPOINT, files)


def embed_with_pytorch(checkpoint: Path, files: list[Path]) -> np.ndarray:
    """Returns embeddings of 3D-Speaker's class and front end, with one call per file."""
    torch = pytest.importorskip("torch", reason="make peers installs it")
    model_module = pytest.importorskip("speakerlab.models.ecapa_tdnn.ECAPA_TDNN", reason="make peers installs it")
    processor = pytest.importorskip("speakerlab.process.processor", reason="make peers installs it")
    model = model_module.ECAPA_TDNN(80, lin_neurons=192, channels=[256, 256, 256, 256, 768])
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    model.eval()
    features = processor.FBank(80, 16000, mean_nor=True)
    waveforms = (torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in files)
    with torch.no_grad():
        return np.stack([model(features(waveform)[None])[0].numpy() for waveform in waveforms])


def test_bundle_equals_pytorch_on_50_utterances(files: list[Path], theirs: np.ndarray) -> None:
    """The bundle embeds padded batches of all files, and PyTorch embeds one file per call."""
    ours = SpeakerEncoder.from_bundle(convert(CHECKPOINT, family="3dspeaker")).embed(files)
    errors = np.abs(ours - theirs).max(1) / np.abs(theirs).max(1)
    cosines = np.asarray(ecapa_jax.cosine(ours, theirs))
    print(f"{len(files)} utterances: worst error {errors.max():.1e}, worst cosine {cosines.min():.8f}")
    assert errors.max() <= EMBEDDING_BOUND
    assert cosines.min() >= COSINE_BOUND


def test_packaged_model_gives_equal_embeddings_in_pytorch(files: list[Path], tmp_path: Path) -> None:
    """The packaged model, which this library trained, is exported to 3D-Speaker's layout."""
    write_torch(tmp_path / "ecapa_tdnn.bin", source_tensors(default_bundle()))
    theirs = embed_with_pytorch(tmp_path / "ecapa_tdnn.bin", files)
    errors = np.abs(ecapa_jax.load().embed(files) - theirs).max(1) / np.abs(theirs).max(1)
    print(f"{len(files)} utterances: worst error {errors.max():.1e}")
    assert errors.max() <= EMBEDDING_BOUND
