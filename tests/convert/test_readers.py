import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
import warnings
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.convert.readers.checkpoint import find_tensors, read_checkpoint
from ecapa_jax.errors import ConversionError
from helpers.torch_zip_writer import Raw, name, torch_zip_bytes, write_torch_zip
from helpers.trees import assert_same

ARRAYS = {"b": np.ones(3, ml_dtypes.bfloat16), "w": np.arange(6, dtype=np.float32).reshape(2, 3)}
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00."
KINDS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": ml_dtypes.bfloat16, "I64": "i8", "I32": "i4", "I16": "i2"}
KINDS |= {"I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?"}


def safetensors_bytes(arrays, pad=0, **kinds):
    """Returns a safetensors file; `kinds` replace the true types, and `pad` is the length of the header."""
    names = {np.dtype(dtype): kind for kind, dtype in KINDS.items()}
    header, data = {}, b""
    for key, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        kind = kinds.get(key) or names[array.dtype]
        header[key] = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode().ljust(pad)
    return len(text).to_bytes(8, "little") + text + data


def conversion_error(path):
    with pytest.raises(ConversionError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


@pytest.fixture
def model_path(tmp_path):
    return tmp_path / "model.bin"


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ""])
def test_container_format_is_recognized_by_content(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    write_torch_zip(path, ARRAYS)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.path, checkpoint.format) == (path, "torch-zip")
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(checkpoint.content, ARRAYS)
    path.write_bytes(safetensors_bytes(ARRAYS))
    checkpoint = read_checkpoint(str(path))
    assert (checkpoint.path, checkpoint.format) == (path, "safetensors")
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(checkpoint.content, ARRAYS)


def test_every_safetensors_dtype_is_read(model_path):
    arrays = {kind: np.arange(6).reshape(2, 3).astype(dtype) for kind, dtype in KINDS.items()}
    arrays |= {"empty": np.zeros((0, 3), np.float32), "scalar": np.array(2.5)}
    model_path.write_bytes(safetensors_bytes(arrays))
    got = read_checkpoint(model_path).content
    assert list(got) == sorted(arrays)
    assert_same(got, {key: arrays[key] for key in sorted(arrays)})
    assert not any(array.flags.writeable for array in got.values())


@pytest.mark.parametrize("pad", [0x0280, 0x0480, 0x8B1F])
def test_safetensors_header_length_that_resembles_another_format(model_path, pad):
    model_path.write_bytes(safetensors_bytes(ARRAYS, pad=pad))
    assert read_checkpoint(model_path).format == "safetensors"


def test_invalid_safetensors_are_refused(model_path):
    good = safetensors_bytes(ARRAYS)
    for bad in (good[:40], good[:-1], good + b"\0", good[:20] + b"}" + good[21:]):
        model_path.write_bytes(bad)
        assert "damaged safetensors" in conversion_error(model_path)
    model_path.write_bytes(safetensors_bytes({"x": np.zeros(4, np.uint8)}, x="F8_E4M3"))
    assert "x is of type F8_E4M3" in conversion_error(model_path)
    model_path.write_bytes(safetensors_bytes({"x": np.full(4, 2, np.uint8)}, x="BOOL"))
    assert "bool" in conversion_error(model_path)


