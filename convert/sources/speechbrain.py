"""Converts SpeechBrain's directories of `embedding_model.ckpt`, `hyperparams.yaml` and `mean_var_norm_emb.ckpt`."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.family import Companions, Family, Published, Source
from ecapa_jax.convert.readers.checkpoint import read_checkpoint
from ecapa_jax.convert.readers.hyperpyyaml import Hyperparams, Unread
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.errors import ConfigError, ConversionError
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.config import Scoring

WEIGHTS, HYPERPARAMS, EMBEDDING_MEAN = "embedding_model.ckpt", "hyperparams.yaml", "mean_var_norm_emb.ckpt"

ECAPA = "!new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN"
FBANK = "!new:speechbrain.lobes.features.Fbank"
NORMALIZATION = "!new:speechbrain.processing.features.InputNormalization"

# Default arguments of each class. tests/convert/test_speechbrain.py compares them with the package.
ECAPA_DEFAULTS: dict[str, Any] = {
    "input_size": 0,  # the class has no default
    "lin_neurons": 192,
    "channels": [512, 512, 512, 512, 1536],
    "kernel_sizes": [5, 3, 3, 3, 1],
    "dilations": [1, 2, 3, 4, 1],
    "attention_channels": 128,
    "res2net_scale": 8,
    "se_channels": 128,
    "global_context": True,
    "groups": [1, 1, 1, 1, 1],
}
FBANK_DEFAULTS: dict[str, Any] = {
    "deltas": False,
    "context": False,
    "requires_grad": False,
    "sample_rate": 16000,
    "f_min": 0.0,
    "f_max": None,
    "n_fft": 400,
    "n_mels": 40,
    "filter_shape": "triangular",
    "win_length": 25.0,
    "hop_length": 10.0,
}
NORMALIZATION_DEFAULTS: dict[str, Any] = {"mean_norm": True, "std_norm": True, "norm_type": "global", "length_dim": 1}

# Arguments that never change inference, or that don't change it with the supported values of the other arguments.
ECAPA_UNUSED = {"activation", "device", "dropout"}  # _read_activation checks activation
FBANK_UNUSED = {"left_frames", "right_frames", "param_change_factor", "param_rand_factor"}
NORMALIZATION_UNUSED = {
    "avg_factor", "requires_grad", "update_until_epoch", "avoid_padding_norm", "epsilon", "device",
}  # fmt: skip

FREE_FBANK = ("f_min", "f_max", "n_mels")
LEAKY_RELU = ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU")
RELU = ("torch.nn.ReLU", "torch.nn.modules.activation.ReLU")

STATED = {
    "n_mels": "n_mels",
    "channels": "channels",
    "kernel_sizes": "kernel_sizes",
    "dilations": "dilations",
    "res2_scale": "res2net_scale",
    "se_channels": "se_channels",
    "attention_channels": "attention_channels",
    "mfa_channels": "channels",
    "mfa_kernel_size": "kernel_sizes",
    "embedding_dim": "lin_neurons",
    "global_context": "global_context",
}
"""SpeechBrain's arguments by the names of our fields."""


def _read_arguments(
    file: Hyperparams, name: str, tag: str, defaults: dict[str, Any], unused: set[str]
) -> dict[str, Any]:
    """Reads the arguments of one object, fills in the defaults and checks the types.

    Raises:
      ConversionError: the object is missing, has another class, or has an argument that is unknown or of another type.
    """
    found = file.read_part(name)
    if found is None:
        raise file.make_error(f"it defines no {name} ({tag})")
    if found[0] != tag:
        raise file.make_error(f"{name} is {found[0]}, which is not supported; supported: {tag}")
    for argument, value in found[1].items():
        if argument in unused:
            continue
        if argument not in defaults:
            raise file.make_error(f"{name} has the argument {argument!r}, which this converter does not know")
        if isinstance(value, Unread):
            raise file.make_error(f"{name}: {argument} is {value}: replace it by its value")
        if not _has_type_of(value, defaults[argument]):
            raise file.make_error(f"{name}: {argument} is {value!r}, which is not of the type that SpeechBrain takes")
    return defaults | {argument: value for argument, value in found[1].items() if argument in defaults}


