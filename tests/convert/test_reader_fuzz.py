"""Fuzz tests of every container format: a damaged or malicious file is either read or refused.

The files are read in a process that limits its memory. `make slow` runs the tests for ten minutes. `BOMBS` contains
the failures that were found.
"""

import gzip
import io
import os
import struct
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from helpers.fuzzing import Reader
from helpers.torch_zip_writer import Raw, View, name, nemo_bytes, torch_legacy_bytes, torch_zip_bytes

BASE = np.arange(48, dtype=np.float32)
CONTENT = {"w": BASE.reshape(6, 8), "n": np.array(3, np.int64), "b": np.array([True, False]), "m": {"x": [1, "a"]}}
CONFIG = "encoder: {feat_in: 80}\n"
SECONDS = 15


def safetensors_bytes(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def npz_bytes(save=np.savez) -> bytes:
    file = io.BytesIO()
    save(file, w=BASE.reshape(6, 8), b=BASE > 3)
    return file.getvalue()


GOOD = {
    "zip": torch_zip_bytes(CONTENT),
    "legacy": torch_legacy_bytes(CONTENT),
    "nemo": nemo_bytes(CONFIG, CONTENT),
    "nemo.gz": nemo_bytes(CONFIG, CONTENT, compressed=True),
    "safetensors": safetensors_bytes(
        '{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BOOL","shape":[2],"data_offsets":[24,26]}}',
        BASE[:6].tobytes() + b"\1\0",
    ),
    "npz": npz_bytes(),
    "npz, compressed": npz_bytes(np.savez_compressed),
}


@st.composite
def damaged(draw) -> bytes:
    """Draws a valid file, truncated or with bits or parts flipped, overwritten, repeated, moved or removed."""
    data = bytearray(GOOD[draw(st.sampled_from(sorted(GOOD)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        size = draw(st.integers(1, 64))
        match draw(st.sampled_from(["cut", "flip", "write", "double", "remove", "number"])):
            case "cut":
                del data[at:]
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
            case "double":
                data[at:at] = data[at : at + size]
            case "remove":
                del data[at : at + size]
            case "number":
                number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
                data[at : at + 8] = struct.pack("<Q", number)
    return bytes(data)


OPCODES = [
    *(bytes([code]) for code in b"(.0]}e)Rbsuatq\0h\0NK\1QX\x85\x86\x87\x93\x81\x8f\x91io2"),
    *(b"q\0", b"q\1", b"h\0", b"h\1", b"K\2", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\0", b"X\1\0\0\0a"),
    *(b"}q\0X\1\0\0\0ah\0s", b"]q\0h\0a", b"\x95" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"B\xff\xff\xff\x7f"),
    name("os", "system").opcodes + b"X\4\0\0\0true\x85R",
    name("builtins", "eval").opcodes + b"X\3\0\0\x001+1\x85R",
    name("collections", "OrderedDict").opcodes + b")R",
    name("torch._utils", "_rebuild_tensor_v2").opcodes,
    name("torch._utils", "_rebuild_tensor").opcodes,
    name("torch", "Size").opcodes,
    b"(X\7\0\0\0storage" + name("torch", "FloatStorage").opcodes + b"X\1\0\0\x000X\3\0\0\0cpuK\x30tQ",
]
COUNTS = st.one_of(st.integers(0, 60), st.sampled_from([2**20, 2**31, 2**38, 2**62, 2**63, 2**70, -1]))
VIEWS = st.builds(
    lambda offset, axes, numel: View(BASE, offset, tuple(d for d, _ in axes), tuple(s for _, s in axes), numel=numel),
    COUNTS,
    st.lists(st.tuples(COUNTS, COUNTS), max_size=5),
    st.one_of(st.none(), COUNTS),
)
NODES = st.recursive(
    st.one_of(
        VIEWS, st.builds(Raw, st.lists(st.sampled_from(OPCODES), max_size=12).map(b"".join)), st.text(max_size=5)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def malicious(draw) -> bytes:
    """Draws a valid container with a malicious pickle: any opcodes, huge shapes, stride-0 views, cycles."""
    node = draw(NODES)
    match draw(st.sampled_from(["zip", "legacy", "nemo", "nemo.gz"])):
        case "zip":
            return torch_zip_bytes(node)
        case "legacy":
            return torch_legacy_bytes(node)
        case kind:
            return nemo_bytes(CONFIG, node, compressed=kind == "nemo.gz")


@st.composite
def archives(draw) -> bytes:
    """Draws archives with tar members of any kind, name and size, valid or not, compressed or not."""
    names = ["./model_config.yaml", "model_weights.ckpt", "../x", "/etc/x", "a/../../x", "", ".", "x\0y", "é" * 60]
    kinds = [*(bytes([kind]) for kind in b"01234567LKSxgXND"), b"\0"]
    file = io.BytesIO()
    for _ in range(draw(st.integers(0, 5))):
        info = tarfile.TarInfo(draw(st.sampled_from(names)))
        info.type = draw(st.sampled_from(kinds))
        data = draw(st.one_of(st.binary(max_size=700), st.just(GOOD["zip"]), st.sampled_from([b"30 path=../../x\n"])))
        info.size = draw(st.one_of(st.just(len(data)), st.sampled_from([0, 1, 2**20, 2**33, 2**62])))
        info.linkname = draw(st.sampled_from(["", "/etc/passwd"]))
        file.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + data + bytes(-len(data) % 512))
    file.write(bytes(draw(st.sampled_from([0, 512, 1024, 10240]))))
    return gzip.compress(file.getvalue(), 1) if draw(st.booleans()) else file.getvalue()


@st.composite
def headers(draw) -> bytes:
    """Draws safetensors and npy headers with arbitrary claims."""
    shape = draw(st.lists(COUNTS, max_size=4))
    if draw(st.booleans()):
        offsets = [draw(COUNTS), draw(COUNTS)]
        kind = draw(st.sampled_from(["F32", "BF16", "BOOL", "F8_E4M3", "F64", "x"]))
        entry = f'{{"w":{{"dtype":"{kind}","shape":{shape},"data_offsets":{offsets}}}}}'
        return safetensors_bytes(entry, draw(st.binary(max_size=64)))
    kind = draw(st.sampled_from(["<f4", ">f4", "|O", "<U9", "|b1", "|V2", "<f16", "<m8", "f4"]))
    dims = "".join(f"{dim}, " for dim in shape)
    text = f"{{'descr': '{kind}', 'fortran_order': {draw(st.booleans())}, 'shape': ({dims}), }}\n".encode()
    version = draw(st.sampled_from([b"\1\0", b"\2\0", b"\3\0"]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        size = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
        archive.writestr("a.npy", b"\x93NUMPY" + version + size + text + draw(st.binary(max_size=64)))
    return file.getvalue()


ANY = st.one_of(damaged(), damaged(), malicious(), archives(), headers())


def bomb_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100 << 20))
    return file.getvalue()


def bomb_npz(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(size))
    return file.getvalue()


def bomb_gzip(size: int) -> bytes:
    """Returns a compressed archive whose first member unpacks to `size` bytes of zeros."""
    info = tarfile.TarInfo("model_weights.ckpt")
    info.size = size
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(info.tobuf()), *(packer.compress(bytes(1 << 20)) for _ in range(size >> 20))]
    return b"".join([*parts, packer.compress(bytes(1024)), packer.flush()])


def many_members(count: int) -> bytes:
    """Returns a zip directory that names one file many times; `zipfile` creates an object for each entry."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, 0, 0)
    return entry * count + end


BOMBS = {
    "deflated pickle": bomb_zip,
    "deflated array": lambda: bomb_npz(100 << 20),
    "deflated array within the limit": lambda: bomb_npz(40 << 20),
    "gzip": lambda: bomb_gzip(100 << 20),
    "gzip within the limit": lambda: bomb_gzip(15 << 20),
    "many members": lambda: b"PK\3\4" + many_members(400_000),
    "pickle of dicts": lambda: torch_zip_bytes(Raw(b"](" + b"}" * 249_000 + b"e")),
    "pickle of texts": lambda: torch_zip_bytes(["x" * 1000] * 15_000),
    "deep lists": lambda: torch_zip_bytes(Raw(b"]" * 100_000 + b"a" * 99_999)),
    "list in itself": lambda: torch_legacy_bytes(Raw(b"]q\0h\0a")),
    "dict in itself": lambda: torch_zip_bytes(Raw(b"}q\0X\1\0\0\0ah\0s")),
    "stride 0, 1 TiB": lambda: torch_zip_bytes(View(BASE, 0, (2**38,), (0,))),
    "stride 0, 60 MB": lambda: torch_zip_bytes(View(BASE, 0, (15 << 20,), (0,))),
    "stride 0, 60 MB, old format": lambda: torch_legacy_bytes(View(BASE, 0, (15 << 20,), (0,))),
    "safetensors of a long header": lambda: safetensors_bytes("{" + " " * (60 << 20) + "}"),
    "safetensors of many names": lambda: safetensors_bytes(
        "{" + ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(130_000)) + "}"
    ),
    "nested json": lambda: safetensors_bytes("{" + '"a":{' * 100_000),
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("cwd"))
    yield reader
    reader.close()
    print(reader.summary())


@pytest.mark.parametrize("kind", GOOD)
def test_undamaged_files_are_read(reader, kind):
    assert reader.read(GOOD[kind]) == "read"


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_use_little_memory(reader, kind):
    reader.read(BOMBS[kind]())


def fuzz(reader, seconds: float, start: int = 0) -> None:
    """Runs examples until the time is over, each round with another seed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start += 1

        @seed(start)
        @settings(
            deadline=None,
            database=None,
            max_examples=200,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(ANY)
        def check(data):
            if time.monotonic() < end:
                reader.read(data)

        check()


def test_any_file_is_read_or_refused(reader):
    fuzz(reader, SECONDS)


@pytest.mark.slow
def test_any_file_is_read_or_refused_for_ten_minutes(reader, capsys):
    fuzz(reader, 600, start=int.from_bytes(os.urandom(4), "little"))
    with capsys.disabled():
        print(reader.summary())
