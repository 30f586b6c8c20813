import io
import re
import tracemalloc
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from ecapa_jax.convert.readers.torch_zip import read_torch_zip
from ecapa_jax.errors import ConversionError
from helpers.torch_zip_writer import Call, View, torch_zip_bytes
from helpers.trees import assert_same

DTYPES = ["float32", "float16", ml_dtypes.bfloat16, "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
BASE = np.arange(24, dtype=np.float32)


def read(data):
    return read_torch_zip(io.BytesIO(data), "x.pt")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,), (0, 3)])
def test_arrays_are_read_bit_for_bit(dtype, shape):
    values = np.asarray(np.random.default_rng(0).standard_normal(shape) * 9).astype(dtype)
    array = read(torch_zip_bytes({"x": values}))["x"]
    assert_same(array, values)
    assert array.flags.c_contiguous
    assert not array.flags.writeable


def test_nan_payloads_and_signed_zeros_are_preserved():
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001], np.uint32)
    assert read(torch_zip_bytes(bits.view(np.float32))).view(np.uint32).tolist() == bits.tolist()


def test_containers_are_read_and_metadata_is_dropped():
    state = OrderedDict(w=BASE.reshape(4, 6), n=np.array(3))
    state._metadata = OrderedDict({"": {"version": 1}})
    content = {"state_dict": state, "epoch": 3, 7: [1.5, None, (True, -(2**40), b"\0")], "": {}, "ö": "ä"}
    got = read(torch_zip_bytes(content))
    assert_same(got, content)
    assert not hasattr(got["state_dict"], "_metadata")


def test_torch_size_and_parameter_are_read_as_plain_values():
    size = Call("torch", "Size", ((2, 3),))
    parameter = Call("torch._utils", "_rebuild_parameter", (BASE, True, OrderedDict()))
    assert_same(read(torch_zip_bytes([size, parameter])), [(2, 3), BASE])


def test_views_use_their_strides_and_offset():
    views = {
        "whole": View(BASE, 0, (4, 6), (6, 1)),
        "transposed": View(BASE, 0, (6, 4), (1, 6)),
        "slice": View(BASE, 5, (3,), (1,)),
        "every other": View(BASE, 1, (2, 3), (12, 2)),
        "expanded": View(BASE, 2, (3, 2), (0, 1)),
        "scalar": View(BASE, 23, (), ()),
        "one long": View(BASE, 3, (1, 2, 1), (2**40, 1, 2**62)),
        "empty": View(BASE, 24, (0, 5), (5, 1)),
    }
    got = read(torch_zip_bytes(views))
    for key, view in views.items():
        strides = [4 * stride if dim > 1 else 0 for dim, stride in zip(view.shape, view.strides, strict=True)]
        want = np.lib.stride_tricks.as_strided(BASE[view.offset :], view.shape, strides)
        assert_same(got[key], np.ascontiguousarray(want).reshape(view.shape))
    assert np.shares_memory(got["whole"], got["slice"])


@pytest.mark.parametrize("prefix", ["", "archive/", "avg_model.pt/", "wéights/"])
def test_any_top_level_folder_is_accepted(prefix):
    assert_same(read(torch_zip_bytes([BASE], prefix=prefix)), [BASE])


def test_peak_memory_is_near_the_size_of_the_file():
    big = np.zeros(1 << 20, np.float32)
    contiguous = torch_zip_bytes([big.copy() for _ in range(4)])
    transposed = torch_zip_bytes([View(big.copy(), 0, (1024, 1024), (1, 1024)) for _ in range(4)])
    for data, bound in ((contiguous, 1.5), (transposed, 2.5)):
        file = io.BytesIO(data)
        tracemalloc.start()
        try:
            read_torch_zip(file, "x.pt")
            assert tracemalloc.get_traced_memory()[1] < bound * len(data)
        finally:
            tracemalloc.stop()


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def to_numpy(torch, tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.ascontiguousarray(tensor.detach().numpy()).reshape(tensor.shape)


def tree_to_numpy(torch, node):
    if isinstance(node, torch.Tensor):
        return to_numpy(torch, node)
    if isinstance(node, dict):
        return type(node)((key, tree_to_numpy(torch, value)) for key, value in node.items())
    if isinstance(node, list | tuple):
        return (tuple if isinstance(node, tuple) else list)(tree_to_numpy(torch, item) for item in node)
    return node


@pytest.mark.peers
@pytest.mark.parametrize("protocol", [2, 4])
def test_files_saved_by_pytorch_are_read_equally(torch, protocol):
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    module = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 5), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(2, 3, 9)).sum().backward()
    optimizer.step()
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8)
    content = {
        "state_dict": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [base, base.t(), base[2:, 1::3], base[3, 4], base.reshape(2, 3, 8).permute(2, 0, 1), base[:0]],
        "expanded": torch.ones(3, 1).expand(3, 5),
        "kinds": [(base * 9).to(kind) for kind in (*kinds, torch.uint8, torch.bool)],
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "nested": {1: {"a": (torch.tensor(3.5), None)}, "size": base.shape, "long": 2**70, "float": float("inf")},
    }
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol)
    assert_same(read(file.getvalue()), tree_to_numpy(torch, content))


@pytest.mark.peers
def test_pytorch_reads_files_of_the_test_writer(torch):
    rng = np.random.default_rng(0)
    state = OrderedDict((str(dtype), (rng.standard_normal((2, 3)) * 9).astype(dtype)) for dtype in DTYPES)
    state._metadata = OrderedDict({"": {"version": 1}})
    content = {
        "state_dict": state,
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "rest": [1, "x", None],
    }
    file = io.BytesIO(torch_zip_bytes({**content, "view": View(BASE, 2, (3, 4), (1, 4))}))
    loaded = torch.load(file, weights_only=True)
    assert loaded["state_dict"]._metadata == state._metadata
    assert_same(to_numpy(torch, loaded.pop("view")), np.ascontiguousarray(BASE[2:18].reshape(4, 4)[:, :3].T))
    assert_same(tree_to_numpy(torch, loaded), content)


@pytest.mark.peers
def test_error_names_pytorch_objects_other_than_weights(torch):
    tagged = torch.zeros(2)
    tagged.note = "x"
    cases = {
        "torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
        "torch._utils._rebuild_sparse_tensor": torch.eye(2).to_sparse(),
        "torch._tensor._rebuild_from_type_v2": tagged,
        "torch.ComplexFloatStorage": torch.zeros(2, dtype=torch.complex64),
        "a storage that belongs to no tensor": torch.zeros(2).untyped_storage(),
        "resolve_neg": torch.zeros(2, dtype=torch.complex64).conj().imag,
    }
    for words, value in cases.items():
        file = io.BytesIO()
        torch.save({"x": value}, file)
        with pytest.raises(ConversionError, match=re.escape(words)):
            read(file.getvalue())
