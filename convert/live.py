"""A family's original PyTorch code, run live: the only module that imports torch, imported by `convert --verify` alone.

Stages are named as ours: features, stem, block_0.., mfa, pooled, embedding; arrays are [T, C], or [C] without time.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ecapa_jax.config import EcapaConfig, ModelConfig

Stages = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Original:
    """Where a family's code is.

    Attributes:
      package: the distribution.
      features: waveform [S] to features [T, M].
      network: the module, in eval mode, without weights.
      stages: names of its submodules to ours.
    """

    package: str
    features: Callable[[ModelConfig, torch.Tensor], torch.Tensor]
    network: Callable[[EcapaConfig], torch.nn.Module]
    stages: Callable[[EcapaConfig], dict[str, str]]


def _speakerlab_features(config: ModelConfig, waveform: torch.Tensor) -> torch.Tensor:
    from speakerlab.process.processor import FBank

    return FBank(config.fbank.n_mels, config.fbank.sample_rate, mean_nor=True)(waveform)


def _speechbrain_features(config: ModelConfig, waveform: torch.Tensor) -> torch.Tensor:
    from speechbrain.lobes.features import Fbank
    from speechbrain.processing.features import InputNormalization

    fbank = config.fbank
    extract = Fbank(n_mels=fbank.n_mels, f_min=fbank.f_min, f_max=fbank.f_max)
    normalize = InputNormalization(norm_type="sentence", std_norm=False)
    return normalize(extract(waveform[None]), torch.ones(1))[0]


def _sb_network(module: str) -> Callable[[EcapaConfig], torch.nn.Module]:
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


def _sb_stages(config: EcapaConfig) -> dict[str, str]:
    blocks = {f"blocks.{index + 1}": f"block_{index}" for index in range(config.n_blocks)}
    return {"blocks.0": "stem", **blocks, "mfa": "mfa", "asp": "pooled"}


ORIGINALS: dict[str, Original] = {
    "3dspeaker": Original(
        package="speakerlab",
        features=_speakerlab_features,
        network=_sb_network("speakerlab.models.ecapa_tdnn.ECAPA_TDNN"),
        stages=_sb_stages,
    ),
    "speechbrain": Original(
        package="speechbrain",
        features=_speechbrain_features,
        network=_sb_network("speechbrain.lobes.models.ECAPA_TDNN"),
        stages=_sb_stages,
    ),
}
"""Family to its code. The others are on no package index as importable modules."""


def available(family: str) -> str | None:
    """Package and version of a family's code, where it is installed."""
    original = ORIGINALS.get(family)
    if original is None or importlib.util.find_spec(original.package) is None:
        return None
    return f"{original.package} {_version(original.package)}, torch {torch.__version__}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def network(family: str, config: EcapaConfig) -> torch.nn.Module:
    """The original's module in eval mode, with weights of its own making."""
    return ORIGINALS[family].network(config).eval()


def stages(family: str, config: ModelConfig, tensors: dict[str, np.ndarray], waveform: np.ndarray) -> Stages:
    """What the original computes of one utterance.

    Args:
      family: a key of `ORIGINALS`.
      config: the model.
      tensors: the original's state dict, loaded strictly (but for batch norm's counters).
      waveform: [S], float32.
    """
    original, found = ORIGINALS[family], {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, given: Any, result: torch.Tensor) -> None:
            found[name] = result.detach().numpy()[0].T.copy()

        return hook

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module = network(family, config.ecapa)
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
        names = original.stages(config.ecapa)
        for name, submodule in module.named_modules():
            if name in names:
                submodule.register_forward_hook(keep(names[name]))
        features = original.features(config, torch.from_numpy(waveform))
        embedding: Any = module(features[None])
        embedding = embedding[-1] if isinstance(embedding, tuple) else embedding
    found["pooled"] = found["pooled"].reshape(-1)
    return {"features": features.numpy(), **found, "embedding": embedding.numpy().reshape(-1)}
