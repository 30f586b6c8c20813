"""Variables for inference: constant parts of the computation are done once, and weights get the compute dtype."""

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
    """Prepares variables for inference; the result is passed to the same `embed`.

    Kernels that are applied to frames get the compute dtype. Kernels that are applied once per utterance (SE and
    projection), biases, normalisations and the mel matrix stay float32. The normalisations before and after the
    projection are folded into it, and the bias of the attention logits becomes zero, because a softmax over time
    cancels it. Don't train the result: its running statistics are no longer those of the model.

    Args:
      config: the model.
      variables: as from `init` or a bundle.
      dtype: dtype of the products, `float32` or `bfloat16`; sums are float32.

    Raises:
      ConfigError: the dtype is not supported.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of: {', '.join(DTYPES)}")
    params, batch_stats = dict(variables["params"]), dict(variables["batch_stats"])
    _fold_projection(config.ecapa, params, batch_stats)
    if config.ecapa.pooling == "attentive":
        logits = params["pooling"]["logits"]
        params["pooling"] = {**params["pooling"], "logits": {**logits, "bias": 0 * _to_host(logits["bias"])}}
    if dtype != "float32":
        params = {name: part if name == "projection" else _lower_dtype(part, dtype) for name, part in params.items()}
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


def _lower_dtype(part: PyTree, dtype: str) -> PyTree:
    """Casts all kernels to the compute dtype except those of squeeze-excitation."""
    if not isinstance(part, dict):
        return part.astype(dtype) if part.ndim == 3 else part
    return {name: leaf if name == "se" else _lower_dtype(leaf, dtype) for name, leaf in part.items()}


def _fold_projection(config: EcapaConfig, params: Variables, batch_stats: Variables) -> None:
    """Folds the normalisations before and after the projection into it and replaces them by identities."""
    kernel, bias = _to_host(params["projection"]["kernel"]), _to_host(params["projection"]["bias"])
    if "pooled_norm" in params:
        factor, shift = _extract_affine(config, params, batch_stats, "pooled_norm")
        bias = bias + _dot(shift, kernel[0])
        kernel = kernel * factor[:, None]
    if "embedding_norm" in params:
        factor, shift = _extract_affine(config, params, batch_stats, "embedding_norm")
        kernel, bias = kernel * factor, bias * factor + shift
    params["projection"] = {"kernel": kernel, "bias": bias}


def _extract_affine(config: EcapaConfig, params: Variables, batch_stats: Variables, name: str) -> tuple[Any, Any]:
    """Returns a normalisation as factor and shift, and replaces it by an identity."""
    scale, offset = _to_host(params[name]["scale"]), _to_host(params[name]["bias"])
    mean, variance = _to_host(batch_stats[name]["mean"]), _to_host(batch_stats[name]["var"])
    factor = scale * (variance + config.norm_epsilon) ** -0.5
    params[name] = {"scale": 0 * factor + 1, "bias": 0 * factor}
    batch_stats[name] = {"mean": 0 * factor, "var": 0 * factor + (1 - config.norm_epsilon)}
    return factor, offset - mean * factor


def _to_host(leaf: Any) -> Any:
    """Copies a leaf to the host, where nothing has to be compiled; a leaf that is being traced stays as it is."""
    return leaf if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf)


def _dot(row: Any, matrix: Any) -> Any:
    traced = isinstance(row, jax.core.Tracer) or isinstance(matrix, jax.core.Tracer)
    return jnp.dot(row, matrix, precision=lax.Precision.HIGHEST) if traced else row @ matrix
