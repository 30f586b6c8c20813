"""Tests of programs that use the library: their JAX modes, their worker processes, and the arguments they pass."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import ecapa_jax
from ecapa_jax import functional
from ecapa_jax.diarization import segmentation
from ecapa_jax.evaluation import scores
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.modes import library_modes
from helpers.bundles import make
from helpers.cli import PROGRAM, run
from helpers.modes import MODES
from helpers.sounds import sound


@pytest.fixture(scope="module")
def encoder() -> ecapa_jax.SpeakerEncoder:
    return ecapa_jax.SpeakerEncoder.from_bundle(make())


@pytest.fixture(scope="module")
def expected(encoder: ecapa_jax.SpeakerEncoder) -> np.ndarray:
    return encoder.embed([sound(0.9), sound(0.5)])


@pytest.mark.parametrize("mode", MODES)
def test_encoder_results_do_not_depend_on_jax_modes(encoder, expected, mode, every_sound_is_speech):
    """A loaded and a new encoder give identical float32 embeddings and scores."""
    with MODES[mode]():
        for model in (encoder, encoder.with_dtype("float32")):
            found = model.embed([sound(0.9), sound(0.5)])
            assert (found.dtype, np.isfinite(found).all()) == (np.float32, True)
            np.testing.assert_array_equal(found, expected)
        answer = encoder.verify(sound(0.9), sound(0.9))
    assert answer.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("mode", ["rank_promotion", "x64", "disable_jit"])
def test_pure_function_results_do_not_depend_on_jax_modes(encoder, expected, mode):
    waveforms, lengths = np.zeros((2, 14400), np.float32), np.array([14400, 8000], np.int32)
    waveforms[0], waveforms[1, :8000] = sound(0.9), sound(0.5)
    with MODES[mode]():
        found = ecapa_jax.embed(encoder.config, encoder.variables, waveforms, lengths)
        scores = ecapa_jax.score_matrix(found, found)
    assert (found.dtype, scores.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("mode", ["x64", "dtype_promotion", "transfer_guard"])
def test_models_are_float32_in_every_jax_mode(encoder, mode):
    """The test checks abstract shapes, new variables, and 64-bit variables of a host program."""
    functional._abstract_network.cache_clear()
    key = jax.random.key(0)
    with MODES[mode]():
        shapes = functional.abstract(encoder.config)
        drawn = functional.init(encoder.config, key)
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), encoder.variables)
        copied = ecapa_jax.SpeakerEncoder(encoder.config, wide)
        assert copied.embed([sound(0.5)]).dtype == np.float32
    functional._abstract_network.cache_clear()
    for tree in (shapes, drawn, copied.variables):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    assert copied.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("mode", MODES)
def test_stores_and_trials_work_in_every_jax_mode(encoder, expected, tmp_path, mode):
    pairs = np.array([[0, 0], [0, 1]])
    with MODES[mode](), SpeakerStore.open(tmp_path / "s.db", encoder) as store:
        store.enroll_embeddings(["a", "b"], expected)
        found = store.identify_embedding(expected[1])
        vectors = scores.average_enrolments(scores.speaker_vectors(encoder, expected[:, None]), [[0], [1]])
        cosines = scores.score_pairs(vectors, vectors, pairs)
        normalised = scores.normalise(cosines, vectors, vectors, pairs, vectors[:, 0], 2)
    assert found.candidates[0].name == "b"
    assert found.candidates[0].score == pytest.approx(1, abs=1e-6)
    assert cosines[0] == pytest.approx(1, abs=1e-6)
    assert normalised[0] > normalised[1]


@pytest.mark.parametrize("mode", MODES)
def test_segmenter_results_do_not_depend_on_jax_modes(mode):
    segmenter = segmentation.Segmenter()
    with MODES[mode]():
        for one in (segmenter, segmentation.Segmenter()):
            (found,) = one([sound(0.5)])
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, _segments())


@functools.cache
def _segments() -> np.ndarray:
    with library_modes():
        return next(iter(segmentation.Segmenter()([sound(0.5)])))


def test_pickled_and_copied_encoders_give_equal_embeddings(encoder, expected):
    """The pickle contains weights as NumPy arrays, scoring and dtype."""
    data = pickle.dumps(encoder)
    assert b"jaxlib" not in data
    for copied in (pickle.loads(data), copy.deepcopy(encoder)):
        assert (copied.fingerprint, copied.dtype) == (encoder.fingerprint, encoder.dtype)
        assert copied.scorer.scoring == encoder.scorer.scoring
        np.testing.assert_array_equal(copied.scorer.embedding_mean, encoder.scorer.embedding_mean)
        np.testing.assert_array_equal(copied.embed([sound(0.9), sound(0.5)]), expected)
    assert copy.copy(encoder).programs is encoder.programs


FORK = """
import multiprocessing, warnings
import numpy as np, ecapa_jax
warnings.simplefilter("ignore")  # JAX and Python warn of the fork itself
encoder = ecapa_jax.load()
tone = np.sin(np.arange(16000) / 20).astype(np.float32) / 4

