"""The network in ONNX, with the names of `ecapa_jax.nn.ecapa`. Values are [batch, channels, time]."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64

from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.onnx.graph import Graph
from ecapa_jax.convert.onnx.utterances import Utterances

Leaves = dict[str, Any]
Kernel = Float64[np.ndarray, "taps in_channels out_channels"]
Bias = Float64[np.ndarray, " out_channels"]

LEAKY_SLOPE = 0.01
"""JAX's and PyTorch's default."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A module's arrays.

    Attributes:
      params, batch_stats: the part of the model's variables that belongs to the module.
    """

    params: Leaves
    batch_stats: Leaves

    def __getitem__(self, name: str) -> Weights:
        """A sub-module's arrays."""
        return Weights(self.params.get(name, {}), self.batch_stats.get(name, {}))

    def __contains__(self, name: str) -> bool:
        """Whether there is such a sub-module."""
        return name in self.params

    def array(self, name: str) -> Float64[np.ndarray, ...]:
        """A parameter."""
        return np.asarray(self.params[name], np.float64)

    def affine(self, epsilon: float) -> tuple[Bias, Bias]:
        """A batch normalisation as factor and shift."""
        mean, variance = (np.asarray(self.batch_stats[name], np.float64) for name in ("mean", "var"))
        factor = self.array("scale") / np.sqrt(variance + epsilon)
        return factor, self.array("bias") - mean * factor


class Layers:
    """Writes the layers that the blocks are made of."""

    def __init__(self, graph: Graph, config: EcapaConfig, utterances: Utterances) -> None:
        self.graph, self.config, self.utterances = graph, config, utterances

    def conv(self, x: str, kernel: Kernel, bias: Bias | None, *, dilation: int = 1, groups: int = 1) -> str:
        """A "same" convolution, padded at each utterance's true end."""
        taps = kernel.shape[0]
        width = dilation * (taps - 1) // 2
        pads = [0, 0]
        with self.graph.scope("conv"):
            if width and self.config.padding == "reflect":
                x = self.utterances.reflected(x, width)
            elif width:
                x, pads = self.utterances.zeroed(x), [width, width]
        inputs = [x, self.graph.weight("conv/kernel", kernel.transpose(2, 1, 0))]
        inputs += [] if bias is None else [self.graph.weight("conv/bias", bias)]
        return self.graph.op(
            "Conv", *inputs, name="conv", kernel_shape=[taps], dilations=[dilation], pads=pads, group=groups
        )

    def norm(self, x: str, weights: Weights) -> str:
        """Batch normalisation with the running statistics."""
        names = [self.graph.weight(f"norm/{name}", weights.array(name)) for name in ("scale", "bias")]
        names += [
            self.graph.weight(f"norm/{name}", np.asarray(weights.batch_stats[name], np.float64))
            for name in ("mean", "var")
        ]
        return self.graph.op("BatchNormalization", x, *names, name="norm", epsilon=self.config.norm_epsilon)

    def activation(self, x: str, *, outer: bool) -> str:
        """The nonlinearity of outer or inner layers."""
        if self.config.activation == "leaky_relu" and (outer or self.config.activation_scope == "all"):
            return self.graph.op("LeakyRelu", x, name="activation", alpha=LEAKY_SLOPE)
        return self.graph.op("Relu", x, name="activation")

    def tdnn(
        self, x: str, weights: Weights, *, outer: bool, dilation: int = 1, groups: int = 1, fold: Weights | None = None
    ) -> str:
        """Convolution, activation and batch normalisation.

        Args:
          x: the input.
          weights: of the block.
          outer: which activation.
          dilation, groups: of the convolution.
          fold: a batch normalisation just before, which becomes part of this 1x1 convolution.
        """
        conv = weights["conv"]
        kernel, bias = conv.array("kernel"), conv.array("bias")
        if fold is not None:
            kernel, bias = folded(kernel, bias, fold, self.config.norm_epsilon)
        x = self.conv(x, kernel, bias, dilation=dilation, groups=groups)
        x = self.activation(x, outer=outer)
        return self.norm(x, weights["norm"]) if "norm" in weights else x


