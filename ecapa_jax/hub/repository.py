"""Fetches models from the hubs and from plain web addresses into a local folder, and records what was fetched."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import shutil
import urllib.parse
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

from ecapa_jax.errors import DownloadError
from ecapa_jax.hub import archive, huggingface
from ecapa_jax.hub.address import Address
from ecapa_jax.hub.cache import PATIENCE, explain_cache_errors, lock_folder
from ecapa_jax.hub.download import File, Policy, describe, download, get_json
from ecapa_jax.hub.progress import bar

Wanted = Callable[[Collection[str]], Collection[str]]
"""Chooses from the names that exist the files to fetch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hubs:
    """Where the hubs are, and how patient to be with them.

    Attributes:
      modelscope: of ModelScope's public API.
      huggingface: of the Hugging Face hub; None leaves it to `huggingface_hub` and its settings.
      policy: of each download.
    """

    modelscope: str = "https://www.modelscope.cn"
    huggingface: str | None = None
    policy: Policy = Policy()


HUBS = Hubs()


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A model on the local disk.

    Attributes:
      folder: holds the files and nothing else.
      revision: the commit where the hub tells it, else what was asked for; None of a plain web address.
      files: what was fetched.
    """

    folder: Path
    revision: str | None
    files: dict[str, File]


def fetch(
    address: Address, wanted: Wanted, cache: Path, *, progress: bool = True, patience: float = PATIENCE
) -> Fetched:
    """Fetches the wanted files of an address once; later calls use no network.

    Args:
      address: with the revision to fetch.
      wanted: chooses the files.
      cache: folder of the cache.
      progress: show a bar, on a terminal.
      patience: seconds to wait for another process that fetches the same.

    Raises:
      DownloadError: the address holds nothing wanted, or a download fails; the next call resumes it.
    """
    folder = cache / "downloads" / address.folder()
    if (found := _read_record(folder)) is None:
        with lock_folder(folder, patience):
            found = _read_record(folder) or _fetch(address, wanted, folder, progress)
    return found


def _read_record(folder: Path) -> Fetched | None:
    """Returns what an earlier call fetched, if all of it is still there."""
    try:
        record = json.loads((folder / "download.json").read_text("utf-8"))
        files = {name: File(file["size"], file["sha256"]) for name, file in record["files"].items()}
        whole = all((folder / "files" / name).stat().st_size == file.size for name, file in files.items())
        return Fetched(folder / "files", record["revision"], files) if whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _fetch(address: Address, wanted: Wanted, folder: Path, progress: bool) -> Fetched:
    part = folder.with_name(f"{folder.name}.partial")
    files_folder = part / "files"
    with explain_cache_errors(part):
        try:
            files_folder.mkdir(parents=True, exist_ok=True)
            fetch_from = {"hf": _fetch_huggingface, "modelscope": _fetch_modelscope}.get(address.scheme, _fetch_url)
            revision, names = fetch_from(address, wanted, files_folder, progress)
            files = {name: describe(files_folder / name) for name in names}
            for path in [path for path in files_folder.rglob("*") if path.is_file()]:
                if path.relative_to(files_folder).as_posix() not in files:
                    path.unlink()  # an earlier attempt wanted other files
            record = {
                "address": str(address),
                "revision": revision,
                "date": datetime.date.today().isoformat(),
                "files": {name: dataclasses.asdict(file) for name, file in files.items()},
            }
            (part / "download.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
            part.rename(folder)
        except OSError:
            with contextlib.suppress(OSError):  # removes them only if nothing arrived
                files_folder.rmdir()
                part.rmdir()
            raise
    return Fetched(folder / "files", revision, files)


Names = tuple[str | None, list[str]]
"""The revision that was fetched, and the names of the files."""


def _fetch_modelscope(address: Address, wanted: Wanted, folder: Path, progress: bool) -> Names:
    """Uses ModelScope's public API: a listing with sizes and sha256, and one address for each file."""
    revision = address.revision or "master"
    base = f"{HUBS.modelscope}/api/v1/models/{address.name}/repo"
    query = urllib.parse.urlencode({"Revision": revision, "Recursive": "true"})
    listing = get_json(f"{base}/files?{query}", HUBS.policy)
    try:
        if listing.get("Code", 200) != 200:
            raise DownloadError(f"{address}: ModelScope says {ascii(listing.get('Message'))[:200]}; check the name")
        entries = {entry["Path"]: entry for entry in listing["Data"]["Files"] if entry.get("Type") != "tree"}
        names = choose(address, list(entries), wanted)
        known = [(entries[name].get("Size") or None, entries[name].get("Sha256") or None) for name in names]
        if not all(isinstance(size, int | None) and isinstance(sha256, str | None) for size, sha256 in known):
            raise TypeError
    except (LookupError, TypeError, AttributeError) as error:
        raise DownloadError(f"{address}: ModelScope's listing is of an unknown form; report it") from error
    for name, (size, sha256) in zip(names, known, strict=True):
        query = urllib.parse.urlencode({"Revision": revision, "FilePath": name})
        _download(f"{base}?{query}", folder / name, progress, size, sha256)
    return revision, names


