"""The tensor layout that SpeechBrain, 3D-Speaker and ModelScope share.

Reference: `speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN`, `speakerlab.models.ecapa_tdnn.ECAPA_TDNN`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.rules import Rule, Tensors, conv, norm
from ecapa_jax.convert.sources import shapes

SIGNATURE = ("mfa.conv.conv.weight", "asp_bn.norm.weight")
IGNORED = (r".*\.num_batches_tracked",)


def _map_tdnn(source: str, target: str) -> list[Rule]:
    return [*conv(f"{source}.conv.conv", f"{target}/conv"), *norm(f"{source}.norm.norm", f"{target}/norm")]


def _map_block(config: EcapaConfig, index: int) -> list[Rule]:
    source, target = f"blocks.{index + 1}", f"block_{index}"
    rules = _map_tdnn(f"{source}.tdnn1", f"{target}/tdnn_in")
    for chunk in range(config.res2_scale - 1):
        rules += _map_tdnn(f"{source}.res2net_block.blocks.{chunk}", f"{target}/res2/chunk_{chunk}")
    rules += _map_tdnn(f"{source}.tdnn2", f"{target}/tdnn_out")
    rules += conv(f"{source}.se_block.conv1.conv", f"{target}/se/squeeze")
    rules += conv(f"{source}.se_block.conv2.conv", f"{target}/se/excite")
    if config.channels[index] != config.channels[index + 1]:
        rules += conv(f"{source}.shortcut.conv", f"{target}/shortcut")
    return rules


def rules(config: EcapaConfig) -> list[Rule]:
    """Makes the table for a network of this shape."""
    return [
        *_map_tdnn("blocks.0", "stem"),
        *(rule for index in range(config.n_blocks) for rule in _map_block(config, index)),
        *_map_tdnn("mfa", "mfa"),
        *conv("asp.tdnn.conv.conv", "pooling/hidden"),
        *norm("asp.tdnn.norm.norm", "pooling/norm"),
        *conv("asp.conv.conv", "pooling/logits"),
        *norm("asp_bn.norm", "pooled_norm"),
        *conv("fc.conv", "projection"),
    ]


def infer(tensors: Tensors, base: EcapaConfig) -> EcapaConfig:
    """Infers sizes from the shapes of the tensors; dilations, padding and maths come from `base`.

    Raises:
      ConversionError: the number of blocks is not the number of dilations in `base`.
    """
    n_blocks = _count_blocks(tensors) or base.n_blocks
    shapes.check_dilations(n_blocks, base.dilations)
    blocks = [f"blocks.{index + 1}" for index in range(n_blocks)]
    stem = shapes.infer_width(tensors, [("blocks.0.conv.conv", "blocks.0.norm.norm")], base.channels[0])
    channels = [
        shapes.infer_width(
            tensors, [(f"{block}.{part}.conv.conv", f"{block}.{part}.norm.norm") for part in ("tdnn1", "tdnn2")], stem
        )
        for block in blocks
    ]
    res2 = [_infer_res2(tensors, block, width) for block, width in zip(blocks, channels, strict=True)]
    mfa = shapes.infer_width(tensors, [("mfa.conv.conv", "mfa.norm.norm")], base.mfa_channels)
    hidden = shapes.infer_width(tensors, [("asp.tdnn.conv.conv", "asp.tdnn.norm.norm")], base.attention_channels)
    _, n_mels, kernel = shapes.find_shape(tensors, "blocks.0.conv.conv", stem) or (
        stem,
        base.n_mels,
        base.kernel_sizes[0],
    )
    if kernel > n_mels:  # the weight is transposed
        n_mels, kernel = base.n_mels, base.kernel_sizes[0]
    _, seen, _ = shapes.find_shape(tensors, "asp.tdnn.conv.conv", hidden) or (hidden, 0, 1)
    return dataclasses.replace(
        base,
        n_mels=n_mels,
        channels=(stem, *channels),
        kernel_sizes=(kernel, *(kernel for _, kernel in res2)),
        res2_scale=shapes.choose_majority([scale for scale, _ in res2], base.res2_scale),
        se_channels=shapes.infer_width(
            tensors, [(f"{block}.se_block.conv1.conv", None) for block in blocks], base.se_channels
        ),
        attention_channels=hidden,
        global_context={mfa: False, 3 * mfa: True}.get(seen, base.global_context),
        mfa_channels=mfa,
        mfa_kernel_size=shapes.infer_kernel(tensors, "mfa.conv.conv", mfa, sum(channels)) or base.mfa_kernel_size,
        embedding_dim=shapes.infer_width(tensors, [("fc.conv", None)], base.embedding_dim),
    )


def _count_blocks(tensors: Tensors) -> int:
    """Counts consecutive blocks that have most of the tensors of a block."""
    parts = ("tdnn1", "tdnn2", "se_block")
    for index in itertools.count(1):
        here = [any(name.startswith(f"blocks.{index}.{part}.") for name in tensors) for part in parts]
        if sum(here) < 2:
            return index - 1
    raise AssertionError


def _infer_res2(tensors: Tensors, block: str, channels: int) -> tuple[int, int]:
    """Infers scale and kernel of a Res2 convolution. A scale of one has no tensors, so any kernel fits."""
    pattern = re.compile(rf"({re.escape(block)}\.res2net_block\.blocks\.\d+)\.")
    chunks = sorted({match[1] for name in tensors if (match := pattern.match(name))})
    if not chunks:
        return 1, 3
    width = shapes.infer_width(tensors, [(f"{chunk}.conv.conv", f"{chunk}.norm.norm") for chunk in chunks], channels)
    kernels = [shapes.infer_kernel(tensors, f"{chunk}.conv.conv", width, width) for chunk in chunks]
    return max(channels // width, 1), shapes.choose_majority([kernel for kernel in kernels if kernel], 3)
