"""The tensor layout that SpeechBrain, 3D-Speaker and ModelScope share.

Reference: `speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN`, `speakerlab.models.ecapa_tdnn.ECAPA_TDNN`.
"""

from __future__ import annotations

import dataclasses
import re

from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.rules import Rule, Tensors, conv, norm
from ecapa_jax.errors import ConversionError

SIGNATURE = ("blocks.0.conv.conv.weight", "asp_bn.norm.weight")
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

    A tensor that is missing or of the wrong rank leaves `base`'s value, for `apply_rules` to report.
    """

    def size(name: str, axis: int, default: int) -> int:
        tensor = tensors.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.ndim == 3 else default

    pattern = re.compile(r"blocks\.(\d+)\.tdnn1\.conv\.conv\.weight")
    n_blocks = sum(pattern.fullmatch(name) is not None for name in tensors)
    chunk = re.compile(r"blocks\.1\.res2net_block\.blocks\.\d+\.conv\.conv\.weight")
    n_chunks = sum(chunk.fullmatch(name) is not None for name in tensors)
    stem = "blocks.0.conv.conv.weight"
    blocks = [f"blocks.{index + 1}" for index in range(n_blocks)]
    channels = (
        size(stem, 0, base.channels[0]),
        *(size(f"{block}.tdnn2.conv.conv.weight", 0, base.channels[-1]) for block in blocks),
    )
    kernels = (
        size(stem, 2, base.kernel_sizes[0]),
        *(size(f"{block}.res2net_block.blocks.0.conv.conv.weight", 2, 3) for block in blocks),
    )
    mfa_channels = size("mfa.conv.conv.weight", 0, base.mfa_channels)
    if n_blocks and len(base.dilations) != n_blocks:
        raise ConversionError(
            f"the checkpoint has {n_blocks} SE-Res2 blocks and tensors can't tell their dilations: "
            f"give {n_blocks} of them, such as --dilations {','.join(str(2 + index) for index in range(n_blocks))}"
        )
    return dataclasses.replace(
        base,
        n_mels=size(stem, 1, base.n_mels),
        channels=channels if n_blocks else base.channels,
        kernel_sizes=kernels if n_blocks else base.kernel_sizes,
        res2_scale=n_chunks + 1 if n_chunks else base.res2_scale,
        se_channels=size("blocks.1.se_block.conv1.conv.weight", 0, base.se_channels),
        attention_channels=size("asp.tdnn.conv.conv.weight", 0, base.attention_channels),
        global_context=size("asp.tdnn.conv.conv.weight", 1, 3 * mfa_channels) != mfa_channels,
        mfa_channels=mfa_channels,
        mfa_kernel_size=size("mfa.conv.conv.weight", 2, base.mfa_kernel_size),
        embedding_dim=size("fc.conv.weight", 0, base.embedding_dim),
    )
