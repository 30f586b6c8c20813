"""Tests of converting a speech detector from an ONNX file, which the tests write field by field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecapa_jax.convert.onnx_reader import read_onnx
from ecapa_jax.convert.silero import holds_speech_detector, read_silero, write_weights
from ecapa_jax.errors import ConversionError
from ecapa_jax.vad import load_weights
from ecapa_jax.vad.weights import packaged_weights
from helpers.cli import run, run_refused


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, array: np.ndarray, kind: int = 1, *, packed: bool = False) -> bytes:
    dims = b"".join(map(varint, array.shape))
    shape = field(1, dims) if packed else b"".join(field(1, size) for size in array.shape)
    data = field(4, array.astype("<f4").tobytes()) if packed else field(9, array.tobytes())
    return shape + field(2, kind) + field(8, name.encode()) + data


def constant(name: str, array: np.ndarray) -> bytes:
    """Encodes a Constant node, whose tensor has no name."""
    return field(2, name.encode()) + field(5, field(1, b"value") + field(5, tensor("", array)))


def model(graph: bytes) -> bytes:
    return field(1, 8) + field(2, b"pytorch") + field(7, graph)


def source_arrays(rate: int = 16) -> dict[str, np.ndarray]:
    """Returns the packaged weights in silero-vad's layout; the 8 kHz network has another transform and first layer."""
    weights = packaged_weights()
    rename = {"lstm_input": "decoder.rnn.weight_ih", "lstm_state": "decoder.rnn.weight_hh"}
    arrays = {rename[name]: weights[name].T for name in rename}
    arrays |= {
        "decoder.rnn.bias_ih": weights["lstm_input_bias"],
        "decoder.rnn.bias_hh": weights["lstm_state_bias"],
        "decoder.decoder.2.weight": weights["output"].reshape(1, 128, 1),
        "decoder.decoder.2.bias": weights["output_bias"].reshape(1),
    }
    for layer in range(4):
        arrays[f"encoder.{layer}.reparam_conv.weight"] = weights[f"convolution_{layer}"].T
        arrays[f"encoder.{layer}.reparam_conv.bias"] = weights[f"convolution_{layer}_bias"]
    transform = weights["transform"].T[:, None]
    if rate == 8:
        arrays = {name: array + 1 for name, array in arrays.items()}
        arrays["encoder.0.reparam_conv.weight"] = arrays["encoder.0.reparam_conv.weight"][:, :65]
        transform = transform[:130, :, :128]
    return {"stft.forward_basis_buffer": transform, **arrays}


def graph_of_initializers(arrays: dict[str, np.ndarray], **options: bool) -> bytes:
    return b"".join(field(5, tensor(f"model.{name}", array, **options)) for name, array in arrays.items())


def graph_of_branches() -> bytes:
    """Encodes both sample rates as the branches of one condition, as in silero_vad.onnx."""
    graphs = [
        b"".join(field(1, constant(f"{branch}.{name}", array)) for name, array in source_arrays(rate).items())
        for branch, rate in (("else", 8), ("then", 16))
    ]
    attributes = b"".join(field(5, field(1, b"branch") + field(6, graph)) for graph in graphs)
    return field(1, field(4, b"If") + attributes)


GRAPHS = {
    "initializers": graph_of_initializers(source_arrays()),
    "packed": graph_of_initializers(source_arrays(), packed=True),
    "branches": graph_of_branches(),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", GRAPHS)
def test_weights_are_read_from_every_layout(tmp_path, kind):
    path = write(tmp_path / "silero_vad.onnx", model(GRAPHS[kind]))
    assert holds_speech_detector(path)
    found = read_silero(path)
    assert found.keys() == packaged_weights().keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, packaged_weights()[name])
    out = tmp_path / "weights.safetensors"
    write_weights(found, path, out)
    assert load_weights(out).keys() == found.keys()
    assert b'"source":"silero_vad.onnx"' in out.read_bytes()


def test_convert_writes_one_file(capsys, tmp_path):
    path = write(tmp_path / "silero_vad.onnx", model(GRAPHS["branches"]))
    out = tmp_path / "detector.safetensors"
    result = run(capsys, "convert", path, "-o", out)
    assert (result.code, result.out) == (0, f"{out}: silero-vad at 16 kHz, 309,633 parameters\n")
    assert load_weights(out).keys() == packaged_weights().keys()
    assert "--force" in run_refused(capsys, tmp_path, "convert", path, "-o", out)
    assert "must end in .safetensors" in run_refused(capsys, tmp_path, "convert", path, "-o", tmp_path / "bundle")


@pytest.mark.parametrize(
    "missing", ["decoder.rnn.bias_hh", "encoder.2.reparam_conv.weight", "stft.forward_basis_buffer"]
)
def test_error_names_the_missing_tensor(tmp_path, missing):
    arrays = source_arrays()
    del arrays[missing]
    path = write(tmp_path / "x.onnx", model(graph_of_initializers(arrays)))
    with pytest.raises(ConversionError, match=r"x\.onnx: it has no .*give silero_vad\.onnx of the silero-vad wheel"):
        read_silero(path)


def test_half_precision_is_refused(tmp_path):
    content = b"".join(field(5, tensor(name, array.astype("<f2"), kind=10)) for name, array in source_arrays().items())
    with pytest.raises(ConversionError, match="in float32"):
        read_silero(write(tmp_path / "x.onnx", model(content)))


WHOLE = model(GRAPHS["initializers"])
WRONG_SHAPE = field(5, field(1, 3) + field(2, 1) + field(8, b"w") + field(9, b"1234"))
DEEP = b""
for _ in range(40):
    DEEP = field(1, field(5, field(6, DEEP)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an ONNX model"),
        (b"hello, this is a text", "not an ONNX model"),
        (WHOLE[:1000], "cut off"),
        (WHOLE[: len(WHOLE) // 2], "cut off"),
        (b"\xff" * 20, "not an ONNX model"),
        (model(WRONG_SHAPE), "4 bytes for shape"),
        (model(DEEP), "nested too deep"),
        (field(7, 5), "not an ONNX model"),
        (model(field(5, 9)), "not an ONNX model"),
    ],
)
def test_damaged_file_is_refused_in_one_line(tmp_path, content, reason):
    path = write(tmp_path / "x.onnx", content)
    with pytest.raises(ConversionError, match=reason) as error:
        read_onnx(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_random_damage_raises_no_other_error(tmp_path):
    rng = np.random.default_rng(0)
    small = model(field(5, tensor("w", np.ones((2, 3), np.float32))) + field(1, constant("c", np.ones(2, np.float32))))
    messages = []
    for _ in range(500):
        content = bytearray(small)
        for at in rng.integers(len(content), size=rng.integers(1, 4)):
            content[at] = rng.integers(256)
        path = write(tmp_path / "x.onnx", bytes(content[: rng.integers(1, len(content) + 1)]))
        try:
            read_onnx(path)
        except ConversionError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


def test_other_onnx_files_are_refused(tmp_path):
    assert not holds_speech_detector(write(tmp_path / "x.onnx", model(b"")))
    assert not holds_speech_detector(write(tmp_path / "x.bin", WHOLE))
    assert not holds_speech_detector(tmp_path / "missing.onnx")
