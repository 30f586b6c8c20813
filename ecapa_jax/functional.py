"""The model as pure functions over plain nested dicts: the only place where NNX objects are split and merged.

`variables` is `{"params": ..., "batch_stats": ..., "constants": ...}` with string keys and array leaves. Every function
here works under jit, vmap, grad and shard_map; `config` is static.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.features.constants import stored as _stored
from ecapa_jax.features.fbank import AnyArray, fbank, seen_mask
from ecapa_jax.features.frames import minimum_samples as _front_end_minimum
from ecapa_jax.nn.ecapa import EcapaTdnn

Variables = dict[str, Any]


def init(config: ModelConfig, key: PRNGKeyArray) -> Variables:
    """Random variables, with PyTorch's default initialisation of convolutions; float32."""
    model = EcapaTdnn(config.ecapa, rngs=nnx.Rngs(key))
    constants = jax.tree.map(jnp.asarray, _stored(config.fbank))
    return _as_variables(nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat), constants)


def abstract(config: ModelConfig) -> Variables:
    """The shapes and dtypes of the variables, as `jax.ShapeDtypeStruct` leaves; nothing is computed."""
    _, params, batch_stats = _structure(config.ecapa)
    constants = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in _stored(config.fbank).items()}
    return _as_variables(params, batch_stats, constants)


def apply(
    config: EcapaConfig,
    variables: Variables,
    features: Float[AnyArray, "batch time mels"],
    mask: Bool[AnyArray, "batch time"],
    *,
    train: bool = False,
    seen: Bool[AnyArray, "batch time"] | None = None,
) -> tuple[Float[Array, "batch embedding"], PyTree]:
    """The network: features and mask to embeddings.

    Args:
      config: the network.
      variables: as from `init` or a bundle.
      features: [B, T, n_mels], anything finite where `mask` is False.
      mask: [B, T], True at real frames, a prefix of each row.
      train: normalise with the batch's statistics and move the running ones.
      seen: [B, T], as from `seen_mask`, for a front end that adds blank frames; None means `mask`.

    Returns:
      embeddings: [B, embedding_dim].
      batch_stats: the running statistics; moved if `train`, else as given.
    """
    graph, _, _ = _structure(config)
    params, batch_stats = jax.tree.map(jnp.asarray, (variables["params"], variables["batch_stats"]))
    model = nnx.merge(graph, params, batch_stats)
    seen = None if seen is None else jnp.asarray(seen)
    embeddings = model(jnp.asarray(features), jnp.asarray(mask), train=train, seen=seen)
    if not train:
        return embeddings, variables["batch_stats"]
    return embeddings, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def minimum_samples(config: ModelConfig) -> int:
    """Fewest samples that an utterance may have: enough frames for its normalisation and its reflect padding."""
    return _front_end_minimum(config.fbank, max(config.ecapa.minimum_frames, config.fbank.minimum_frames))


def embed(
    config: ModelConfig,
    variables: Variables,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
) -> Float[Array, "batch embedding"]:
    """Waveforms to embeddings: front end and network in one function.

    Each utterance's embedding is the one it has alone, whatever its batch mates and whatever the padding holds.

    Args:
      config: the model; static under jit.
      variables: as from `init` or a bundle.
      waveforms: [B, S], samples in [-1, 1] at the model's rate, right-padded.
      lengths: [B], true lengths in samples, at most S.

    Returns:
      [B, embedding_dim]; a row of NaN for an utterance shorter than `minimum_samples(config)`, which has none.
    """
    features, mask = fbank(config.fbank, waveforms, lengths, variables["constants"])
    embeddings, _ = apply(config.ecapa, variables, features, mask, seen=seen_mask(config.fbank, mask))
    return jnp.where((lengths >= minimum_samples(config))[:, None], embeddings, jnp.nan)


def stages(
    config: ModelConfig,
    variables: Variables,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
) -> dict[str, Array]:
    """What `embed` computes on its way, for comparisons with other code.

    Returns:
      features [B, T, M]; stem, block_0, ..., mfa [B, T, C]; pooled [B, 2 C]; embedding [B, D]. Beyond an utterance's
      frames they are unspecified.
    """
    graph, _, _ = _structure(config.ecapa)
    model = nnx.merge(graph, *jax.tree.map(jnp.asarray, (variables["params"], variables["batch_stats"])))
    features, mask = fbank(config.fbank, waveforms, lengths, variables["constants"])
    taps = {"features": features}
    embeddings = model(features, mask, seen=seen_mask(config.fbank, mask), taps=taps)
    return {**taps, "embedding": embeddings}


@functools.cache
def _structure(config: EcapaConfig) -> Any:
    """Graph definition and abstract states of the network; no weight is made."""
    model = nnx.eval_shape(lambda: EcapaTdnn(config, rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param, nnx.BatchStat)


def _as_variables(params: Any, batch_stats: Any, constants: dict[str, Any]) -> Variables:
    return {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
        "constants": constants,
    }
