"""The Hugging Face hub, through `huggingface_hub`: its tokens, its retries, its resumption."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecapa_jax.errors import DownloadError, one_line
from ecapa_jax.hub.address import Address
from ecapa_jax.hub.download import Passing, Policy, no_room, retried
from ecapa_jax.hub.progress import on_terminal


@dataclasses.dataclass(frozen=True)
class Listing:
    """A repository: its commit, and its files with the sha256 of those that have one there (large ones)."""

    commit: str
    sha256: dict[str, str | None]


def _library(address: Address) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise DownloadError(f"{address}: hf: addresses need huggingface_hub: pip install 'ecapa-jax[hub]'") from error


def listing(address: Address, endpoint: str | None, policy: Policy) -> Listing:
    """What a repository holds.

    Raises:
      DownloadError: `huggingface_hub` is not installed, or the hub does not answer with a listing.
    """
    library = _library(address)

    def get() -> Any:
        try:
            with _without_log():
                return library.HfApi(endpoint=endpoint).model_info(
                    address.name, revision=address.revision, files_metadata=True, timeout=policy.timeout
                )
        except Exception as error:
            raise _told(error, address, library) from error

    info = retried(policy, get)
    return Listing(
        str(info.sha), {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or ()}
    )


def download(address: Address, commit: str, name: str, folder: Path, endpoint: str | None, progress: bool) -> None:
    """One file into `folder`; what came before a fault is gone on from.

    Raises:
      DownloadError: it can't be downloaded.
    """
    library = _library(address)
    try:
        with _without_log():
            library.hf_hub_download(
                address.name,
                name,
                revision=commit,
                local_dir=folder,
                endpoint=endpoint,
                tqdm_class=None if progress and on_terminal() else _silent(library),
            )
    except Exception as error:
        told = _told(error, address, library, folder)
        raise (told.error if isinstance(told, Passing) else told) from error


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Keeps the library from telling each fault on stderr, with addresses that may be signed; errors are raised."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _silent(library: Any) -> type:
    class Silent(library.utils.tqdm):
        """No bar."""

        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent


def _told(error: Exception, address: Address, library: Any, folder: Path | None = None) -> DownloadError | Passing:
    """What went wrong, in one line, and never with what was sent.

    `huggingface_hub` raises its own errors and those of its HTTP library, which changes between versions.
    """
    errors = library.errors
    causes = [error, *(cause for cause in (error.__cause__, error.__context__) if cause is not None)]
    if isinstance(error, OSError) and folder is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return no_room(error, folder / "x")
    if isinstance(error, errors.GatedRepoError):
        what = "its owner lets in who has accepted the conditions on its page and is logged in (hf auth login)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "there is no such repository, or it is private and no token is set; check the name"
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"it has no revision {address.revision}; check what follows @"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        what = "huggingface_hub is set to offline, and this was not fetched before"
    elif (status := _status(causes)) is not None:
        what = f"the hub answered {status}; try again later"
        if status == 429 or status >= 500:
            return Passing(DownloadError(f"{address}: {what}"), _retry_after(error))
    elif isinstance(error, errors.LocalEntryNotFoundError) or "Connect" in type(error).__name__:
        what = "the hub can't be reached; check the network (what was fetched once is used without it)"
    else:
        what = f"can't be downloaded ({type(error).__name__}: {one_line(error)[:200]}); try again"
    return DownloadError(f"{address}: {what}")


def _status(causes: list[BaseException]) -> int | None:
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _retry_after(error: Exception) -> float:
    text = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return float(text) if text.strip().isdecimal() else 0.0
