"""Fetches a model by its address, converts it once, and keeps it in the user's cache."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ecapa_jax.bundle.bundle import FILES, Bundle, save_bundle
from ecapa_jax.config import SCHEMA
from ecapa_jax.convert.names import suggestion
from ecapa_jax.convert.published import PublishedModel, find_published
from ecapa_jax.convert.run import convert
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.errors import ConversionError, DownloadError
from ecapa_jax.hub import cache as caches
from ecapa_jax.hub.address import HUBS, Address, is_address, parse
from ecapa_jax.hub.download import describe
from ecapa_jax.hub.repository import Fetched, Wanted, fetch

COMPANIONS = ("configuration.json", "hyperparams.yaml", "mean_var_norm_emb.ckpt", "config.yaml", "model_config.yaml")
"""Files that families read beside the weights. They are fetched from repositories that are not in the table."""


def convert_source(
    source: str, *, family: str | None = None, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True,
    **options: Any,
) -> Bundle:  # fmt: skip
    """Converts the checkpoint at a path or an address; `convert.run.convert` describes paths and options.

    Args:
      source: a path that exists, or an address.
      family: name of the family; None takes it from the table of published models, or detects it.
      cache_dir: folder for downloads; None is the user's cache folder.
      progress: whether to show a progress bar on a terminal.
      **options: as for `convert`.

    Raises:
      DownloadError: the address is wrong or can't be fetched.
      ConversionError: for the reasons of `convert`, or because the address already holds a bundle.
    """
    if not os.path.exists(source) and not is_address(source) and (meant := suggestion(source)):
        raise ConversionError(f"{source}: no such file or directory; for the published model, write {meant}")
    if os.path.exists(source) or not is_address(source):
        return convert(source, family=family, **options)
    address, entry = _look_up(parse(source))
    fetched = fetch(address, _make_chooser(entry), _resolve_cache(cache_dir), progress=progress)
    if "model.json" in fetched.files:
        raise ConversionError(f"{address} already holds a bundle: use it with --model or ecapa_jax.load")
    return _convert(address, entry, fetched, family=family, **options)


def bundle_folder(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    patience: float = caches.PATIENCE,
) -> Path:
    """Returns the folder of the bundle of an address. The first call downloads the bundle, or converts a checkpoint.

    Later calls use no network. If several processes call the function at once, one converts and the others wait for it.

    Args:
      name: address of the model.
      cache_dir: folder for downloads and bundles; None is the user's cache folder.
      progress: whether to show a progress bar on a terminal.
      patience: seconds to wait for another process.

    Raises:
      DownloadError: the address is wrong or can't be fetched, the cache can't be written, or another process does
        not finish in time.
      ConversionError: the address holds a model of an unsupported family.
    """
    address, entry = _look_up(parse(name))
    root = _resolve_cache(cache_dir)
    folder = root / "bundles" / address.folder(SCHEMA, importlib.metadata.version("ecapa-jax"))
    if (folder / "model.json").is_file():  # a bundle is renamed to this path when it is complete
        return folder
    fetched = fetch(address, _make_chooser(entry), root, progress=progress, patience=patience)
    if "model.json" in fetched.files:
        return fetched.folder
    with caches.lock_folder(folder, patience):
        if not (folder / "model.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # a part of the bundle was deleted
            save_bundle(_convert(address, entry, fetched), folder)
    return folder


def _resolve_cache(cache_dir: str | os.PathLike[str] | None) -> Path:
    return caches.default_folder() if cache_dir is None else Path(cache_dir)


def _look_up(address: Address) -> tuple[Address, PublishedModel | None]:
    """Returns the address, with the revision of the table if the address has none, and its entry in the table."""
    entry = find_published(address.base)
    if entry is not None and address.revision is None:
        address = dataclasses.replace(address, revision=entry.revision)
    return address, entry


def _make_chooser(entry: PublishedModel | None) -> Wanted:
    """Makes a function that chooses the files of a bundle or of the table entry, or known weights with companions."""

    def choose(names: Collection[str]) -> Collection[str]:
        if "model.json" in names:
            return [name for name in names if name.split("/")[0] in FILES]
        if entry is not None:
            return _match_names(names, entry.files[:1]) and _match_names(names, entry.files)
        weights = [name for name in names if any(name in family.files for family in FAMILIES.values())]
        return weights and [*weights, *(name for name in names if name in COMPANIONS and name not in weights)]

    return choose


def _match_names(names: Collection[str], patterns: Collection[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _find_weights(entry: PublishedModel | None, fetched: Fetched) -> Path:
    """Returns the weight file, or the folder in which `convert` finds it."""
    names = list(fetched.files) if entry is None else _match_names(fetched.files, entry.files[:1])
    return fetched.folder / names[0] if len(names) == 1 else fetched.folder


def _convert(
    address: Address, entry: PublishedModel | None, fetched: Fetched, *, family: str | None = None, **options: Any
) -> Bundle:
    weights = _find_weights(entry, fetched)
    if entry is not None and family is None:
        family = entry.family
    if entry is not None and entry.sha256 not in (None, (found := describe(weights).sha256)):
        raise DownloadError(
            f"{address}: {weights.name} has sha256 {found}, but the published one is {entry.sha256}; please report it"
        )
    try:
        bundle = convert(weights, family=family, **options)
    except ConversionError as error:
        raise ConversionError(f"{address}: {error}") from error
    origin = {
        "address": str(address) if entry is None or address.scheme in HUBS else entry.address,
        "revision": fetched.revision,
        "files": {name: file.sha256 for name, file in fetched.files.items()},
        **({} if entry is None or family != entry.family else _describe_entry(entry)),
    }
    return dataclasses.replace(bundle, provenance={**bundle.provenance, **origin})


def _describe_entry(entry: PublishedModel) -> dict[str, Any]:
    """Returns the licence and the figures of a table entry for the provenance of a bundle."""
    figures: dict[str, Any] = {}
    for figure in entry.figures:
        where = f"{figure.trials}, {figure.scoring}"
        figures[f"{where}: EER %"] = figure.eer
        if figure.min_dcf is not None:
            figures[f"{where}: minDCF (p {figure.p_target:g})"] = figure.min_dcf
    note = "figures of the publisher for the model at this address; ecapa-jax did not measure them"
    return {"licence": entry.licence, **({"published": {**figures, "note": note}} if figures else {})}
