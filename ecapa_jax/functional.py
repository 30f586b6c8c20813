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
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ecapa_jax.batching import minimum_samples as minimum_samples
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.config import Variables as Variables
from ecapa_jax.features.constants import stored_constants
from ecapa_jax.features.fbank import AnyArray, fbank, seen_mask
from ecapa_jax.folding import fold as fold
from ecapa_jax.modes import allow_rank_promotion, in_library_modes
from ecapa_jax.nn.ecapa import EcapaTdnn
from ecapa_jax.nn.layers import BatchNorm


@in_library_modes
def init(config: ModelConfig, key: PRNGKeyArray) -> Variables:
    """Draws random float32 variables; convolutions are initialised as PyTorch does by default."""
    model = EcapaTdnn(config.ecapa, rngs=nnx.Rngs(key))
    constants = jax.tree.map(jnp.asarray, stored_constants(config.fbank))
    return _as_variables(nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat), constants)


def abstract(config: ModelConfig) -> Variables:
    """Returns the shapes and dtypes of the variables as `jax.ShapeDtypeStruct` leaves, without computing anything."""
    _, params, batch_stats = _abstract_network(config.ecapa)
    constants = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in stored_constants(config.fbank).items()
    }
    return _as_variables(params, batch_stats, constants)


@allow_rank_promotion
def apply(
    config: EcapaConfig,
    variables: Variables,
    features: Float[AnyArray, "batch time mels"],
    mask: Bool[AnyArray, "batch time"],
    *,
    train: bool = False,
    seen: Bool[AnyArray, "batch time"] | None = None,
    statistics_over: tuple[str, ...] = (),
) -> tuple[Float[Array, "batch embedding"], Variables]:
    """Applies the network: features and mask to embeddings.

    Args:
      config: the network.
      variables: as from `init` or a bundle.
      features: [B, T, n_mels]; where `mask` is False they may be any finite number.
      mask: [B, T], True at real frames, which come first in each row.
      train: whether to normalise with the statistics of the batch and to update the running statistics.
      seen: [B, T], as from `seen_mask`, for a front end that adds blank frames; None means `mask`.
      statistics_over: mesh axes over which the batch is spread, if `train` runs inside `jax.shard_map`: batch
        statistics are then taken over the whole batch. By default each device uses the statistics of its own rows.

    Returns:
      embeddings: [B, embedding_dim].
      batch_stats: the running statistics, updated if `train`, otherwise as given.
    """
    model = network(config, variables)
    for _, module in nnx.iter_modules(model) if statistics_over else ():
        if isinstance(module, BatchNorm):
            module.axes = statistics_over
    seen = None if seen is None else jnp.asarray(seen)
    embeddings = model(jnp.asarray(features), jnp.asarray(mask), train=train, seen=seen)
    if not train:
        return embeddings, variables["batch_stats"]
    return embeddings, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@allow_rank_promotion
def embed(
    config: ModelConfig,
    variables: Variables,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
) -> Float[Array, "batch embedding"]:
    """Embeds waveforms: front end and network in one function.

    The embedding of an utterance does not depend on the other utterances of the batch, nor on the padding.

    Args:
      config: the model; static under jit.
      variables: as from `init` or a bundle.
      waveforms: [B, S], samples in [-1, 1] at the model's rate, right-padded.
      lengths: [B], true lengths in samples, at most S.

    Returns:
      [B, embedding_dim]. An utterance shorter than `minimum_samples(config)` has no embedding: its row is NaN.
    """
    features, mask = fbank(config.fbank, waveforms, lengths, variables["constants"])
    embeddings = network(config.ecapa, variables)(features, mask, seen=seen_mask(config.fbank, mask))
    return jnp.where((lengths >= minimum_samples(config))[:, None], embeddings, jnp.nan)


@allow_rank_promotion
def embed_in_groups(
    config: ModelConfig,
    variables: Variables,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
    rows: int,
) -> Float[Array, "batch embedding"]:
    """Embeds `rows` utterances at a time, one group after the other in one compiled function.

    This is faster on a CPU: the output of a layer is still in the cache when the next layer reads it.

    Args:
      config, variables, waveforms, lengths: as for `embed`.
      rows: utterances in a group; must divide the batch size.
    """
    groups = (waveforms.reshape(-1, rows, waveforms.shape[1]), lengths.reshape(-1, rows))
    if len(groups[0]) == 1:
        return embed(config, variables, waveforms, lengths)
    embeddings = lax.map(lambda group: embed(config, variables, *group), groups)
    return embeddings.reshape(waveforms.shape[0], -1)


@allow_rank_promotion
def stages(
    config: ModelConfig,
    variables: Variables,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
) -> dict[str, Array]:
    """Returns the intermediate results of `embed`, to compare them with those of other code.

    Returns:
      features [B, T, M]; stem, block_0, ..., mfa [B, T, C]; pooled [B, 2 C]; embedding [B, D]. Values beyond the
      frames of an utterance are unspecified.
    """
    model = network(config.ecapa, variables)
    features, mask = fbank(config.fbank, waveforms, lengths, variables["constants"])
    taps = {"features": features}
    embeddings = model(features, mask, seen=seen_mask(config.fbank, mask), taps=taps)
    return {**taps, "embedding": embeddings}


def network(config: EcapaConfig, variables: Variables) -> EcapaTdnn:
    """Builds the network with these variables, for use inside the traced function that receives them."""
    graph, _, _ = _abstract_network(config)
    return nnx.merge(graph, *jax.tree.map(jnp.asarray, (variables["params"], variables["batch_stats"])))


@functools.cache
@in_library_modes
def _abstract_network(config: EcapaConfig) -> Any:
    """Returns the graph definition and the abstract float32 states of the network, without allocating weights."""
    model = nnx.eval_shape(lambda: EcapaTdnn(config, rngs=None))
    return nnx.split(model, nnx.Param, nnx.BatchStat)


def _as_variables(params: Any, batch_stats: Any, constants: dict[str, Any]) -> Variables:
    return {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
        "constants": constants,
    }
