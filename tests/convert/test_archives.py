"""Tests of reading `.nemo` archives, PyTorch's old format and `.npz`, and of refusing malicious ones."""

import io
import tarfile
import zipfile

import numpy as np
import pytest

from ecapa_jax.convert.readers.checkpoint import read_checkpoint
from ecapa_jax.errors import ConversionError
from helpers.torch_zip_writer import Call, View, nemo_bytes, torch_legacy_bytes
from helpers.trees import assert_same

BASE = np.arange(24, dtype=np.float32)
CONTENT = {"w": BASE.reshape(2, 3, 4), "n": np.array(3, np.int64), "b": np.ones(3, np.float16)}
CONFIG = "sample_rate: 16000\nencoder: {feat_in: 80}\n"


@pytest.fixture
def model_path(tmp_path):
    return tmp_path / "model.nemo"


def conversion_error(model_path, data):
    model_path.write_bytes(data)
    with pytest.raises(ConversionError) as error:
        read_checkpoint(model_path)
    message = str(error.value)
    assert message.startswith(f"{model_path}: ")
    assert message.isprintable()
    return message


def make_member(name, data=b"", kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


@pytest.mark.parametrize("compressed", [False, True])
def test_nemo_archive_gives_tensors_and_config(model_path, compressed):
    model_path.write_bytes(
        nemo_bytes(CONFIG, CONTENT, compressed=compressed, members=[make_member("./labels.txt", b"a")])
    )
    checkpoint = read_checkpoint(model_path)
    assert checkpoint.format == "nemo"
    assert_same(checkpoint.content, CONTENT)
    assert checkpoint.inside == {"model_config.yaml": CONFIG.encode()}
    assert [path.name for path in model_path.parent.iterdir()] == ["model.nemo"]


LINK = {"linkname": "/etc/passwd"}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (make_member("../evil", b"x"), "points outside its folder"),
        (make_member("a/../../evil", b"x"), "points outside its folder"),
        (make_member("/etc/evil", b"x"), "points outside its folder"),
        (make_member("..", kind=tarfile.DIRTYPE), "points outside its folder"),
        (make_member("a\\..\\b", b"x"), "points outside its folder"),
        (make_member("link", kind=tarfile.SYMTYPE, **LINK), "a link, a device"),
        (make_member("link", kind=tarfile.LNKTYPE, **LINK), "a link, a device"),
        (make_member("pipe", kind=tarfile.FIFOTYPE), "a link, a device"),
        (make_member("dev", kind=tarfile.CHRTYPE), "a link, a device"),
        (make_member("dev", kind=tarfile.BLKTYPE), "a link, a device"),
        (make_member("holes", kind=tarfile.GNUTYPE_SPARSE), "a link, a device"),
        (make_member("x", b"y" * 600, kind=tarfile.GNUTYPE_LONGNAME), "a link, a device"),
        (make_member("x", b"20 path=../../evil\n", kind=tarfile.XHDTYPE), "extended header"),
        (make_member("x", b"20 size=99999999999\n", kind=tarfile.XHDTYPE), "extended header"),
        (make_member("x", b"y" * 70_000, kind=tarfile.XGLTYPE), "extended header"),
        (make_member("./model_config.yaml", b"x"), "model_config.yaml twice"),
        (make_member("model_weights.ckpt", b"x"), "model_weights.ckpt twice"),
    ],
)
def test_archives_with_unsafe_members_are_refused(model_path, extra, words, compressed):
    assert words in conversion_error(model_path, nemo_bytes(CONFIG, CONTENT, compressed=compressed, members=[extra]))


