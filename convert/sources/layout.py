"""Describes a layout as a table of names, from which it makes the rules and infers the sizes of the network."""

from __future__ import annotations

import dataclasses
import itertools

from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.ops import CONV1D, IDENTITY, Op
from ecapa_jax.convert.rules import Rule, Tensors, norm
from ecapa_jax.convert.sources import shapes
from ecapa_jax.convert.sources.shapes import Layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the layers of a network in a checkpoint. A `Layer` is a convolution and the batch norm after it.

    Attributes:
      stem, mfa, hidden: first convolution, multi-layer feature aggregation, bottleneck of the attention.
      block_in, block_out: 1x1 layers of a block, where `{block}` counts from one.
      res2: chunk of the Res2 convolution of a block, where `{chunk}` counts from zero, or its grouped convolution.
      squeeze, excite: convolutions of the squeeze-excitation of a block.
      logits: second convolution of the attention.
      pooled_norm, embedding_norm: batch norms of the pooled statistics and of the embedding, if it has one.
      projection, projection_op: last layer, and the change of layout of its weight.
      mel_matrix, mel_matrix_op, window: mel matrix of the stored front end, its change of layout, and the window.
    """

    stem: Layer
    block_in: Layer
    res2: Layer
    block_out: Layer
    squeeze: Layer
    excite: str
    mfa: Layer
    hidden: Layer
    logits: str
    pooled_norm: str
    projection: str
    projection_op: Op
    embedding_norm: str | None = None
    mel_matrix: str
    mel_matrix_op: Op
    window: str

    def rules(self, config: EcapaConfig) -> list[Rule]:
        """Makes the table for a network of this shape."""
        table = _map_tdnn(self.stem, "stem")
        for index in range(config.n_blocks):
            table += self._map_block(config, index)
        table += _map_tdnn(self.mfa, "mfa")
        table += _map_layer(self.hidden, "pooling/hidden", "pooling/norm")
        table += _map_layer((self.logits, None), "pooling/logits")
        table += norm(self.pooled_norm, "pooled_norm")
        table += _map_layer((self.projection, None), "projection", op=self.projection_op)
        table += norm(self.embedding_norm, "embedding_norm") if self.embedding_norm else []
        return [
            *table,
            Rule(source=self.mel_matrix, target="constants/mel_matrix", op=self.mel_matrix_op),
            Rule(source=self.window, target="constants/window", op=IDENTITY),
        ]

    def _map_block(self, config: EcapaConfig, index: int) -> list[Rule]:
        target = f"block_{index}"
        table = _map_tdnn(_resolve(self.block_in, index + 1), f"{target}/tdnn_in")
        if config.multiscale == "grouped":
            table += _map_tdnn(_resolve(self.res2, index + 1), f"{target}/res2/grouped")
        else:
            for chunk in range(config.res2_scale - 1):
                table += _map_tdnn(_resolve(self.res2, index + 1, chunk), f"{target}/res2/chunk_{chunk}")
        table += _map_tdnn(_resolve(self.block_out, index + 1), f"{target}/tdnn_out")
        table += _map_layer(_resolve(self.squeeze, index + 1), f"{target}/se/squeeze", f"{target}/se/norm")
        return table + _map_layer(_resolve((self.excite, None), index + 1), f"{target}/se/excite")

    def infer(self, tensors: Tensors, base: EcapaConfig) -> EcapaConfig:
        """Infers sizes from the shapes of the tensors; dilations, padding and maths come from `base`.

        Raises:
          ConversionError: the number of blocks is not the number of dilations in `base`.
        """
        n_blocks = self._count_blocks(tensors) or base.n_blocks
        shapes.check_dilations(n_blocks, base.dilations)
        blocks = range(1, n_blocks + 1)
        stem = shapes.infer_width(tensors, [self.stem], base.channels[0])
        channels = [
            shapes.infer_width(tensors, [_resolve(self.block_in, block), _resolve(self.block_out, block)], stem)
            for block in blocks
        ]
        res2 = [self._infer_res2(tensors, block, width, base) for block, width in zip(blocks, channels, strict=True)]
        mfa = shapes.infer_width(tensors, [self.mfa], base.mfa_channels)
        hidden = shapes.infer_width(tensors, [self.hidden], base.attention_channels)
        _, n_mels, kernel = shapes.find_shape(tensors, self.stem[0], stem) or (stem, base.n_mels, base.kernel_sizes[0])
        _, seen, _ = shapes.find_shape(tensors, self.hidden[0], hidden) or (hidden, 0, 1)
        ends = [(self.projection, self.embedding_norm)]
        return dataclasses.replace(
            base,
            n_mels=n_mels,
            channels=(stem, *channels),
            kernel_sizes=(kernel, *(kernel for _, kernel in res2)),
            res2_scale=shapes.choose_majority([scale for scale, _ in res2], base.res2_scale),
            se_channels=shapes.infer_width(
                tensors, [_resolve(self.squeeze, block) for block in blocks], base.se_channels
            ),
            attention_channels=hidden,
            global_context={mfa: False, 3 * mfa: True}.get(seen, base.global_context),
            mfa_channels=mfa,
            mfa_kernel_size=shapes.infer_kernel(tensors, self.mfa[0], mfa, sum(channels)) or base.mfa_kernel_size,
            embedding_dim=shapes.infer_width(tensors, ends, base.embedding_dim),
        )

    def _count_blocks(self, tensors: Tensors) -> int:
        """Counts consecutive blocks that have most of the layers of a block."""
        for block in itertools.count(1):
            layers = (
                _resolve(self.block_in, block),
                _resolve(self.block_out, block),
                _resolve(self.squeeze, block),
            )
            if sum(any(name.startswith(f"{layer}.") for name in tensors) for layer, _ in layers) < 2:
                return block - 1
        raise AssertionError

    def _infer_res2(self, tensors: Tensors, block: int, channels: int, base: EcapaConfig) -> tuple[int, int]:
        """Infers scale and kernel of a Res2 or grouped convolution. A scale of 1 has no tensors and fits any kernel."""
        kernel = base.kernel_sizes[-1]
        if base.multiscale == "grouped":
            _, each, kernel = shapes.find_shape(tensors, _resolve(self.res2, block)[0], channels) or (
                channels,
                0,
                kernel,
            )
            return (channels // each if each else base.res2_scale), kernel
        chunks = [_resolve(self.res2, block, chunk) for chunk in range(channels)]
        chunks = [layer for layer in chunks if f"{layer[0]}.weight" in tensors or f"{layer[0]}.bias" in tensors]
        if not chunks:
            return 1, kernel
        width = shapes.infer_width(tensors, chunks, channels)
        kernels = [shapes.infer_kernel(tensors, layer, width, width) for layer, _ in chunks]
        return max(channels // width, 1), shapes.choose_majority([found for found in kernels if found], kernel)


def _resolve(layer: Layer, block: int, chunk: int = 0) -> Layer:
    conv, after = layer
    return conv.format(block=block, chunk=chunk), after and after.format(block=block, chunk=chunk)


def _map_layer(layer: Layer, target: str, norm_target: str = "", op: Op = CONV1D) -> list[Rule]:
    conv, after = layer
    return [
        Rule(source=f"{conv}.weight", target=f"params/{target}/kernel", op=op),
        Rule(source=f"{conv}.bias", target=f"params/{target}/bias", op=IDENTITY),
        *(norm(after, norm_target) if after else []),
    ]


def _map_tdnn(layer: Layer, target: str) -> list[Rule]:
    return _map_layer(layer, f"{target}/conv", f"{target}/norm")