def _fetch_huggingface(address: Address, wanted: Wanted, folder: Path, progress: bool) -> Names:
    """Asks the hub; without a connection it takes the files from Hugging Face's own cache."""
    try:
        listing = huggingface.listing(address, HUBS.huggingface, HUBS.policy)
    except huggingface.UnreachableError as error:
        if (snapshot := huggingface.find_snapshot(address)) is None:
            raise
        return _copy_snapshot(address, wanted, folder, snapshot, error)
    names = choose(address, list(listing.sha256), wanted)
    for name in names:
        huggingface.download(address, listing.commit, name, folder, HUBS.huggingface, progress)
        if listing.sha256[name] not in (None, sha256 := describe(folder / name).sha256):
            (folder / name).unlink()
            raise DownloadError(
                f"{address}: {name} has sha256 {sha256}, the hub lists {listing.sha256[name]}; try again"
            )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's own notes
    return listing.commit, names


def _copy_snapshot(address: Address, wanted: Wanted, folder: Path, snapshot: Path, error: DownloadError) -> Names:
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    try:
        names = choose(address, files, wanted)
    except DownloadError as missing:
        raise DownloadError(f"{error}; Hugging Face's cache has only a part of it ({snapshot})") from missing
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / name, folder / name)
    return snapshot.name, names


def _fetch_url(address: Address, wanted: Wanted, folder: Path, progress: bool) -> Names:
    """Fetches one file, or the wanted members of an archive."""
    if archive.is_archive(address.name):
        packed = folder.parent / "archive"
        _download(address.name, packed, progress)
        names = archive.extract(packed, lambda names: choose(address, names, wanted), folder)
        packed.unlink()
        return None, names
    name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address.name).path)).name
    choose(address, [name], lambda names: names)
    _download(address.name, folder / name, progress)
    return None, [name]


def choose(address: Address, names: Collection[str], wanted: Wanted) -> list[str]:
    """Returns the wanted names in order.

    Raises:
      DownloadError: none is there, or one is no plain relative path.
    """
    taken = sorted(wanted(names))
    if not taken:
        shown = ", ".join(ascii(name)[1:-1] for name in sorted(names)[:6]) or "nothing"
        raise DownloadError(f"{address}: holds no model that this version knows (it holds: {shown})")
    for name in taken:
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or not name.isprintable() or "\\" in name:
            raise DownloadError(f"{address}: holds a file of the unsafe name {name!a}; it is not fetched")
    return taken


def _download(url: str, path: Path, progress: bool, size: int | None = None, sha256: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and sha256 is not None and describe(path).sha256 == sha256.lower():
        return
    with bar(path.name, shown=progress) as report:
        download(url, path, size=size, sha256=sha256, policy=HUBS.policy, report=report)
