"""Engines in PyTorch (3D-Speaker's and SpeechBrain's modules), and the export that the ONNX engines run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.speed.engines import Call, Engine
from benchmarks.speed.model import Model, cores

torch.set_num_threads(cores())


def kaldi_features(waveforms: np.ndarray) -> np.ndarray:
    """Computes torchaudio's Kaldi fbank [B, T, 80] minus its mean for each utterance, as 3D-Speaker does."""
    from torchaudio.compliance import kaldi

    rows = [kaldi.fbank(wave[None], num_mel_bins=80) for wave in torch.from_numpy(waveforms)]
    return torch.stack([row - row.mean(0, keepdim=True) for row in rows]).numpy()


def three_d_speaker(model: Model, mode: str) -> Engine:
    """Returns 3D-Speaker's ECAPA_TDNN.

    Args:
      mode: `eager`, `compile` (for any batch and length), or `bfloat16` (under autocast).
    """
    run: Callable[..., torch.Tensor] = three_d_speaker_module(model)
    if mode == "compile":
        import torch._dynamo.config as dynamo
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # its workers are forked, and JAX's threads do not survive a fork
        dynamo.recompile_limit = 64  # one per block for one recording, and one for several
        dynamo.fail_on_recompile_limit_hit = True  # otherwise it would silently run eagerly
        run = torch.compile(run, dynamic=True)
    return _engine(run, kaldi_features, autocast=mode == "bfloat16")


def three_d_speaker_module(model: Model) -> torch.nn.Module:
    """Returns 3D-Speaker's module with the model's weights, for inference."""
    from speakerlab.models.ecapa_tdnn.ECAPA_TDNN import ECAPA_TDNN

    return fill_weights(ECAPA_TDNN(80, **_sizes(model)), model)


def speechbrain(model: Model) -> Engine:
    """Returns SpeechBrain's front end and ECAPA_TDNN as its EncoderClassifier uses them."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from speechbrain.processing.features import InputNormalization

    network = fill_weights(ECAPA_TDNN(80, **_sizes(model)), model)
    fbank, normalize = Fbank(n_mels=80), InputNormalization(norm_type="sentence", std_norm=False)

    def features(waveforms: np.ndarray) -> np.ndarray:
        return normalize(fbank(torch.from_numpy(waveforms)), torch.ones(len(waveforms))).numpy()

    return _engine(network, features, family="speechbrain")


def fill_weights(network: torch.nn.Module, model: Model) -> torch.nn.Module:
    """Loads the model's weights, which contain everything except batch counters."""
    tensors = {name: torch.from_numpy(tensor) for name, tensor in model.tensors().items()}
    left = network.load_state_dict(tensors, strict=False)
    wrong = [name for name in left.missing_keys if not name.endswith("num_batches_tracked")] + left.unexpected_keys
    if wrong:
        raise ValueError(f"these tensors have no partner: {', '.join(wrong)}")
    return network.eval()


def export(model: Model) -> None:
    """Writes 3D-Speaker's network as ONNX, for any batch and length."""
    from speakerlab.models.ecapa_tdnn import ECAPA_TDNN as module

    def mask(length: torch.Tensor, max_len: torch.Tensor, device: torch.device) -> torch.Tensor:
        return torch.arange(max_len, device=device) < length[:, None]

    # The original reads the batch size as a Python number, which would become a constant of the graph.
    with mock.patch.object(module, "length_to_mask", mask), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without further dependencies is deprecated
        torch.onnx.export(
            three_d_speaker_module(model),
            (torch.zeros(2, 200, 80),),
            str(model.onnx),
            input_names=["features"],
            output_names=["embedding"],
            dynamic_axes={"features": {0: "batch", 1: "time"}, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )


def _sizes(model: Model) -> dict[str, Any]:
    ecapa = model.config().ecapa
    return {"channels": [*ecapa.channels, ecapa.mfa_channels], "lin_neurons": ecapa.embedding_dim}


def _engine(run: Callable[..., torch.Tensor], front_end: Call, *, autocast: bool = False, **settings: Any) -> Engine:
    def network(features: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return run(torch.from_numpy(features)).float().reshape(len(features), -1).numpy()

    def embed(waveforms: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            features = front_end(waveforms)
        return network(features)

    return Engine(network=network, embed=embed, **settings)
