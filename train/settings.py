"""Reads the configuration of a run from TOML; `--set section.key=value` changes any value."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from ecapa_jax.config import ModelConfig, from_dict, to_dict
from ecapa_jax.errors import ConfigError
from ecapa_jax.presets import PRESETS
from ecapa_jax.train.config import TrainConfig


def load_config(source: str, changes: list[str] | tuple[str, ...] = ()) -> TrainConfig:
    """Reads the configuration of a run.

    Args:
      source: a TOML file, or the name of a packaged configuration (`packaged_configs`).
      changes: texts of the form `section.key=value`, with the value in TOML; applied in order.

    Raises:
      ConfigError: there is no such file, it is not TOML, a key is unknown, or a value has the wrong type or range.
    """
    document = _read_document(source)
    for change in changes:
        _apply_change(document, change)
    return build_config(document)


def build_config(document: dict[str, Any]) -> TrainConfig:
    """Makes the configuration from a parsed TOML document; keys that it lacks take their defaults.

    `model.preset` names the preset on which `[model.fbank]` and `[model.ecapa]` build.

    Raises:
      ConfigError: as `load_config`.
    """
    document = dict(document)
    model = document.pop("model", {})
    config = from_dict(TrainConfig, document, "", use_defaults=True)
    if not isinstance(model, dict):
        raise ConfigError("model must be a table")
    preset = model.get("preset", "3dspeaker")
    if preset not in PRESETS:
        raise ConfigError(f"model.preset is {preset!r}; it must be one of: {', '.join(PRESETS)}")
    base = to_dict(PRESETS[preset])
    _merge(base, {key: value for key, value in model.items() if key != "preset"})
    return dataclasses.replace(config, model=from_dict(ModelConfig, base, "model"))


def config_document(config: TrainConfig) -> dict[str, Any]:
    """Returns the complete configuration as plain types; `build_config` is the inverse."""
    document = to_dict(config)
    return {key: value for key, value in document.items() if key != "model"} | {"model": document["model"]}


def packaged_configs() -> dict[str, Path]:
    """Returns the files of the packaged configurations by name."""
    folder = Path(str(resources.files("ecapa_jax.train") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _read_document(source: str) -> dict[str, Any]:
    packaged = packaged_configs()
    path = Path(source)
    if not path.is_file():
        if source not in packaged:
            raise ConfigError(f"{source}: no such file, nor a packaged configuration ({', '.join(packaged)})")
        path = packaged[source]
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def _apply_change(document: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {change!r}: write it as section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    for key in keys[:-1]:
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            raise ConfigError(f"--set {change!r}: {key} is not a section")
    document[keys[-1]] = value


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(base.get(key), dict) and isinstance(value, dict):
            _merge(base[key], value)
        else:
            base[key] = value
