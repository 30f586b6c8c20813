"""ECAPA-TDNN, from its blocks to the whole network: turns features and a mask into an embedding.

Letters: B batch, T frames, C channels, M channels of the MFA, D embedding, W = C / scale width of a Res2 chunk.

Only the squeeze of SE (a mean over time), the context of the attention and the pooling look at a whole utterance; all
other layers are local in time. `ecapa_jax.long` calls these local parts directly: `SeRes2Block.frames` and `combine`,
`AttentiveStatisticsPooling.attention`, `EcapaTdnn.embed_pooled`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ecapa_jax.config import EcapaConfig
from ecapa_jax.masks import masked_mean
from ecapa_jax.nn.layers import Conv1d, Frames, Mask, Stat, batch_norm, context_statistics, weighted_statistics
from ecapa_jax.nn.matmul import matmul
from ecapa_jax.nn.poolings import MultiHeadPooling, PosteriorPooling, StatisticsPooling

OutFrames = Float[Array, "batch time out"]
Activation = Callable[[Array], Array]


def outer_activation(config: EcapaConfig) -> Activation:
    """Returns the nonlinearity of the stem, the 1x1 layers of each block, and the MFA."""
    return jax.nn.leaky_relu if config.activation == "leaky_relu" else jax.nn.relu


def inner_activation(config: EcapaConfig) -> Activation:
    """Returns the nonlinearity of the Res2 convolutions, SE and attention."""
    return outer_activation(config) if config.activation_scope == "all" else jax.nn.relu


class TdnnBlock(nnx.Module):
    """Convolution, activation, batch normalisation, in this order.

    Reference: `speechbrain.lobes.models.ECAPA_TDNN.TDNNBlock`; the paper's "Conv1D + ReLU + BN".
    """

    def __init__(
        self,
        config: EcapaConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        norm: bool = True,
        activation: Activation,
        rngs: nnx.Rngs | None,
    ):
        self.activation = activation
        self.conv = Conv1d(
            in_channels,
            out_channels,
            kernel_size,
            dilation=dilation,
            groups=groups,
            padding=config.padding,
            rngs=rngs,
        )
        self.norm = batch_norm(config, out_channels) if norm and config.norm == "batch" else None

    def __call__(self, x: Frames, mask: Mask, *, train: bool = False) -> OutFrames:
        """[B, T, C_in] -> [B, T, C_out]."""
        x = self.activation(self.conv(x, mask))
        return x if self.norm is None else self.norm(x, mask, train=train)


class Res2Conv(nnx.Module):
    """Hierarchical convolution: the output of each chunk is added to the input of the next chunk.

    `config.multiscale` says whether the first or the last chunk passes through unchanged; `grouped` replaces the
    hierarchy by one grouped convolution.

    Reference: the paper's Res2Net module, section 3.2; `speechbrain...Res2NetBlock` (first), WeSpeaker and TaoRuijie
    (last), NeMo (grouped).
    """

    def __init__(self, config: EcapaConfig, block: int, *, rngs: nnx.Rngs | None):
        self.scale, self.order = config.res2_scale, config.multiscale
        channels, kernel = config.channels[block + 1], config.kernel_sizes[block + 1]
        layer = functools.partial(
            TdnnBlock,
            config,
            kernel_size=kernel,
            dilation=config.dilations[block],
            activation=inner_activation(config),
            rngs=rngs,
        )
        if self.order == "grouped":
            self.grouped = layer(channels, channels, groups=self.scale)
            return
        width = channels // self.scale
        for index in range(self.scale - 1):
            setattr(self, f"chunk_{index}", layer(width, width))

    def __call__(self, x: Frames, mask: Mask, *, train: bool = False) -> Frames:
        """[B, T, C] -> [B, T, C]."""
        if self.order == "grouped":
            return self.grouped(x, mask, train=train)
        chunks = jnp.split(x, self.scale, axis=-1)
        through = chunks.pop(0) if self.order == "first" else chunks.pop()
        outputs: list[Array] = []
        for index, chunk in enumerate(chunks):
            chunk = chunk + outputs[-1] if outputs else chunk
            outputs.append(getattr(self, f"chunk_{index}")(chunk, mask, train=train))
        ordered = [through, *outputs] if self.order == "first" else [*outputs, through]
        return jnp.concatenate(ordered, axis=-1)


class SqueezeExcite(nnx.Module):
    """Computes a gate for each channel from the means over time: 1x1, activation, (BN), 1x1, sigmoid.

    Reference: the paper's section 3.2, after Hu et al. 2018.
    """

    def __init__(self, config: EcapaConfig, channels: int, *, rngs: nnx.Rngs | None):
        self.activation = inner_activation(config)
        self.squeeze = Conv1d(channels, config.se_channels, rngs=rngs)
        self.norm = batch_norm(config, config.se_channels) if config.se_norm else None
        self.excite = Conv1d(config.se_channels, channels, rngs=rngs)

    def __call__(self, mean: Float[Array, "batch channels"], *, train: bool = False) -> Float[Array, "batch channels"]:
        """[B, C] mean over real frames -> [B, C] gate in (0, 1)."""
        x, mask = mean[:, None], jnp.ones((mean.shape[0], 1), bool)
        x = self.activation(self.squeeze(x, mask))
        x = x if self.norm is None else self.norm(x, mask, train=train)
        return jax.nn.sigmoid(self.excite(x, mask))[:, 0]


class SeRes2Block(nnx.Module):
    """1x1 convolution, Res2 convolution, 1x1 convolution, squeeze-excitation, and the residual connection.

    Reference: the paper's section 3.2 and its figure of the SE-Res2Block.
    """

    def __init__(self, config: EcapaConfig, block: int, *, rngs: nnx.Rngs | None):
        in_channels, channels = config.channels[block], config.channels[block + 1]
        activation = outer_activation(config)
        self.tdnn_in = TdnnBlock(config, in_channels, channels, activation=activation, rngs=rngs)
        self.res2 = Res2Conv(config, block, rngs=rngs)
        self.tdnn_out = TdnnBlock(config, channels, channels, activation=activation, rngs=rngs)
        self.se = SqueezeExcite(config, channels, rngs=rngs)
        self.shortcut = Conv1d(in_channels, channels, rngs=rngs) if in_channels != channels else None

    def __call__(self, x: Frames, mask: Mask, *, seen: Mask | None = None, train: bool = False) -> OutFrames:
        """[B, T, C_in] -> [B, T, C]. The squeeze averages over `mask`; convolutions see `seen` (None means `mask`)."""
        seen = mask if seen is None else seen
        hidden = self.frames(x, seen, train=train)
        gate = self.se(masked_mean(hidden, mask), train=train)
        return self.combine(x, hidden, gate, seen)

    def frames(self, x: Frames, mask: Mask, *, train: bool = False) -> OutFrames:
        """Applies the layers before the squeeze, which are local in time: [B, T, C_in] -> [B, T, C]."""
        x = self.tdnn_in(x, mask, train=train)
        x = self.res2(x, mask, train=train)
        return self.tdnn_out(x, mask, train=train)

    def combine(self, x: Frames, hidden: OutFrames, gate: Float[Array, "batch out"], mask: Mask) -> OutFrames:
        """Applies the layers after the squeeze, which are local in time: adds the gated `hidden` to the input `x`."""
        residual = x if self.shortcut is None else self.shortcut(x, mask)
        return hidden * gate[:, None] + residual


class AttentiveStatisticsPooling(nnx.Module):
    """Mean and standard deviation over time, weighted by an attention that differs for each channel.

    Attributes:
      hidden: 1x1 convolution of [x, mean, std] (or x alone) to the bottleneck.
      logits: 1x1 convolution of the bottleneck to a logit per frame and channel.

    Reference: the paper's section 3.1.
    """

    def __init__(self, config: EcapaConfig, *, rngs: nnx.Rngs | None):
        channels, bottleneck = config.mfa_channels, config.attention_channels
        self.config = config
        self.hidden = Conv1d(channels * (3 if config.global_context else 1), bottleneck, rngs=rngs)
        self.norm = batch_norm(config, bottleneck) if "bn" in config.attention_hidden else None
        self.logits = Conv1d(bottleneck, channels, rngs=rngs)

    def __call__(self, x: Frames, mask: Mask, *, train: bool = False) -> Float[Array, "batch pooled"]:
        """[B, T, M] -> [B, 2 M]: mean and standard deviation over the real frames of each utterance."""
        context = context_statistics(self.config.context_std, x, mask) if self.config.global_context else None
        logits = self.attention(x, mask, context, train=train)
        keep = mask[..., None]
        # A finite floor, not -inf: an utterance without frames must not cause NaN gradients for the rest of the batch.
        weights = jax.nn.softmax(jnp.where(keep, logits, jnp.finfo(logits.dtype).min), axis=1)
        mean, std = weighted_statistics(self.config.pooled_std, jnp.where(keep, x, 0), weights)
        return jnp.concatenate([mean, std], axis=-1)

    def attention(self, x: Frames, mask: Mask, context: tuple[Stat, Stat] | None, *, train: bool = False) -> Frames:
        """Returns the logits of each frame and channel, [B, T, M].

        Mean and standard deviation are constant over time, so that their two thirds of the first product are computed
        once per utterance instead of once per frame.
        """
        kernel, channels = self.hidden.kernel[...][0], x.shape[-1]
        hidden = matmul(x, kernel[:channels]) + self.hidden.bias[...]
        if context is not None:
            hidden = hidden + matmul(jnp.concatenate(context, axis=-1), kernel[channels:])[:, None]
        if "relu" in self.config.attention_hidden:
            hidden = inner_activation(self.config)(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden, mask, train=train)
        if "tanh" in self.config.attention_hidden:
            hidden = jnp.tanh(hidden)
        return self.logits(hidden, mask)


POOLINGS: dict[str, Any] = {
    "attentive": AttentiveStatisticsPooling,
    "mean": StatisticsPooling,
    "std": StatisticsPooling,
    "mean_std": StatisticsPooling,
    "multi_head": MultiHeadPooling,
    "multi_query": MultiHeadPooling,
    "posterior": PosteriorPooling,
}
"""The pooling of the paper, and the poolings of other publishers."""


class EcapaTdnn(nnx.Module):
    """The network: stem, SE-Res2 blocks, multi-layer feature aggregation (MFA), pooling, projection.

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
        self.pooling = POOLINGS[config.pooling](config, rngs=rngs)
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

        Args:
          features: [B, T, n_mels].
          mask: [B, T], True at real frames: statistics over time are taken over these.
          train: whether to normalise with the statistics of the batch.
          seen: [B, T], True at the frames that convolutions see: the real frames and the blank frames that some front
            ends add. None means `mask`.
          taps: a dict that receives the output of each stage.
        """
        seen = mask if seen is None else seen
        taps = {} if taps is None else taps
        taps["stem"] = x = self.stem(features, seen, train=train)
        outputs: list[Frames] = []
        for index in range(self.config.n_blocks):
            block = getattr(self, f"block_{index}")
            taps[f"block_{index}"] = output = block(x, mask, seen=seen, train=train)
            outputs.append(output)
            x = x + output if self.config.block_input == "sum" else output
        taps["mfa"] = x = self.mfa(jnp.concatenate(outputs, axis=-1), seen, train=train)
        taps["pooled"] = pooled = self.pooling(x, mask, train=train)
        return self.embed_pooled(pooled, train=train)

    def embed_pooled(
        self, pooled: Float[Array, "batch pooled"], *, train: bool = False
    ) -> Float[Array, "batch embedding"]:
        """Applies the last stage to pooled statistics: [B, `pooled_channels`] -> [B, D]."""
        x, mask = pooled[:, None], jnp.ones((pooled.shape[0], 1), bool)
        if self.pooled_norm is not None:
            x = self.pooled_norm(x, mask, train=train)
        x = self.projection(x, mask)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x, mask, train=train)
        return x[:, 0]
