"""The published models as configurations. Data only: no weights.

Figures and switches: the publishers' cards and code (3D-Speaker `speakerlab` 0.0.6, `speechbrain` 1.1.2).
"""

from __future__ import annotations

import dataclasses

from ecapa_jax.config import EcapaConfig, FbankConfig, ModelConfig, StdConfig

KALDI_POVEY = FbankConfig()
"""3D-Speaker: torchaudio's Kaldi fbank on a waveform in [-1, 1], povey window, mean over time subtracted."""

KALDI_HAMMING_INT16 = FbankConfig(waveform_scale=32768.0, window="hamming")
"""WeSpeaker: as `KALDI_POVEY`, but with a waveform in the 16-bit range and a hamming window."""

SPEECHBRAIN_DB = FbankConfig(
    channel="mean",
    framing="center_zeros",
    window="hamming",
    window_periodic=True,
    remove_dc=False,
    preemphasis=0.0,
    fft_size=400,
    mel_scale="htk",
    mel_shape="hz_symmetric",
    f_min=0.0,
    floor=1e-10,
    log="db",
    top_db=80.0,
)
"""SpeechBrain's Fbank: dB, 80 dB range per utterance, SpeechBrain's own triangles, mean over time subtracted."""

MEL_TAORUIJIE = FbankConfig(
    framing="center_reflect",
    window="hamming",
    window_periodic=True,
    remove_dc=False,
    preemphasis_mode="signal_reflect",
    mel_scale="htk",
    mel_shape="hz",
    mel_source="constants",
    f_max=7600.0,
    floor=1e-6,
    floor_mode="add",
)
"""TaoRuijie: torchaudio's MelSpectrogram of the pre-emphasised waveform, 20 to 7600 Hz, with stored matrix and window.
ESPnet-SPK's MelSpectrogramTorch is the same."""

MEL_INSTANCE = FbankConfig(
    framing="center_reflect",
    window="hann",
    window_periodic=True,
    remove_dc=False,
    preemphasis=0.0,
    mel_scale="htk",
    mel_shape="hz",
    f_min=0.0,
    floor=1e-6,
    floor_mode="add",
    normalization="instance",
)
"""RDINO and SDPN (3D-Speaker): torchaudio's MelSpectrogram, 0 to 8000 Hz, each band of unit variance."""

MEL_NEMO = FbankConfig(
    framing="center_reflect",
    window="hann",
    remove_dc=False,
    preemphasis_mode="signal_zero",
    mel_scale="slaney",
    mel_shape="hz_area",
    mel_source="constants",
    f_min=0.0,
    floor=2.0**-24,
    floor_mode="add",
    normalization="mean_std",
    pad_to=16,
)
"""FilterbankFeatures of NeMo up to 2.4, which trained the published model, with stored matrix and window."""

MEL_NEMO_2_5 = dataclasses.replace(MEL_NEMO, framing="center_zeros_floor")
"""FilterbankFeatures from NeMo 2.5 on: the waveform is padded with zeros, and the last frame is blank."""

SEQUENTIAL_REFLECT = EcapaConfig()
"""The network that 3D-Speaker and SpeechBrain share, at C = 1024."""

SUMMED_ZEROS = EcapaConfig(
    padding="zeros",
    block_input="sum",
    multiscale="last",
    mfa_channels=1536,
    mfa_norm=False,
    attention_channels=256,
    embedding_norm=True,
    context_std=StdConfig(unbiased=True, epsilon=1e-4),
    pooled_std=StdConfig(form="moment", epsilon=1e-4),
)
"""TaoRuijie's network: the paper's summed block inputs, a batch norm on the embedding."""

ESPNET = dataclasses.replace(
    SUMMED_ZEROS,
    attention_channels=128,
    attention_hidden="relu_bn",
    se_norm=True,
    embedding_norm=False,
    context_std=StdConfig(unbiased=True, epsilon=1e-4, maximum=1e4),
    pooled_std=StdConfig(form="moment", epsilon=1e-4, maximum=1e4),
)
"""The network of ESPnet-SPK up to 202412, which trained the published model."""

ESPNET_2025 = dataclasses.replace(ESPNET, context_std=StdConfig(epsilon=2.0**-23, maximum=1e4))
"""The network of ESPnet-SPK from 202511 on."""

GROUPED_ZEROS = EcapaConfig(
    padding="zeros",
    multiscale="grouped",
    dilations=(1, 1, 1),
    se_norm=True,
    context_std=StdConfig(epsilon=1e-10),
    pooled_std=StdConfig(epsilon=1e-10),
)
"""NeMo's network: a grouped convolution instead of the Res2 chain, no dilation."""

WESPEAKER_GLOB = EcapaConfig(
    padding="zeros",
    multiscale="last",
    mfa_channels=1536,
    mfa_norm=False,
    attention_hidden="tanh",
    context_std=StdConfig(unbiased=True, epsilon=1e-7, epsilon_mode="add"),
    pooled_std=StdConfig(form="moment", epsilon=1e-7),
)
"""WeSpeaker's network with global context, at C = 1024."""

LANGUAGE_ID = EcapaConfig(n_mels=60, embedding_dim=256, activation="leaky_relu", activation_scope="outer")
"""SpeechBrain's language identification on VoxLingua107."""

DEFAULT = "default"
"""Names the packaged model wherever a bundle is named."""

PRESETS: dict[str, ModelConfig] = {
    "3dspeaker": ModelConfig(fbank=KALDI_POVEY, ecapa=SEQUENTIAL_REFLECT),
    "speechbrain": ModelConfig(fbank=SPEECHBRAIN_DB, ecapa=SEQUENTIAL_REFLECT),
    "taoruijie": ModelConfig(fbank=MEL_TAORUIJIE, ecapa=SUMMED_ZEROS),
    "nemo": ModelConfig(fbank=MEL_NEMO, ecapa=GROUPED_ZEROS),
    "nemo-2.5": ModelConfig(fbank=MEL_NEMO_2_5, ecapa=GROUPED_ZEROS),
    "espnet": ModelConfig(fbank=MEL_TAORUIJIE, ecapa=ESPNET),
    "espnet-2025": ModelConfig(fbank=MEL_TAORUIJIE, ecapa=ESPNET_2025),
    "speechbrain-langid": ModelConfig(fbank=dataclasses.replace(SPEECHBRAIN_DB, n_mels=60), ecapa=LANGUAGE_ID),
    "mvector": ModelConfig(
        fbank=KALDI_POVEY, ecapa=dataclasses.replace(SEQUENTIAL_REFLECT, channels=(512,) * 4, mfa_channels=1536)
    ),
    "rdino": ModelConfig(fbank=MEL_INSTANCE, ecapa=EcapaConfig(embedding_dim=512)),
    "ssl-modelscope": ModelConfig(fbank=KALDI_POVEY, ecapa=EcapaConfig(embedding_dim=512)),
    "wespeaker-c512": ModelConfig(
        fbank=KALDI_HAMMING_INT16, ecapa=dataclasses.replace(WESPEAKER_GLOB, channels=(512,) * 4)
    ),
    "wespeaker-c1024": ModelConfig(fbank=KALDI_HAMMING_INT16, ecapa=WESPEAKER_GLOB),
}
"""The configuration of each published model, by name."""
