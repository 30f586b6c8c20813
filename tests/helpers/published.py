"""Checkpoints in WeSpeaker's layout, with the names and shapes of WeSpeaker's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ecapa_jax.config import EcapaConfig
from helpers.torch_zip_writer import write_torch_zip


def wespeaker_shapes(config: EcapaConfig) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors of `wespeaker.models.ecapa_tdnn.ECAPA_TDNN`, without counters."""
    channels, mfa = config.channels[0], config.mfa_channels
    width = channels // config.res2_scale
    shapes = conv("layer1.conv", channels, config.n_mels, 5) | batch_norm("layer1.bn", channels)
    for layer in ("layer2", "layer3", "layer4"):
        block = f"{layer}.se_res2block"
        for part in (0, 2):
            shapes |= conv(f"{block}.{part}.conv", channels, channels, 1) | batch_norm(f"{block}.{part}.bn", channels)
        for chunk in range(config.res2_scale - 1):
            shapes |= conv(f"{block}.1.convs.{chunk}", width, width, 3) | batch_norm(f"{block}.1.bns.{chunk}", width)
        shapes |= conv(f"{block}.3.linear1", config.se_channels, channels)
        shapes |= conv(f"{block}.3.linear2", channels, config.se_channels)
    shapes |= conv("conv", mfa, 3 * channels, 1)
    if config.pooling == "attentive":
        seen = mfa * (3 if config.global_context else 1)
        shapes |= conv("pool.linear1", config.attention_channels, seen, 1)
        shapes |= conv("pool.linear2", mfa, config.attention_channels, 1)
    shapes |= wespeaker_pooling_shapes(config)
    shapes |= batch_norm("bn", config.pooled_channels) | conv("linear", config.embedding_dim, config.pooled_channels)
    return shapes | (batch_norm("bn2", config.embedding_dim) if config.embedding_norm else {})


def wespeaker_pooling_shapes(config: EcapaConfig) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors of MHASTP, MQMHASTP and XI."""
    mfa, bottleneck = config.mfa_channels, config.attention_channels
    if config.pooling == "posterior":
        priors = {f"pool.{name}": (1, mfa) for name in ("prior_mean", "prior_logprec")}
        inner = conv("pool.lin1_relu_bn.0", bottleneck, mfa, 1) | batch_norm("pool.lin1_relu_bn.2", bottleneck)
        return priors | inner | conv("pool.lin2", mfa, bottleneck, 1)
    queries, heads = {"multi_head": ([""], 2), "multi_query": (["n_query.0.", "n_query.1."], 8)}.get(
        config.pooling, ([], 0)
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for query in queries:
        for head in range(heads):
            name, share = f"pool.{query}heads_att_trans.{head}", mfa // heads
            shapes |= conv(f"{name}.att_0", bottleneck, share, 1)
            shapes |= conv(f"{name}.att_1", 1 if config.pooling == "multi_head" else share, bottleneck, 1)
    return shapes


def conv(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def random_values(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random weights that keep every layer's output in a useful range, with a counter for each batch norm."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        normal = generator.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            tensors[name] = normal / np.float32(np.sqrt(np.prod(shape[1:])))
        elif name.endswith("running_var"):
            tensors[name] = np.exp(normal / 2)
            tensors[name.replace("running_var", "num_batches_tracked")] = np.array(7, np.int64)
        elif "running_mean" not in name and f"{name.removesuffix('weight')}running_var" in shapes:
            tensors[name] = (1 + 0.3 * normal) * generator.choice(np.array([-1, 1], np.float32), shape)
        else:
            tensors[name] = np.float32(0.2) * normal
    return tensors


def wespeaker_document(**model_args: Any) -> dict[str, Any]:
    """Returns config.yaml as WeSpeaker writes it; a value of None removes its key."""
    given = {"embed_dim": 192, "feat_dim": 80, "pooling_func": "ASTP", **model_args}
    return {
        "model": "ECAPA_TDNN_GLOB_c512",
        "model_args": {name: value for name, value in given.items() if value is not None},
        "dataset_args": {
            "fbank_args": {"dither": 1.0, "frame_length": 25, "frame_shift": 10, "num_mel_bins": 80},
            "resample_rate": 16000,
            "spec_aug": False,
        },
        "projection_args": {"project_type": "arc_margin", "scale": 32.0},
    }


def wespeaker(directory: Path, content: object, document: object = None) -> Path:
    """Writes a directory as WeSpeaker publishes it."""
    directory.mkdir(exist_ok=True)
    write_torch_zip(directory / "avg_model.pt", content)
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    if document is not None:
        (directory / "config.yaml").write_text(text)
    return directory
