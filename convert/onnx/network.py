"""Writes the network as ONNX nodes with the names of `ecapa_jax.nn.ecapa`. Values are [batch, channels, time]."""

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
"""Default slope of the leaky ReLU in JAX and PyTorch."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Arrays of a module.

    Attributes:
      params, batch_stats: parts of the variables of the model that belong to the module.
    """

    params: Leaves
    batch_stats: Leaves

    def __getitem__(self, name: str) -> Weights:
        """Returns the arrays of a submodule."""
        return Weights(self.params.get(name, {}), self.batch_stats.get(name, {}))

    def __contains__(self, name: str) -> bool:
        """Whether the module has a submodule of this name."""
        return name in self.params

    def array(self, name: str) -> Float64[np.ndarray, ...]:
        """Returns a parameter in float64."""
        return np.asarray(self.params[name], np.float64)

    def affine(self, epsilon: float) -> tuple[Bias, Bias]:
        """Returns the factor and the shift of a batch normalisation."""
        mean, variance = (np.asarray(self.batch_stats[name], np.float64) for name in ("mean", "var"))
        factor = self.array("scale") / np.sqrt(variance + epsilon)
        return factor, self.array("bias") - mean * factor


class Layers:
    """Writer of the layers of a block."""

    def __init__(self, graph: Graph, config: EcapaConfig, utterances: Utterances) -> None:
        self.graph, self.config, self.utterances = graph, config, utterances

    def conv(self, x: str, kernel: Kernel, bias: Bias | None, *, dilation: int = 1, groups: int = 1) -> str:
        """Writes a convolution with "same" padding at the true end of each utterance."""
        taps = kernel.shape[0]
        width = dilation * (taps - 1) // 2
        pads = [0, 0]
        with self.graph.scope("conv"):
            if width and self.config.padding == "reflect":
                x = self.utterances.pad_by_reflection(x, width)
            elif width:
                x, pads = self.utterances.zero_unseen(x), [width, width]
        inputs = [x, self.graph.weight("conv/kernel", kernel.transpose(2, 1, 0))]
        inputs += [] if bias is None else [self.graph.weight("conv/bias", bias)]
        return self.graph.op(
            "Conv", *inputs, name="conv", kernel_shape=[taps], dilations=[dilation], pads=pads, group=groups
        )

    def norm(self, x: str, weights: Weights) -> str:
        """Writes a batch normalisation with the running statistics."""
        names = [self.graph.weight(f"norm/{name}", weights.array(name)) for name in ("scale", "bias")]
        names += [
            self.graph.weight(f"norm/{name}", np.asarray(weights.batch_stats[name], np.float64))
            for name in ("mean", "var")
        ]
        return self.graph.op("BatchNormalization", x, *names, name="norm", epsilon=self.config.norm_epsilon)

    def activation(self, x: str, *, outer: bool) -> str:
        """Writes the nonlinearity of an outer or inner layer."""
        if self.config.activation == "leaky_relu" and (outer or self.config.activation_scope == "all"):
            return self.graph.op("LeakyRelu", x, name="activation", alpha=LEAKY_SLOPE)
        return self.graph.op("Relu", x, name="activation")

    def tdnn(
        self, x: str, weights: Weights, *, outer: bool, dilation: int = 1, groups: int = 1, fold: Weights | None = None
    ) -> str:
        """Writes a convolution, an activation and a batch normalisation.

        Args:
          x: name of the input.
          weights: arrays of the module.
          outer: whether this is an outer layer, which can have another activation than inner layers.
          dilation, groups: dilation and number of groups of the convolution.
          fold: batch normalisation directly before this 1x1 convolution, which becomes part of the convolution.
        """
        conv = weights["conv"]
        kernel, bias = conv.array("kernel"), conv.array("bias")
        if fold is not None:
            kernel, bias = fold_norm(kernel, bias, fold, self.config.norm_epsilon)
        x = self.conv(x, kernel, bias, dilation=dilation, groups=groups)
        x = self.activation(x, outer=outer)
        return self.norm(x, weights["norm"]) if "norm" in weights else x


