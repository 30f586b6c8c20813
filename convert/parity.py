"""Proves a conversion by measuring errors against the original code of the family, or against packaged golden values.

Golden values prove that this installation computes the same as the family, with weights from a seed. Another check
proves that the bundle contains the weights of the checkpoint, bit for bit. Only a run of the original code proves both
together.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import jax
import numpy as np

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from ecapa_jax.convert.family import Family
from ecapa_jax.convert.rules import flatten, invert_rules, unflatten
from ecapa_jax.errors import ConversionError
from ecapa_jax.features.constants import stored_constants
from ecapa_jax.presets import PRESETS

WIDTH = 16
"""Block channels of the golden model."""

STEP = 16
"""Distance between the frames of a stage that golden values contain."""

BOUND, COSINE_BOUND = 1e-4, 0.999999
"""Highest allowed error of an embedding relative to its largest value, and lowest allowed cosine."""

WAVEFORM = "1.2 s, synthetic: a gliding chord in bursts, noise, a part 100 dB below the loudest"

_GOLDEN = (
    "Proves that this installation computes the maths of the family, by a comparison with golden values of the "
    "reference, with seeded random weights and {width} channels. These errors don't prove the weights of this bundle; "
    "the comparison of the tensors proves them, bit for bit."
)
_LIVE = "Proves this bundle, by running its own weights in the original code and in this library on one waveform."

Stages = Mapping[str, np.ndarray]


def waveform(sample_rate: int = 16000) -> np.ndarray:
    """Makes the waveform on which errors are measured, [S] float32."""
    time = np.arange(int(1.2 * sample_rate)) / sample_rate
    rng = np.random.default_rng(0)
    chord = sum(
        np.sin(2 * np.pi * pitch * (1 + 0.2 * time) * time) / (1 + k) for k, pitch in enumerate((140, 280, 730))
    )
    loud = 0.3 * chord * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * time)) + 0.01 * rng.standard_normal(len(time))
    return (loud * np.where((time > 0.5) & (time < 0.7), 1e-5, 1.0)).astype(np.float32)


def preset_of(family: Family) -> ModelConfig:
    """Returns the configuration of the published model of the family."""
    return PRESETS[family.published[0].preset if family.published else family.name]


def golden_model(family: Family, config: ModelConfig | None = None) -> tuple[ModelConfig, dict[str, Any]]:
    """Makes the published model of the family at `WIDTH` (or `config`), with weights from a seed."""
    preset = preset_of(family)
    channels = (WIDTH,) * len(preset.ecapa.channels)
    network = dataclasses.replace(
        preset.ecapa, channels=channels, mfa_channels=3 * WIDTH, se_channels=8, attention_channels=8
    )
    config = config or dataclasses.replace(preset, ecapa=network)
    rng = np.random.default_rng(sum(family.name.encode()))
    leaves = flatten({**functional.abstract(config), "constants": {}})
    values = {path: _draw_values(rng, path, leaves[path].shape) for path in sorted(leaves)}
    return config, {**unflatten(values), "constants": stored_constants(config.fbank)}


def _draw_values(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = rng.standard_normal(shape)
    if path.endswith("/kernel"):
        normal = normal / np.sqrt(np.prod(shape[:-1]))
    elif path.endswith("/scale"):
        normal = 0.5 + np.abs(normal)
    elif path.endswith("/var"):
        normal = np.exp(0.5 * normal)
    else:
        normal = 0.2 * normal
    return normal.astype(np.float32)


def weights_hash(variables: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the weights of the golden model, to tell a changed generator from wrong maths.

    Mel matrix and window are left out: they are computed, and their last bit depends on the machine.
    """
    leaves = flatten({**variables, "constants": {}})
    digest = hashlib.sha256()
    for path in sorted(leaves):
        digest.update(f"{path}{leaves[path].shape}".encode() + np.asarray(leaves[path], np.float32).tobytes())
    return digest.hexdigest()


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """Loads the packaged values by `FAMILY/STAGE`; `FAMILY/about` is JSON with reference and hash of the weights."""
    with resources.files("ecapa_jax.convert").joinpath("golden.npz").open("rb") as file, np.load(file) as values:
        return dict(values)


def sample_stage(stages: Stages) -> dict[str, np.ndarray]:
    """Takes every `STEP`th frame of a stage, as golden values do."""
    return {
        name: np.asarray(x, np.float32)[::STEP] if x.ndim == 2 else np.asarray(x, np.float32)
        for name, x in stages.items()
    }


# The programs that this module compiles run once or twice, so optimising them costs more than it saves. The fusion
# emitters of XLA on a CPU take four times the memory for such a program (jaxlib 0.12 has no alternative to them).
_CHEAP = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_emitter_verification_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


@functools.cache
def compiled(function: Callable[..., Any]) -> Any:
    """Applies jit to `function(config, ...)` with options that compile fast and in little memory, for a few calls."""
    return jax.jit(function, static_argnums=0, compiler_options=_compiler_options())


def forget_compiled() -> None:
    """Releases the programs of `compiled`, about 15 MB for each function and shape, and returns freed memory."""
    for function in (functional.embed, functional.stages):
        compiled(function).clear_cache()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc keeps freed memory for the thread that used it


