"""Tests of `load("model.onnx")`: an exported model is used like a trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import ecapa_jax
from ecapa_jax.audio.load import LongAudio
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.convert.onnx.export import export_onnx
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.onnx_encoder import MAX_SECONDS, OnnxEncoder
from ecapa_jax.onnx_file import read_onnx
from ecapa_jax.scoring.config import Calibration, Cohort, Scoring
from helpers import parity
from helpers.cli import run
from helpers.sounds import RATE

SPEECH = parity.AUDIO


def _clip(name: str) -> np.ndarray:
    """Returns one second, so that all clips use one compiled program."""
    return parity.recordings()[name][8000 : 8000 + RATE]


@pytest.fixture(scope="module")
def encoder(exported: Path) -> OnnxEncoder:
    loaded = ecapa_jax.load(exported)
    assert isinstance(loaded, OnnxEncoder)
    return loaded


@pytest.fixture(scope="module")
def jax_encoder() -> ecapa_jax.SpeakerEncoder:
    return ecapa_jax.load()


def test_embeddings_and_decisions_equal_those_of_jax(
    encoder: OnnxEncoder, jax_encoder: ecapa_jax.SpeakerEncoder
) -> None:
    clips = [_clip(name) for name in ("awb_1", "rms_1", "rms_2")]
    found, expected = encoder.embed(clips), jax_encoder.embed(clips)
    assert found.dtype == np.float32
    assert max(map(parity.relative_error, found, expected)) <= parity.EMBEDDING_BOUND
    answer, theirs = encoder.verify(*clips[1:]), jax_encoder.verify(*clips[1:])
    assert abs(answer.score - theirs.score) <= 1e-5
    assert dataclasses.replace(answer, score=0.0) == dataclasses.replace(theirs, score=0.0)
    assert encoder.sample_rate == jax_encoder.sample_rate
    assert encoder.minimum_samples == jax_encoder.minimum_samples
    assert np.array_equal(encoder.embed_windows(clips[0], window=1.0).mean, found[0])


def test_export_contains_the_scoring_of_the_bundle(packaged: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(192).astype(np.float32)
    cohort = Cohort(rng.standard_normal((5, 192)).astype(np.float32), ("a", "b", "c", "d", "e"))
    scoring = Scoring(
        threshold=1.5,
        subtract_mean=True,
        normalisation="s_norm",
        top_n=3,
        calibration=Calibration(offset=0.1, weight=2.0),
    )
    bundle = dataclasses.replace(packaged, scoring=scoring, embedding_mean=mean, cohort=cohort)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(bundle).SerializeToString())
    file = read_onnx(path)
    assert (file.scoring, file.config, file.provenance) == (scoring, packaged.config, packaged.provenance)
    assert np.array_equal(file.embedding_mean, mean)
    assert file.cohort.speakers == cohort.speakers
    assert np.array_equal(file.cohort.embeddings, cohort.embeddings)
    a, b = _clip("awb_1"), _clip("awb_2")
    found = ecapa_jax.load(path).verify(a, b)
    expected = ecapa_jax.SpeakerEncoder.from_bundle(bundle).verify(a, b)
    assert abs(found.score - expected.score) <= 1e-3
    assert found.score_type == "llr"


def test_verbs_accept_an_onnx_file(
    exported: Path, packaged: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(capsys, "verify", SPEECH / "awb_1.flac", SPEECH / "awb_2.flac", "--model", exported, "--json")
    assert result.json["same_speaker"] is True
    assert result.json["threshold"] == packaged.scoring.threshold
    embedded = run(capsys, "embed", SPEECH / "awb_1.flac", "-o", tmp_path / "x.npz", "--model", exported)
    assert embedded.code == 0, embedded.err
    names = [f"{voice}_{number}.flac" for voice in ("awb", "rms", "slt") for number in (1, 2)]
    lines = [f"{int(a[:3] == b[:3])} {a} {b}" for a in names for b in names if a < b]
    (tmp_path / "trials.txt").write_text("\n".join(lines) + "\n")
    arguments = ("evaluate", "--trials", tmp_path / "trials.txt", "--audio-root", SPEECH, "--json", "--resamples", "0")
    report = run(capsys, *arguments, "--cache", tmp_path / "cache", "--model", exported).json
    assert report["model"] == "model.onnx"
    assert report["lists"][0]["figures"]["eer"]["value"] == 0
    said = run(capsys, "info", exported)
    assert "`waveforms` [batch, samples]" in said.out
    assert run(capsys, "info", exported, "--json").json["input"] == "waveform"


def test_long_recording_is_embedded_in_one_pass(encoder: OnnxEncoder, tmp_path: Path) -> None:
    """The recording exceeds the length at which the library would process chunks."""
    speech = np.resize(parity.speech()[0][: 5 * RATE], 165 * RATE)
    soundfile.write(tmp_path / "long.wav", speech, RATE)
    (whole,) = encoder.embed(tmp_path / "long.wav")
    (part,) = encoder.embed(speech[: 5 * RATE])
    assert parity.cosine(whole, part) > 0.99


def test_unsupported_options_are_refused(encoder: OnnxEncoder, exported: Path) -> None:
    with pytest.raises(ConfigError, match="weights can't be taken out"):
        _ = encoder.variables
    with pytest.raises(ConfigError, match="can't be changed"):
        encoder.variables = {}
    with pytest.raises(ConfigError, match="one precision"):
        encoder.with_dtype("bfloat16")
    with pytest.raises(ConfigError, match="can't run in bfloat16"):
        ecapa_jax.load(exported, dtype="bfloat16")

    def minutes_of_noise() -> Iterator[tuple[int, np.ndarray]]:
        for _ in range(int(MAX_SECONDS // 60) + 1):
            yield RATE, np.zeros(60 * RATE, np.float32)

    with pytest.raises(AudioError, match=r"day\.wav is longer than 600 s"):
        list(encoder.embed_stream([LongAudio("day.wav", RATE, minutes_of_noise)]))
    assert encoder.warm_up(10.0) == encoder.programs.compile_count == 0
    assert len(encoder.fingerprint) == 64
