"""Tests of the speech detection network against silero-vad, in batches, in parts, and in NumPy."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ecapa_jax import vad
from ecapa_jax.errors import BundleError
from ecapa_jax.vad import in_numpy, network
from ecapa_jax.vad.network import FRAME, initial_state, speech_probabilities
from ecapa_jax.vad.weights import PACKAGED, SHAPES, packaged_weights
from helpers.detector import GOLDEN, golden_waveforms

WAVEFORMS = golden_waveforms()
BOUND = 1e-5
ADVANCE = jax.jit(network.advance)


def make_batch(rows: list[np.ndarray], padding: float = 0.0, extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows], np.int32)
    padded = np.full((len(rows), lengths.max() + extra), padding, np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded, lengths


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return dict(stored)


def test_probabilities_equal_silero(golden):
    found = np.asarray(speech_probabilities(*make_batch(list(WAVEFORMS.values()))))
    expected = np.stack([golden[f"{name}/probabilities"] for name in WAVEFORMS])
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= BOUND
    assert expected.max() > 0.9  # the recording contains speech
    assert expected.min() < 0.01


@pytest.mark.parametrize("padding", [0.0, 0.7, np.nan, np.inf])
def test_padded_batch_does_not_change_the_probabilities(padding):
    rows = [WAVEFORMS["slt_1"][:n] for n in (40123, 20000, 512, 511, 1, 513)]
    together = np.asarray(speech_probabilities(*make_batch(rows, padding, extra=700)))
    assert np.isfinite(together).all()
    for row, found in zip(rows, together, strict=True):
        alone = np.asarray(speech_probabilities(row[None], np.array([len(row)])))[0]
        np.testing.assert_allclose(found[: len(alone)], alone, atol=1e-6)
        assert (found[len(alone) :] == 0).all()


def test_numpy_equals_jax():
    for samples in WAVEFORMS.values():
        whole = np.pad(samples, (0, -len(samples) % FRAME))
        found, state = in_numpy.advance(packaged_weights(), whole, initial_state(1))
        expected, expected_state = ADVANCE(packaged_weights(), jnp.asarray(whole[None]), initial_state(1))
        np.testing.assert_allclose(found, np.asarray(expected)[0], atol=BOUND)
        for one, other in zip(state, expected_state, strict=True):
            np.testing.assert_allclose(one, np.asarray(other), atol=1e-4)


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_recording_in_two_parts_equals_the_whole(cut):
    samples = WAVEFORMS["awb_1"][: 78 * FRAME]
    whole, _ = ADVANCE(packaged_weights(), jnp.asarray(samples[None]), initial_state(1))
    first, state = ADVANCE(packaged_weights(), jnp.asarray(samples[None, : cut * FRAME]), initial_state(1))
    second, _ = ADVANCE(packaged_weights(), jnp.asarray(samples[None, cut * FRAME :]), state)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=1e-6)
    first, state = in_numpy.advance(packaged_weights(), samples[: cut * FRAME], initial_state(1))
    second, _ = in_numpy.advance(packaged_weights(), samples[cut * FRAME :], state)
    np.testing.assert_allclose(np.concatenate([first, second]), np.asarray(whole)[0], atol=BOUND)


def test_computation_in_groups_of_frames_equals_the_whole(monkeypatch):
    waveforms = np.stack([WAVEFORMS["slt_1"][:20480], WAVEFORMS["rms_1"][:20480]])
    whole, _ = ADVANCE(packaged_weights(), jnp.asarray(waveforms), initial_state(2))
    monkeypatch.setattr(network, "_FRAMES_AT_ONCE", 32)
    in_groups = jax.jit(lambda *arguments: network.advance(*arguments))  # traced again
    grouped, _ = in_groups(packaged_weights(), jnp.asarray(waveforms), initial_state(2))
    np.testing.assert_allclose(grouped, whole, atol=1e-6)


def test_jit_vmap_and_grad_work():
    silence = np.zeros(1024, np.float32)
    waveforms, lengths = make_batch([np.append(silence, WAVEFORMS["slt_1"][:6000]), WAVEFORMS["rms_1"][:4000]])
    eager = speech_probabilities(waveforms, lengths)
    np.testing.assert_allclose(jax.jit(speech_probabilities)(waveforms, lengths), eager, atol=1e-6)
    each = jax.vmap(lambda row, length: speech_probabilities(row[None], length[None])[0])(waveforms, lengths)
    np.testing.assert_allclose(each, eager, atol=1e-6)
    gradient = jax.grad(lambda x: speech_probabilities(x, lengths).sum())(waveforms)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0
    assert (np.asarray(gradient)[1, 4000:] == 0).all()


@pytest.mark.parametrize("mode", ["rank", "x64", "guard"])
def test_jax_modes_do_not_change_the_result(mode):
    waveforms, lengths = make_batch([WAVEFORMS["slt_1"][:9000]])
    expected = np.asarray(speech_probabilities(waveforms, lengths))
    context = {
        "rank": lambda: jax.numpy_rank_promotion("raise"),
        "x64": lambda: jax.enable_x64(True),
        "guard": lambda: jax.transfer_guard("disallow"),
    }[mode]
    placed = jax.device_put((waveforms, lengths, packaged_weights()))
    with context():
        found = speech_probabilities(*placed)
        assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_empty_input_has_no_frames():
    assert speech_probabilities(np.zeros((2, 0), np.float32), np.zeros(2, np.int32)).shape == (2, 0)
    assert (np.asarray(speech_probabilities(np.ones((1, 600), np.float32), np.zeros(1, np.int32))) == 0).all()


def test_invalid_arguments_are_refused_while_tracing():
    function = inspect.unwrap(speech_probabilities)  # without the run-time type checks of the tests
    with pytest.raises(TypeError, match="int16"):
        function(np.zeros((1, 600), np.int16), np.ones(1, np.int32))
    with pytest.raises(TypeError, match="lengths float32"):
        function(np.zeros((1, 600), np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match=r"\(600,\)"):
        function(np.zeros(600, np.float32), np.ones(1, np.int32))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        function(np.zeros((1, 600), np.float32), np.ones(2, np.int32))


def test_weights_have_309633_parameters_and_a_licence_file():
    assert sum(array.size for array in packaged_weights().values()) == 309_633
    assert {name: array.shape for name, array in packaged_weights().items()} == SHAPES
    folder = GOLDEN.parents[2] / "ecapa_jax" / "vad"
    assert "MIT License" in (folder / "LICENSE.silero-vad").read_text()
    assert (folder / PACKAGED).stat().st_size < 1.25e6


def damage(content: bytes, kind: str) -> bytes:
    return {
        "empty": b"",
        "cut": content[:5000],
        "no header": content[8:],
        "other names": content.replace(b"lstm_input", b"lstm_inlet"),
        "not finite": content[:-4] + np.float32(np.nan).tobytes(),
        "a list": (2).to_bytes(8, "little") + b"[]",
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "cut", "no header", "other names", "not finite", "a list"])
def test_damaged_weights_file_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(damage((GOLDEN.parents[2] / "ecapa_jax" / "vad" / PACKAGED).read_bytes(), kind))
    with pytest.raises(BundleError, match=r"weights\.safetensors: ") as error:
        vad.load_weights(path)
    assert "\n" not in str(error.value)


def test_error_names_the_missing_weights_file(tmp_path):
    with pytest.raises(BundleError, match="no_such"):
        vad.load_weights(tmp_path / "no_such")