def attempt(do):
    try:
        return type(do()).__name__
    except RuntimeError as error:
        return str(error)

def work(_):
    return [attempt(lambda: encoder.read(tone)), attempt(lambda: encoder.embed(tone)), attempt(ecapa_jax.load)]

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map_async(work, [0]).get(timeout=60)[0])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_error_in_a_forked_worker_says_to_use_spawn() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    read, embedded, loaded = eval(done.stdout)
    assert read == "ndarray"  # decoding needs no JAX
    for message in (embedded, loaded):
        assert "spawn" in message


FUNCTIONAL = """
import json
import numpy as np, jax, ecapa_jax
encoder = ecapa_jax.load()
x = np.zeros((1, 16000), np.float32)
calls = {
    "relative lengths": (x, np.ones(1, np.float32)),
    "float lengths": (x, np.array([16000.0])),
    "int16": (x.astype(np.int16), np.array([16000])),
    "int32": (x.astype(np.int32), np.array([16000])),
    "one axis": (x[0], np.array([16000])),
    "three axes": (x[None], np.array([16000])),
    "one length for two": (np.repeat(x, 2, 0), np.array([16000])),
    "scalar length": (x, np.int32(16000)),
}
for name, (waveforms, lengths) in calls.items():
    for function in (ecapa_jax.embed, jax.jit(ecapa_jax.embed, static_argnums=0)):
        try:
            function(encoder.config, encoder.variables, waveforms, lengths)
            print(json.dumps([name, "no error", ""]))
        except Exception as error:
            print(json.dumps([name, type(error).__name__, str(error)]))
"""
WORDS = {
    "relative lengths": ("TypeError", "numbers of samples"),
    "float lengths": ("TypeError", "numbers of samples"),
    "int16": ("TypeError", "float32 in [-1, 1]"),
    "int32": ("TypeError", "float32 in [-1, 1]"),
    "one axis": ("ValueError", "[batch, samples]"),
    "three axes": ("ValueError", "[batch, samples]"),
    "one length for two": ("ValueError", "one for each waveform"),
    "scalar length": ("ValueError", "one for each waveform"),
}


def test_pure_function_refuses_invalid_arguments() -> None:
    """The test runs in a separate process, because in this one beartype would raise first."""
    done = subprocess.run([sys.executable, "-c", FUNCTIONAL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 2 * len(WORDS)
    for name, kind, message in found:
        assert kind == WORDS[name][0], (name, message)
        assert WORDS[name][1] in message
        assert "\n" not in message


@pytest.mark.parametrize("threshold", ["0.3", "high", True, [0.3]], ids=["digits", "word", "bool", "list"])
def test_threshold_that_is_not_a_number_is_refused(encoder, threshold: Any) -> None:
    from ecapa_jax.scoring.scorer import check_threshold

    unchecked = getattr(check_threshold, "__wrapped__", check_threshold)
    with pytest.raises(ecapa_jax.ConfigError, match="no number"):
        unchecked(threshold)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_missing_platform_is_reported(platform: str) -> None:
    """The command exits with 2 and prints one line with the variable and the remedy. `doctor` prints the cause."""
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    audio = str(Path(__file__).parents[2] / "examples" / "audio" / "rms_1.flac")
    done = subprocess.run([PROGRAM, "verify", audio, audio], capture_output=True, text=True, env=environment)
    line = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"ecapa-jax: JAX_PLATFORMS={platform}, but JAX finds no such device")
    assert "unset JAX_PLATFORMS" in line
    if platform == "cuda":
        doctor = subprocess.run([PROGRAM, "doctor"], capture_output=True, text=True, env=environment)
        assert doctor.returncode == 2
        assert f"JAX_PLATFORMS={platform}, but" in doctor.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [["info"], ["info", "--json"], ["convert", "--list"]], ids=["info", "json", "list"])
def test_full_disk_for_standard_output_is_reported(command: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PROGRAM, *command], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "ecapa-jax: No space left on device; free some space, or write elsewhere\n"


@pytest.mark.parametrize("command", [["convert", "--list"], ["info"]], ids=["list", "info"])
def test_closed_pipe_exits_with_141(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run([PROGRAM, *command], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/self/pagemap", "/dev/null"])
def test_system_files_are_refused(capsys, path: str) -> None:
    result = run(capsys, "verify", path, path)
    assert (result.code, result.out) == (2, "")
    assert path in result.err
    assert result.err.count("\n") == 1
