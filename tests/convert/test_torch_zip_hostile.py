import copy
import io
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.convert.readers import pickle_machine, torch_zip
from ecapa_jax.convert.readers.torch_zip import read_torch_zip
from ecapa_jax.errors import ConversionError
from helpers.torch_zip_writer import Raw, View, name
from helpers.torch_zip_writer import torch_zip_bytes as pack
from helpers.trees import assert_same

BASE = np.arange(24, dtype=np.float32)


def read(data, **options):
    return read_torch_zip(io.BytesIO(data), "x.pt", **options)


def conversion_error(data, **options):
    with pytest.raises(ConversionError) as error:
        read(data, **options)
    message = str(error.value)
    assert message.startswith("x.pt: ")
    assert message.isprintable()
    assert len(message) < 400
    return message


def tensor_opcodes(array):
    """Returns the opcodes of a tensor on storage 0."""
    parts = name("torch._utils", "_rebuild_tensor_v2").opcodes + b"((X\x07\0\0\0storage"
    parts += name("torch", "FloatStorage").opcodes + b"X\1\0\0\x000X\3\0\0\0cpuK" + bytes([array.size]) + b"tQ"
    return parts + b"K\0K" + bytes([array.size]) + b"\x85K\x01\x85\x89NtR"


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch", "ComplexFloatStorage"),
        ("torch.nn.modules.linear", "Linear"),
        ("os\x1b[2J", "system"),
        ("x" * 5000, "system"),
    ],
)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_unknown_global_is_refused_and_not_executed(tmp_path, module, attribute, opcode):
    sentinel = tmp_path / "ran"
    command = f"touch {sentinel}" if "system" in attribute else f"open({str(sentinel)!r}, 'w')"
    argument = b"X" + struct.pack("<I", len(command)) + command.encode()
    texts = b"".join(b"X" + struct.pack("<I", len(text)) + text.encode() for text in (module, attribute))
    opcodes = {
        "GLOBAL": name(module, attribute).opcodes + argument + b"\x85R",
        "STACK_GLOBAL": texts + b"\x93" + argument + b"\x85R",
        "INST": b"(" + argument + b"i" + name(module, attribute).opcodes[1:],
    }
    message = conversion_error(pack({"x": BASE, "y": Raw(opcodes[opcode])}))
    if len(module) < 99 and module.isprintable():
        assert f"names {module}.{attribute}, " in message
    assert "none of it was run" in message
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"ccollections\nOrderedDict\n)\x81",  # NEWOBJ
        b"(ccollections\nOrderedDict\no",  # OBJ
        b"(icollections\nOrderedDict\n",
        b"\x82\x01",  # EXT1
        b"P0\n",  # PERSID
        b"(\x91",  # FROZENSET
        b"}2",  # DUP
        b"I7\n",
        b"\x96" + struct.pack("<Q", 1) + b"a",  # BYTEARRAY8
    ],
)
def test_opcodes_that_weights_do_not_need_are_refused(opcodes):
    assert "which plain weights don't need, and none of it was run" in conversion_error(pack(Raw(opcodes)))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"}}b",  # BUILD on a dict
        b"ccollections\nOrderedDict\n)R}X\1\0\0\0aK\1sb",  # BUILD that sets another attribute
        tensor_opcodes(BASE) + b"}b",
        b"ctorch\nFloatStorage\n}b",
        b"ctorch\nFloatStorage\n)R",
        b"X\1\0\0\0a)R",
        b"ccollections\nOrderedDict\n(K\1tR",
        b"ccollections\nOrderedDict\n",  # a type as a value
        b"ccollections\nOrderedDict\n]R",
        b"K\1K\2e",
        b"K\1(K\2e",
        b"K\1K\1K\2s",
        b"}(K\1u",
        b"]K\1K\2s",
        b"})K\1s",  # a tuple as a key
        b"K\1Q",
        b"(X\7\0\0\0storageK\1X\1\0\0\x000X\3\0\0\0cpuK\1tQ",
        b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ",  # a storage as a value
        b"h\7",  # a memo index that was never stored
        b"t",
        b"R",
        b"0",
        b"",
        b"K\1K\2\x93",
        b"\xff",
        b"X\xff\xff\xff\xff",
        b"\x8e" + b"\xff" * 8,  # BINBYTES8 of 16 EiB
        b"X\1\0\0\0\xff",
        b"ctorch\nSize\nJ\xff\xff\xff\xff\x85\x85R",
        b"ctorch._utils\n_rebuild_parameter\n(K\1\x88NtR",
        b"ctorch.serialization\n_get_layout\nX\x10\0\0\0torch.sparse_coo\x85R",
    ],
)
def test_invalid_pickles_are_refused(opcodes):
    conversion_error(pack(Raw(opcodes), members={"data/0": BASE.tobytes()}))


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (View(BASE, 0, (2**38,), (0,)), "claim over"),  # 1 TiB
        (View(BASE, 0, (2**31, 2**31, 2**31), (0, 0, 0)), "claim over"),
        (View(BASE, 0, (25,), (1,)), "beyond its storage"),
        (View(BASE, 1, (4, 6), (6, 1)), "beyond its storage"),
        (View(BASE, 24, (), ()), "beyond its storage"),
        (View(BASE, 0, (2, 2), (2**62, 1)), "beyond its storage"),
        (View(BASE, 0, (2**40,), (1,), numel=2**40), "claim over"),
        (View(BASE, 0, (25,), (1,), numel=25), "has 96 bytes but should have 100"),
        (View(BASE, 0, (1,), (1,), numel=1), "has 96 bytes but should have 4"),
        (View(BASE, 0, (1,), (1,), numel=-1), "description of a"),
        (View(BASE, -1, (2,), (1,)), "negative"),
        (View(BASE, 0, (-1,), (1,)), "negative"),
        (View(BASE, 5, (2,), (-1,)), "negative"),
        (View(BASE, 2**70, (2,), (1,)), "otherwise invalid"),
        (View(BASE, True, (2,), (1,)), "otherwise invalid"),
        (View(BASE, 0.0, (2,), (1,)), "otherwise invalid"),
        (View(BASE, 0, (2, 2), (1,)), "otherwise invalid"),
        (View(BASE, 0, (1,) * 33, (1,) * 33), "otherwise invalid"),
        (View(BASE, 0, [2], (1,)), "description of a"),
        (View(BASE, 0, (2,), (1,), options=({"neg": True},)), "resolve_neg"),
        (View(BASE, 0, (0, 2**62, 2**62), (1, 1, 1)), "damaged"),
    ],
)
def test_views_outside_their_storage_are_refused_before_allocation(view, words):
    data = pack([view])
    start = time.perf_counter()
    tracemalloc.start()
    try:
        assert words in conversion_error(data)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 5


