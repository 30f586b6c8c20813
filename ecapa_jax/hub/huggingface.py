"""The Hugging Face hub, through `huggingface_hub`: its tokens, retries, resumption and cache."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecapa_jax.errors import DownloadError, one_line
from ecapa_jax.hub.address import Address
from ecapa_jax.hub.cache import explain_disk_errors
from ecapa_jax.hub.download import Policy, retry
from ecapa_jax.hub.http import TransientError, retry_after


@dataclasses.dataclass(frozen=True)
class Listing:
    """A repository: its commit, and its files with the sha256 of those that have one there (large ones)."""

    commit: str
    sha256: dict[str, str | None]


class UnreachableError(DownloadError):
    """The hub can't be reached, or `huggingface_hub` is set to offline."""


def listing(address: Address, endpoint: str | None, policy: Policy) -> Listing:
    """Returns what a repository holds.

    Raises:
      UnreachableError: there is no connection to the hub.
      DownloadError: `huggingface_hub` is not installed, or the hub does not answer with a listing.
    """

    def get() -> Any:
        with _using_library(address) as library:
            return library.HfApi(endpoint=endpoint).model_info(
                address.name, revision=address.revision, files_metadata=True, timeout=policy.timeout
            )

    info = retry(policy, get)
    files = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or ()}
    return Listing(str(info.sha), files)


def download(address: Address, commit: str, name: str, folder: Path, endpoint: str | None, progress: bool) -> None:
    """Downloads one file into `folder`, and resumes what an earlier fault left.

    Raises:
      DownloadError: it can't be downloaded.
    """
    with _using_library(address) as library, explain_disk_errors(folder):
        bar = None if progress else functools.partial(library.utils.tqdm, disable=True)  # None: on terminals only
        library.hf_hub_download(
            address.name, name, revision=commit, local_dir=folder, endpoint=endpoint, tqdm_class=bar
        )


def find_snapshot(address: Address) -> Path | None:
    """Returns the folder in Hugging Face's own cache that holds this revision; None if there is none."""
    constants = importlib.import_module("huggingface_hub.constants")
    cached = Path(constants.HF_HUB_CACHE) / f"models--{address.name.replace('/', '--')}"
    revision = address.revision or "main"
    with contextlib.suppress(OSError, ValueError):
        revision = (cached / "refs" / revision).read_text("utf-8").strip()
    snapshot = cached / "snapshots" / revision
    return snapshot if snapshot.parent == cached / "snapshots" and snapshot.is_dir() else None


@contextlib.contextmanager
def _using_library(address: Address) -> Iterator[Any]:
    """Turns the library's errors into one line, and keeps it from logging them with addresses that may be signed."""
    try:
        library = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise DownloadError(f"{address}: hf: addresses need huggingface_hub: pip install 'ecapa-jax[hub]'") from error
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield library
    except DownloadError:
        raise
    except Exception as error:
        raise _explain_error(error, address, library.errors) from error
    finally:
        logger.setLevel(level)


def _explain_error(error: Exception, address: Address, errors: Any) -> DownloadError:
    causes = (error, error.__cause__, error.__context__)
    response: Any = next((found for cause in causes if (found := getattr(cause, "response", None))), None)
    status = getattr(response, "status_code", 0)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UnreachableError(f"{address}: huggingface_hub is set to offline, and this was not fetched before")
    if isinstance(error, errors.GatedRepoError):
        what = "its owner admits only who has accepted the conditions on its page and is logged in (hf auth login)"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "there is no such repository, or it is private and no token is set; check the name"
    elif isinstance(error, errors.RevisionNotFoundError):
        what = f"it has no revision {address.revision}; check the text after @"
    elif status == 429 or status >= 500:
        return TransientError(f"{address}: the hub answered {status}; try again later", retry_after(response.headers))
    elif status:
        what = f"the hub answered {status}; try again later"
    elif isinstance(error, errors.LocalEntryNotFoundError) or "Connect" in type(error).__name__:
        what = "the hub can't be reached; check the network (what was fetched once is used without it)"
        return UnreachableError(f"{address}: {what}")
    else:
        what = f"can't be downloaded ({type(error).__name__}: {one_line(error)[:200]}); try again"
    return DownloadError(f"{address}: {what}")
