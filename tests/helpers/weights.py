"""Random weights that reveal mistakes: every tensor is random, with dead, nearly constant and loud channels."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.rules import flatten, unflatten
from ecapa_jax.presets import PRESETS


def small_config(preset: str = "3dspeaker", width: int = 64, **ecapa: object) -> ModelConfig:
    """Returns a preset with another width and MFA = 3 C."""
    base = PRESETS[preset]
    network = dataclasses.replace(base.ecapa, channels=(width,) * 4, mfa_channels=3 * width, **ecapa)
    return ModelConfig(fbank=dataclasses.replace(base.fbank, n_mels=network.n_mels), ecapa=network)


def shallow_config(preset: str = "3dspeaker", blocks: int = 1) -> ModelConfig:
    """Returns a preset with few small blocks, for tests of batches and shapes that compile many programs."""
    base = small_config(preset, width=16, se_channels=8, attention_channels=8)
    network = dataclasses.replace(
        base.ecapa,
        channels=(16,) * (blocks + 1),
        kernel_sizes=(5, *(3,) * blocks),
        dilations=(2, 4)[-blocks:],
        res2_scale=4,
        embedding_dim=192,
    )
    return dataclasses.replace(base, ecapa=network)


NAMES = (
    (r"^stem/", "blocks.0."),
    (r"^block_(\d+)/tdnn_in/", "blocks.{0}.tdnn1."),
    (r"^block_(\d+)/tdnn_out/", "blocks.{0}.tdnn2."),
    (r"^block_(\d+)/res2/chunk_(\d+)/", "blocks.{0}.res2net_block.blocks.{1}."),
    (r"^block_(\d+)/res2/grouped/", "blocks.{0}.res2net_block.grouped."),
    (r"^block_(\d+)/se/squeeze/", "blocks.{0}.se_block.conv1.conv."),
    (r"^block_(\d+)/se/excite/", "blocks.{0}.se_block.conv2.conv."),
    (r"^block_(\d+)/se/norm/", "blocks.{0}.se_block.norm."),
    (r"^block_(\d+)/shortcut/", "blocks.{0}.shortcut.conv."),
    (r"^mfa/", "mfa."),
    (r"^pooling/hidden/", "asp.tdnn.conv.conv."),
    (r"^pooling/norm/", "asp.tdnn.norm.norm."),
    (r"^pooling/logits/", "asp.conv.conv."),
    (r"^pooled_norm/", "asp_bn.norm."),
    (r"^projection/", "fc.conv."),
    (r"^embedding_norm/", "embedding_norm."),
)
"""Maps this library's paths to names of the shared PyTorch layout, with additional names for what it lacks."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path: str) -> str:
    """Converts `params/block_0/tdnn_in/conv/kernel` to `blocks.1.tdnn1.conv.conv.weight`."""
    *parts, leaf = path.split("/")[1:]
    place = "/".join(parts) + "/"
    for pattern, name in NAMES:
        if match := re.match(pattern, place):
            # That layout counts the stem as block zero.
            numbers = [int(group) + (index == 0) for index, group in enumerate(match.groups())]
            place = name.format(*numbers) + place[match.end() :]
            break
    return place.replace("conv/", "conv.conv.").replace("norm/", "norm.norm.") + LEAVES[leaf]


def random_tensors(config: EcapaConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a float32 checkpoint in the layout that SpeechBrain and 3D-Speaker share, with counters."""
    generator = np.random.default_rng(seed)
    fbank = dataclasses.replace(PRESETS["3dspeaker"].fbank, n_mels=config.n_mels)
    shapes = flatten(functional.abstract(ModelConfig(fbank=fbank, ecapa=config)))
    tensors = {torch_name(path): random_values(generator, path, leaf.shape) for path, leaf in shapes.items()}
    if config.norm == "batch" and config.mfa_norm:
        _add_hard_channels(tensors)
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.array(7, np.int64)
        for name in tensors
        if name.endswith("running_mean")
    }
    return {**tensors, **counters}


def variables_of(config: EcapaConfig, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Converts tensors of `random_tensors` to variables by name, without the converter."""
    fbank = dataclasses.replace(PRESETS["3dspeaker"].fbank, n_mels=config.n_mels)
    shapes = flatten(functional.abstract(ModelConfig(fbank=fbank, ecapa=config)))
    leaves = {path: np.ascontiguousarray(tensors[torch_name(path)].T) for path in shapes}
    return {"params": {}, "batch_stats": {}, "constants": {}, **unflatten(leaves)}


def random_values(generator: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    shape = shape[::-1]
    normal = generator.standard_normal(shape)
    if len(shape) == 3:
        values = normal / np.sqrt(shape[1] * shape[2])
    elif path.endswith("/scale"):
        values = generator.uniform(0.5, 1.5, shape) * generator.choice([-1, 1], shape)
    elif path.endswith("/var"):
        values = np.exp(generator.uniform(-2.0, 1.0, shape))
    else:
        values = 0.2 * normal
    return values.astype(np.float32)


def _add_hard_channels(tensors: dict[str, np.ndarray]) -> None:
    """Makes some MFA channels always zero, and others loud and nearly constant.

    The standard deviation of a dead channel equals the floor, and that of a nearly constant channel is lost in the
    moment form. The attention and the pooled normalization get large weights for both.
    """
    channels = len(tensors["mfa.conv.conv.bias"])
    dead, flat = slice(0, channels // 8), slice(channels // 8, channels // 8 + 6)
    tensors["mfa.conv.conv.weight"][dead] = 0
    tensors["mfa.conv.conv.bias"][dead] = -1
    tensors["mfa.norm.norm.weight"][flat] = 1e-3
    tensors["mfa.norm.norm.bias"][flat] = 20
    for start in (dead.start + channels, flat.start + channels):
        tensors["asp_bn.norm.running_mean"][start : start + 6] = 0
        tensors["asp_bn.norm.running_var"][start : start + 6] = 1e-4
    tensors["asp_bn.norm.running_mean"][flat] = 20
    tensors["asp_bn.norm.weight"][channels : channels + 6] *= 30
    if tensors["asp.tdnn.conv.conv.weight"].shape[1] == 3 * channels:
        deviations = tensors["asp.tdnn.conv.conv.weight"][:, 2 * channels :]
        deviations[:, dead] *= 3000
        deviations[:, flat] *= 300
