"""The publishers' PyTorch modules, loaded from wheels that are installed without their dependencies."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecapa_jax.config import ModelConfig

Original = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A function from a waveform [S] to features [T, M] and an embedding [D]."""


class _Anything(types.ModuleType):
    """A replacement for a module of which only names are needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = {"get_same_padding": _same_padding, "init_weights": lambda module, mode: None, "logging": logging}
        known["logger"] = logging.getLogger(__name__)
        return known.get(name, object)


def _same_padding(kernel_size: int, stride: int, dilation: int) -> int:
    assert stride == 1
    return dilation * (kernel_size - 1) // 2


def _load(package: str, path: str, *absent: str) -> Any:
    """Imports one file of an installed package without running the package's `__init__`."""
    root = Path(importlib.util.find_spec(package).origin or "").parent
    spec = importlib.util.spec_from_file_location(f"original_{Path(path).stem}", root / path)
    before = dict(sys.modules)
    sys.modules.update({name: _Anything(name) for name in absent})
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        for name in absent:
            sys.modules.pop(name)
            if name in before:
                sys.modules[name] = before[name]


@functools.cache
def _nemo() -> tuple[Any, Any]:
    parts = "nemo.collections.asr.parts"
    features = _load(
        *("nemo", "collections/asr/parts/preprocessing/features.py"),
        *(f"{parts}.preprocessing.perturb", f"{parts}.preprocessing.segment", "nemo.utils"),
    )
    layers = _load("nemo", "collections/asr/parts/submodules/tdnn_attention.py", f"{parts}.submodules.jasper")
    return features, layers