def _has_type_of(value: Any, default: Any) -> bool:
    """Whether a value has the type of a default; if the default is None or a float, any number fits."""
    if isinstance(default, list):
        return isinstance(value, list) and all(type(item) is int for item in value)
    if default is None or isinstance(default, float):
        number = type(value) in (int, float) and math.isfinite(value)
        return number or (value is None and default is None)
    return type(value) is type(default)


def _check_supported(file: Hyperparams, name: str, arguments: dict[str, Any], supported: dict[str, Any]) -> None:
    for argument, value in supported.items():
        if arguments[argument] != value:
            raise file.make_error(f"{name}: {argument} {arguments[argument]!r} is not supported; supported: {value!r}")


def _read_fbank_fields(file: Hyperparams) -> dict[str, Any]:
    """Reads the fields of `FbankConfig` that the file sets; raises an error for unsupported values."""
    arguments = _read_arguments(file, "compute_features", FBANK, FBANK_DEFAULTS, FBANK_UNUSED)
    fixed = {argument: default for argument, default in FBANK_DEFAULTS.items() if argument not in FREE_FBANK}
    _check_supported(file, "compute_features", arguments, fixed)
    norm = _read_arguments(file, "mean_var_norm", NORMALIZATION, NORMALIZATION_DEFAULTS, NORMALIZATION_UNUSED)
    wanted = {"norm_type": "sentence", "std_norm": False, "mean_norm": True, "length_dim": 1}
    _check_supported(file, "mean_var_norm", norm, wanted)
    f_max = 8000.0 if arguments["f_max"] is None else float(arguments["f_max"])
    return {"f_min": float(arguments["f_min"]), "f_max": f_max, "n_mels": arguments["n_mels"]}


def _read_network(file: Hyperparams) -> EcapaConfig:
    arguments = _read_arguments(file, "embedding_model", ECAPA, ECAPA_DEFAULTS, ECAPA_UNUSED)
    activation = _read_activation(file)
    if not arguments["input_size"]:
        raise file.make_error("embedding_model: input_size is missing")
    channels, kernels, dilations = (arguments[name] for name in ("channels", "kernel_sizes", "dilations"))
    if not len(channels) == len(kernels) == len(dilations) >= 3:
        raise file.make_error(
            f"embedding_model: channels, kernel_sizes and dilations must have one length of at least three, got "
            f"{channels}, {kernels}, {dilations}"
        )
    if any(group != 1 for group in arguments["groups"]):
        raise file.make_error(
            f"embedding_model: groups {arguments['groups']} is not supported; supported: 1 for all layers"
        )
    if dilations[0] != 1:
        raise file.make_error(
            f"embedding_model: dilations {dilations} is not supported; supported: 1 for the first layer"
        )
    return dataclasses.replace(
        PRESETS["speechbrain"].ecapa,
        n_mels=arguments["input_size"],
        channels=tuple(channels[:-1]),
        mfa_channels=channels[-1],
        kernel_sizes=tuple(kernels[:-1]),
        mfa_kernel_size=kernels[-1],
        dilations=tuple(dilations[1:-1]),
        mfa_dilation=dilations[-1],
        res2_scale=arguments["res2net_scale"],
        se_channels=arguments["se_channels"],
        attention_channels=arguments["attention_channels"],
        embedding_dim=arguments["lin_neurons"],
        global_context=arguments["global_context"],
        **activation,
    )


def _read_activation(file: Hyperparams) -> dict[str, Any]:
    """Reads the fields of the activation. SpeechBrain uses it in the outer layers only; the inner layers keep ReLU."""
    found = file.read_part("embedding_model")
    activation = found[1].get("activation") if found else None
    name = str(activation).removeprefix("!name:")
    if activation is None or name in RELU:
        return {}
    if name in LEAKY_RELU:
        return {"activation": "leaky_relu", "activation_scope": "outer"}
    supported = f"!name:{RELU[0]}, !name:{LEAKY_RELU[0]}"
    raise file.make_error(f"embedding_model: activation {activation!r} is not supported; supported: {supported}")


def _find_hyperparams(weights: Path) -> Path | None:
    """Finds hyperparams.yaml beside the weights, or in the training run with this checkpoint (RUN/save/CKPT+DATE)."""
    folder = weights.parent
    run = [folder.parent, folder.parent.parent] if folder.name.startswith("CKPT+") else []
    places = (place / HYPERPARAMS for place in (folder, *run))
    return next((path for path in places if path.is_file()), None)


