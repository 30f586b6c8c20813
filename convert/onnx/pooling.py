"""Writes pooling over time and the projection as ONNX nodes with the names of `ecapa_jax.nn`."""

from __future__ import annotations

import numpy as np

from ecapa_jax.config import EcapaConfig, StdConfig
from ecapa_jax.convert.onnx.graph import Graph
from ecapa_jax.convert.onnx.network import Layers, Leaves, Weights, fold_norm
from ecapa_jax.convert.onnx.utterances import Utterances
from ecapa_jax.nn.poolings import SHAPES


def write_pooling(graph: Graph, config: EcapaConfig, variables: Leaves, x: str, utterances: Utterances) -> str:
    """Writes pooling and projection.

    Args:
      graph: graph to which the nodes are added.
      config: configuration of the network.
      variables: variables, as `ecapa_jax.folding.fold` returns them. Their projection includes the normalisations
        before and after it.
      x: name of the output of the MFA, [batch, mfa_channels, time].
      utterances: utterances of the batch, which determine where each of them ends.

    Returns:
      Name of the embeddings, [batch, embedding_dim].
    """
    layers = Layers(graph, config, utterances)
    weights = Weights(variables["params"], variables["batch_stats"])
    with graph.scope("pooling"):
        if config.pooling == "attentive":
            pooled = _write_attentive(layers, x, weights["pooling"])
        elif config.pooling in SHAPES:
            pooled = _write_multi_head(layers, x, weights["pooling"])
        elif config.pooling == "posterior":
            pooled = _write_posterior(layers, x, weights["pooling"])
        else:
            mean, std = _write_context(layers, x)
            kept = {"mean": (mean,), "std": (std,), "mean_std": (mean, std)}[config.pooling]
            pooled = kept[0] if len(kept) == 1 else graph.op("Concat", *kept, name="pooled", axis=1)
    with graph.scope("projection"):
        projection = weights["projection"]
        x = layers.conv(pooled, projection.array("kernel"), projection.array("bias"))
        return graph.op("Squeeze", x, graph.constant([2]), name="embeddings")


def _write_std(graph: Graph, config: StdConfig, variance: str) -> str:
    operator = "Add" if config.epsilon_mode == "add" else "Max"
    variance = graph.op(operator, variance, graph.constant(config.epsilon), name="floored")
    if config.maximum is not None:
        variance = graph.op("Min", variance, graph.constant(config.maximum), name="limited")
    return graph.op("Sqrt", variance, name="std")


def _write_context(layers: Layers, x: str) -> tuple[str, str]:
    """Writes mean and standard deviation over the real frames, both [batch, channels, 1]."""
    graph, utterances, config = layers.graph, layers.utterances, layers.config.context_std
    with graph.scope("context"):
        mean = utterances.mean(x)
        if config.form == "central":
            centred = graph.op("Sub", x, mean, name="centred")
            variance = utterances.mean(graph.op("Mul", centred, centred, name="squares"), "variance")
        else:
            moment = utterances.mean(graph.op("Mul", x, x, name="squares"), "moment")
            variance = graph.op("Sub", moment, graph.op("Mul", mean, mean), name="variance")
        if config.unbiased:
            less = graph.op("Sub", utterances.count, graph.constant(1.0))
            variance = graph.op("Mul", variance, graph.op("Div", utterances.count, less), name="unbiased")
        return mean, _write_std(graph, config, variance)


def _write_weighted(layers: Layers, x: str, weights: str) -> str:
    """Writes mean and standard deviation with weights that sum to one over time, [batch, 2 channels, 1]."""
    graph, config = layers.graph, layers.config.pooled_std
    mean = graph.sum(graph.op("Mul", weights, x, name="weighted"), 2, "mean")
    if config.form == "central":
        centred = graph.op("Sub", x, mean, name="centred")
        squares = graph.op("Mul", weights, graph.op("Mul", centred, centred, name="squares"), name="weighted_squares")
        variance = graph.sum(squares, 2, "variance")
    else:
        squares = graph.op("Mul", weights, graph.op("Mul", x, x, name="squares"), name="weighted_squares")
        variance = graph.op("Sub", graph.sum(squares, 2, "moment"), graph.op("Mul", mean, mean), name="variance")
    return graph.op("Concat", mean, _write_std(graph, config, variance), name="pooled", axis=1)