class _NemoNetwork(torch.nn.Module):
    """NeMo's ECAPAEncoder and the embedding part of its SpeakerDecoder, built from NeMo's layers."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        net, layers = config.ecapa, _nemo()[1]
        blocks = [
            layers.TDNNSEModule(a, b, net.res2_scale, net.se_channels, kernel, dilation)
            for a, b, kernel, dilation in zip(
                net.channels[:-1], net.channels[1:], net.kernel_sizes[1:], net.dilations, strict=True
            )
        ]
        stem = layers.TDNNModule(net.n_mels, net.channels[0], net.kernel_sizes[0], 1)
        self.encoder = torch.nn.Module()
        self.encoder.layers = torch.nn.ModuleList([stem, *blocks])
        self.encoder.feature_agg = layers.TDNNModule(net.mfa_channels, net.mfa_channels, 1, 1)
        self.decoder = torch.nn.Module()
        self.decoder._pooling = layers.AttentivePoolLayer(net.mfa_channels, net.attention_channels)
        last = torch.nn.Sequential(
            torch.nn.BatchNorm1d(2 * net.mfa_channels), torch.nn.Conv1d(2 * net.mfa_channels, net.embedding_dim, 1)
        )
        self.decoder.emb_layers = torch.nn.ModuleList([last])
        self.preprocessor = torch.nn.Module()
        self.preprocessor.featurizer = _nemo()[0].FilterbankFeatures(
            n_window_size=400, n_window_stride=160, n_fft=512, nfilt=80
        )

    def forward(self, features: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        outputs = []
        for index, layer in enumerate(self.encoder.layers):
            features = layer(features) if index == 0 else layer(features, length=length)
            outputs.append(features)
        x = self.encoder.feature_agg(torch.cat(outputs[1:], 1))
        return self.decoder.emb_layers[0](self.decoder._pooling(x, length))


def nemo(config: ModelConfig, tensors: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Original:
    """Runs the current NeMo; before version 2.5, its featurizer padded by reflection and counted the last frame."""
    network = _NemoNetwork(config).eval()
    _load_strictly(network, tensors)
    network.to(dtype)
    featurizer = network.preprocessor.featurizer
    if config.fbank.framing == "center_reflect":
        stft = torch.stft
        count = featurizer.get_seq_len
        featurizer.get_seq_len = lambda length: count(length) + 1

        def reflected(x: torch.Tensor) -> torch.Tensor:
            return stft(x, 512, 160, 400, featurizer.window, True, "reflect", return_complex=True)

        featurizer.stft = reflected

    def run(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            features, length = featurizer(torch.from_numpy(waveform)[None].to(dtype), torch.tensor([len(waveform)]))
            embedding = network(features, length)
        return features[0, :, : int(length)].T.numpy(), embedding.reshape(-1).numpy()

    return run


def espnet(config: ModelConfig, tensors: dict[str, np.ndarray]) -> Original:
    """Runs ESPnet-SPK's front end, encoder, pooling and projector."""
    encoder = _espnet("espnet2/spk/encoder/ecapa_tdnn_encoder.py")
    network, net = torch.nn.Module(), config.ecapa
    network.frontend = _espnet("espnet2/asr/frontend/melspec_torch.py").MelSpectrogramTorch(log=True, normalize="mn")
    network.encoder = encoder.EcapaTdnnEncoder(80, ndim=net.channels[0], output_size=net.mfa_channels)
    network.pooling = _espnet("espnet2/spk/pooling/chn_attn_stat_pooling.py").ChnAttnStatPooling(net.mfa_channels)
    network.projector = _espnet("espnet2/spk/projector/rawnet3_projector.py").RawNet3Projector(
        2 * net.mfa_channels, net.embedding_dim
    )
    filtered = {"frontend.flipped_filter": np.array([[[-0.97, 1]]], np.float32)}
    _load_strictly(network.eval(), {**tensors, **filtered})

    def run(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            features, _ = network.frontend(torch.from_numpy(waveform)[None], torch.tensor([len(waveform)]))
            embedding = network.projector(network.pooling(network.encoder(features)))
        return features[0].numpy(), embedding[0].numpy()

    return run


@functools.cache
def _espnet(path: str) -> Any:
    return importlib.import_module(path.removesuffix(".py").replace("/", "."))


@functools.cache
def wespeaker_class() -> Any:
    """Returns WeSpeaker's ECAPA_TDNN class.

    The package imports its command line, which needs a voice detector. The models do not need it.

    Raises:
      ImportError: if WeSpeaker is not installed.
    """
    if "wespeaker" not in sys.modules:
        spec = importlib.util.find_spec("wespeaker")
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("wespeaker is not installed")
        package = types.ModuleType("wespeaker")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["wespeaker"] = package
    return importlib.import_module("wespeaker.models.ecapa_tdnn").ECAPA_TDNN


def wespeaker(config: ModelConfig, tensors: dict[str, np.ndarray]) -> Original:
    """Runs WeSpeaker's class on the fbank of its command line: 16-bit range, hamming, no dither, mean subtracted."""
    kaldi = importlib.import_module("torchaudio.compliance.kaldi")
    net = config.ecapa
    network = wespeaker_class()(
        channels=net.channels[0], embed_dim=net.embedding_dim, pooling_func="ASTP", global_context_att=True
    )
    network.conv = torch.nn.Conv1d(
        3 * net.channels[0], net.mfa_channels, 1
    )  # the class has 1536 channels here at any width
    network.pool = type(network.pool)(net.mfa_channels, global_context_att=True)
    network.bn = torch.nn.BatchNorm1d(2 * net.mfa_channels)
    network.linear = torch.nn.Linear(2 * net.mfa_channels, net.embedding_dim)
    _load_strictly(network.eval(), tensors)

    def run(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        samples = torch.from_numpy(waveform)[None] * (1 << 15)
        features = kaldi.fbank(samples, num_mel_bins=80, sample_frequency=16000, window_type="hamming")
        features = features - features.mean(dim=0)
        with torch.no_grad():
            return features.numpy(), network(features[None])[-1][0].numpy()

    return run


def language_identification(config: ModelConfig, tensors: dict[str, np.ndarray]) -> Original:
    """Runs SpeechBrain's modules with the arguments of its VoxLingua107 model."""
    net = config.ecapa
    network = _shared_layout("speechbrain.lobes.models.ECAPA_TDNN", config, activation=torch.nn.LeakyReLU)
    extract = importlib.import_module("speechbrain.lobes.features").Fbank(n_mels=net.n_mels)
    processing = importlib.import_module("speechbrain.processing.features")
    normalize = processing.InputNormalization(norm_type="sentence", std_norm=False)
    _load_strictly(network, tensors)

    def run(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            features = normalize(extract(torch.from_numpy(waveform)[None]), torch.ones(1))
            return features[0].numpy(), network(features).reshape(-1).numpy()

    return run


def rdino(config: ModelConfig, tensors: dict[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Original:
    """Runs 3D-Speaker's self-supervised network, which takes mel energies and normalizes their logarithm itself."""
    mel = importlib.import_module("torchaudio.transforms").MelSpectrogram(
        sample_rate=16000, n_fft=512, win_length=400, hop_length=160, f_min=0.0, f_max=8000, n_mels=80
    )
    mel = mel.to(dtype)
    network = _shared_layout("speakerlab.models.rdino.ECAPA_TDNN", config)
    _load_strictly(network, tensors)
    network.to(dtype)

    def run(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            energies = mel(torch.from_numpy(waveform)[None].to(dtype))
            features = network.instancenorm((energies + 1e-6).log())
            return features[0].T.numpy(), network(energies).reshape(-1).numpy()

    return run


def mvector(config: ModelConfig, tensors: dict[str, np.ndarray]) -> Original:
    """Runs mvector's featurizer and network, after mvector's gain to -20 dB, which belongs to neither."""
    root = Path(importlib.util.find_spec("mvector").origin or "").parent
    models = types.ModuleType("mvector.models")  # the package's __init__ imports other networks
    models.__path__ = [str(root / "models")]
    sys.modules["mvector.models"] = models
    featurizer = _load("mvector", "data_utils/featurizer.py", "loguru").AudioFeaturizer(
        "Fbank", method_args={"sample_frequency": 16000, "num_mel_bins": 80}
    )
    net = config.ecapa
    network = importlib.import_module("mvector.models.ecapa_tdnn").EcapaTdnn(
        80, embd_dim=net.embedding_dim, channels=[*net.channels, net.mfa_channels]
    )
    _load_strictly(network.eval(), tensors)

    def run(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            features = featurizer(torch.from_numpy(waveform))
            return features[0].numpy(), network(features)[0].numpy()

    return run


def _shared_layout(module: str, config: ModelConfig, **arguments: Any) -> Any:
    net = config.ecapa
    return (
        importlib.import_module(module)
        .ECAPA_TDNN(net.n_mels, channels=[*net.channels, net.mfa_channels], lin_neurons=net.embedding_dim, **arguments)
        .eval()
    )


def _load_strictly(network: torch.nn.Module, tensors: dict[str, np.ndarray]) -> None:
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing


ORIGINALS = {
    "nemo": nemo,
    "nemo-2.5": nemo,
    "espnet": espnet,
    "wespeaker": wespeaker,
    "speechbrain-langid": language_identification,
    "rdino": rdino,
    "mvector": mvector,
}