def fold_norm(kernel: Kernel, bias: Bias, norm: Weights, epsilon: float) -> tuple[Kernel, Bias]:
    """Folds a batch normalisation into the 1x1 convolution after it; returns kernel and bias."""
    factor, shift = norm.affine(epsilon)
    return kernel * factor[:, None], bias + shift @ kernel[0]


def write_network(graph: Graph, config: EcapaConfig, variables: Leaves, features: str, utterances: Utterances) -> str:
    """Writes the network up to the output of the MFA, [batch, mfa_channels, time].

    Args:
      graph: graph to which the nodes are added.
      config: configuration of the network.
      variables: variables, as `ecapa_jax.folding.fold` returns them.
      features: name of the features, [batch, mels, time].
      utterances: utterances of the batch, which determine where each of them ends.
    """
    layers = Layers(graph, config, utterances)
    weights = Weights(variables["params"], variables["batch_stats"])
    with graph.scope("stem"):
        x = layers.tdnn(features, weights["stem"], outer=True)
    outputs: list[str] = []
    for block in range(config.n_blocks):
        with graph.scope(f"block_{block}"):
            output = _write_block(layers, x, weights[f"block_{block}"], block)
            outputs.append(output)
            summed = config.block_input == "sum" and block + 1 < config.n_blocks
            x = graph.op("Add", x, output, name="sum") if summed else output
    with graph.scope("mfa"):
        joined = graph.op("Concat", *outputs, name="blocks", axis=1)
        return layers.tdnn(joined, weights["mfa"], outer=True, dilation=config.mfa_dilation)


def _write_block(layers: Layers, x: str, weights: Weights, block: int) -> str:
    """Writes a block: 1x1 convolution, Res2 convolution, 1x1 convolution, squeeze-excitation and residual."""
    graph, config = layers.graph, layers.config
    with graph.scope("tdnn_in"):
        hidden = layers.tdnn(x, weights["tdnn_in"], outer=True)
    with graph.scope("res2"):
        hidden = _write_res2(layers, hidden, weights["res2"], block)
    with graph.scope("tdnn_out"):
        grouped = weights["res2"]["grouped"]
        fold = grouped["norm"] if config.multiscale == "grouped" and "norm" in grouped else None
        hidden = layers.tdnn(hidden, weights["tdnn_out"], outer=True, fold=fold)
    with graph.scope("se"):
        gate = _write_gate(layers, layers.utterances.mean(hidden), weights["se"])
    if "shortcut" in weights:
        with graph.scope("shortcut"):
            x = layers.conv(x, weights["shortcut"].array("kernel"), weights["shortcut"].array("bias"))
    return graph.op("Add", graph.op("Mul", hidden, gate, name="gated"), x, name="output")


def _write_res2(layers: Layers, x: str, weights: Weights, block: int) -> str:
    graph, config, dilation = layers.graph, layers.config, layers.config.dilations[block]
    if config.multiscale == "grouped":
        with graph.scope("grouped"):  # tdnn_out includes the normalisation of this layer
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


def _write_gate(layers: Layers, mean: str, weights: Weights) -> str:
    """Writes the gate of each channel, [batch, channels, 1]. A normalisation becomes part of the second convolution."""
    graph = layers.graph
    with graph.scope("squeeze"):
        x = layers.conv(mean, weights["squeeze"].array("kernel"), weights["squeeze"].array("bias"))
        x = layers.activation(x, outer=False)
    with graph.scope("excite"):
        kernel, bias = weights["excite"].array("kernel"), weights["excite"].array("bias")
        if "norm" in weights:
            kernel, bias = fold_norm(kernel, bias, weights["norm"], layers.config.norm_epsilon)
        return graph.op("Sigmoid", layers.conv(x, kernel, bias), name="gate")
