"""Tests of checkpoints that contain more than weights: heads, counters, plain data, unusual keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecapa_jax.convert.detect import check_unknown, find_network, find_training_tensors, holds_network
from ecapa_jax.convert.readers.checkpoint import find_tensors, read_checkpoint
from ecapa_jax.convert.run import convert
from ecapa_jax.errors import ConversionError
from helpers.checkpoints import prefixed, tensors
from helpers.torch_zip_writer import Raw, name, torch_zip_bytes

HEAD = np.zeros((5, 192), np.float32)
ROW = np.zeros(5, np.float32)


@pytest.mark.parametrize(
    "beside",
    [
        {"arcface.kernel": HEAD.T},
        {"criterion.W": HEAD, "criterion.s": np.array(30.0), "criterion.m": np.array([0.2])},
        {"output_layer.0.weight": HEAD, "output_layer.0.bias": ROW},
        {"n_averaged": np.array(7)},
        {"__L__.weight": np.zeros((15, 192), np.float32)},
        {"spk_classifier.linear.weight": HEAD, "step": np.array(3)},
    ],
)
def test_heads_with_any_name_are_accepted(beside: dict[str, Any]) -> None:
    found = find_network({**prefixed("backbone.", tensors()), **beside})
    check_unknown(found.unknown, 192, found.prefix)
    assert found.tensors.keys() == tensors().keys()
    assert found.unknown.keys() | found.training.keys() == beside.keys()


@pytest.mark.parametrize(
    "beside",
    [
        {"frontend.mel.fb": np.zeros((201, 80), np.float32)},
        {"second.weight": np.zeros((64, 64, 3), np.float32)},
        {"head.weight": HEAD, "adapter.weight": np.zeros((64, 80), np.float32)},
        {"extra.bias": np.zeros(192, np.float32)},
    ],
)
def test_other_tensors_beside_the_network_are_refused(beside: dict[str, Any]) -> None:
    found = find_network({**prefixed("backbone.", tensors()), **beside})
    with pytest.raises(ConversionError, match=r"unexpected tensor .* beside the network"):
        check_unknown(found.unknown | found.training, 192, found.prefix)


def test_head_with_the_prefix_of_the_network_is_stored(tmp_path: Path) -> None:
    content = {"epoch": 3, "weights": {**tensors(), "speaker_fc.weight": HEAD, "speaker_fc.bias": ROW}}
    (tmp_path / "x.bin").write_bytes(torch_zip_bytes(content))
    bundle = convert(tmp_path / "x.bin", family="3dspeaker")
    assert {"speaker_fc.weight", "speaker_fc.bias"} <= bundle.source_extra.keys()
    assert bundle.source["wrapper"] == "weights"
    assert bundle.parity["tensors_bit_identical"] == bundle.parity["tensors"]


def test_several_matching_dicts_ask_for_a_choice() -> None:
    network = tensors()
    content = {"model_a": network, "averaged": {"b": network}, "discriminator": {"w": HEAD}, "lr": 0.1}
    with pytest.raises(ConversionError, match=r"several .* fit \(model_a, averaged\.b\): choose one with --key"):
        find_tensors(content, None, holds_network)
    assert find_tensors(content, "averaged.b", holds_network)[1] == "averaged.b"
    with pytest.raises(ConversionError, match="no dict of tensors under 'c'; it has dicts of tensors under: model_a"):
        find_tensors(content, "c", holds_network)
    del content["model_a"]
    assert find_tensors(content, None, holds_network)[1] == "averaged.b"
    assert find_tensors({**content, "model": network}, None, holds_network)[1] == "model"
    assert find_tensors({"model": {"w": HEAD}, "student": network}, None, holds_network)[1] == "student"


ARGUMENT = b"X\x01\x00\x00\x00a"
SCALAR = name("numpy.core.multiarray", "scalar").opcodes + name("numpy", "dtype").opcodes


@pytest.mark.parametrize(
    "opcodes",
    [
        name("numpy.core.multiarray", "scalar").opcodes
        + name("numpy", "dtype").opcodes
        + b"("
        + ARGUMENT
        + b"\x89\x88tR"
        b"(K\x03" + ARGUMENT + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + ARGUMENT + b"\x86R",
        name("torch", "device").opcodes + b"X\x04\x00\x00\x00cuda" + b"K\x00\x86R",
        name("torch", "bfloat16").opcodes,
        name("argparse", "Namespace").opcodes + b")\x81}" + ARGUMENT + b"K\x01sb",
        name("builtins", "set").opcodes + b"](K\x01K\x02e\x85R",
        name("pathlib", "PosixPath").opcodes + ARGUMENT + b"\x85R",
        name("collections", "defaultdict").opcodes + name("builtins", "list").opcodes + b"\x85R" + ARGUMENT + b"]s",
    ],
)
def test_plain_data_beside_weights_is_ignored(tmp_path: Path, opcodes: bytes) -> None:
    content = {"best": Raw(opcodes), "state_dict": {"w": HEAD}, "history": [Raw(opcodes), 1.5]}
    (tmp_path / "x.pt").write_bytes(torch_zip_bytes(content))
    found, key = find_tensors(read_checkpoint(tmp_path / "x.pt").content)
    assert (list(found), key) == (["w"], "state_dict")


@pytest.mark.parametrize(
    ("module", "attribute"), [("os", "system"), ("builtins", "eval"), ("numpy", "load"), ("torch", "load")]
)
def test_code_beside_weights_is_refused(tmp_path: Path, module: str, attribute: str) -> None:
    for end in (ARGUMENT + b"\x85R", b")\x81", b""):
        content = {"best": Raw(name(module, attribute).opcodes + end), "state_dict": {"w": HEAD}}
        (tmp_path / "x.pt").write_bytes(torch_zip_bytes(content))
        with pytest.raises(ConversionError, match=f"names {module}.{attribute}, .* none of it was run"):
            read_checkpoint(tmp_path / "x.pt")
    assert os.listdir(tmp_path) == ["x.pt"]


def test_heads_are_recognized_by_shape_and_position() -> None:
    found = find_training_tensors({"a.weight": HEAD, "a.bias": ROW, "b.bias": ROW, "c": np.array(1)}, 192)
    assert found == {"a.weight": True, "a.bias": True, "b.bias": False, "c": True}
