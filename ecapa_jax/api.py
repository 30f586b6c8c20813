"""One call to a model: `load` for an encoder, `pipeline` for ModelScope's call and result."""

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
from ecapa_jax.runtime.machine import Device
from ecapa_jax.runtime.programs import kept_shapes


def default_bundle() -> Path:
    """Directory of the packaged default model."""
    return Path(str(resources.files("ecapa_jax") / "default_model"))


def check_name(model: str | os.PathLike[str] | None) -> None:
    """Refuses a name that can be no model's, before any work is done for it.

    Raises:
      BundleError: nothing is there, or something that is no bundle: what to type instead.
    """
    if model is None:
        return
    name = os.fspath(model)
    if not os.path.exists(name):  # not Path.exists, which raises where a folder above may not be entered
        if name == DEFAULT:
            return
        if name in PRESETS:
            raise BundleError(
                f"{name} is a preset without packaged weights: get its checkpoint from the publisher and run "
                f"'ecapa-jax convert CHECKPOINT --family {name} -o BUNDLE'"
            )
    if os.path.isfile(os.path.join(name, "model.json")):
        return  # the usual case imports nothing more
    from ecapa_jax.convert.names import why_no_bundle

    if why := why_no_bundle(name):
        raise BundleError(why)


def resolve(
    model: str | os.PathLike[str] | None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """The bundle directory of a model name; None and `default` are the packaged model.

    Args:
      model: a bundle directory, or an address: `hf:org/name`, `modelscope:org/name`, both with `@revision` where
        wanted, or `https://host/file`. What it names is fetched and converted once; later no network is used for it.
      cache_dir: where that is kept; None is the user's cache folder.
      progress: show a bar while fetching, on a terminal.

    Raises:
      BundleError: there is no such bundle, or the name is a preset, whose weights are not packaged.
      DownloadError: the address is wrong or can't be fetched, or the cache can't be written.
      ConversionError: what the address names is of no supported family.
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
      model: a bundle directory, a `.onnx` file as `ecapa-jax export` writes it, or an address as `resolve` takes it;
        None and `default` are the packaged model.
      dtype: compute dtype, `float32` or `bfloat16`; `auto` is bfloat16 where the device is faster in it.
      scoring: the model's own (`publisher`), or `cosine`, `cosine_less_mean`, `half` or `two_views` in its place.
      devices: devices that share each batch; None is all local ones.
      cache_dir: where models of addresses are kept; None is the user's cache folder.
      keep_programs: keep compiled programs for the next process, which then starts in a second or two.
      programs_dir: where they are kept; None is the user's cache folder. Files in it are run: only you may write to it.
      progress: on a terminal, show a bar while a model is fetched and say when compiling takes a while.

    Raises:
      BundleError: there is no whole bundle or file.
      ConfigError: there is no such dtype, an ONNX file is to run on other devices or in another dtype, the scoring
        needs what the model does not bring, or other users can write to `programs_dir`.
      DownloadError, ConversionError: as `resolve`.
    """
    path = resolve(model, cache_dir=cache_dir, progress=progress)
    if is_onnx(path):
        encoder = _load_onnx(path, dtype, devices)
        encoder.scorer = encoder.scorer.named(scoring)
        return encoder
    programs = None
    if keep_programs:
        programs = programs_folder() if programs_dir is None else private_folder(Path(programs_dir))
    shapes = None if programs is None else functools.partial(kept_shapes, programs)
    bundle = load_bundle(path, abstract=shapes)
    encoder = SpeakerEncoder.from_bundle(bundle, devices=devices, dtype=dtype, programs=programs, announce=progress)
    encoder.scorer = encoder.scorer.named(scoring)
    return encoder


def provenance(model: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What a bundle or an ONNX file says of its origin.

    Raises:
      BundleError: there is no whole bundle or file.
      DownloadError, ConversionError: as `resolve`.
    """
    path = resolve(model)
    return read_onnx(path).provenance if is_onnx(path) else read_document(path)["provenance"]


def _load_onnx(path: Path, dtype: Dtype, devices: Sequence[Device] | None) -> SpeakerEncoder:
    from ecapa_jax.onnx_encoder import OnnxEncoder

    if dtype == "bfloat16" or devices is not None:
        what = "on the devices it is given" if devices is not None else f"in {dtype}"
        raise ConfigError(f"{path} can't run {what}: an ONNX file runs on the processor in its own precision")
    return OnnxEncoder(path)