@functools.cache
def _compiler_options() -> dict[str, Any]:
    """Returns the options in `_CHEAP` that this version of XLA knows; all of them are optional."""
    known = {}
    for name, value in _CHEAP.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda x: x, compiler_options={name: value})(np.float32(0))
            known[name] = value
    return known


def our_stages(config: ModelConfig, variables: Mapping[str, Any], sound: np.ndarray) -> dict[str, np.ndarray]:
    """Computes all stages of one utterance with this library, [T, C] or [C], from features to embedding."""
    found = compiled(functional.stages)(config, variables, sound[None], np.array([len(sound)], np.int32))
    blocks = [f"block_{index}" for index in range(config.ecapa.n_blocks)]
    order = ["features", "stem", *blocks, "mfa", "pooled", "embedding"]  # jit sorts them
    return {name: np.asarray(found[name])[0] for name in order}


def quick_report(family: Family) -> dict[str, Any]:
    """Compares the golden embedding of the family at small width, which takes a second or two.

    Raises:
      ConversionError: the embedding is wrong, so this installation must not convert.
    """
    about, theirs = _load_golden(family)
    if not theirs:
        return {}
    config, variables = _make_checked_model(family, about)
    sound = waveform(config.fbank.sample_rate)
    ours = compiled(functional.embed)(config, variables, sound[None], np.array([len(sound)], np.int32))
    return _make_report({"embedding": np.asarray(ours)[0]}, theirs, _describe_golden(about))


def full_report(family: Family, config: ModelConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Compares every stage with the original code if it is installed, and otherwise with golden values.

    The report also compares an utterance in a padded batch with the same utterance alone.

    Raises:
      ConversionError: a stage is wrong.
    """
    sound = waveform(config.fbank.sample_rate)
    if (found := _compare_live(family, config, variables, sound)) is not None:
        code, theirs = found
        ours = our_stages(config, variables, sound)
        about = {"reference": "live", "reference_code": code, "reference_weights": "this model's", "proves": _LIVE}
        report = _make_report(ours, theirs, about)
    else:
        golden_about, theirs = _load_golden(family)
        if not theirs:
            return {"batch_equals_single": _compute_batch_error(config, variables, sound)}
        small, random = _make_checked_model(family, golden_about)
        report = _make_report(sample_stage(our_stages(small, random, sound)), theirs, _describe_golden(golden_about))
    return {**report, "batch_equals_single": _compute_batch_error(config, variables, sound)}


def _compare_live(
    family: Family, config: ModelConfig, variables: Mapping[str, Any], sound: np.ndarray
) -> tuple[str, dict[str, np.ndarray]] | None:
    try:
        from ecapa_jax.convert import live  # imports torch
    except ImportError:
        return None
    if (code := live.available(family.name, config.ecapa)) is None:
        return None
    tensors = invert_rules(family.rules(config.ecapa), variables)
    return code, live.stages(family.name, config, tensors, sound)


def _load_golden(family: Family) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Loads the description of the golden values and their values for each stage; both are empty if there are none."""
    prefix = f"{family.name}/"
    values = {name.removeprefix(prefix): x for name, x in golden().items() if name.startswith(prefix)}
    about = values.pop("about", None)
    return (json.loads(str(about)), values) if about is not None else ({}, {})


def _make_checked_model(family: Family, about: Mapping[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
    config, variables = golden_model(family)
    if weights_hash(variables) != about["weights"]:
        raise ConversionError(
            "the golden weights can't be made here, because NumPy's generator gives other numbers: install the "
            "versions in constraints-*.txt, or report this"
        )
    return config, variables


def _describe_golden(about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "reference": "golden",
        "reference_code": about["code"],
        "reference_weights": f"seeded random, {WIDTH} channels",
        "proves": _GOLDEN.format(width=WIDTH),
    }


def _make_report(ours: Stages, theirs: Stages, about: dict[str, Any]) -> dict[str, Any]:
    errors = {name: _compute_errors(x, theirs[name]) for name, x in ours.items() if name in theirs}
    for name, error in errors.items():
        if not (error["max_abs_over_max"] <= BOUND and error["cosine"] >= COSINE_BOUND):  # NaN fails too
            raise ConversionError(
                f"the parity check failed at {name}: error {error['max_abs_over_max']:.1e} of the largest value, "
                f"cosine {error['cosine']:.7f} against {about['reference_code']}; nothing was written, please report it"
            )
    return {**about, "waveform": WAVEFORM, "errors": errors}


def _compute_errors(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    if ours.shape != theirs.shape:
        return {"max_abs_over_max": 1e9, "cosine": -1.0}
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    scale = float(np.abs(b).max()) or 1.0
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
    return {"max_abs_over_max": float(np.abs(a - b).max()) / scale, "cosine": cosine}


def _compute_batch_error(config: ModelConfig, variables: Mapping[str, Any], sound: np.ndarray) -> float:
    """Computes the error of an utterance in a padded batch relative to the same utterance alone."""
    minimum = functional.minimum_samples(config)
    batch = np.full((3, len(sound) + 4000), np.nan, np.float32)
    rows = (sound[:minimum], sound, sound[: len(sound) // 2][::-1])
    for place, row in zip(batch, rows, strict=True):
        place[: len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    together = np.asarray(compiled(functional.embed)(config, variables, batch, lengths))[1]
    alone = np.asarray(compiled(functional.embed)(config, variables, sound[None], lengths[1:2]))[0]
    return _compute_errors(together, alone)["max_abs_over_max"]