def test_size_limit_applies_to_the_sum_of_all_tensors():
    data = pack([View(BASE, 0, (10, 24), (0, 1)) for _ in range(10)])
    assert len(read(data, max_bytes=9600)) == 10
    assert "claim over 9599 bytes" in conversion_error(data, max_bytes=9599)


def test_missing_storage_and_invalid_bool_are_refused():
    assert "archive/data/7" in conversion_error(pack(Raw(tensor_opcodes(BASE).replace(b"\x000X", b"\x007X"))))
    assert "bool" in conversion_error(pack(np.array([True, False]), members={"data/0": b"\x01\x02"}))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]" * 20_000 + b"a" * 19_999,
        b"]" + b"\x85" * 20_000,
        b"]q\0h\0a",  # a list that contains itself
        b"}q\0X\1\0\0\0ah\0s",
        b"]q\0" + b"(" + b"h\0" * 50_000 + b"e",
    ],
)
def test_deep_and_cyclic_pickles_are_refused(opcodes):
    assert "contain each other or are nested too deeply" in conversion_error(pack(Raw(opcodes)))


def test_endless_pickles_are_refused(monkeypatch):
    monkeypatch.setattr(pickle_machine, "_MAX_OPCODES", 1000)
    assert "too many objects" in conversion_error(pack([None] * 1000))
    monkeypatch.setattr(torch_zip, "MAX_PICKLE", 1000)
    assert "data.pkl is over" in conversion_error(pack([None] * 1000))


