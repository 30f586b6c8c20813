"""The published models as configurations. Data only: no weights.

Figures and switches: the publishers' cards and code (3D-Speaker `speakerlab` 0.0.6, `speechbrain` 1.1.2).
"""

from __future__ import annotations

from ecapa_jax.config import EcapaConfig, FbankConfig, ModelConfig

KALDI_POVEY = FbankConfig()
"""3D-Speaker: torchaudio's Kaldi fbank on a waveform in [-1, 1], povey window, mean over time subtracted."""

KALDI_HAMMING_INT16 = FbankConfig(waveform_scale=32768.0, window="hamming")
"""WeSpeaker: the same in the 16-bit range, hamming window."""

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
"""SpeechBrain's Fbank: dB, 80 dB range per utterance, its own triangles, mean over time subtracted."""

SEQUENTIAL_REFLECT = EcapaConfig()
"""The network that 3D-Speaker and SpeechBrain share, at C = 1024."""

PRESETS: dict[str, ModelConfig] = {
    "3dspeaker": ModelConfig(fbank=KALDI_POVEY, ecapa=SEQUENTIAL_REFLECT),
    "speechbrain": ModelConfig(fbank=SPEECHBRAIN_DB, ecapa=SEQUENTIAL_REFLECT),
}
"""Family name to the configuration of its published VoxCeleb model."""
