"""ECAPA-TDNN and its front ends in float64 NumPy, one utterance at a time, written from the published formulas.

The code is independent of the library: it has loops, but no masks or batches. Weights have the shared PyTorch layout.
"""

from __future__ import annotations

import functools

import numpy as np

from ecapa_jax.config import EcapaConfig, FbankConfig, StdConfig

Tensors = dict[str, np.ndarray]


def fbank(config: FbankConfig, waveform: np.ndarray) -> np.ndarray:
    """Computes features [T, M] of a waveform [S] in float64."""
    x = waveform.astype(np.float64) * config.waveform_scale
    n, size, shift = len(x), config.frame_length, config.frame_shift
    if config.preemphasis and config.preemphasis_mode != "frame":
        before = {"signal_reflect": lambda: x[min(1, n - 1)], "signal_zero": lambda: 0.0}[config.preemphasis_mode]()
        x = x - config.preemphasis * np.concatenate([[before], x[:-1]])
    if config.framing == "snip_edges":
        starts, source = range(0, n - size + 1, shift), x
    elif config.framing == "kaldi_reflect":
        # Kaldi reflects repeatedly, and repeats the edge sample each time.
        source = np.pad(x, size, mode="symmetric")
        starts = [size + shift * t + shift // 2 - size // 2 for t in range((n + shift // 2) // shift)]
    else:
        size = config.fft_size
        source = np.pad(x, size // 2, mode="reflect" if config.framing == "center_reflect" else "constant")
        starts = range(0, n + 1, shift)[: -1 if config.framing == "center_zeros_floor" else None]
    frames = np.stack([source[start : start + size] for start in starts])
    if config.remove_dc:
        frames = frames - frames.mean(1, keepdims=True)
    if config.preemphasis and config.preemphasis_mode == "frame":
        frames = frames - config.preemphasis * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    power = np.abs(np.fft.rfft(frames * _window(config, size), config.fft_size)) ** 2
    energy = power @ _mel(config)
    energy = energy + config.floor if config.floor_mode == "add" else np.maximum(energy, config.floor)
    if config.top_db is not None:
        energy = np.maximum(energy, energy.max() / 10 ** (config.top_db / 10))
    features = np.log(energy) if config.log == "ln" else 10 * np.log10(energy)
    return _normalized(config, features)


def _normalized(config: FbankConfig, features: np.ndarray) -> np.ndarray:
    mean = features.mean(0)
    return {
        "none": lambda: features,
        "mean": lambda: features - mean,
        "mean_std": lambda: (features - mean) / (np.sqrt(((features - mean) ** 2).sum(0) / (len(features) - 1)) + 1e-5),
        "instance": lambda: (features - mean) / np.sqrt(((features - mean) ** 2).mean(0) + 1e-5),
    }[config.normalization]()


def _window(config: FbankConfig, size: int) -> np.ndarray:
    period = config.frame_length - (not config.window_periodic)
    i = np.arange(config.frame_length)
    window = {
        "povey": (0.5 - 0.5 * np.cos(2 * np.pi * i / period)) ** 0.85,
        "hann": 0.5 - 0.5 * np.cos(2 * np.pi * i / period),
        "hamming": 0.54 - 0.46 * np.cos(2 * np.pi * i / period),
    }[config.window]
    left = (size - config.frame_length) // 2
    return np.pad(window, (left, size - config.frame_length - left))


@functools.cache
def _mel(config: FbankConfig) -> np.ndarray:
    scale = {
        "kaldi": lambda f: 1127 * np.log(1 + f / 700),
        "htk": lambda f: 2595 * np.log10(1 + f / 700),
        # The scale is linear up to 1 kHz (3 mels per 200 Hz), then has 27 mels per factor of 6.4.
        "slaney": lambda f: f / (200 / 3) if f < 1000 else 15 + np.log(f / 1000) / (np.log(6.4) / 27),
    }
    unscale = {
        "kaldi": lambda m: 700 * (np.exp(m / 1127) - 1),
        "htk": lambda m: 700 * (10 ** (m / 2595) - 1),
        "slaney": lambda m: m * 200 / 3 if m < 15 else 1000 * np.exp((m - 15) * np.log(6.4) / 27),
    }
    to_mel, to_hz = scale[config.mel_scale], unscale[config.mel_scale]
    points = np.linspace(to_mel(config.f_min), to_mel(config.f_max), config.n_mels + 2)
    bins = np.arange(config.fft_size // 2 + 1) * config.sample_rate / config.fft_size
    matrix = np.zeros((len(bins), config.n_mels))
    for band in range(config.n_mels):
        low, centre, high = points[band : band + 3]
        for q, f in enumerate(bins):
            if config.mel_shape == "mel":
                m = to_mel(f)
                up, down = (m - low) / (centre - low), (high - m) / (high - centre)
            elif config.mel_shape in ("hz", "hz_area"):
                a, b, c = to_hz(low), to_hz(centre), to_hz(high)
                up, down = (f - a) / (b - a), (c - f) / (c - b)
            else:
                a, b = to_hz(low), to_hz(centre)
                up, down = 1 + (f - b) / (b - a), 1 - (f - b) / (b - a)
            matrix[q, band] = max(0.0, min(up, down))
        if config.mel_shape == "hz_area":
            matrix[:, band] *= 2 / (c - a)
    return matrix


class Oracle:
    """The network for one utterance, from features [T, M] to the embedding [D], with every flag of `EcapaConfig`."""

    def __init__(self, config: EcapaConfig, tensors: Tensors):
        self.config = config
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self.real: int | None = None
        """The frames that enter the statistics, if a front end adds blank frames that only convolutions use."""

    def conv(self, name: str, x: np.ndarray, dilation: int = 1, groups: int = 1) -> np.ndarray:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        out, per_group, kernel = weight.shape
        reach = dilation * (kernel - 1) // 2
        if reach:
            x = np.pad(x, ((reach, reach), (0, 0)), mode="reflect" if self.config.padding == "reflect" else "constant")
        frames = len(x) - 2 * reach
        y = np.zeros((frames, out))
        for group in range(groups):
            rows = slice(group * out // groups, (group + 1) * out // groups)
            columns = slice(group * per_group, (group + 1) * per_group)
            for k in range(kernel):
                y[:, rows] += x[k * dilation : k * dilation + frames, columns] @ weight[rows, :, k].T
        return y + bias

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        t = self.tensors
        scale = t[f"{name}.weight"] / np.sqrt(t[f"{name}.running_var"] + self.config.norm_epsilon)
        return (x - t[f"{name}.running_mean"]) * scale + t[f"{name}.bias"]

    def act(self, x: np.ndarray, outer: bool) -> np.ndarray:
        leaky = self.config.activation == "leaky_relu" and (outer or self.config.activation_scope == "all")
        return np.where(x > 0, x, 0.01 * x if leaky else 0)

    def tdnn(self, name: str, x: np.ndarray, dilation: int = 1, outer: bool = True, norm: bool = True) -> np.ndarray:
        y = self.act(self.conv(f"{name}.conv.conv", x, dilation), outer)
        return self.norm(f"{name}.norm.norm", y) if norm and self.config.norm == "batch" else y

    def res2(self, name: str, x: np.ndarray, dilation: int) -> np.ndarray:
        scale = self.config.res2_scale
        if self.config.multiscale == "grouped":
            y = self.act(self.conv(f"{name}.grouped.conv.conv", x, dilation, groups=scale), False)
            return self.norm(f"{name}.grouped.norm.norm", y)
        width = x.shape[1] // scale
        pieces = [x[:, i * width : (i + 1) * width] for i in range(scale)]
        first = self.config.multiscale == "first"
        kept = pieces[0] if first else pieces[-1]
        worked: list[np.ndarray] = []
        for i, piece in enumerate(pieces[1:] if first else pieces[:-1]):
            given = piece + worked[-1] if worked else piece
            worked.append(self.tdnn(f"{name}.blocks.{i}", given, dilation, outer=False))
        return np.concatenate([kept, *worked] if first else [*worked, kept], 1)

    def block(self, index: int, x: np.ndarray) -> np.ndarray:
        name = f"blocks.{index + 1}"
        y = self.tdnn(f"{name}.tdnn1", x)
        y = self.res2(f"{name}.res2net_block", y, self.config.dilations[index])
        y = self.tdnn(f"{name}.tdnn2", y)
        gate = self.act(self.conv(f"{name}.se_block.conv1.conv", y[: self.real].mean(0, keepdims=True)), False)
        if self.config.se_norm:
            gate = self.norm(f"{name}.se_block.norm", gate)
        gate = 0.5 + 0.5 * np.tanh(0.5 * self.conv(f"{name}.se_block.conv2.conv", gate))  # the sigmoid
        shortcut = f"{name}.shortcut.conv"
        return y * gate + (self.conv(shortcut, x) if f"{shortcut}.weight" in self.tensors else x)

    def std(self, config: StdConfig, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        mean = (weights * x).sum(0)
        variance = (weights * (x - mean) ** 2).sum(0)
        if config.unbiased:
            variance = variance * len(x) / (len(x) - 1)
        variance = variance + config.epsilon if config.epsilon_mode == "add" else np.maximum(variance, config.epsilon)
        return np.sqrt(variance if config.maximum is None else np.minimum(variance, config.maximum))

    def pool(self, x: np.ndarray) -> np.ndarray:
        x = x[: self.real]
        seen = [x]
        if self.config.global_context:
            mean, std = x.mean(0), self.std(self.config.context_std, x, np.full((len(x), 1), 1 / len(x)))
            seen += [np.tile(mean, (len(x), 1)), np.tile(std, (len(x), 1))]
        hidden = self.conv("asp.tdnn.conv.conv", np.concatenate(seen, 1))
        for step in self.config.attention_hidden.split("_"):
            if step == "relu":
                hidden = self.act(hidden, False)
            elif step == "bn":
                hidden = self.norm("asp.tdnn.norm.norm", hidden)
            else:
                hidden = np.tanh(hidden)
        logits = self.conv("asp.conv.conv", hidden)
        weights = np.exp(logits - logits.max(0))
        weights /= weights.sum(0)
        return np.concatenate([(weights * x).sum(0), self.std(self.config.pooled_std, x, weights)])

    def __call__(self, features: np.ndarray) -> np.ndarray:
        config = self.config
        x = self.tdnn("blocks.0", features.astype(np.float64))
        outputs: list[np.ndarray] = []
        for index in range(config.n_blocks):
            given = x + sum(outputs) if config.block_input == "sum" and outputs else (outputs[-1] if outputs else x)
            outputs.append(self.block(index, given))
        x = self.tdnn("mfa", np.concatenate(outputs, 1), config.mfa_dilation, norm=config.mfa_norm)
        pooled = self.pool(x)[None]
        if config.norm == "batch":
            pooled = self.norm("asp_bn.norm", pooled)
        embedding = self.conv("fc.conv", pooled)
        return (self.norm("embedding_norm", embedding) if config.embedding_norm else embedding)[0]
