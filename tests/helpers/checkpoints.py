"""Checkpoint directories in the publishers' layouts, and the embedding of a fixed sound."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ecapa_jax import functional
from ecapa_jax.config import ModelConfig
from helpers.sounds import RATE, sound
from helpers.torch_zip_writer import write_torch_zip
from helpers.weights import random_tensors, small_config

CONFIG = small_config(width=16)
"""All models have this one small shape, because compiling another shape takes seconds."""

SB_CONFIG = small_config("speechbrain", width=16)


# The file has the objects and tags of the published file, with other sizes.
HYPERPARAMS = """\
# ################################
# Model: ECAPA for speaker verification
# ################################

# Feature parameters
n_mels: 80
channels: &channels [16, 16, 16, 16, 48]
pretrained_path: some/where
out_n_neurons: 7205

compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>

mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False

embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: *channels
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 128
    lin_neurons: 192

classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 192
    out_neurons: !ref <out_n_neurons>

mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False

modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
wav_augment: !name:speechbrain.augment.augmenter.Augmenter
    parallel: !ref <n_mels> // 2
seeded: !apply:torch.manual_seed [1986]

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
"""


@functools.cache
def _tensors(seed: int) -> dict[str, np.ndarray]:
    return random_tensors(CONFIG.ecapa, seed)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a checkpoint of the small network, in the layout that both families share."""
    return {name: tensor.copy() for name, tensor in _tensors(seed).items()}


def prefixed(prefix: str, content: dict[str, Any]) -> dict[str, Any]:
    """Adds a prefix to every name."""
    return {prefix + name: value for name, value in content.items()}


def modelscope(directory: Path, content: object = None, name: str = "ecapa_tdnn.bin", **model: Any) -> Path:
    """Writes a directory as ModelScope publishes it.

    `model` is added to configuration.json; a value of None removes the key.
    """
    directory.mkdir(exist_ok=True)
    write_torch_zip(directory / name, tensors() if content is None else content)
    described = {
        "type": "ecapa-tdnn-sv",
        "model_config": {"sample_rate": 16000, "fbank_dim": 80, "emb_size": 192, "channel": 1024},
        "pretrained_model": name,
        "yesOrno_thr": 0.36,
        **model,
    }
    document = {
        "framework": "pytorch",
        "task": "speaker-verification",
        "model": {key: value for key, value in described.items() if value is not None},
        "pipeline": {"type": "speaker-verification"},
    }
    (directory / "configuration.json").write_text(json.dumps(document))
    return directory


def speechbrain(directory: Path, *changes: tuple[str, str], content: object = None, mean: object = None) -> Path:
    """Writes a directory as SpeechBrain publishes it.

    Each change replaces a text that hyperparams.yaml contains exactly once.
    """
    text = HYPERPARAMS
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (directory / "hyperparams.yaml").write_text(text)
    write_torch_zip(directory / "embedding_model.ckpt", tensors() if content is None else content)
    if mean is not None:
        write_torch_zip(directory / "mean_var_norm_emb.ckpt", mean)
    return directory


_embed = jax.jit(functional.embed, static_argnums=0)


def embedding(config: ModelConfig, variables: dict[str, Any]) -> np.ndarray:
    """Returns the embedding of a fixed sound; each config compiles once."""
    waveform = sound(1.0)[None]
    return np.asarray(_embed(config, variables, waveform, np.array([RATE], np.int32)))[0]
