"""Files in the layout of pyannote's segmentation-3.0, from the packaged weights and random filters."""

from __future__ import annotations

import dataclasses
import enum
import pickle
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ecapa_jax.diarization import segmentation
from helpers.torch_zip_writer import Raw


def pytorch_state(weights: segmentation.Weights) -> dict[str, np.ndarray]:
    """Converts weights to PyTorch's state dict, without the filter bank."""
    state = {}
    for ours, theirs in (("wave_norm", "wav_norm1d"), *((("norm", i), f"norm1d.{i}") for i in range(3))):
        norm = weights[ours] if isinstance(ours, str) else weights[ours[0]][ours[1]]
        state[f"sincnet.{theirs}.weight"], state[f"sincnet.{theirs}.bias"] = norm["scale"], norm["bias"]
    for index, conv in enumerate(weights["conv"], 1):
        state[f"sincnet.conv1d.{index}.weight"] = conv["kernel"].transpose(2, 1, 0)
        state[f"sincnet.conv1d.{index}.bias"] = conv["bias"]
    for layer, lstm in enumerate(weights["lstm"]):
        for direction, end in enumerate(("", "_reverse")):
            name = f"l{layer}{end}"
            state[f"lstm.weight_ih_{name}"] = lstm["input"][direction].T
            state[f"lstm.weight_hh_{name}"] = lstm["hidden"][direction].T
            state[f"lstm.bias_ih_{name}"] = lstm["bias"][direction]
            state[f"lstm.bias_hh_{name}"] = np.zeros_like(lstm["bias"][direction])
    for index, dense in enumerate(weights["linear"]):
        state[f"linear.{index}.weight"], state[f"linear.{index}.bias"] = dense["kernel"].T, dense["bias"]
    state["classifier.weight"] = weights["classifier"]["kernel"].T
    state["classifier.bias"] = weights["classifier"]["bias"]
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def with_filters(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds a random filter bank to the state dict."""
    rng = np.random.default_rng(0)
    bank = "sincnet.conv1d.0.filterbank."
    return state | {
        f"{bank}low_hz_": rng.uniform(0, 4000, (40, 1)).astype(np.float32),
        f"{bank}band_hz_": rng.uniform(50, 500, (40, 1)).astype(np.float32),
        f"{bank}n_": (2 * np.pi * np.arange(-125, 0) / 16000).astype(np.float32)[None],
        f"{bank}window_": np.hamming(251)[:125].astype(np.float32),
    }


def published(state: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Returns the content of `pytorch_model.bin`: weights, hyperparameters, and objects of pyannote's classes."""
    task = ModuleType("pyannote.audio.core.task")
    problem = enum.Enum("Problem", {"MONO_LABEL_CLASSIFICATION": 1}, module=task.__name__)
    resolution = enum.Enum("Resolution", {"FRAME": 1}, module=task.__name__)
    fields = {"problem": problem, "resolution": resolution, "duration": float, "classes": list}
    specifications = dataclasses.make_dataclass("Specifications", fields.items())
    specifications.__module__ = task.__name__
    version = type("TorchVersion", (str,), {"__module__": "torch.torch_version"})
    for kind in (problem, resolution, specifications):
        setattr(task, kind.__name__, kind)
    torch_version = ModuleType("torch.torch_version")
    torch_version.TorchVersion = version
    for name in ("pyannote", "pyannote.audio", "pyannote.audio.core"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, task.__name__, task)
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    monkeypatch.setitem(sys.modules, torch_version.__name__, torch_version)
    beside = specifications(problem(1), resolution(1), 10.0, ["speaker#1", "speaker#2", "speaker#3"])
    content = {
        "epoch": 7,
        "pytorch-lightning_version": "1.6.5",
        "state_dict": state,
        "hyper_parameters": {"sincnet": {"stride": 10}, "lstm": {"hidden_size": 128}, "sample_rate": 16000},
        "pyannote.audio": {
            "versions": {"torch": opcodes(version("1.13.1")), "pyannote.audio": "2.1.1"},
            "architecture": {"module": "pyannote.audio.models.segmentation.PyanNet", "class": "PyanNet"},
            "specifications": opcodes(beside),
        },
    }
    monkeypatch.undo()
    return content


def opcodes(value: object) -> Raw:
    """Returns the opcodes that the standard pickler writes for a value."""
    return Raw(pickle.dumps(value, protocol=2)[2:-1])
