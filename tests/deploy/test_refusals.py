"""Tests of invalid, damaged and unrelated files and invalid options: one line, exit code 2, no file written."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper

import ecapa_jax
from ecapa_jax.api import default_bundle
from ecapa_jax.bundle.bundle import Bundle, save_bundle
from ecapa_jax.convert.onnx.export import export_onnx
from ecapa_jax.errors import BundleError, EcapaError
from ecapa_jax.onnx_file import KEY
from helpers import parity
from helpers.cli import run_refused
from helpers.weights import random_tensors, shallow_config, variables_of

A, B = parity.AUDIO / "awb_1.flac", parity.AUDIO / "awb_2.flac"


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    config = shallow_config()
    return export_onnx(Bundle(config=config, variables=variables_of(config.ecapa, random_tensors(config.ecapa))))


def _write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    return found


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {prop.key: prop.value for prop in model.metadata_props}


def _unrelated_model() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph)


def _of_another_network(model: onnx.ModelProto) -> onnx.ModelProto:
    found = _unrelated_model()
    helper.set_model_props(found, _metadata(model))
    return found


def _with_document(model: onnx.ModelProto, **changes: object) -> onnx.ModelProto:
    found = _copy(model)
    document = json.loads(_metadata(model)[KEY]) | changes
    helper.set_model_props(found, _metadata(model) | {KEY: json.dumps(document)})
    return found


def _with_other_file(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    found = _copy(model)
    tensor = max(found.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return found


def _with_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    found = _copy(model)
    found.graph.node.append(helper.make_node("Run", ["waveforms"], ["x"], domain="somebody.else"))
    found.opset_import.append(helper.make_opsetid("somebody.else", 1))
    return found


def _without_node(model: onnx.ModelProto) -> onnx.ModelProto:
    found = _copy(model)
    del found.graph.node[3]
    return found


FILES = {
    "of another program": (lambda model: _unrelated_model(), "is not an ONNX file of this library"),
    "of another network": (_of_another_network, "a different network from the one in its metadata"),
    "of another schema": (lambda model: _with_document(model, schema=7), "another schema"),
    "of another size": (
        lambda model: _with_document(model, config={**json.loads(_metadata(model)[KEY])["config"], "more": 1}),
        "unknown key more",
    ),
    "without scoring": (lambda model: _with_document(model, scoring=None), "scoring must be a table"),
    "with a bad mean": (lambda model: _with_document(model, arrays={"embedding_mean": "?"}), "damaged metadata"),
    "with another file": (lambda model: _with_other_file(model, "weights.bin"), "keeps weights in other files"),
    "with a file elsewhere": (lambda model: _with_other_file(model, "../../etc/passwd"), "keeps weights in other"),
    "with foreign operators": (_with_operator, "'somebody.else'"),
    "without a node": (_without_node, "ONNX Runtime"),
    "for features": (lambda model: _with_document(model, input="features"), "takes features, not recordings"),
}


@pytest.mark.parametrize("kind", FILES)
def test_invalid_onnx_file_is_refused_in_one_line(
    kind: str, small: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = FILES[kind]
    path = _write(tmp_path, make(small))
    assert message in run_refused(capsys, tmp_path, "verify", A, B, "--model", path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x00" * 4096, b"not a model\n" * 99], ids=["empty", "zip", "zeros", "text"]
)
def test_file_that_is_not_a_model_is_refused_in_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "is damaged or not an ONNX file" in run_refused(capsys, tmp_path, "verify", A, B, "--model", path)
    assert "no such bundle" in run_refused(capsys, tmp_path, "verify", A, B, "--model", tmp_path / "none.onnx")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_raises_no_other_error(data: st.DataObject, small: onnx.ModelProto, tmp_path: Path) -> None:
    content = bytearray(small.SerializeToString())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "at") :]
    for at in data.draw(st.lists(st.integers(0, max(len(content) - 1, 0)), max_size=8), "flipped"):
        if at < len(content):
            content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with contextlib.suppress(EcapaError):
        encoder = ecapa_jax.load(path)
        assert encoder.embed(np.sin(np.arange(8000, dtype=np.float32))).shape[0] == 1


OPTIONS = {
    "features of a quantised model": ((), ("--calibration", "DIR"), "--calibration is for --quantize int8"),
    "trials": ((), ("--trials", "x.txt"), "--trials is for --quantize"),
    "another ending": ((), ("-o", "model.bin"), "must end in .onnx"),
    "a family": ((), ("--family", "nemo"), "--family is for --to torch"),
    "no recordings": ((), ("--quantize", "int8", "--calibration", "empty"), "contains no recordings"),
    "not of PyTorch": (("--to", "torch"), ("--quantize", "int8"), "--quantize is for --to onnx"),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_invalid_option_is_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, options, message = OPTIONS[kind]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments = ("export", default_bundle(), *(before or ("--to", "onnx")), "-o", "model.onnx", *options)
    assert message in run_refused(capsys, tmp_path, *arguments)


def test_existing_file_is_not_replaced(
    small: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, small)
    arguments = ("export", default_bundle(), "--to", "onnx", "-o", path)
    assert "pass --force" in run_refused(capsys, tmp_path, *arguments)


def test_damaged_calibration_recording_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = shallow_config()
    variables = variables_of(config.ecapa, random_tensors(config.ecapa))
    bundle = save_bundle(Bundle(config=config, variables=variables), tmp_path / "bundle")
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"RIFF....WAVE")
    arguments = ("export", bundle, "--to", "onnx", "-o", tmp_path / "m.onnx", "--quantize", "int8")
    assert "a.wav" in run_refused(capsys, tmp_path, *arguments, "--calibration", tmp_path / "speech")


def test_external_data_files_are_not_read(small: onnx.ModelProto, tmp_path: Path) -> None:
    """The file is refused even if the external data file exists and is valid."""
    model = _with_other_file(small, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 20))
    with pytest.raises(BundleError, match="other files"):
        ecapa_jax.load(_write(tmp_path, model))
