"""Tests of converted files in the real layouts against outputs of the original PyTorch code for waveforms."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from ecapa_jax import functional
from ecapa_jax.bundle.bundle import Bundle, load_bundle, save_bundle
from ecapa_jax.convert.run import convert
from helpers import parity

DIRECTORY = parity.ROOT.parent / "shared" / "golden"
CASES = {
    "taoruijie": ("taoruijie", "taoruijie.model", None),
    "nemo": ("nemo_before_2_5", "ecapa_tdnn.nemo", None),
    "nemo-2.5": ("nemo_from_2_5", "ecapa_tdnn.nemo", "nemo-2.5"),
}
EMBED = jax.jit(functional.embed, static_argnums=0)

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not DIRECTORY.is_dir(), reason=f"needs {DIRECTORY}"),
]


@functools.cache
def _bundle(family: str) -> Bundle:
    _, file, asked = CASES[family]
    return convert(DIRECTORY / file, family=asked)


@functools.cache
def _waves() -> list[np.ndarray]:
    with np.load(DIRECTORY / "waves.npz") as file:
        return [file[f"wave{index}"] for index in range(len(file))]


def _check(family: str, way: str, ours: np.ndarray) -> None:
    with np.load(DIRECTORY / "embeddings.npz") as file:
        theirs = file[CASES[family][0]]
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        error, cosine = parity.relative_error(one, other), parity.cosine(one, other)
        print(f"{family:<12}{way:<7} wave{index} embedding {error:.1e} 1 - cosine {1 - cosine:.1e}")
        assert parity.same_embedding(one, other)


@pytest.mark.parametrize("family", CASES)
def test_embedding_of_one_utterance_equals_the_original(family: str) -> None:
    bundle = _bundle(family)
    assert bundle.provenance["family"] == family
    lengths = [np.array([len(wave)], np.int32) for wave in _waves()]
    embed = functools.partial(EMBED, bundle.config, bundle.variables)
    ours = [embed(wave[None], length)[0] for wave, length in zip(_waves(), lengths, strict=True)]
    _check(family, "alone", np.stack(ours))


@pytest.mark.parametrize("family", CASES)
def test_embeddings_of_a_padded_batch_equal_the_original(family: str) -> None:
    """The batch is padded with NaN, and is longer than the longest utterance."""
    bundle = _bundle(family)
    batch = parity.pad_batch(_waves(), max(map(len, _waves())) + 3000)
    _check(family, "batch", np.asarray(EMBED(bundle.config, bundle.variables, *batch)))


@pytest.mark.parametrize("family", CASES)
def test_bounds_distinguish_both_nemo_featurizers(family: str) -> None:
    """The embedding with the other featurizer is outside the bounds."""
    with np.load(DIRECTORY / "embeddings.npz") as file:
        others = [file[name] for name, _, _ in CASES.values() if name != CASES[family][0]]
        own = file[CASES[family][0]]
    assert not any(parity.same_embedding(a, b) for other in others for a, b in zip(own, other, strict=True))


def test_bundle_stores_the_constants_of_the_front_end(tmp_path) -> None:
    bundle = _bundle("nemo")
    save_bundle(bundle, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.config == bundle.config
    for name in ("mel_matrix", "window"):
        np.testing.assert_array_equal(loaded.variables["constants"][name], bundle.variables["constants"][name])
