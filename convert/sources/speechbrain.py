"""SpeechBrain: a directory with `embedding_model.ckpt`, `hyperparams.yaml`, `mean_var_norm_emb.ckpt`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.family import Companions, Family
from ecapa_jax.convert.readers import read_checkpoint
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.errors import ConfigError, ConversionError
from ecapa_jax.presets import PRESETS

WEIGHTS, HYPERPARAMS, EMBEDDING_MEAN = "embedding_model.ckpt", "hyperparams.yaml", "mean_var_norm_emb.ckpt"

ECAPA_ARGUMENTS = {
    "input_size", "lin_neurons", "channels", "kernel_sizes", "dilations", "attention_channels", "res2net_scale",
    "se_channels", "global_context", "groups", "activation", "device", "dropout",
}  # fmt: skip
FBANK_ARGUMENTS = {"n_mels": "n_mels", "sample_rate": "sample_rate", "f_min": "f_min", "f_max": "f_max"}


class _DataLoader(yaml.SafeLoader):
    """YAML as data: a tag such as !new:package.Class becomes a mapping's "!" entry and is never called."""


def _tagged(loader: _DataLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {"!": suffix, **loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.SequenceNode):
        return {"!": suffix, "items": loader.construct_sequence(node, deep=True)}
    return {"!": suffix, "value": loader.construct_scalar(node)}


_DataLoader.add_multi_constructor("!", _tagged)


def read_hyperparams(path: Path) -> dict[str, Any]:
    """hyperparams.yaml as plain data, with `!ref <name>` replaced by the named value; nothing in it is run.

    Raises:
      ConversionError: it is not a YAML mapping.
    """
    try:
        data = yaml.load(path.read_text(), Loader=_DataLoader)
    except (OSError, yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} can't be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(data, dict):
        raise ConversionError(f"{path} is not a YAML mapping")
    return {key: _resolve(value, data, path) for key, value in data.items()}


def _resolve(value: Any, top: dict[str, Any], path: Path, depth: int = 0) -> Any:
    if depth > 8:
        raise ConversionError(f"{path}: references are nested too deeply")
    if isinstance(value, dict) and value.get("!") == "ref":
        whole = re.fullmatch(r"<(\w+)>", str(value.get("value")))
        # A path or an expression is left as text: only values that the model needs must resolve.
        if whole is None or whole[1] not in top:
            return value.get("value")
        return _resolve(top[whole[1]], top, path, depth + 1)
    if isinstance(value, dict):
        return {key: _resolve(item, top, path, depth + 1) for key, item in value.items()}
    return [_resolve(item, top, path, depth + 1) for item in value] if isinstance(value, list) else value


def _part(hyperparams: dict[str, Any], cls: str, path: Path) -> dict[str, Any] | None:
    """The arguments of the one object of a class, by its dotted name's end."""
    found = [
        value
        for value in hyperparams.values()
        if isinstance(value, dict) and str(value.get("!", "")).split(":")[-1].endswith(cls)
    ]
    if len(found) > 1 and any(value != found[0] for value in found):
        raise ConversionError(f"{path} defines {cls} more than once")
    return {key: value for key, value in found[0].items() if key != "!"} if found else None


def _network(arguments: dict[str, Any], path: Path) -> EcapaConfig:
    if unknown := sorted(arguments.keys() - ECAPA_ARGUMENTS):
        raise ConversionError(f"{path}: ECAPA_TDNN argument {unknown[0]!r} is not known to this converter")
    if any(group != 1 for group in arguments.get("groups", [])):
        raise ConversionError(f"{path}: grouped convolutions (groups {arguments['groups']}) are not supported")
    if (activation := arguments.get("activation")) is not None:
        named = activation.get("value") or activation.get("!") if isinstance(activation, dict) else activation
        if not str(named).endswith("ReLU") or "Leaky" in str(named):
            raise ConversionError(f"{path}: activation {named} is not built yet; built: torch.nn.ReLU")
    dilations = arguments.get("dilations", [1, 2, 3, 4, 1])
    channels = arguments.get("channels", [512, 512, 512, 512, 1536])
    kernels = arguments.get("kernel_sizes", [5, 3, 3, 3, 1])
    if dilations[0] != 1:
        raise ConversionError(f"{path}: a dilated first layer (dilations {dilations}) is not supported")
    return dataclasses.replace(
        PRESETS["speechbrain"].ecapa,
        channels=tuple(channels[:-1]),
        mfa_channels=channels[-1],
        kernel_sizes=tuple(kernels[:-1]),
        mfa_kernel_size=kernels[-1],
        dilations=tuple(dilations[1:-1]),
        mfa_dilation=dilations[-1],
    )


def _front_end(hyperparams: dict[str, Any], path: Path) -> dict[str, Any]:
    """Fields of `FbankConfig` that the file sets; refuses what this front end does not do."""
    arguments = _part(hyperparams, "features.Fbank", path)
    if arguments is None:
        raise ConversionError(f"{path} has no speechbrain.lobes.features.Fbank: its front end is not supported")
    known = {**FBANK_ARGUMENTS, "n_fft": "", "win_length": "", "hop_length": "", "left_frames": "", "right_frames": ""}
    for name, value in arguments.items():
        standard = {"n_fft": 400, "win_length": 25, "hop_length": 10, "left_frames": 5, "right_frames": 5}.get(name)
        if (name not in known and value) or (standard is not None and value != standard):
            raise ConversionError(f"{path}: Fbank {name}={value!r} is not supported")
    normalization = _part(hyperparams, "features.InputNormalization", path) or {}
    if normalization.get("norm_type", "sentence") != "sentence" or normalization.get("std_norm", True):
        raise ConversionError(
            f"{path}: only InputNormalization(norm_type: sentence, std_norm: False) is supported, "
            f"found {normalization or 'none'}"
        )
    fields = {field: arguments[name] for name, field in FBANK_ARGUMENTS.items() if name in arguments}
    return {key: float(value) if key.startswith("f_") else value for key, value in fields.items()}


def recognises(weights: Path) -> bool:
    """By hyperparams.yaml beside embedding_model.ckpt; the weights' name alone is 3D-Speaker's training output too."""
    return weights.name == WEIGHTS and (weights.parent / HYPERPARAMS).is_file()


def companions(weights: Path) -> Companions:
    """Network and front end of hyperparams.yaml, mean of mean_var_norm_emb.ckpt; the published preset without them.

    The mean is kept, not used: `verify_batch` has not subtracted it since SpeechBrain 1.0. Its threshold of 0.25 is a
    default of that function, not a figure of any model, and is not taken over.
    """
    preset = PRESETS["speechbrain"]
    path = weights.parent / HYPERPARAMS
    if weights.name != WEIGHTS or not path.is_file():
        return Companions(config=preset)
    hyperparams = read_hyperparams(path)
    arguments = _part(hyperparams, "ECAPA_TDNN.ECAPA_TDNN", path)
    if arguments is None:
        raise ConversionError(f"{path} defines no speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN")
    fields = _front_end(hyperparams, path)
    try:
        fbank = dataclasses.replace(preset.fbank, **fields)
        ecapa = dataclasses.replace(_network(arguments, path), n_mels=fbank.n_mels)
        config = ModelConfig(fbank=fbank, ecapa=ecapa)
    except (ConfigError, TypeError, IndexError) as error:
        raise ConversionError(f"{path}: {error}") from error
    return Companions(config=config, embedding_mean=_embedding_mean(weights.parent / EMBEDDING_MEAN))


def _embedding_mean(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    content = read_checkpoint(path).content
    mean = content.get("glob_mean") if isinstance(content, dict) else None
    if not isinstance(mean, np.ndarray) or mean.size == 0 or not np.isfinite(mean.astype(np.float32)).all():
        raise ConversionError(f"{path} holds no glob_mean: remove it to convert without an embedding mean")
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
    licence="Apache-2.0",
    published={
        "VoxCeleb1-O EER %": 0.90,
        "VoxCeleb1-O EER % with s-norm": 0.80,
        "source": "model card of spkrec-ecapa-voxceleb",
    },
)