def test_unprintable_global_name_is_not_in_the_message():
    levels = b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(50))
    assert "a value that is not text" in conversion_error(pack(Raw(b"]q\0" + levels + b"K\1\x93")))


def test_pickle_with_exponentially_shared_list_is_read_quickly():
    levels = b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(50))
    content = read(pack(Raw(b"]q\0" + levels)))
    assert content[0] is content[1]


def test_huge_memo_index_uses_little_memory():
    assert read(pack(Raw(b"}r\xff\xff\xff\xff"))) == {}


def test_compressed_duplicate_and_overlapping_members_are_refused():
    assert "is compressed" in conversion_error(pack([np.zeros(10**6)], compression=zipfile.ZIP_DEFLATED))
    file = io.BytesIO(pack([BASE]))
    with zipfile.ZipFile(file, "a") as archive:
        for number in range(200):
            twin = copy.copy(archive.getinfo("archive/data/0"))
            twin.filename = f"archive/data/{number + 1}"
            archive.filelist.append(twin)
        archive.writestr("archive/x", b"")
    assert "more bytes than the file has" in conversion_error(file.getvalue())
    twice = pack([BASE], members={"data/1": b""}).replace(b"archive/data/1", b"archive/data/0")
    assert "same name" in conversion_error(twice)


def test_big_endian_files_are_refused():
    assert "not little-endian" in conversion_error(pack([BASE], members={"byteorder": b"big"}))


def test_error_names_the_format_of_other_archives():
    assert "TorchScript" in conversion_error(pack([BASE], members={"constants.pkl": b"", "code/x.py": b""}))
    assert "TorchScript" in conversion_error(pack([BASE], members={"code/__torch__.py": b""}))
    file = io.BytesIO()
    np.savez(file, a=BASE)
    assert "it holds a.npy); unpack" in conversion_error(file.getvalue())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        assert archive.namelist() == []
    assert "it holds nothing" in conversion_error(file.getvalue())
    assert "holds model/archive/data.pkl, " in conversion_error(pack([BASE], prefix="model/archive/"))


SMALL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.int64), "n": [1, "two"]}
SMALL_BYTES = pack(SMALL)


@pytest.mark.parametrize("length", [*range(0, len(SMALL_BYTES), 29), len(SMALL_BYTES) - 1])
def test_truncated_files_are_refused(length):
    conversion_error(SMALL_BYTES[:length])


def attempt(data):
    try:
        return read(data)
    except ConversionError as error:
        return error


def check_damaged(data):
    outcome = attempt(data)
    if not isinstance(outcome, ConversionError):
        assert_same(outcome, SMALL)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 8 * len(SMALL_BYTES) - 1))
def test_flipped_bit_is_refused_or_has_no_effect(bit):
    data = bytearray(SMALL_BYTES)
    data[bit // 8] ^= 1 << bit % 8
    check_damaged(bytes(data))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_overwritten_bytes_are_refused_or_have_no_effect(data):
    start = data.draw(st.integers(0, len(SMALL_BYTES) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=16))
    check_damaged((SMALL_BYTES[:start] + patch + SMALL_BYTES[start + len(patch) :])[: len(SMALL_BYTES)])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([bytes([code]) for code in b"(.0]}e)Rbsuatq\0h\0NK\1QX\x85\x86\x93"]), max_size=30))
def test_random_opcodes_raise_no_other_error(opcodes):
    attempt(pack(Raw(b"".join(opcodes))))