def tar_bytes(member):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\0", "an unknown format"),
        (b"\xc3\x28" + bytes(2000), "an unknown format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><html>", "web page"),
        (b"<html lang='\xe4\xb8\xad'>", "web page"),
        (b"Access denied\n", "text file that begins with 'Access denied"),
        ("é".encode() * 2000, "text file"),
        (b'12345678{"error": "not found"}', "text file"),
        (LEGACY, "damaged or cut off"),
        (tar_bytes("sys_info"), "before 0.2"),
        (tar_bytes("./model_config.yaml"), "without model_weights.ckpt"),
        (b"\x1f\x8b\x08\0" + bytes(20), "damaged"),
        (gzip.compress(bytes(range(256)) * 9, mtime=0), "it contains no tar archive"),
        (b"BZh91AY&SY" + bytes(range(9)), "compressed"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (pickle.dumps({"a": 1}), "bare pickle"),
        (pickle.dumps({"a": 1}, protocol=2), "bare pickle"),
        (torch_zip_bytes(ARRAYS, prefix="a/b/"), "not a PyTorch checkpoint"),
        (torch_zip_bytes(ARRAYS, members={"constants.pkl": b""}), "TorchScript"),
        (torch_zip_bytes(ARRAYS)[:300], "damaged or cut off"),
        (torch_zip_bytes(Raw(name("os", "system").opcodes)), "names os.system, "),
    ],
)
def test_error_names_the_format_of_other_files(model_path, data, words):
    model_path.write_bytes(data)
    assert words in conversion_error(model_path)


def test_paths_that_are_not_files_are_refused(tmp_path):
    assert "directory" in conversion_error(tmp_path)
    assert "No such file" in conversion_error(tmp_path / "missing.pt")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in conversion_error(tmp_path / "pipe")
    assert "can't be read" in conversion_error(tmp_path / ("x" * 5000))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", LEGACY, safetensors_bytes(ARRAYS)[:60]]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, tail, head):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(head + tail)
    conversion_error(path)


W = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("content", "wrapper"),
    [
        ({"w": W, "epoch": 3, "name": "x"}, ""),
        ({"state_dict": OrderedDict(w=W), "loss": W, "epoch": 1}, "state_dict"),
        ({"model": {"w": W}, "optimizer": {"state": {0: {"step": W}}}}, "model"),
        ({"state_dict": {"nested": {"w": W}}, "model": {"w": W, "version": None}}, "model"),
        ({"model_state_dict": {"w": W}}, "model_state_dict"),
        ({"net": {"w": W}, "ema": {"w": W}}, "net"),
        ({"student": {"w": W}, "teacher": {"w": W}}, "teacher"),
        ({"generator": {"w": W}}, "generator"),
        ({"model_ema": {"w": W}}, "model_ema"),
        ({"ema": {"w": W}}, "ema"),
        ({"embedding_model": {"w": W}, "state_dict": {0: W}}, "embedding_model"),
        ({"weights": {"w": W}, "state_dict": {}}, "weights"),
        ({"averaged": {"student": {"w": W}}, "epoch": 3}, "averaged.student"),
    ],
)
def test_tensors_are_found_at_top_level_or_in_a_wrapper(content, wrapper):
    arrays, found = find_tensors(content)
    assert found == wrapper
    assert list(arrays) == ["w"]
    assert arrays["w"] is W


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([W], "holds a list instead of"),
        ({}, "its top level holds: nothing"),
        ({"epoch": 1, "lr": 0.1}, "its top level holds: epoch, lr;"),
        ({"weights": {3: W}, "state_dict": {}}, "its top level holds: weights, state_dict;"),
        ({f"k{n}": [W] for n in range(9)}, "holds: k0, k1, k2, k3, k4, k5, k6, k7, ...;"),
        ({"a\nb": {}, 3: W}, r"holds: 'a\nb', 3;"),
    ],
)
def test_error_names_the_keys_of_content_without_tensors(content, words):
    with pytest.raises(ConversionError) as error:
        find_tensors(content)
    assert words in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.peers
def test_pytorch_files_of_other_kinds_are_reported(model_path):
    torch = pytest.importorskip("torch")
    content = {"w": torch.arange(6.0).reshape(2, 3).T, "h": torch.ones(2, dtype=torch.bfloat16), "epoch": 3}
    torch.save(content, model_path, _use_new_zipfile_serialization=False)
    checkpoint = read_checkpoint(model_path)
    assert checkpoint.format == "torch-legacy"
    w = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert_same(checkpoint.content, {"w": np.ascontiguousarray(w), "h": np.ones(2, ml_dtypes.bfloat16), "epoch": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(torch.nn.Linear(1, 1)).save(model_path)
    assert "TorchScript" in conversion_error(model_path)
