"""Engines in JAX: ours, and FlaxSpeaker's nearest encoder."""

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
    """This library, as `SpeakerEncoder` calls it: folded weights, one compiled function a shape."""
    config = model.config()
    folded = jax.device_put(ecapa_jax.fold(config, variables_of(model, "3dspeaker"), dtype))
    apply = jax.jit(lambda variables, x, mask: functional.apply(config.ecapa, variables, x, mask)[0])
    embed = jax.jit(functional.embed_in_groups, static_argnums=(0, 4))
    buckets = Buckets(config.fbank.sample_rate)

    def run_network(features: np.ndarray) -> np.ndarray:
        return np.asarray(apply(folded, features, np.ones(features.shape[:2], bool)))

    def run_embed(waveforms: np.ndarray) -> np.ndarray:
        rows = buckets.group(*waveforms.shape)  # as SpeakerEncoder does
        return np.asarray(embed(config, folded, waveforms, _lengths(waveforms), rows))

    return Engine(network=run_network, embed=run_embed)


class Reference:
    """Our float32 embeddings, which every engine's are compared with: of the front end that the engine has."""

    def __init__(self, model: Model):
        self._model = model
        self._embed = jax.jit(functional.embed, static_argnums=0)
        self._variables: dict[str, Any] = {}

    def embed(self, family: str, waveforms: np.ndarray) -> np.ndarray:
        """[B, S] to [B, D]."""
        if family not in self._variables:
            self._variables[family] = variables_of(self._model, family)
        config = self._model.config(family)
        return np.asarray(self._embed(config, self._variables[family], waveforms, _lengths(waveforms)))


def variables_of(model: Model, family: str) -> dict[str, Any]:
    """The model's weights, and what the family's front end stores."""
    config = model.config(family)
    return apply_rules(sb_layout.rules(config.ecapa), (), model.tensors(), functional.abstract(config))[0]


def _lengths(waveforms: np.ndarray) -> np.ndarray:
    return np.full(len(waveforms), waveforms.shape[1], np.int32)


def flaxspeaker(model: Model) -> Engine:
    """FlaxSpeaker's ECAPA-TDNN with attentive pooling at our widths, its own random weights, jitted.

    It has layer norms where the paper has batch norms, dilations from its own defaults and one product more behind the
    pooling: near to ours in work, not the same network. Its front end is NumPy's, of the whole pipeline's config; only
    the network is timed.
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
    """Its encoders without its package's start, which imports transformers and what else training needs."""
    if "flaxspeaker" not in sys.modules:
        spec = importlib.util.find_spec("flaxspeaker")
        if spec is None or spec.origin is None:
            raise ImportError("flaxspeaker is not installed")
        package = types.ModuleType("flaxspeaker")
        package.__path__ = [str(Path(spec.origin).parent)]
        sys.modules["flaxspeaker"] = package
    return importlib.import_module("flaxspeaker.backbones")
