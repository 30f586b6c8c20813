"""Makes golden.npz: features and embeddings of the original PyTorch code, for tests without torch.

    python tests/golden/make_golden.py

The script needs torch, torchaudio (its pure-Python parts), speakerlab and speechbrain, and stores their versions. It
runs `speakerlab` (its FBank with mean_nor, its ECAPA_TDNN) or `speechbrain` (Fbank, InputNormalization by sentence
without std, its ECAPA_TDNN), one utterance at a time, in float32 on a CPU with C = 64. The weights are generated from a
seed and not stored. Their hash is stored, so that a changed generator is not mistaken for a broken model.

Contents of golden.npz, by family and signal:
  versions                        JSON of the packages' versions
  FAMILY/weights                  SHA-256 of the weights
  FAMILY/SIGNAL/frames            number of frames
  FAMILY/SIGNAL/features          every 16th frame, [T / 16, 80]
  FAMILY/SIGNAL/embedding         [192]
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speakerlab.models.ecapa_tdnn.ECAPA_TDNN import ECAPA_TDNN as SpeakerlabEcapa
from speakerlab.process.processor import FBank
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN as SpeechbrainEcapa
from speechbrain.processing.features import InputNormalization

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import parity

PACKAGES = ("torch", "torchaudio", "speakerlab", "speechbrain", "numpy")


def three_d_speaker(waveform: torch.Tensor) -> torch.Tensor:
    return FBank(80, parity.RATE, mean_nor=True)(waveform)


def speechbrain(waveform: torch.Tensor) -> torch.Tensor:
    normalize = InputNormalization(norm_type="sentence", std_norm=False)
    return normalize(Fbank(n_mels=80)(waveform[None]), torch.ones(1))[0]


FAMILIES = {"3dspeaker": (three_d_speaker, SpeakerlabEcapa), "speechbrain": (speechbrain, SpeechbrainEcapa)}


def family_arrays(family: str) -> dict[str, Any]:
    extract, network_class = FAMILIES[family]
    config, tensors = parity.golden_model(family)
    network = network_class(80, channels=[*config.ecapa.channels, config.ecapa.mfa_channels]).eval()
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, strict=True)
    arrays: dict[str, Any] = {f"{family}/weights": parity.weights_hash(tensors)}
    for signal, waveform in parity.golden_signals().items():
        features = extract(torch.from_numpy(waveform))
        arrays[f"{family}/{signal}/frames"] = len(features)
        arrays[f"{family}/{signal}/features"] = features[:: parity.GOLDEN_STEP].numpy()
        arrays[f"{family}/{signal}/embedding"] = network(features[None]).reshape(-1).numpy()
    return arrays


def main() -> None:
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    with torch.no_grad():
        arrays = {name: array for family in FAMILIES for name, array in family_arrays(family).items()}
    np.savez_compressed(parity.GOLDEN, versions=json.dumps(versions), **arrays)
    print(f"{parity.GOLDEN}: {parity.GOLDEN.stat().st_size / 1e6:.2f} MB, {versions}")


if __name__ == "__main__":
    main()
