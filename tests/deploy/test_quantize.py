"""Tests of int8 and float16 export: which tensors are quantized, and how the scores change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import ecapa_jax
from ecapa_jax.api import default_bundle
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.convert import parity as conversion
from ecapa_jax.convert.onnx.calibration import calibration_feeds, demo_recordings, find_recordings
from ecapa_jax.convert.onnx.export import export_onnx
from ecapa_jax.convert.onnx.quantize import IN_FLOAT32, to_float16, to_int8
from ecapa_jax.convert.onnx.sherpa import export_sherpa
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.errors import ConfigError
from helpers import parity
from helpers.cli import run
from helpers.onnx_runs import RUNTIMES

SPEECH = parity.AUDIO


def _int8(bundle: Bundle, takes: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = export_sherpa(bundle) if takes == "sherpa" else export_onnx(bundle, takes)
    feeds = calibration_feeds(bundle.config, bundle.variables, takes, demo_recordings())
    return model, to_int8(model, feeds)


@pytest.fixture(scope="module")
def int8(packaged: Bundle) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return _int8(packaged, "waveform")


def test_only_convolutions_over_time_are_computed_in_int8(int8: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    exact, small = int8
    produced = {output: node for node in small.graph.node for output in node.output}
    kinds = {
        node.name: {produced[name].op_type for name in node.input[:2] if name in produced}
        for node in small.graph.node
        if node.op_type == "Conv"
    }
    assert kinds.keys() == {node.name for node in exact.graph.node if node.op_type == "Conv"}
    for name, inputs in kinds.items():
        assert (inputs == {"DequantizeLinear"}) != bool(IN_FLOAT32.search(name)), name
    matrices = [node for node in small.graph.node if node.op_type == "MatMul"]
    assert all(produced[node.input[0]].op_type != "DequantizeLinear" for node in matrices)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_scores_like_float32(int8: tuple[onnx.ModelProto, onnx.ModelProto], runtime: str) -> None:
    pytest.importorskip("openvino" if runtime == "OpenVINO" else "onnxruntime")
    exact, small = int8
    assert (
        small.ByteSize() < 0.45 * exact.ByteSize()
    )  # this network is narrow; the ratio is a quarter at the published widths
    waveforms, lengths = parity.pad_batch([sound[:40000] for sound in parity.recordings().values()])
    feed = {"waveforms": waveforms, "lengths": lengths.astype(np.int64)}
    scores = []
    for model in (exact, small):
        rows = RUNTIMES[runtime](model, feed)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        scores.append(unit @ unit.T)
    assert 0 < np.abs(scores[1] - scores[0]).max() <= 0.02


@pytest.mark.parametrize("takes", ["features", "sherpa"])
def test_models_with_feature_input_are_calibrated_on_features(packaged: Bundle, takes: str) -> None:
    exact, small = _int8(packaged, takes)
    feed = next(calibration_feeds(packaged.config, packaged.variables, takes, demo_recordings()[:1]))
    found = [RUNTIMES["ONNX Runtime"](model, feed)[0] for model in (exact, small)]
    assert parity.cosine(*found) > 0.995


def test_nemo_features_for_sherpa() -> None:
    config, variables = conversion.golden_model(FAMILIES["nemo"])
    bundle = Bundle(config=config, variables=variables)
    exact, small = _int8(bundle, "sherpa")
    feed = next(calibration_feeds(bundle.config, bundle.variables, "sherpa", demo_recordings()[:1]))
    found = [RUNTIMES["ONNX Runtime"](model, feed)[0] for model in (exact, small)]
    assert parity.cosine(*found) > 0.9


def test_float16_halves_the_kernels(packaged: Bundle) -> None:
    exact = export_onnx(packaged)
    small = to_float16(exact)
    onnx.checker.check_model(small)
    kernels = sum(4 * int(np.prod(tensor.dims)) for tensor in exact.graph.initializer if "kernel" in tensor.name)
    assert exact.ByteSize() - small.ByteSize() == pytest.approx(kernels / 2, rel=0.01)
    waveform = parity.recordings()["awb_1"][None]
    feed = {"waveforms": waveform, "lengths": np.array([waveform.shape[1]], np.int64)}
    found = [RUNTIMES["ONNX Runtime"](model, feed)[0] for model in (exact, small)]
    assert parity.relative_error(*found[::-1]) < 5e-3


def test_missing_calibration_recordings_are_refused(packaged: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recording"):
        to_int8(export_onnx(packaged), [])
    with pytest.raises(ConfigError, match="contains no recordings"):
        find_recordings(tmp_path)
    for number in range(450):
        (tmp_path / f"{number}.wav").touch()
    assert 100 <= len(find_recordings(tmp_path)) <= 200


def test_model_card_states_the_effect_of_quantization(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{voice}_{number}.flac" for voice in ("awb", "rms", "slt") for number in (1, 2)]
    lines = [f"{int(a[:3] == b[:3])} {a} {b}" for a in names for b in names if a < b]
    (tmp_path / "demo.txt").write_text("\n".join(lines) + "\n")
    path = tmp_path / "small.onnx"
    arguments = ("export", default_bundle(), "--to", "onnx", "-o", path, "--quantize", "int8", "--json")
    result = run(capsys, *arguments, "--trials", tmp_path / "demo.txt", "--audio-root", SPEECH)
    assert result.code == 0, result.err
    assert "warning: int8 is calibrated on the packaged demo speech" in result.err
    assert result.json["eer"] == result.json["eer_float32"] == "0.00 %"
    assert 0 < float(result.json["score_change"]) <= 0.02
    card = run(capsys, "info", path).out
    assert re.search(r"On demo: EER 0.00 %, 0.00 % in float32; no score differs by more than 0\.0\d+", card)
    assert "Weights: int8" in card
    loaded = ecapa_jax.load(path)
    assert loaded.dtype == "int8"
    assert loaded.verify(SPEECH / "awb_1.flac", SPEECH / "awb_2.flac").same_speaker