def _write_attentive(layers: Layers, x: str, weights: Weights) -> str:
    """Writes attentive statistics. Mean and deviation enter the attention once per utterance, not once per frame."""
    graph, config = layers.graph, layers.config
    kernel, bias = weights["hidden"].array("kernel"), weights["hidden"].array("bias")
    channels = config.mfa_channels
    with graph.scope("hidden"):
        hidden = layers.conv(x, kernel[:, :channels], bias)
    if config.global_context:
        context = graph.op("Concat", *_write_context(layers, x), name="context", axis=1)
        with graph.scope("hidden_of_context"):
            shift = layers.conv(context, kernel[:, channels:], None)
        hidden = graph.op("Add", hidden, shift, name="hidden_sum")
    if "relu" in config.attention_hidden:
        hidden = layers.activation(hidden, outer=False)
    logits = weights["logits"].array("kernel")
    if config.attention_hidden == "relu_bn":  # the shift is equal at every frame, so the softmax over time cancels it
        factor, _ = weights["norm"].affine(config.norm_epsilon)
        logits = logits * factor[:, None]
    elif "norm" in weights:
        hidden = layers.norm(hidden, weights["norm"])
    if "tanh" in config.attention_hidden:
        hidden = graph.op("Tanh", hidden)
    with graph.scope("logits"):  # a bias is also equal at every frame
        attention = layers.conv(hidden, logits, None)
    return _write_weighted(layers, x, layers.utterances.softmax(attention))


def _write_multi_head(layers: Layers, x: str, weights: Weights) -> str:
    """Writes attentive statistics for each query and head; each head has a part of the channels."""
    graph = layers.graph
    queries, heads, _ = SHAPES[layers.config.pooling]
    shares = graph.split(x, heads, axis=1)
    parts = []
    for query in range(queries):
        for head, share in enumerate(shares):
            name = f"query_{query}_head_{head}"
            with graph.scope(name):
                with graph.scope("hidden"):
                    part = weights[name]["hidden"]
                    hidden = layers.conv(share, part.array("kernel"), part.array("bias"))
                hidden = graph.op("Tanh", hidden)
                with graph.scope("logits"):
                    logits = layers.conv(hidden, weights[name]["logits"].array("kernel"), None)
                parts.append(_write_weighted(layers, share, layers.utterances.softmax(logits)))
    return graph.op("Concat", *parts, name="pooled", axis=1)


def _write_posterior(layers: Layers, x: str, weights: Weights) -> str:
    """Writes the posterior mean of a Gaussian. Each frame has its own precision, and the prior is one more frame."""
    graph, utterances, epsilon = layers.graph, layers.utterances, layers.config.norm_epsilon
    with graph.scope("hidden"):
        hidden = layers.conv(x, weights["hidden"].array("kernel"), weights["hidden"].array("bias"))
        hidden = graph.op("Relu", hidden)
    with graph.scope("precision"):
        precision = weights["precision"]
        kernel, bias = fold_norm(precision.array("kernel"), precision.array("bias"), weights["norm"], epsilon)
        softplus = graph.op("Softplus", layers.conv(hidden, kernel, bias))
        logarithm = graph.op("Log", graph.op("Max", softplus, graph.constant(1e-30)))
        doubled = graph.op("Mul", logarithm, graph.constant(2.0))
        logits = graph.op("Clip", doubled, graph.constant(-15.0), graph.constant(15.0))
    logits = utterances.keep_real(logits, float(np.finfo(np.float32).min))
    batch = graph.op("Concat", graph.size(x, 0), graph.constant([1, 1]), axis=0)

    def prepend_prior(name: str, values: str) -> str:
        prior = graph.weight(name, weights.array(name)[:, :, None])
        return graph.op("Concat", graph.op("Expand", prior, batch), values, axis=2)

    share = graph.op("Softmax", prepend_prior("prior_log_precision", logits), axis=2)
    return graph.sum(graph.op("Mul", share, prepend_prior("prior_mean", x), name="weighted"), 2, "pooled")
