"""The configuration of a model: front end and network, as frozen, hashable, keyword-only dataclasses.

A `ModelConfig` is the one static argument of `ecapa_jax.embed`. There is a field for each difference between the public
ECAPA-TDNN families, so that a family is a set of values and the code never branches on the name of a family.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeAlias, TypeVar

from ecapa_jax.errors import ConfigError

SCHEMA = 1

Variables: TypeAlias = dict[str, Any]
"""A model's arrays: `{"params": ..., "batch_stats": ..., "constants": ...}`, nested dicts with string keys."""

Short: TypeAlias = Literal["error", "repeat"]
"""What to do with a recording that is too short for the model: raise an error, or repeat it until it is long enough."""

ScoringName: TypeAlias = Literal["publisher", "cosine", "cosine_less_mean", "half", "two_views"]
"""How to score: as the model's publisher does, or in one of the ways of `ecapa_jax.scoring.scorer.NAMED`."""

_T = TypeVar("_T")


class Checked:
    """Checks each `Literal` field and turns lists into tuples, so that every instance is valid and hashable."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
                choices = ", ".join(map(str, typing.get_args(hint)))
                raise ConfigError(f"{type(self).__name__}.{name} is {value!r}; it must be one of: {choices}")
        self._check()

    def _check(self) -> None:
        """Checks conditions that the types of the fields can't express."""

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"{type(self).__name__}: {message}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FbankConfig(Checked):
    """Waveform to log-mel features. Lengths are in samples, frequencies in Hz.

    Attributes:
      sample_rate: rate of the waveform, Hz.
      channel: which channel of a multi-channel recording the model hears.
      waveform_scale: factor on a waveform in [-1, 1]; 32768 gives Kaldi's 16-bit range.
      frame_length, frame_shift: analysis window and hop.
      framing: `snip_edges` keeps whole windows only; `kaldi_reflect` is Kaldi with snip_edges=false (a window is
        centred on each hop, and the edge sample is mirrored too); `center_zeros` and `center_reflect` are a centred
        STFT; `center_zeros_floor` is a centred STFT whose last frame is blank: floor(samples / hop) frames are real.
      window, window_periodic: analysis window; its period is frame_length if periodic, otherwise frame_length - 1.
      remove_dc: whether to subtract the mean of each frame.
      preemphasis, preemphasis_mode: coefficient, and how it applies: to each frame, whose first sample is repeated
        (`frame`), or to the whole signal, where the sample before the first is mirrored (`signal_reflect`) or zero
        (`signal_zero`).
      fft_size: length to which frames are zero-padded.
      mel_scale: `kaldi` 1127 ln(1 + f/700), `htk` 2595 log10(1 + f/700), `slaney`.
      mel_shape: shape of the triangles: linear in mel (`mel`), linear in Hz (`hz`), linear in Hz and as wide on the
        right of the centre as on the left (`hz_symmetric`), or linear in Hz with the same area (`hz_area`).
      mel_source: whether mel matrix and window are computed from the fields, or stored with the checkpoint
        (`constants`).
      f_min, f_max, n_mels: edges and number of the mel bands.
      floor, floor_mode: energies are clamped to the floor, or the floor is added to them.
      log: natural logarithm, or decibels (10 log10).
      top_db: dynamic range kept below the maximum of each utterance, dB; None keeps everything.
      normalization: what is done per utterance and mel band, over real frames: `mean` subtracts the mean; `mean_std`
        also divides by the unbiased standard deviation plus 1e-5; `instance` divides by the root of the biased variance
        plus 1e-5; `none`.
      pad_to: blank frames fill up each utterance to a multiple of this number. They are part of the model: the
        convolutions see them, the statistics over time do not.
    """

    sample_rate: int = 16000
    channel: Literal["first", "mean"] = "first"
    waveform_scale: float = 1.0
    frame_length: int = 400
    frame_shift: int = 160
    framing: Literal["snip_edges", "kaldi_reflect", "center_zeros", "center_reflect", "center_zeros_floor"] = (
        "snip_edges"
    )
    window: Literal["povey", "hamming", "hann"] = "povey"
    window_periodic: bool = False
    remove_dc: bool = True
    preemphasis: float = 0.97
    preemphasis_mode: Literal["frame", "signal_reflect", "signal_zero"] = "frame"
    fft_size: int = 512
    mel_scale: Literal["kaldi", "htk", "slaney"] = "kaldi"
    mel_shape: Literal["mel", "hz", "hz_symmetric", "hz_area"] = "mel"
    mel_source: Literal["computed", "constants"] = "computed"
    f_min: float = 20.0
    f_max: float = 8000.0
    n_mels: int = 80
    floor: float = 1.1920928955078125e-07
    floor_mode: Literal["clamp", "add"] = "clamp"
    log: Literal["ln", "db"] = "ln"
    top_db: float | None = None
    normalization: Literal["mean", "mean_std", "instance", "none"] = "mean"
    pad_to: int = 1

    def _check(self) -> None:
        self._require(self.sample_rate > 0, f"sample_rate is {self.sample_rate}; it must be positive")
        self._require(
            0 < self.frame_shift <= self.frame_length <= self.fft_size,
            f"need 0 < frame_shift <= frame_length <= fft_size, got {self.frame_shift}, {self.frame_length}, "
            f"{self.fft_size}",
        )
        self._require(
            0 <= self.f_min < self.f_max <= self.sample_rate / 2,
            f"need 0 <= f_min < f_max <= half the sample rate, got {self.f_min}, {self.f_max}",
        )
        self._require(self.n_mels > 0 and self.floor > 0, "n_mels and floor must be positive")
        self._require(self.pad_to > 0, f"pad_to is {self.pad_to}; it must be positive")

    @property
    def minimum_frames(self) -> int:
        """Fewest frames that can be normalised."""
        return 2 if self.normalization == "mean_std" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class StdConfig(Checked):
    """How a standard deviation over time is computed.

    Attributes:
      form: `central` is the mean of (x - mean)^2, `moment` is the mean of x^2 minus mean^2.
      unbiased: whether to divide by n - 1 instead of n (context statistics only).
      epsilon, epsilon_mode: the variance is clamped from below to epsilon, or epsilon is added to it.
      maximum: upper limit to which the variance is clamped; None is no limit.
    """

    form: Literal["central", "moment"] = "central"
    unbiased: bool = False
    epsilon: float = 1e-12
    epsilon_mode: Literal["clamp", "add"] = "clamp"
    maximum: float | None = None

    def _check(self) -> None:
        self._require(self.epsilon > 0, "epsilon must be positive")


