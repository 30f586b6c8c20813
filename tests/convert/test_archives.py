"""`.nemo` archives, PyTorch's old format and `.npz`: read whole, or refused for what they try."""

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
def file(tmp_path):
    return tmp_path / "model.nemo"


def refused(file, data):
    file.write_bytes(data)
    with pytest.raises(ConversionError) as error:
        read_checkpoint(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert message.isprintable()
    return message


def member(name, data=b"", kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


@pytest.mark.parametrize("compressed", [False, True])
def test_a_nemo_archive_gives_tensors_and_config(file, compressed):
    file.write_bytes(nemo_bytes(CONFIG, CONTENT, compressed=compressed, members=[member("./labels.txt", b"a")]))
    checkpoint = read_checkpoint(file)
    assert checkpoint.format == "nemo"
    assert_same(checkpoint.content, CONTENT)
    assert checkpoint.inside == {"model_config.yaml": CONFIG.encode()}
    assert [path.name for path in file.parent.iterdir()] == ["model.nemo"]


LINK = {"linkname": "/etc/passwd"}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (member("../evil", b"x"), "points outside its folder"),
        (member("a/../../evil", b"x"), "points outside its folder"),
        (member("/etc/evil", b"x"), "points outside its folder"),
        (member("..", kind=tarfile.DIRTYPE), "points outside its folder"),
        (member("a\\..\\b", b"x"), "points outside its folder"),
        (member("link", kind=tarfile.SYMTYPE, **LINK), "a link, a device"),
        (member("link", kind=tarfile.LNKTYPE, **LINK), "a link, a device"),
        (member("pipe", kind=tarfile.FIFOTYPE), "a link, a device"),
        (member("dev", kind=tarfile.CHRTYPE), "a link, a device"),
        (member("dev", kind=tarfile.BLKTYPE), "a link, a device"),
        (member("holes", kind=tarfile.GNUTYPE_SPARSE), "a link, a device"),
        (member("x", b"y" * 600, kind=tarfile.GNUTYPE_LONGNAME), "a link, a device"),
        (member("x", b"20 path=../../evil\n", kind=tarfile.XHDTYPE), "extended header"),
        (member("x", b"20 size=99999999999\n", kind=tarfile.XHDTYPE), "extended header"),
        (member("x", b"y" * 70_000, kind=tarfile.XGLTYPE), "extended header"),
        (member("./model_config.yaml", b"x"), "model_config.yaml twice"),
        (member("model_weights.ckpt", b"x"), "model_weights.ckpt twice"),
    ],
)
def test_archives_that_reach_out_are_refused(file, extra, words, compressed):
    assert words in refused(file, nemo_bytes(CONFIG, CONTENT, compressed=compressed, members=[extra]))


def test_what_is_no_nemo_model_is_refused(file):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(*[part if isinstance(part, tarfile.TarInfo) else io.BytesIO(part) for part in member("a/x", b"1")])
    assert "without model_config.yaml" in refused(file, archive.getvalue())
    assert "larger than 256 kB" in refused(file, nemo_bytes("x" * 300_000, CONTENT))
    assert "names os.system" in refused(file, nemo_bytes(CONFIG, Call("os", "system", ("x",))))
    good = nemo_bytes(CONFIG, CONTENT)
    assert "the format npz, which" in refused(file, good.replace(b"archive/data.pkl", b"archive_data.npy", 1))
    for length in (700, 3000, 5000, len(good) - 10240):
        refused(file, good[:length])


def test_bombs_are_refused_before_they_unpack(file):
    huge = member("model_config.yaml", size=1 << 32)
    for compressed in (False, True):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz" if compressed else "w") as tar:
            tar.fileobj.write(huge[0].tobuf())  # the header alone, which addfile no longer takes
        assert "more than the archive can hold" in refused(file, data.getvalue())
    zeros = [member(f"zeros{n}", bytes(8 << 20)) for n in range(4)]
    assert "more than the archive can hold" in refused(
        file, nemo_bytes(CONFIG, CONTENT, compressed=True, members=zeros)
    )


def test_the_old_format_is_read(file):
    parts = {"whole": BASE, "part": View(BASE, 6, (2, 3), (1, 2)), "epoch": 3, "nested": [BASE.astype(np.int64)]}
    file.write_bytes(torch_legacy_bytes(parts))
    checkpoint = read_checkpoint(file)
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
def test_wrong_files_of_the_old_format_are_refused(file, data, words):
    assert words in refused(file, data)


def npz(arrays, save=np.savez):
    data = io.BytesIO()
    save(data, **arrays)
    return data.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read(file, save):
    arrays = {
        "a.weight": BASE.reshape(4, 6),
        "turned": np.asfortranarray(BASE.reshape(4, 6)),
        "n": np.array(3),
        "b": BASE > 3,
    }
    file.write_bytes(npz(arrays | {"empty": np.zeros((0, 3))}, save))
    checkpoint = read_checkpoint(file)
    assert checkpoint.format == "npz"
    for name, array in arrays.items():
        assert checkpoint.content[name].dtype == array.dtype
        np.testing.assert_array_equal(checkpoint.content[name], array)
        assert not checkpoint.content[name].flags.writeable
    assert checkpoint.content["empty"].shape == (0, 3)


def npy(header, data=b""):
    text = header.encode().ljust(53) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (npz({"a": np.array([{}])}), "header"),
        (npz({"a": np.array(["x"])}), "of type <U1"),
        (npz({"a": BASE.astype(">f4")}), "of type >f4"),
        (npz({"a": np.zeros(2, [("x", "f4")])}), "header"),
        (npz({"a": np.zeros(30 << 20)}, np.savez_compressed), "claim far more bytes"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"), "which don't fit its shape"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(4)), "which don't fit its shape"),
        (npy("{'descr': __import__('os').getcwd(), 'shape': ()}"), "header"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"), "header"),
        (npy("{'descr': '|b1', 'fortran_order': False, 'shape': (1,), }", b"\2"), "bool"),
        (npz({"a": BASE})[:-30], "damaged"),
    ],
)
def test_wrong_npz_files_are_refused(file, data, words):
    assert words in refused(file, data)
