"""Extracts single files from a zip or tar archive by name."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any

from ecapa_jax.errors import DownloadError
from ecapa_jax.hub.cache import explain_disk_errors

SUFFIXES = (".zip", ".tar.gz", ".tgz", ".tar")
MAX_MEMBER = 4_000_000_000


def is_archive(name: str) -> bool:
    """Returns whether an address ends like an archive. Checkpoints (zip) and `.nemo` files (tar) stay whole."""
    return name.lower().endswith(SUFFIXES)


def extract(archive: Path, wanted: Callable[[Collection[str]], Collection[str]], folder: Path) -> list[str]:
    """Writes the wanted members into `folder`, each under the last part of its name.

    The function reads regular files only and ignores paths in the archive, so it can't write anywhere else.

    Args:
      archive: a zip, tar or tar.gz file.
      wanted: chooses from the names of the members.
      folder: a folder that exists.

    Returns:
      The names of the files it wrote.

    Raises:
      DownloadError: the file is no archive, is damaged, holds one wanted name twice, or has a member that is too large.
    """
    try:
        with explain_disk_errors(folder):
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as zipped:
                    members = [(i.filename, i.file_size, i) for i in zipped.infolist() if not i.is_dir()]
                    return _copy_members(archive, members, wanted, zipped.open, folder)
            with tarfile.open(archive) as tarred:
                files = [(i.name, i.size, i) for i in tarred if i.isfile()]
                taken = _copy_members(archive, files, wanted, tarred.extractfile, folder)
                _read_to_end(tarred)
                return taken
    except DownloadError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DownloadError(f"{archive.name} is no archive, or a damaged one ({error}); download it again") from error
    except OSError as error:  # as gzip raises it for damaged content
        raise DownloadError(f"{archive.name} is damaged ({error}); download it again") from error


def _read_to_end(tarred: tarfile.TarFile) -> None:
    """Reads on to the end, where gzip compares its checksum."""
    assert tarred.fileobj is not None
    while tarred.fileobj.read(1 << 20):
        if tarred.fileobj.tell() > 2 * MAX_MEMBER:
            raise tarfile.ReadError("it does not end")


def _copy_members(
    archive: Path,
    members: list[tuple[str, int, Any]],
    wanted: Callable[[Collection[str]], Collection[str]],
    open_member: Callable[[Any], IO[bytes] | None],
    folder: Path,
) -> list[str]:
    named = [(name.replace("\\", "/").rpartition("/")[2], size, member) for name, size, member in members]
    names = [name for name, _, _ in named]
    taken = [name for name in wanted(names) if name not in ("", ".", "..")]
    for name in taken:
        if names.count(name) > 1:
            raise DownloadError(f"{archive.name} holds {name} {names.count(name)} times; unpack the right one yourself")
        size, member = next((size, member) for found, size, member in named if found == name)
        if size > MAX_MEMBER:
            raise DownloadError(f"{archive.name} holds a {name} of {size / 1e6:g} MB; no speaker model is so large")
        source = open_member(member)
        assert source is not None  # of a regular file
        with source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return taken