Pooling = Literal["attentive", "mean", "std", "mean_std", "multi_head", "multi_query", "posterior"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EcapaConfig(Checked):
    """The network: Desplanques et al. 2020 (arXiv 2005.07143), and every variation found in public implementations.

    Attributes:
      n_mels: features per frame.
      channels: output channels of the stem and of each SE-Res2 block.
      kernel_sizes: kernel of the stem convolution and of each block's Res2 convolutions (odd).
      dilations: dilation of each block's Res2 convolutions.
      res2_scale: number of chunks of a Res2 convolution.
      se_channels, attention_channels: bottlenecks of squeeze-excitation and of the attention.
      mfa_channels, mfa_kernel_size, mfa_dilation: the convolution over the concatenated block outputs.
      embedding_dim: length of the embedding.
      padding: how "same" convolutions pad both ends of each utterance.
      block_input: what a block takes: the output of the block before it (`previous`), or the sum of the outputs of the
        stem and all earlier blocks (`sum`, as in the paper).
      multiscale: Res2 convolution that passes the first or the last chunk through, or one grouped convolution.
      norm: batch normalisation after the activation of each convolution (`batch`), or no normalisation at all (`none`).
      se_norm, mfa_norm, embedding_norm: whether there is batch normalisation in SE, after the MFA activation, and on
        the embedding.
      attention_hidden: the layers that follow the first convolution of the attention.
      global_context: whether the attention also sees the mean and standard deviation of the utterance.
      context_std, pooled_std: the standard deviation in the context of the attention, and that of the pooling. The
        poolings without attention use `context_std`.
      pooling: `attentive` statistics; `mean`, standard deviation (`std`) or both (`mean_std`) without attention;
        attentive statistics of two heads (`multi_head`), or of two queries with eight heads (`multi_query`); or the
        mean of a Gaussian posterior (`posterior`).
      activation, activation_scope: the nonlinearity, and whether `all` layers use it or only the stem, the 1x1 layers
        of each block and the MFA (`outer`), while the others use ReLU.
      norm_epsilon, norm_momentum: constants of batch normalisation; momentum is the weight of the new batch, as in
        PyTorch.
    """

    n_mels: int = 80
    channels: tuple[int, ...] = (1024, 1024, 1024, 1024)
    kernel_sizes: tuple[int, ...] = (5, 3, 3, 3)
    dilations: tuple[int, ...] = (2, 3, 4)
    res2_scale: int = 8
    se_channels: int = 128
    attention_channels: int = 128
    mfa_channels: int = 3072
    mfa_kernel_size: int = 1
    mfa_dilation: int = 1
    embedding_dim: int = 192
    padding: Literal["reflect", "zeros"] = "reflect"
    block_input: Literal["previous", "sum"] = "previous"
    multiscale: Literal["first", "last", "grouped"] = "first"
    norm: Literal["batch", "none"] = "batch"
    se_norm: bool = False
    mfa_norm: bool = True
    embedding_norm: bool = False
    attention_hidden: Literal["relu_bn_tanh", "relu_bn", "relu_tanh", "tanh"] = "relu_bn_tanh"
    global_context: bool = True
    context_std: StdConfig = StdConfig()
    pooled_std: StdConfig = StdConfig()
    pooling: Pooling = "attentive"
    activation: Literal["relu", "leaky_relu"] = "relu"
    activation_scope: Literal["all", "outer"] = "all"
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.1

    def _check(self) -> None:
        blocks = self.n_blocks
        self._require(blocks >= 1, f"channels {self.channels} must name the stem and at least one block")
        self._require(
            len(self.kernel_sizes) == blocks + 1 and len(self.dilations) == blocks,
            f"{blocks} blocks need {blocks + 1} kernel_sizes and {blocks} dilations, got {self.kernel_sizes} "
            f"and {self.dilations}",
        )
        kernels = (*self.kernel_sizes, self.mfa_kernel_size)
        self._require(all(k > 0 and k % 2 for k in kernels), f"kernel sizes must be odd, got {kernels}")
        self._require(all(d > 0 for d in (*self.dilations, self.mfa_dilation)), "dilations must be positive")
        sizes = (self.n_mels, self.res2_scale, self.se_channels, self.attention_channels, self.embedding_dim)
        self._require(all(size > 0 for size in (*sizes, *self.channels, self.mfa_channels)), "sizes must be positive")
        self._require(
            all(c % self.res2_scale == 0 for c in self.channels[1:]),
            f"block channels {self.channels[1:]} must be multiples of res2_scale {self.res2_scale}",
        )
        same = len(set(self.channels)) == 1
        self._require(same or self.block_input == "previous", "summed block inputs need equal channels everywhere")
        plain = self.pooling != "attentive"
        self._require(not (plain and self.global_context), f"pooling {self.pooling!r} has no global_context")
        heads = {"multi_head": 2, "multi_query": 8}.get(self.pooling, 1)
        self._require(self.mfa_channels % heads == 0, f"pooling {self.pooling!r} needs a multiple of {heads} channels")
        self._require(self.norm == "batch" or self.pooling != "posterior", "pooling 'posterior' has a batch norm")
        self._require(not self.pooled_std.unbiased, "pooled_std is weighted: it has no unbiased form")
        if self.norm == "none":
            self._require(
                not (self.se_norm or self.mfa_norm or self.embedding_norm), "norm='none' excludes other norms"
            )
            self._require("bn" not in self.attention_hidden, "norm='none' excludes batch norm in attention_hidden")

    @property
    def n_blocks(self) -> int:
        """Number of SE-Res2 blocks."""
        return len(self.channels) - 1

    @property
    def pooled_channels(self) -> int:
        """Length of the vector that pooling makes of an utterance."""
        return self.mfa_channels * {"mean": 1, "std": 1, "posterior": 1, "multi_query": 4}.get(self.pooling, 2)

    @property
    def minimum_frames(self) -> int:
        """Fewest frames that an utterance may have: reflect padding must be shorter than the utterance."""
        if self.padding != "reflect":
            deviates = self.global_context if self.pooling == "attentive" else self.pooling in ("std", "mean_std")
            return 2 if self.context_std.unbiased and deviates else 1
        reaches = [(self.kernel_sizes[0], 1), (self.mfa_kernel_size, self.mfa_dilation)]
        reaches += zip(self.kernel_sizes[1:], self.dilations, strict=True)
        return 1 + max(dilation * (kernel - 1) // 2 for kernel, dilation in reaches)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """A whole model, from waveform to embedding: the static argument of `ecapa_jax.embed`."""

    fbank: FbankConfig = FbankConfig()
    ecapa: EcapaConfig = EcapaConfig()

    def _check(self) -> None:
        self._require(
            self.fbank.n_mels == self.ecapa.n_mels,
            f"the front end gives {self.fbank.n_mels} mel bands, the network takes {self.ecapa.n_mels}",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the config as plain JSON types."""
    return dataclasses.asdict(config)


_ADDED: dict[str, dict[str, Any]] = {"EcapaConfig": {"pooling": "attentive"}}
"""Fields that the first bundles lack, and the values that they mean."""


def from_dict(cls: type[_T], data: Any, where: str, *, use_defaults: bool = False) -> _T:
    """Builds a config from plain JSON or TOML types.

    Args:
      cls: the config class.
      data: the value of each field, by name.
      where: the name of this table in error messages; "" for a whole document.
      use_defaults: whether a missing key takes the default of its field instead of being an error.

    Raises:
      ConfigError: a key is unknown or missing, or a value has the wrong type, is out of range, or is not supported.
    """
    name = where or "the configuration"
    if not isinstance(data, dict):
        raise ConfigError(f"{name} must be a table of keys and values, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    data = {**_ADDED.get(cls.__name__, {}), **data}
    if unknown := sorted(data.keys() - hints.keys()):
        raise ConfigError(f"{name}: unknown key {unknown[0]}; known: {', '.join(hints)}")
    if not use_defaults and (missing := sorted(hints.keys() - data.keys())):
        raise ConfigError(f"{name}: missing key {missing[0]}")
    prefix = f"{where}." if where else ""
    return cls(**{key: _parse_value(hints[key], value, f"{prefix}{key}", use_defaults) for key, value in data.items()})


def _describe_type(hint: Any) -> str:
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return f"one of: {', '.join(choices)}" if choices else f"of type {getattr(hint, '__name__', hint)}"


def _parse_value(hint: Any, value: Any, where: str, use_defaults: bool) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _parse_value(arguments[0], value, where, use_defaults)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where, use_defaults=use_defaults)
    if origin is tuple and isinstance(value, list | tuple):
        items = (_parse_value(arguments[0], item, f"{where}[{at}]", use_defaults) for at, item in enumerate(value))
        return tuple(items)
    if origin is Literal:
        is_valid = value in arguments
    elif hint is float:
        is_valid = type(value) in (int, float) and math.isfinite(value)
        value = float(value) if is_valid else value
    else:
        is_valid = type(value) is hint
    if not is_valid:
        raise ConfigError(f"{where} is {value!r}; it must be {_describe_type(hint)}")
    return value
