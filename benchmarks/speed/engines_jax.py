"""Engines in JAX: this library, and FlaxSpeaker's most similar encoder."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ecapa_jax
from benchmarks.speed.engines import Engine
from benchmarks.speed.model import Model
from ecapa_jax import functional
from ecapa_jax.batching import Buckets
from ecapa_jax.convert.rules import apply_rules
from ecapa_jax.convert.sources import sb_layout


def ours(model: Model, dtype: str) -> Engine:
    """Returns this library as `SpeakerEncoder` uses it: folded weights, one compiled function per shape."""
    config = model.config()
    folded = jax.device_put(ecapa_jax.fold(config, variables_of(model, "3dspeaker"), dtype))
    apply = jax.jit(lambda variables, x, mask: functional.apply(config.ecapa, variables, x, mask)[0])
    embed = jax.jit(functional.embed_in_groups, static_argnums=(0, 4))
    buckets = Buckets(config.fbank.sample_rate)

    def run_network(features: np.ndarray) -> np.ndarray:
        return np.asarray(apply(folded, features, np.ones(features.shape[:2], bool)))

    def run_embed(waveforms: np.ndarray) -> np.ndarray:
        rows = buckets.group(*waveforms.shape)  # as in SpeakerEncoder
        return np.asarray(embed(config, folded, waveforms, _lengths(waveforms), rows))

    return Engine(network=run_network, embed=run_embed)


class Reference:
    """This library's float32 embeddings, the reference for every engine, with the front end of the engine."""

    def __init__(self, model: Model):
        self._model = model
        self._embed = jax.jit(functional.embed, static_argnums=0)
        self._variables: dict[str, Any] = {}

    def embed(self, family: str, waveforms: np.ndarray) -> np.ndarray:
        """Embeds waveforms [B, S] as [B, D]."""
        if family not in self._variables:
            self._variables[family] = variables_of(self._model, family)
        config = self._model.config(family)
        return np.asarray(self._embed(config, self._variables[family], waveforms, _lengths(waveforms)))


def variables_of(model: Model, family: str) -> dict[str, Any]:
    """Returns the model's weights and the constants of the family's front end."""
    config = model.config(family)
    return apply_rules(sb_layout.rules(config.ecapa), (), model.tensors(), functional.abstract(config))[0]


def _lengths(waveforms: np.ndarray) -> np.ndarray:
    return np.full(len(waveforms), waveforms.shape[1], np.int32)


def flaxspeaker(model: Model) -> Engine:
    """Returns FlaxSpeaker's ECAPA-TDNN with attentive pooling at our widths and random weights, jitted.

    It has layer norms instead of the paper's batch norms, its own default dilations, and one more product after the
    pooling. The amount of work is similar, but the network is not the same. Its front end uses NumPy and needs the
    config of the whole pipeline, so only the network is timed.
    """
    ecapa = model.config().ecapa
    encoder = _flaxspeaker_backbones().ModernSpeakerEncoder(
        backbone_type="ecapa_tdnn",
        pooling_type="asp",
        embedding_dim=ecapa.embedding_dim,
        normalize_embedding=False,
        backbone_kwargs={
            "channels": model.width,
            "scale": ecapa.res2_scale,
            "mfa_dim": ecapa.mfa_channels,
            "se_bottleneck_dim": ecapa.se_channels,
        },
        pooling_kwargs={"attention_dim": ecapa.attention_channels, "use_nonlinear_bottleneck": False},
    )
    variables = encoder.init(jax.random.key(0), jnp.zeros((1, 100, ecapa.n_mels)))
    apply = jax.jit(encoder.apply)
    return Engine(network=lambda features: np.asarray(apply(variables, features)), own_weights=True)


def _flaxspeaker_backbones() -> Any:
    """Imports its encoders without the package's `__init__`, which imports transformers and other training packages."""
    if "flaxspeaker" not in sys.modules:
        spec = importlib.util.find_spec("flaxspeaker")
        if spec is None or spec.origin is None:
            raise ImportError("flaxspeaker is not installed")
        package = types.ModuleType("flaxspeaker")
        package.__path__ = [str(Path(spec.origin).parent)]
        sys.modules["flaxspeaker"] = package
    return importlib.import_module("flaxspeaker.backbones")
