"""A run's configuration from TOML, each value changeable by `--set section.key=value`."""

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
    """Reads a run's configuration.

    Args:
      source: a TOML file, or the name of one that is packaged (`packaged_configs`).
      changes: `section.key=value`, the value in TOML; applied in order.

    Raises:
      ConfigError: no such file, not TOML, an unknown key, or a value of the wrong type or range.
    """
    document = _read(source)
    for change in changes:
        _apply(document, change)
    return build_config(document)


def build_config(document: dict[str, Any]) -> TrainConfig:
    """The configuration of a parsed TOML document: what it does not name keeps its default.

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
    """The configuration as plain types, complete; `build_config` gives it back."""
    document = to_dict(config)
    return {key: value for key, value in document.items() if key != "model"} | {"model": document["model"]}


def packaged_configs() -> dict[str, Path]:
    """Name to file of the configurations that come with the package."""
    folder = Path(str(resources.files("ecapa_jax.train") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _read(source: str) -> dict[str, Any]:
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


def _apply(document: dict[str, Any], change: str) -> None:
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
            raise ConfigError(f"--set {change!r}: {key} is no section")
    document[keys[-1]] = value


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(base.get(key), dict) and isinstance(value, dict):
            _merge(base[key], value)
        else:
            base[key] = value
