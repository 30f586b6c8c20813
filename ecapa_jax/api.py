"""Loads a model from a name, a folder, a file or an address: `load` and `resolve`."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ecapa_jax.bundle.bundle import load_bundle, read_document
from ecapa_jax.config import ScoringName
from ecapa_jax.encoder import Dtype, SpeakerEncoder
from ecapa_jax.errors import BundleError, ConfigError
from ecapa_jax.onnx_file import is_onnx, read_onnx
from ecapa_jax.presets import DEFAULT as DEFAULT
from ecapa_jax.presets import PRESETS
from ecapa_jax.runtime.compile_cache import private_folder, programs_folder
from ecapa_jax.runtime.machine import Device, check_not_forked, find_devices
from ecapa_jax.runtime.programs import kept_shapes


def default_bundle() -> Path:
    """Returns the folder of the default model, which is part of the package."""
    return Path(str(resources.files("ecapa_jax") / "default_model"))


def check_name(model: str | os.PathLike[str] | None) -> None:
    """Refuses a name that can't be the name of a model, before any work is done.

    Raises:
      BundleError: the name is unknown, or what it names is not a bundle. The message says what to type instead.
    """
    if model is None:
        return
    name = os.fspath(model)
    if not os.path.exists(name):  # not Path.exists, which raises if a folder above can't be entered
        if name == DEFAULT:
            return
        if name in PRESETS:
            raise BundleError(
                f"{name} is a preset without packaged weights: get its checkpoint from the publisher and run "
                f"'ecapa-jax convert CHECKPOINT --family {name} -o BUNDLE'"
            )
    if os.path.isfile(os.path.join(name, "model.json")):
        return  # return early, so that the usual case imports nothing more
    from ecapa_jax.convert.names import why_no_bundle

    if why := why_no_bundle(name):
        raise BundleError(why)


def resolve(
    model: str | os.PathLike[str] | None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Returns the bundle directory of a model; None and `default` name the packaged model.

    Args:
      model: a bundle directory, or an address: `hf:org/name` or `modelscope:org/name`, optionally followed by
        `@revision`, or `https://host/file`. The model at an address is fetched and converted once; later calls use no
        network.
      cache_dir: folder where fetched models are kept; None is the cache folder of the user.
      progress: whether to show a progress bar on a terminal.

    Raises:
      BundleError: there is no such bundle, or the name is a preset, whose weights are not packaged.
      DownloadError: the address is wrong or can't be fetched, or the cache can't be written.
      ConversionError: the model at the address belongs to no supported family.
    """
    if model is None:
        return default_bundle()
    check_name(model)
    name = os.fspath(model)
    if os.path.exists(name):
        return Path(name)
    if name == DEFAULT:
        return default_bundle()
    from ecapa_jax.convert.remote import bundle_folder

    return bundle_folder(name, cache_dir=cache_dir, progress=progress)


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    dtype: Dtype = "float32",
    scoring: ScoringName = "publisher",
    devices: Sequence[Device] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    keep_programs: bool = True,
    programs_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SpeakerEncoder:
    """Loads a model.

    Args:
      model: a bundle directory, a `.onnx` file that `ecapa-jax export` wrote, or an address as for `resolve`; None and
        `default` name the packaged model.
      dtype: compute dtype, `float32` or `bfloat16`; `auto` is bfloat16 where the device is faster in it, otherwise
        float32.
      scoring: `publisher` is the scoring that the model brings; `cosine`, `cosine_less_mean`, `half` and `two_views`
        replace it.
      devices: devices that share each batch; None takes all local devices.
      cache_dir: folder where fetched models are kept; None is the cache folder of the user.
      keep_programs: whether to keep compiled programs for the next process, which then starts in a second or two.
      programs_dir: folder where compiled programs are kept; None is the cache folder of the user. Files in this folder
        are executed, so only you may have the right to write to it.
      progress: whether to show a progress bar on a terminal, and to say there that compiling takes a while.

    Raises:
      BundleError: the bundle or file does not exist or is not whole.
      ConfigError: the dtype is unknown, an ONNX file is asked to run on other devices or in another dtype, the model
        lacks what the scoring needs, or other users can write to `programs_dir`.
      DownloadError, ConversionError: as `resolve`.
    """
    path = resolve(model, cache_dir=cache_dir, progress=progress)
    check_not_forked()
    find_devices()
    if is_onnx(path):
        encoder = _load_onnx(path, dtype, devices)
        encoder.scorer = encoder.scorer.with_scoring(scoring)
        return encoder
    programs = None
    if keep_programs:
        programs = programs_folder() if programs_dir is None else private_folder(Path(programs_dir))
    shapes = None if programs is None else functools.partial(kept_shapes, programs)
    bundle = load_bundle(path, abstract=shapes)
    encoder = SpeakerEncoder.from_bundle(bundle, devices=devices, dtype=dtype, programs=programs, announce=progress)
    encoder.scorer = encoder.scorer.with_scoring(scoring)
    return encoder


def provenance(model: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Returns what a bundle or an ONNX file says about its origin.

    Raises:
      BundleError: the bundle or file does not exist or is not whole.
      DownloadError, ConversionError: as `resolve`.
    """
    path = resolve(model)
    return read_onnx(path).provenance if is_onnx(path) else read_document(path)["provenance"]


def _load_onnx(path: Path, dtype: Dtype, devices: Sequence[Device] | None) -> SpeakerEncoder:
    from ecapa_jax.onnx_encoder import OnnxEncoder

    if dtype == "bfloat16" or devices is not None:
        what = "on the given devices" if devices is not None else f"in {dtype}"
        raise ConfigError(f"{path} can't run {what}: an ONNX file runs on the CPU, in the precision of the file")
    return OnnxEncoder(path)
