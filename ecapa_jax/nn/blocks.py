"""The blocks of ECAPA-TDNN: TDNN, Res2 convolution, squeeze-excitation, SE-Res2.

Letters: B batch, T frames, C channels, W = C / scale width of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from ecapa_jax.config import EcapaConfig
from ecapa_jax.nn.batchnorm import BatchNorm
from ecapa_jax.nn.conv import Conv1d

Frames = Float[Array, "batch time channels"]
Output = Float[Array, "batch time out"]
Mask = Bool[Array, "batch time"]
Activation = Callable[[Array], Array]


def outer_activation(config: EcapaConfig) -> Activation:
    """Nonlinearity of the stem, of the 1x1 layers of each block and of the MFA."""
    return jax.nn.leaky_relu if config.activation == "leaky_relu" else jax.nn.relu


def inner_activation(config: EcapaConfig) -> Activation:
    """Nonlinearity of the Res2 convolutions, SE and attention."""
    return outer_activation(config) if config.activation_scope == "all" else jax.nn.relu


def batch_norm(config: EcapaConfig, channels: int) -> BatchNorm:
    """Batch normalisation with the config's constants."""
    return BatchNorm(channels, epsilon=config.norm_epsilon, momentum=config.norm_momentum)


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

    def __call__(self, x: Frames, mask: Mask, *, train: bool = False) -> Output:
        """[B, T, C_in] -> [B, T, C_out]."""
        x = self.activation(self.conv(x, mask))
        return x if self.norm is None else self.norm(x, mask, train=train)


class Res2Conv(nnx.Module):
    """Hierarchical convolution: each chunk sees the one before it (`first`/`last` passes through), or one grouped one.

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
    """Gate of each channel from its mean over time: 1x1, activation, (BN), 1x1, sigmoid.

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
    """1x1, Res2 convolution, 1x1, squeeze-excitation, residual; in two stages about the squeeze.

    Reference: the paper's figure 2.
    """

    def __init__(self, config: EcapaConfig, block: int, *, rngs: nnx.Rngs | None):
        in_channels, channels = config.channels[block], config.channels[block + 1]
        activation = outer_activation(config)
        self.tdnn_in = TdnnBlock(config, in_channels, channels, activation=activation, rngs=rngs)
        self.res2 = Res2Conv(config, block, rngs=rngs)
        self.tdnn_out = TdnnBlock(config, channels, channels, activation=activation, rngs=rngs)
        self.se = SqueezeExcite(config, channels, rngs=rngs)
        self.shortcut = Conv1d(in_channels, channels, rngs=rngs) if in_channels != channels else None

    def frames(self, x: Frames, mask: Mask, *, train: bool = False) -> Output:
        """The stage before the squeeze: [B, T, C_in] -> [B, T, C]."""
        x = self.tdnn_in(x, mask, train=train)
        x = self.res2(x, mask, train=train)
        return self.tdnn_out(x, mask, train=train)

    def combine(self, x: Frames, hidden: Output, gate: Float[Array, "batch out"], mask: Mask) -> Output:
        """The stage after it: the gated `hidden` added to the block's input `x`."""
        residual = x if self.shortcut is None else self.shortcut(x, mask)
        return hidden * gate[:, None] + residual