def test_invalid_nemo_archives_are_refused(model_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(
            *[part if isinstance(part, tarfile.TarInfo) else io.BytesIO(part) for part in make_member("a/x", b"1")]
        )
    assert "without model_config.yaml" in conversion_error(model_path, archive.getvalue())
    assert "larger than 256 kB" in conversion_error(model_path, nemo_bytes("x" * 300_000, CONTENT))
    assert "names os.system" in conversion_error(model_path, nemo_bytes(CONFIG, Call("os", "system", ("x",))))
    good = nemo_bytes(CONFIG, CONTENT)
    assert "the format npz, which" in conversion_error(
        model_path, good.replace(b"archive/data.pkl", b"archive_data.npy", 1)
    )
    for length in (700, 3000, 5000, len(good) - 10240):
        conversion_error(model_path, good[:length])


def test_archive_bombs_are_refused_before_unpacking(model_path):
    huge = make_member("model_config.yaml", size=1 << 32)
    for compressed in (False, True):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz" if compressed else "w") as tar:
            tar.fileobj.write(huge[0].tobuf())  # only the header, which addfile refuses to write
        assert "more than the archive can hold" in conversion_error(model_path, data.getvalue())
    zeros = [make_member(f"zeros{n}", bytes(8 << 20)) for n in range(4)]
    assert "more than the archive can hold" in conversion_error(
        model_path, nemo_bytes(CONFIG, CONTENT, compressed=True, members=zeros)
    )


def test_legacy_format_is_read(model_path):
    parts = {"whole": BASE, "part": View(BASE, 6, (2, 3), (1, 2)), "epoch": 3, "nested": [BASE.astype(np.int64)]}
    model_path.write_bytes(torch_legacy_bytes(parts))
    checkpoint = read_checkpoint(model_path)
    assert checkpoint.format == "torch-legacy"
    part = np.array([[6, 8, 10], [7, 9, 11]], np.float32)
    assert_same(checkpoint.content, parts | {"part": part})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch_legacy_bytes(CONTENT, system={"little_endian": False}), "not little-endian"),
        (torch_legacy_bytes(CONTENT, system=[]), "not little-endian"),
        (torch_legacy_bytes(CONTENT, keys=["0", "1"]), "'2'"),
        (torch_legacy_bytes(CONTENT, keys=["0", "1", "1"]), "not a list of different names"),
        (torch_legacy_bytes(CONTENT, keys=3), "not a list of different names"),
        (torch_legacy_bytes(CONTENT, keys=["0", "1", "2", "3"]), "belongs to no tensor"),
        (torch_legacy_bytes(CONTENT)[:-1], "cut off"),
        (torch_legacy_bytes(View(BASE, 0, (25,), (1,), numel=25)), "has 96 bytes but should have 100"),
        (torch_legacy_bytes(View(BASE, 0, (2**38,), (0,))), "claim over"),
        (torch_legacy_bytes(Call("os", "system", ("x",))), "names os.system"),
    ],
)
def test_invalid_legacy_files_are_refused(model_path, data, words):
    assert words in conversion_error(model_path, data)


def npz_bytes(arrays, save=np.savez):
    data = io.BytesIO()
    save(data, **arrays)
    return data.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read(model_path, save):
    arrays = {
        "a.weight": BASE.reshape(4, 6),
        "turned": np.asfortranarray(BASE.reshape(4, 6)),
        "n": np.array(3),
        "b": BASE > 3,
    }
    model_path.write_bytes(npz_bytes(arrays | {"empty": np.zeros((0, 3))}, save))
    checkpoint = read_checkpoint(model_path)
    assert checkpoint.format == "npz"
    for name, array in arrays.items():
        assert checkpoint.content[name].dtype == array.dtype
        np.testing.assert_array_equal(checkpoint.content[name], array)
        assert not checkpoint.content[name].flags.writeable
    assert checkpoint.content["empty"].shape == (0, 3)


def npy_in_zip(header, data=b""):
    text = header.encode().ljust(53) + b"\n"
    model_path = io.BytesIO()
    with zipfile.ZipFile(model_path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + data)
    return model_path.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npz_bytes({"a": np.array([{}])}), "header"),
        (npz_bytes({"a": np.array(["x"])}), "of type <U1"),
        (npz_bytes({"a": BASE.astype(">f4")}), "of type >f4"),
        (npz_bytes({"a": np.zeros(2, [("x", "f4")])}), "header"),
        (npz_bytes({"a": np.zeros(30 << 20)}, np.savez_compressed), "claim far more bytes"),
        (
            npy_in_zip("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"),
            "which don't fit its shape",
        ),
        (
            npy_in_zip("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(4)),
            "which don't fit its shape",
        ),
        (npy_in_zip("{'descr': __import__('os').getcwd(), 'shape': ()}"), "header"),
        (npy_in_zip("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"), "header"),
        (npy_in_zip("{'descr': '|b1', 'fortran_order': False, 'shape': (1,), }", b"\2"), "bool"),
        (npz_bytes({"a": BASE})[:-30], "damaged"),
    ],
)
def test_invalid_npz_files_are_refused(model_path, data, words):
    assert words in conversion_error(model_path, data)
