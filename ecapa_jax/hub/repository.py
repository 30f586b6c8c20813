"""Models of the hubs and of plain web addresses into a local folder, with a record of what was fetched."""

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
from ecapa_jax.hub.cache import PATIENCE, alone, not_writable
from ecapa_jax.hub.download import File, Policy, described, download, get_json
from ecapa_jax.hub.progress import bar

Wanted = Callable[[Collection[str]], Collection[str]]
"""Of the names that are there, those to fetch."""


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
    address: Address,
    wanted: Wanted,
    cache: Path,
    *,
    progress: bool = True,
    patience: float = PATIENCE,
    hubs: Hubs | None = None,
) -> Fetched:
    """Fetches the wanted files of an address once; from then on no network is used for it.

    Args:
      address: with the revision to fetch.
      wanted: which of the files that are there.
      cache: folder of the cache.
      progress: show a bar, on a terminal.
      patience: seconds to wait for another process that fetches the same.
      hubs: None is `HUBS`.

    Raises:
      DownloadError: nothing wanted is there, or a download fails; what came so far is gone on from next time.
    """
    folder = cache / "downloads" / address.folder()
    if (found := _recorded(folder)) is None:
        with alone(folder, patience):
            found = _recorded(folder) or _fetch(address, wanted, folder, progress, hubs or HUBS)
    return found


def _recorded(folder: Path) -> Fetched | None:
    """What was fetched before, if all of it is there; the record is in its place only together with the files."""
    try:
        record = json.loads((folder / "download.json").read_text("utf-8"))
        files = {name: File(file["size"], file["sha256"]) for name, file in record["files"].items()}
        whole = all((folder / "files" / name).stat().st_size == file.size for name, file in files.items())
        return Fetched(folder / "files", record["revision"], files) if whole else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _fetch(address: Address, wanted: Wanted, folder: Path, progress: bool, hubs: Hubs) -> Fetched:
    part = folder.with_name(f"{folder.name}.partial")
    try:
        (part / "files").mkdir(parents=True, exist_ok=True)
        from_hub = {"hf": _huggingface, "modelscope": _modelscope}.get(address.scheme, _web)
        revision, files = from_hub(address, wanted, part / "files", progress, hubs)
        for path in [path for path in (part / "files").rglob("*") if path.is_file()]:
            if path.relative_to(part / "files").as_posix() not in files:
                path.unlink()  # of an attempt that was after other files
        record = {
            "address": str(address),
            "revision": revision,
            "date": datetime.date.today().isoformat(),
            "files": {name: dataclasses.asdict(file) for name, file in files.items()},
        }
        (part / "download.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete one
        part.rename(folder)
    except OSError as error:
        with contextlib.suppress(OSError):  # only where nothing came
            (part / "files").rmdir()
            part.rmdir()
        if isinstance(error, DownloadError):
            raise
        raise not_writable(part, error) from error
    return Fetched(folder / "files", revision, files)


Result = tuple[str | None, dict[str, File]]


def _modelscope(address: Address, wanted: Wanted, folder: Path, progress: bool, hubs: Hubs) -> Result:
    """Through ModelScope's public API: a listing with sizes and sha256, and one address a file."""
    revision = address.revision or "master"
    base = f"{hubs.modelscope}/api/v1/models/{address.name}/repo"
    listing = get_json(
        f"{base}/files?{urllib.parse.urlencode({'Revision': revision, 'Recursive': 'true'})}", hubs.policy
    )
    try:
        if listing.get("Code", 200) != 200:
            raise DownloadError(f"{address}: ModelScope says {ascii(listing.get('Message'))[:200]}; check the name")
        entries = {entry["Path"]: entry for entry in listing["Data"]["Files"] if entry.get("Type") != "tree"}
    except (LookupError, TypeError, AttributeError) as error:
        raise DownloadError(f"{address}: ModelScope's listing is of an unknown form; report it") from error
    files = {}
    for name in chosen(address, list(entries), wanted):
        size, sha256 = entries[name].get("Size"), entries[name].get("Sha256") or None
        if not isinstance(size, int | None) or not isinstance(sha256, str | None):
            raise DownloadError(f"{address}: ModelScope's listing is of an unknown form; report it")
        query = urllib.parse.urlencode({"Revision": revision, "FilePath": name})
        files[name] = _file(f"{base}?{query}", folder, name, progress, hubs.policy, size or None, sha256)
    return revision, files


def _huggingface(address: Address, wanted: Wanted, folder: Path, progress: bool, hubs: Hubs) -> Result:
    listing = huggingface.listing(address, hubs.huggingface, hubs.policy)
    names = chosen(address, list(listing.sha256), wanted)
    files = {}
    for name in names:
        huggingface.download(address, listing.commit, name, folder, hubs.huggingface, progress)
        files[name] = described(folder / name)
        if listing.sha256[name] not in (None, files[name].sha256):
            (folder / name).unlink()
            raise DownloadError(
                f"{address}: {name} has sha256 {files[name].sha256}, the hub lists {listing.sha256[name]}; try again"
            )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's own notes
    return listing.commit, files


def _web(address: Address, wanted: Wanted, folder: Path, progress: bool, hubs: Hubs) -> Result:
    """One file, or the wanted members of an archive."""
    url = urllib.parse.urlsplit(address.name)
    packed = archive.is_archive(address.name)
    name = "archive" if packed else PurePosixPath(urllib.parse.unquote(url.path)).name
    if not packed:
        chosen(address, [name], lambda names: names)
        return None, {name: _file(address.name, folder, name, progress, hubs.policy)}
    _file(address.name, folder.parent, name, progress, hubs.policy)
    taken = archive.extract(folder.parent / name, lambda names: chosen(address, names, wanted), folder)
    (folder.parent / name).unlink()
    return None, {name: described(folder / name) for name in taken}


def chosen(address: Address, names: Collection[str], wanted: Wanted) -> list[str]:
    """The wanted names, in order.

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


def _file(
    url: str,
    folder: Path,
    name: str,
    progress: bool,
    policy: Policy,
    size: int | None = None,
    sha256: str | None = None,
) -> File:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and sha256 is not None and (found := described(path)).sha256 == sha256.lower():
        return found
    with bar(name, shown=progress) as report:
        return download(url, path, size=size, sha256=sha256, policy=policy, report=report)
