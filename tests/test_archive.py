"""Tests of `archive.extract`: the members that it extracts from a downloaded archive, and those that it refuses."""

import io
import os
import tarfile
import zipfile

import pytest

from ecapa_jax.errors import DownloadError
from ecapa_jax.hub import archive


def file_names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            file.writestr(name, content)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_selected_members_are_extracted_without_their_folders(tmp_path, write):
    out = tmp_path / "out"
    out.mkdir()
    write(tmp_path / "x", [("model/avg_model.pt", b"w"), ("../../etc/config.yaml", b"c"), ("model/other", b"o")])
    extracted = archive.extract(tmp_path / "x", lambda names: [n for n in names if n != "other"], out)
    assert sorted(extracted) == file_names(out) == ["avg_model.pt", "config.yaml"]
    assert (out / "avg_model.pt").read_bytes() == b"w"
    assert file_names(tmp_path) == ["out", "x"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_duplicate_member_names_are_refused(tmp_path, write):
    write(tmp_path / "x", [("a/avg_model.pt", b"w"), ("b/avg_model.pt", b"v")])
    with pytest.raises(DownloadError, match=r"holds avg_model\.pt 2 times"):
        archive.extract(tmp_path / "x", lambda names: set(names), tmp_path)


def test_symbolic_links_are_not_extracted(tmp_path):
    with tarfile.open(tmp_path / "x", "w") as file:
        link = tarfile.TarInfo("avg_model.pt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    seen = []
    assert archive.extract(tmp_path / "x", lambda names: seen.extend(names) or [], tmp_path) == []
    assert seen == []


def test_member_above_the_size_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBER", 1000)
    write_zip(tmp_path / "x", [("avg_model.pt", bytes(1001))])
    with pytest.raises(DownloadError, match="no speaker model is so large"):
        archive.extract(tmp_path / "x", lambda names: names, tmp_path)


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_damaged_archive_is_refused(tmp_path, write, damage):
    content = os.urandom(5000)
    write(tmp_path / "x", [("avg_model.pt", content)])
    data = bytearray((tmp_path / "x").read_bytes())
    if damage == "flipped":
        for at in range(2000, 2100):
            data[at] ^= 0xFF
    (tmp_path / "x").write_bytes({"cut": data[:3000], "flipped": data, "text": b"text" * 200, "empty": b""}[damage])
    with pytest.raises(DownloadError, match="download it again"):
        archive.extract(tmp_path / "x", lambda names: names, tmp_path)
