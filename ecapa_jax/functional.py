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
from ecapa_jax.features.constants import stored as _stored
from ecapa_jax.features.fbank import AnyArray, fbank, seen_mask
from ecapa_jax.folding import fold as fold
from ecapa_jax.nn.ecapa import EcapaTdnn
from ecapa_jax.nn.layers import BatchNorm


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
    statistics_over: tuple[str, ...] = (),
) -> tuple[Float[Array, "batch embedding"], Variables]:
    """The network: features and mask to embeddings.

    Args:
      config: the network.
      variables: as from `init` or a bundle.
      features: [B, T, n_mels], anything finite where `mask` is False.
      mask: [B, T], True at real frames, a prefix of each row.
      train: normalise with the batch's statistics and move the running ones.
      seen: [B, T], as from `seen_mask`, for a front end that adds blank frames; None means `mask`.
      statistics_over: with `train` inside `jax.shard_map`, the mesh axes over which the batch is spread: its statistics
        are taken over all of it. Without, each part normalises with its own.

    Returns:
      embeddings: [B, embedding_dim].
      batch_stats: the running statistics; moved if `train`, else as given.
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
    embeddings = network(config.ecapa, variables)(features, mask, seen=seen_mask(config.fbank, mask))
    return jnp.where((lengths >= minimum_samples(config))[:, None], embeddings, jnp.nan)


def embed_in_groups(
    config: ModelConfig,
    variables: Variables,
    waveforms: Float[AnyArray, "batch samples"],
    lengths: Int[AnyArray, " batch"],
    rows: int,
) -> Float[Array, "batch embedding"]:
    """`embed` of `rows` utterances at a time, one group after the other in one compiled function.

    For a processor with caches: what a layer of one group writes is still there when the next layer reads it.

    Args:
      config, variables, waveforms, lengths: as for `embed`.
      rows: a divisor of the batch.
    """
    groups = (waveforms.reshape(-1, rows, waveforms.shape[1]), lengths.reshape(-1, rows))
    if len(groups[0]) == 1:
        return embed(config, variables, waveforms, lengths)
    embeddings = lax.map(lambda group: embed(config, variables, *group), groups)
    return embeddings.reshape(waveforms.shape[0], -1)


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
    model = network(config.ecapa, variables)
    features, mask = fbank(config.fbank, waveforms, lengths, variables["constants"])
    taps = {"features": features}
    embeddings = model(features, mask, seen=seen_mask(config.fbank, mask), taps=taps)
    return {**taps, "embedding": embeddings}


def network(config: EcapaConfig, variables: Variables) -> EcapaTdnn:
    """The network with these variables, for use inside the traced function that was given them."""
    graph, _, _ = _structure(config)
    return nnx.merge(graph, *jax.tree.map(jnp.asarray, (variables["params"], variables["batch_stats"])))


@functools.cache
def _structure(config: EcapaConfig) -> Any:
    """Graph definition and abstract states of the network; no weight is made."""
    model = nnx.eval_shape(lambda: EcapaTdnn(config, rngs=None))
    return nnx.split(model, nnx.Param, nnx.BatchStat)


def _as_variables(params: Any, batch_stats: Any, constants: dict[str, Any]) -> Variables:
    return {
        "params": nnx.to_pure_dict(params),
        "batch_stats": nnx.to_pure_dict(batch_stats),
        "constants": constants,
    }
