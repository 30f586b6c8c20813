"""ECAPA-TDNN: features and mask to embedding.

Letters: B batch, T frames, C channels, M channels of the MFA, D embedding.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ecapa_jax.config import EcapaConfig
from ecapa_jax.masks import masked_mean
from ecapa_jax.nn.blocks import SeRes2Block, TdnnBlock, batch_norm, outer_activation
from ecapa_jax.nn.conv import Conv1d
from ecapa_jax.nn.other_poolings import MultiHeadPooling, PosteriorPooling
from ecapa_jax.nn.pooling import AttentiveStatisticsPooling, context_statistics, plain_statistics

Frames = Float[Array, "batch time channels"]
Mask = Bool[Array, "batch time"]


POOLINGS: dict[str, Any] = {
    "attentive": AttentiveStatisticsPooling,
    "multi_head": MultiHeadPooling,
    "multi_query": MultiHeadPooling,
    "posterior": PosteriorPooling,
}
"""Poolings with weights of their own."""


class EcapaTdnn(nnx.Module):
    """The network, as stages between its global reductions.

    Only SE (mean over time), the attention's context and the pooling look at a whole utterance; what lies between is
    local in time. The stages below are cut there, so that one-shot, masked and chunked use share them.

    Reference: Desplanques et al. 2020 (arXiv 2005.07143), figure 2 and section 3.
    """

    def __init__(self, config: EcapaConfig, *, rngs: nnx.Rngs | None):
        self.config = config
        activation = outer_activation(config)
        self.stem = TdnnBlock(
            config, config.n_mels, config.channels[0], config.kernel_sizes[0], activation=activation, rngs=rngs
        )
        for block in range(config.n_blocks):
            setattr(self, f"block_{block}", SeRes2Block(config, block, rngs=rngs))
        self.mfa = TdnnBlock(
            config,
            sum(config.channels[1:]),
            config.mfa_channels,
            config.mfa_kernel_size,
            dilation=config.mfa_dilation,
            norm=config.mfa_norm,
            activation=activation,
            rngs=rngs,
        )
        self.pooling = POOLINGS[config.pooling](config, rngs=rngs) if config.pooling in POOLINGS else None
        self.pooled_norm = batch_norm(config, config.pooled_channels) if config.norm == "batch" else None
        self.projection = Conv1d(config.pooled_channels, config.embedding_dim, rngs=rngs)
        self.embedding_norm = batch_norm(config, config.embedding_dim) if config.embedding_norm else None

    def __call__(
        self,
        features: Float[Array, "batch time mels"],
        mask: Mask,
        *,
        train: bool = False,
        seen: Mask | None = None,
        taps: dict[str, Array] | None = None,
    ) -> Float[Array, "batch embedding"]:
        """[B, T, n_mels] features -> [B, D] embedding, not normalised to length one.

        Statistics over time are taken where `mask` is True, convolutions where `seen` is: a front end's blank frames
        lie between the two. None means `mask`. `taps` is given what each stage computes.
        """
        seen = mask if seen is None else seen
        taps = {} if taps is None else taps
        taps["stem"] = x = self.stem(features, seen, train=train)
        outputs: list[Frames] = []
        for index in range(self.config.n_blocks):
            block = getattr(self, f"block_{index}")
            hidden = block.frames(x, seen, train=train)
            gate = block.se(masked_mean(hidden, mask), train=train)
            output = block.combine(x, hidden, gate, seen)
            taps[f"block_{index}"] = output
            outputs.append(output)
            x = x + output if self.config.block_input == "sum" else output
        taps["mfa"] = x = self.mfa(jnp.concatenate(outputs, axis=-1), seen, train=train)
        taps["pooled"] = pooled = self.pool(x, mask, train=train)
        return self.embed_pooled(pooled, train=train)

    def pool(self, x: Frames, mask: Mask, *, train: bool = False) -> Float[Array, "batch pooled"]:
        """Statistics over each utterance's real frames: [B, T, M] -> [B, `pooled_channels`]."""
        if self.pooling is None:
            return plain_statistics(self.config, x, mask)
        if not isinstance(self.pooling, AttentiveStatisticsPooling):
            return self.pooling(x, mask, train=train)
        context = context_statistics(self.config.context_std, x, mask) if self.config.global_context else None
        return self.pooling.pool(x, self.pooling.attention(x, mask, context, train=train), mask)

    def embed_pooled(
        self, pooled: Float[Array, "batch pooled"], *, train: bool = False
    ) -> Float[Array, "batch embedding"]:
        """The last stage: pooled statistics, [B, `pooled_channels`] -> [B, D]."""
        x, mask = pooled[:, None], jnp.ones((pooled.shape[0], 1), bool)
        if self.pooled_norm is not None:
            x = self.pooled_norm(x, mask, train=train)
        x = self.projection(x, mask)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x, mask, train=train)
        return x[:, 0]