def _is_language_id(path: Path) -> bool:
    try:
        part = Hyperparams(path).read_part("embedding_model")
    except ConversionError:
        return False  # the conversion explains what is wrong with the file
    return part is not None and str(part[1].get("activation")).removeprefix("!name:") in LEAKY_RELU


def recognises(source: Source) -> bool:
    """Recognises the family by hyperparams.yaml, because 3D-Speaker's training writes an embedding_model.ckpt too."""
    path = _find_hyperparams(source.path)
    return source.path.name == WEIGHTS and path is not None and not _is_language_id(path)


def recognises_language_id(source: Source) -> bool:
    """Recognises the family by the activation in hyperparams.yaml."""
    path = _find_hyperparams(source.path)
    return source.path.name == WEIGHTS and path is not None and _is_language_id(path)


def companions(source: Source, preset: str = "speechbrain") -> Companions:
    """Reads network and front end from hyperparams.yaml and the mean from mean_var_norm_emb.ckpt.

    Without hyperparams.yaml, the function returns the published preset. The bundle keeps the mean but does not use it,
    because `verify_batch` has not subtracted it since SpeechBrain 1.0. The scoring `cosine_less_mean` does what
    `verify_batch` did before with its argument `normalize`.

    Reference: `speechbrain.inference.classifiers.EncoderClassifier.encode_batch` (which objects it calls).
    """
    base = PRESETS[preset]
    path = _find_hyperparams(source.path)
    if path is None:
        return Companions(config=base)
    file = Hyperparams(path)
    try:
        fbank = dataclasses.replace(base.fbank, **_read_fbank_fields(file))
        config = ModelConfig(fbank=fbank, ecapa=_read_network(file))
    except (ConfigError, TypeError) as error:
        raise file.make_error(str(error)) from error
    mean = _read_embedding_mean(source.path.parent / EMBEDDING_MEAN, config.ecapa.embedding_dim)
    return Companions(config=config, stated_in=HYPERPARAMS, stated=STATED, embedding_mean=mean)


def _read_embedding_mean(path: Path, embedding_dim: int) -> np.ndarray | None:
    """Reads the mean embedding that `InputNormalization` saved, [1, D] or [D]."""
    if not path.is_file():
        return None
    content = read_checkpoint(path).content
    mean = content.get("glob_mean") if isinstance(content, dict) else None
    if not isinstance(mean, np.ndarray) or mean.size != embedding_dim or mean.shape[-1:] != (embedding_dim,):
        found = f"one of shape {mean.shape}" if isinstance(mean, np.ndarray) else "none"
        raise ConversionError(
            f"{path}: expected a glob_mean of {embedding_dim} values, found {found}; correct or remove it"
        )
    if mean.dtype.kind != "f" or not np.isfinite(mean).all():
        raise ConversionError(f"{path}: glob_mean ({mean.dtype}) holds values that are not finite floats; remove it")
    return mean.reshape(-1).astype(np.float32)


FAMILY = Family(
    name="speechbrain",
    title="SpeechBrain",
    files=(WEIGHTS,),
    signature=sb_layout.SIGNATURE,
    ignored=sb_layout.IGNORED,
    rules=sb_layout.rules,
    infer=sb_layout.infer,
    companions=companions,
    recognises=recognises,
    published=(
        Published(
            preset="speechbrain",
            file=WEIGHTS,
            licence="Apache-2.0",
            figures={
                "VoxCeleb1-O EER %": 0.90,
                "VoxCeleb1-O EER % with s-norm": 0.80,
                "source": "model card of spkrec-ecapa-voxceleb",
            },
        ),
    ),
    scoring=Scoring(threshold=0.25),  # the default of `SpeakerRecognition.verify_batch`, not a figure of the model
)

LANGUAGE_ID = dataclasses.replace(
    FAMILY,
    name="speechbrain-langid",
    title="SpeechBrain language identification",
    companions=functools.partial(companions, preset="speechbrain-langid"),
    recognises=recognises_language_id,
    published=(
        Published(
            preset="speechbrain-langid",
            file=WEIGHTS,
            licence="Apache-2.0",
            figures={
                "source": "lang-id-voxlingua107-ecapa: recognises languages, not speakers, so no trial list applies"
            },
        ),
    ),
)