def folded(kernel: Kernel, bias: Bias, norm: Weights, epsilon: float) -> tuple[Kernel, Bias]:
    """A 1x1 convolution with the batch normalisation before it."""
    factor, shift = norm.affine(epsilon)
    return kernel * factor[:, None], bias + shift @ kernel[0]


def write_network(graph: Graph, config: EcapaConfig, variables: Leaves, features: str, utterances: Utterances) -> str:
    """Writes the network up to the output of the MFA, [batch, mfa_channels, time].

    Args:
      graph: to write into.
      config: which network.
      variables: as from `ecapa_jax.folding.fold`.
      features: [batch, mels, time].
      utterances: where they end.
    """
    layers = Layers(graph, config, utterances)
    weights = Weights(variables["params"], variables["batch_stats"])
    with graph.scope("stem"):
        x = layers.tdnn(features, weights["stem"], outer=True)
    outputs: list[str] = []
    for block in range(config.n_blocks):
        with graph.scope(f"block_{block}"):
            output = _block(layers, x, weights[f"block_{block}"], block)
            outputs.append(output)
            summed = config.block_input == "sum" and block + 1 < config.n_blocks
            x = graph.op("Add", x, output, name="sum") if summed else output
    with graph.scope("mfa"):
        joined = graph.op("Concat", *outputs, name="blocks", axis=1)
        return layers.tdnn(joined, weights["mfa"], outer=True, dilation=config.mfa_dilation)


def _block(layers: Layers, x: str, weights: Weights, block: int) -> str:
    """1x1, Res2 convolution, 1x1, squeeze-excitation, residual."""
    graph, config = layers.graph, layers.config
    with graph.scope("tdnn_in"):
        hidden = layers.tdnn(x, weights["tdnn_in"], outer=True)
    with graph.scope("res2"):
        hidden = _res2(layers, hidden, weights["res2"], block)
    with graph.scope("tdnn_out"):
        grouped = weights["res2"]["grouped"]
        fold = grouped["norm"] if config.multiscale == "grouped" and "norm" in grouped else None
        hidden = layers.tdnn(hidden, weights["tdnn_out"], outer=True, fold=fold)
    with graph.scope("se"):
        gate = _gate(layers, layers.utterances.mean(hidden), weights["se"])
    if "shortcut" in weights:
        with graph.scope("shortcut"):
            x = layers.conv(x, weights["shortcut"].array("kernel"), weights["shortcut"].array("bias"))
    return graph.op("Add", graph.op("Mul", hidden, gate, name="gated"), x, name="output")


def _res2(layers: Layers, x: str, weights: Weights, block: int) -> str:
    graph, config, dilation = layers.graph, layers.config, layers.config.dilations[block]
    if config.multiscale == "grouped":
        with graph.scope("grouped"):  # its normalisation is part of tdnn_out
            layer = Weights({"conv": weights["grouped"].params["conv"]}, {})
            return layers.tdnn(x, layer, outer=False, dilation=dilation, groups=config.res2_scale)
    chunks = graph.split(x, config.res2_scale, axis=1)
    through = chunks.pop(0) if config.multiscale == "first" else chunks.pop()
    outputs: list[str] = []
    for index, chunk in enumerate(chunks):
        with graph.scope(f"chunk_{index}"):
            chunk = graph.op("Add", chunk, outputs[-1], name="sum") if outputs else chunk
            outputs.append(layers.tdnn(chunk, weights[f"chunk_{index}"], outer=False, dilation=dilation))
    ordered = [through, *outputs] if config.multiscale == "first" else [*outputs, through]
    return graph.op("Concat", *ordered, name="output", axis=1)


def _gate(layers: Layers, mean: str, weights: Weights) -> str:
    """Gate of each channel, [batch, channels, 1]; a normalisation in it is part of the second convolution."""
    graph = layers.graph
    with graph.scope("squeeze"):
        x = layers.conv(mean, weights["squeeze"].array("kernel"), weights["squeeze"].array("bias"))
        x = layers.activation(x, outer=False)
    with graph.scope("excite"):
        kernel, bias = weights["excite"].array("kernel"), weights["excite"].array("bias")
        if "norm" in weights:
            kernel, bias = folded(kernel, bias, weights["norm"], layers.config.norm_epsilon)
        return graph.op("Sigmoid", layers.conv(x, kernel, bias), name="gate")
