"""Runs the original PyTorch code of a family.

Only this module of the library imports torch, and only `convert --verify` imports this module. Stages have the names of
this library: features, stem, block_0 and further blocks, mfa, pooled, embedding. Arrays have the shape [T, C], or [C]
without a time axis.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ecapa_jax.config import EcapaConfig, ModelConfig

Stages = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Original:
    """The original code of a family.

    Attributes:
      package: name of the package to import.
      distribution: name of the distribution to install.
      fits: function that returns whether the original class supports a configuration.
      features: function that computes features [T, M] from a waveform [S].
      network: function that makes the module in eval mode, without weights.
      stages: function that returns our stage names by the names of submodules.
    """

    package: str
    distribution: str
    fits: Callable[[EcapaConfig], bool]
    features: Callable[[ModelConfig, torch.Tensor], torch.Tensor]
    network: Callable[[EcapaConfig], torch.nn.Module]
    stages: Callable[[EcapaConfig], dict[str, str]]


def _compute_speakerlab_features(config: ModelConfig, waveform: torch.Tensor) -> torch.Tensor:
    from speakerlab.process.processor import FBank

    return FBank(config.fbank.n_mels, config.fbank.sample_rate, mean_nor=True)(waveform)


def _compute_speechbrain_features(config: ModelConfig, waveform: torch.Tensor) -> torch.Tensor:
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    fbank = config.fbank
    extract = Fbank(n_mels=fbank.n_mels, f_min=fbank.f_min, f_max=fbank.f_max)
    normalize = InputNormalization(norm_type="sentence", std_norm=False)
    return normalize(extract(waveform[None]), torch.ones(1))[0]


def _make_network_function(module: str) -> Callable[[EcapaConfig], torch.nn.Module]:
    def make(config: EcapaConfig) -> torch.nn.Module:
        activation = {"activation": torch.nn.LeakyReLU} if config.activation == "leaky_relu" else {}
        return importlib.import_module(module).ECAPA_TDNN(
            config.n_mels,
            channels=[*config.channels, config.mfa_channels],
            kernel_sizes=[*config.kernel_sizes, config.mfa_kernel_size],
            dilations=[1, *config.dilations, config.mfa_dilation],
            lin_neurons=config.embedding_dim,
            attention_channels=config.attention_channels,
            res2net_scale=config.res2_scale,
            se_channels=config.se_channels,
            global_context=config.global_context,
            **activation,
        )

    return make


def _name_sb_stages(config: EcapaConfig) -> dict[str, str]:
    blocks = {f"blocks.{index + 1}": f"block_{index}" for index in range(config.n_blocks)}
    return {"blocks.0": "stem", **blocks, "mfa": "mfa", "asp": "pooled"}


def _compute_wespeaker_features(config: ModelConfig, waveform: torch.Tensor) -> torch.Tensor:
    """Computes features as `wespeaker.cli.speaker` does."""
    from torchaudio.compliance import kaldi

    rate, n_mels = config.fbank.sample_rate, config.fbank.n_mels
    features = kaldi.fbank(
        waveform[None] * (1 << 15), num_mel_bins=n_mels, sample_frequency=rate, window_type=config.fbank.window
    )
    return features - features.mean(dim=0)


def _make_wespeaker_network(config: EcapaConfig) -> torch.nn.Module:
    if "wespeaker" not in sys.modules:
        # The package imports its command line, which needs a voice detector. This stub avoids that import.
        spec = importlib.util.find_spec("wespeaker")
        package = types.ModuleType("wespeaker")
        package.__path__ = list(spec.submodule_search_locations or []) if spec else []
        sys.modules["wespeaker"] = package
    return importlib.import_module("wespeaker.models.ecapa_tdnn").ECAPA_TDNN(
        channels=config.channels[0],
        feat_dim=config.n_mels,
        embed_dim=config.embedding_dim,
        pooling_func="ASTP",
        global_context_att=config.global_context,
        emb_bn=config.embedding_norm,
    )


_WESPEAKER_STAGES = {
    "layer1": "stem",
    "layer2": "block_0",
    "layer3": "block_1",
    "layer4": "block_2",
    "conv": "mfa",
    "pool": "pooled",
}


def _is_wespeaker_config(config: EcapaConfig) -> bool:
    fixed = (config.mfa_channels, config.dilations, config.kernel_sizes, config.res2_scale, config.attention_channels)
    return fixed == (1536, (2, 3, 4), (5, 3, 3, 3), 8, 128) and getattr(config, "pooling", "attentive") == "attentive"


ORIGINALS: dict[str, Original] = {
    "3dspeaker": Original(
        package="speakerlab",
        distribution="speakerlab",
        fits=lambda config: config.mfa_channels == sum(config.channels[1:]),
        features=_compute_speakerlab_features,
        network=_make_network_function("speakerlab.models.ecapa_tdnn.ECAPA_TDNN"),
        stages=_name_sb_stages,
    ),
    "speechbrain": Original(
        package="speechbrain",
        distribution="speechbrain",
        fits=lambda config: True,
        features=_compute_speechbrain_features,
        network=_make_network_function("speechbrain.lobes.models.ECAPA_TDNN"),
        stages=_name_sb_stages,
    ),
    "wespeaker": Original(
        package="wespeaker",
        distribution="wespeaker-unofficial",
        fits=_is_wespeaker_config,
        features=_compute_wespeaker_features,
        network=_make_wespeaker_network,
        stages=lambda config: dict(_WESPEAKER_STAGES),
    ),
}
ORIGINALS["speechbrain-langid"] = ORIGINALS["speechbrain"]
"""Original code of each family whose code can be installed from a package index."""


def available(family: str, config: EcapaConfig | None = None) -> str | None:
    """Returns package and version of the code of a family; None if it is not installed or does not support `config`."""
    original = ORIGINALS.get(family)
    if original is None or (config is not None and not original.fits(config)):
        return None
    try:
        version = importlib.metadata.version(original.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    return f"{original.distribution} {version}, torch {torch.__version__}"


def network(family: str, config: EcapaConfig) -> torch.nn.Module:
    """Makes the original module in eval mode, with its random initial weights."""
    return ORIGINALS[family].network(config).eval()


def stages(family: str, config: ModelConfig, tensors: dict[str, np.ndarray], waveform: np.ndarray) -> Stages:
    """Computes all stages of one utterance with the original code.

    Args:
      family: a key of `ORIGINALS`.
      config: the model.
      tensors: state dict of the original, loaded strictly except for the counters of batch norm.
      waveform: [S], float32.
    """
    original, found = ORIGINALS[family], {}

    def keep(name: str, *, relu: bool) -> Callable[..., None]:
        def hook(module: Any, given: Any, result: torch.Tensor) -> None:
            kept = result.detach().numpy()[0].T.copy()
            found[name] = np.maximum(kept, 0) if relu else kept

        return hook

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module = network(family, config.ecapa)
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
        names = original.stages(config.ecapa)
        for name, submodule in module.named_modules():
            if name in names:
                # WeSpeaker's aggregation is a convolution and a ReLU, but only the convolution is a module.
                submodule.register_forward_hook(keep(names[name], relu=name == "conv"))
        features = original.features(config, torch.from_numpy(waveform))
        embedding: Any = module(features[None])
        embedding = embedding[-1] if isinstance(embedding, tuple) else embedding
    found["pooled"] = found["pooled"].reshape(-1)
    return {"features": features.numpy(), **found, "embedding": embedding.numpy().reshape(-1)}
