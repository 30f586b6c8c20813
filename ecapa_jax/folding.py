"""Variables for inference: what can be computed once is computed once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, PyTree

from ecapa_jax.config import EcapaConfig, ModelConfig, Variables
from ecapa_jax.errors import ConfigError

DTYPES = ("float32", "bfloat16")
"""Compute dtypes of `fold`."""


def fold(config: ModelConfig, variables: Variables, dtype: str = "float32") -> Variables:
    """Variables for inference, which the same `embed` takes: what can be computed once is computed once.

    Kernels that multiply frames are in the compute dtype; what is done once an utterance (SE, projection), biases,
    normalisations and the mel matrix stay float32. The normalisations about the projection are part of it, and the
    bias of the attention's logits, which a softmax over time cancels, is zero. Not for training: running statistics
    are no longer where they were.

    Args:
      config: the model.
      variables: as from `init` or a bundle.
      dtype: `float32` or `bfloat16`, of the products; they are summed in float32.

    Raises:
      ConfigError: another dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not built; built: {', '.join(DTYPES)}")
    params, batch_stats = dict(variables["params"]), dict(variables["batch_stats"])
    _fold_projection(config.ecapa, params, batch_stats)
    if config.ecapa.pooling == "attentive":
        logits = params["pooling"]["logits"]
        params["pooling"] = {**params["pooling"], "logits": {**logits, "bias": 0 * _values(logits["bias"])}}
    if dtype != "float32":
        params = {name: part if name == "projection" else _lower(part, dtype) for name, part in params.items()}
    return {"params": params, "batch_stats": batch_stats, "constants": variables["constants"]}


def append_affine(
    config: ModelConfig,
    variables: Variables,
    matrix: Float[np.ndarray, "embedding embedding"],
    shift: Float[np.ndarray, " embedding"],
) -> Variables:
    """Variables whose embeddings are `embedding @ matrix + shift` of the embeddings before.

    The projection takes the map up, and with it the normalisations before and after it, which are left as ones that
    change nothing.

    Args:
      config: the model.
      variables: as from a bundle, not folded.
      matrix, shift: the map.
    """
    params, batch_stats = dict(variables["params"]), dict(variables["batch_stats"])
    _fold_projection(config.ecapa, params, batch_stats)
    kernel, bias = (np.asarray(params["projection"][name], np.float64) for name in ("kernel", "bias"))
    params["projection"] = {
        "kernel": (kernel @ matrix).astype(np.float32),
        "bias": (bias @ matrix + shift).astype(np.float32),
    }
    return {"params": params, "batch_stats": batch_stats, "constants": variables["constants"]}


def _lower(part: PyTree, dtype: str) -> PyTree:
    """Kernels in the compute dtype, but for those of squeeze-excitation."""
    if not isinstance(part, dict):
        return part.astype(dtype) if part.ndim == 3 else part
    return {name: leaf if name == "se" else _lower(leaf, dtype) for name, leaf in part.items()}


def _fold_projection(config: EcapaConfig, params: Variables, batch_stats: Variables) -> None:
    """Makes the normalisations before and after the projection part of it; in their places they do nothing."""
    kernel, bias = _values(params["projection"]["kernel"]), _values(params["projection"]["bias"])
    if "pooled_norm" in params:
        factor, shift = _affine(config, params, batch_stats, "pooled_norm")
        bias = bias + _dot(shift, kernel[0])
        kernel = kernel * factor[:, None]
    if "embedding_norm" in params:
        factor, shift = _affine(config, params, batch_stats, "embedding_norm")
        kernel, bias = kernel * factor, bias * factor + shift
    params["projection"] = {"kernel": kernel, "bias": bias}


def _affine(config: EcapaConfig, params: Variables, batch_stats: Variables, name: str) -> tuple[Any, Any]:
    """A normalisation as factor and shift; in its place one that changes nothing is left."""
    scale, offset = _values(params[name]["scale"]), _values(params[name]["bias"])
    mean, variance = _values(batch_stats[name]["mean"]), _values(batch_stats[name]["var"])
    factor = scale * (variance + config.norm_epsilon) ** -0.5
    params[name] = {"scale": 0 * factor + 1, "bias": 0 * factor}
    batch_stats[name] = {"mean": 0 * factor, "var": 0 * factor + (1 - config.norm_epsilon)}
    return factor, offset - mean * factor


def _values(leaf: Any) -> Any:
    """On the host, where nothing need be compiled; inside a traced function what it is."""
    return leaf if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf)


def _dot(row: Any, matrix: Any) -> Any:
    traced = isinstance(row, jax.core.Tracer) or isinstance(matrix, jax.core.Tracer)
    return jnp.dot(row, matrix, precision=lax.Precision.HIGHEST) if traced else row @ matrix
