"""The tensor layout that SpeechBrain, 3D-Speaker and ModelScope share.

Reference: `speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN`, `speakerlab.models.ecapa_tdnn.ECAPA_TDNN`.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable

import numpy as np

from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.rules import Rule, Tensors, conv, norm
from ecapa_jax.errors import ConversionError

SIGNATURE = ("mfa.conv.conv.weight", "asp_bn.norm.weight")
IGNORED = (r".*\.num_batches_tracked",)


def _tdnn(source: str, target: str) -> list[Rule]:
    return [*conv(f"{source}.conv.conv", f"{target}/conv"), *norm(f"{source}.norm.norm", f"{target}/norm")]


def _block(config: EcapaConfig, index: int) -> list[Rule]:
    source, target = f"blocks.{index + 1}", f"block_{index}"
    rules = _tdnn(f"{source}.tdnn1", f"{target}/tdnn_in")
    for chunk in range(config.res2_scale - 1):
        rules += _tdnn(f"{source}.res2net_block.blocks.{chunk}", f"{target}/res2/chunk_{chunk}")
    rules += _tdnn(f"{source}.tdnn2", f"{target}/tdnn_out")
    rules += conv(f"{source}.se_block.conv1.conv", f"{target}/se/squeeze")
    rules += conv(f"{source}.se_block.conv2.conv", f"{target}/se/excite")
    if config.channels[index] != config.channels[index + 1]:
        rules += conv(f"{source}.shortcut.conv", f"{target}/shortcut")
    return rules


def rules(config: EcapaConfig) -> list[Rule]:
    """The table for a network of this shape."""
    return [
        *_tdnn("blocks.0", "stem"),
        *(rule for index in range(config.n_blocks) for rule in _block(config, index)),
        *_tdnn("mfa", "mfa"),
        *conv("asp.tdnn.conv.conv", "pooling/hidden"),
        *norm("asp.tdnn.norm.norm", "pooling/norm"),
        *conv("asp.conv.conv", "pooling/logits"),
        *norm("asp_bn.norm", "pooled_norm"),
        *conv("fc.conv", "projection"),
    ]


def infer(tensors: Tensors, base: EcapaConfig) -> EcapaConfig:
    """Reads from the shapes what shapes tell; the rest (dilations, padding, maths) is `base`'s.

    Each size is told by several tensors and goes by their vote, so that one that is missing, superfluous or of the
    wrong shape is left for `apply_rules` to name.

    Raises:
      ConversionError: the number of blocks is not that of `base`'s dilations.
    """
    n_blocks = _n_blocks(tensors) or base.n_blocks
    if n_blocks != len(base.dilations):
        raise ConversionError(
            f"the checkpoint has {n_blocks} SE-Res2 blocks and {len(base.dilations)} dilations are known "
            f"({_comma(base.dilations)}): tensors can't tell them, so give {n_blocks}, such as "
            f"--dilations {_comma(range(2, 2 + n_blocks))}"
        )
    blocks = [f"blocks.{index + 1}" for index in range(n_blocks)]
    stem = _width(tensors, [("blocks.0.conv.conv", "blocks.0.norm.norm")], base.channels[0])
    channels = [
        _width(
            tensors, [(f"{block}.{part}.conv.conv", f"{block}.{part}.norm.norm") for part in ("tdnn1", "tdnn2")], stem
        )
        for block in blocks
    ]
    res2 = [_res2(tensors, block, width) for block, width in zip(blocks, channels, strict=True)]
    mfa = _width(tensors, [("mfa.conv.conv", "mfa.norm.norm")], base.mfa_channels)
    hidden = _width(tensors, [("asp.tdnn.conv.conv", "asp.tdnn.norm.norm")], base.attention_channels)
    _, n_mels, kernel = _shape(tensors, "blocks.0.conv.conv", stem) or (stem, base.n_mels, base.kernel_sizes[0])
    if kernel > n_mels:  # transposed
        n_mels, kernel = base.n_mels, base.kernel_sizes[0]
    _, seen, _ = _shape(tensors, "asp.tdnn.conv.conv", hidden) or (hidden, 0, 1)
    return dataclasses.replace(
        base,
        n_mels=n_mels,
        channels=(stem, *channels),
        kernel_sizes=(kernel, *(kernel for _, kernel in res2)),
        res2_scale=_most([scale for scale, _ in res2], base.res2_scale),
        se_channels=_width(tensors, [(f"{block}.se_block.conv1.conv", None) for block in blocks], base.se_channels),
        attention_channels=hidden,
        global_context={mfa: False, 3 * mfa: True}.get(seen, base.global_context),
        mfa_channels=mfa,
        mfa_kernel_size=_kernel(tensors, "mfa.conv.conv", mfa, sum(channels)) or base.mfa_kernel_size,
        embedding_dim=_width(tensors, [("fc.conv", None)], base.embedding_dim),
    )


def _comma(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _n_blocks(tensors: Tensors) -> int:
    """Blocks in a row that have most of what a block is made of."""
    parts = ("tdnn1", "tdnn2", "se_block")
    for index in itertools.count(1):
        here = [any(name.startswith(f"blocks.{index}.{part}.") for name in tensors) for part in parts]
        if sum(here) < 2:
            return index - 1
    raise AssertionError


def _most(votes: Iterable[int], default: int) -> int:
    """The most frequent vote, the first of equals."""
    return next((value for value, _ in collections.Counter(votes).most_common(1)), default)


def _width(tensors: Tensors, layers: Iterable[tuple[str, str | None]], default: int) -> int:
    """Output channels that convolutions share, each with the norm that follows it."""
    votes = []
    for conv_name, norm_name in layers:
        names = [f"{conv_name}.bias"]
        names += [f"{norm_name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")] * bool(norm_name)
        weight = _tensor(tensors, f"{conv_name}.weight", 3)
        votes += [weight.shape[0]] if weight is not None else []
        votes += [len(tensor) for name in names if (tensor := _tensor(tensors, name, 1)) is not None]
    return _most(votes, default)


def _tensor(tensors: Tensors, name: str, rank: int) -> np.ndarray | None:
    tensor = tensors.get(name)
    return tensor if tensor is not None and tensor.ndim == rank and tensor.size else None


def _shape(tensors: Tensors, name: str, width: int) -> tuple[int, ...] | None:
    """Shape of a convolution's weight, if its outputs are as many as they should be."""
    weight = _tensor(tensors, f"{name}.weight", 3)
    return weight.shape if weight is not None and len(weight) == width else None


def _kernel(tensors: Tensors, name: str, width: int, inputs: int) -> int | None:
    """Kernel of a convolution, if its outputs and inputs are as many as they should be."""
    shape = _shape(tensors, name, width)
    return shape[2] if shape is not None and shape[1] == inputs else None


def _res2(tensors: Tensors, block: str, channels: int) -> tuple[int, int]:
    """Scale and kernel of a Res2 convolution; a scale of one has no tensors, and any kernel."""
    pattern = re.compile(rf"({re.escape(block)}\.res2net_block\.blocks\.\d+)\.")
    chunks = sorted({match[1] for name in tensors if (match := pattern.match(name))})
    if not chunks:
        return 1, 3
    width = _width(tensors, [(f"{chunk}.conv.conv", f"{chunk}.norm.norm") for chunk in chunks], channels)
    kernels = [_kernel(tensors, f"{chunk}.conv.conv", width, width) for chunk in chunks]
    return max(channels // width, 1), _most([kernel for kernel in kernels if kernel], 3)
