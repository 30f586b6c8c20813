"""Converts NVIDIA NeMo's ECAPA-TDNN from a `.nemo` archive of `model_config.yaml` and the weights, with its front end.

The converter reads the configuration as data. It compares the values of `_target_` and never imports them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ecapa_jax.config import EcapaConfig, FbankConfig, ModelConfig
from ecapa_jax.convert.family import Companions, Family, Published, Source
from ecapa_jax.convert.ops import BATCHED_TRANSPOSE, CONV1D
from ecapa_jax.convert.readers.nemo_archive import CONFIG
from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.convert.sources.layout import Layout
from ecapa_jax.errors import ConfigError, ConversionError
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.config import Scoring

FILE = "ecapa_tdnn.nemo"
IGNORED = (r".*\.num_batches_tracked", r"decoder\.final\.(weight|bias)")

_GROUP = "encoder.layers.{block}.group_tdnn_block"
LAYOUT = Layout(
    stem=("encoder.layers.0.conv_layer", "encoder.layers.0.bn"),
    block_in=(f"{_GROUP}.0.conv_layer", f"{_GROUP}.0.bn"),
    res2=(f"{_GROUP}.1", f"{_GROUP}.3"),
    block_out=(f"{_GROUP}.4.conv_layer", f"{_GROUP}.4.bn"),
    squeeze=("encoder.layers.{block}.se_layer.se_layer.0", "encoder.layers.{block}.se_layer.se_layer.2"),
    excite="encoder.layers.{block}.se_layer.se_layer.3",
    mfa=("encoder.feature_agg.conv_layer", "encoder.feature_agg.bn"),
    hidden=("decoder._pooling.attention_layer.0.conv_layer", "decoder._pooling.attention_layer.0.bn"),
    logits="decoder._pooling.attention_layer.2",
    pooled_norm="decoder.emb_layers.0.0",
    projection="decoder.emb_layers.0.1",
    projection_op=CONV1D,
    mel_matrix="preprocessor.featurizer.fb",
    mel_matrix_op=BATCHED_TRANSPOSE,
    window="preprocessor.featurizer.window",
)

TARGETS = {
    "preprocessor": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "encoder": "nemo.collections.asr.modules.ECAPAEncoder",
    "decoder": "nemo.collections.asr.modules.SpeakerDecoder",
}

FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "preprocessor": {
        "normalize": ("per_feature",),
        "window": ("hann", "hamming"),
        "frame_splicing": (1,),
        "log": (True,),
        "log_zero_guard_type": ("add", "clamp"),
        "mag_power": (2, 2.0),
        "mel_norm": ("slaney",),
        "pad_value": (0, 0.0),
        "exact_pad": (False,),
        "n_window_size": (None,),
        "n_window_stride": (None,),
    },
    "encoder": {},
    "decoder": {"pool_mode": ("attention",), "attention_channels": (128,)},
}
"""Supported values of each argument, with the default first. Other values belong to another model."""

FREE = {
    "preprocessor": (
        *("sample_rate", "window_size", "window_stride", "features", "n_fft", "preemph", "lowfreq", "highfreq"),
        *("log_zero_guard_value", "pad_to", "dither", "max_duration", "use_grads", "rng", "nb_augmentation_prob"),
        *("nb_max_freq", "stft_exact_pad", "stft_conv", "use_torchaudio", "mel_scale"),
    ),
    "encoder": ("feat_in", "filters", "kernel_sizes", "dilations", "scale", "init_mode"),
    "decoder": ("feat_in", "num_classes", "emb_sizes", "angular", "init_mode"),
}
"""Arguments that this module reads, or that only training uses."""

STATED = {
    "n_mels": "encoder.feat_in",
    "channels": "encoder.filters",
    "mfa_channels": "encoder.filters",
    "kernel_sizes": "encoder.kernel_sizes",
    "mfa_kernel_size": "encoder.kernel_sizes",
    "res2_scale": "encoder.scale",
    "embedding_dim": "decoder.emb_sizes",
}


class ConfigParts:
    """The three parts of a model_config.yaml, whose arguments are checked against the supported values."""

    def __init__(self, path: Path, text: bytes):
        self.where = f"{path}: {CONFIG}"
        try:
            document = yaml.safe_load(text)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
            first = show(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise ConversionError(f"{self.where} is not plain YAML ({first})") from error
        for part, target in TARGETS.items():
            arguments = document.get(part) if isinstance(document, dict) else None
            if not isinstance(arguments, dict) or arguments.get("_target_") != target:
                found = arguments.get("_target_") if isinstance(arguments, dict) else None
                raise self.make_error(f"its {part} is {show(repr(found))}; supported: {target}")
            self._check(part, arguments)
        self.preprocessor, self.encoder, self.decoder = (document[part] for part in TARGETS)

    def make_error(self, message: str) -> ConversionError:
        """Makes an error whose message names the file."""
        return ConversionError(f"{self.where}: {message}")

    def _check(self, part: str, arguments: Mapping[Any, Any]) -> None:
        for name, value in arguments.items():
            allowed = FIXED[part].get(name)
            if allowed is not None and value not in allowed:
                choices = " or ".join(map(repr, allowed))
                raise self.make_error(f"{part}.{name} is {show(repr(value))}; supported: {choices}")
            if allowed is None and name not in (*FREE[part], "_target_"):
                raise self.make_error(f"{part}.{show(str(name))} is an argument that this version does not know")

    def read_number(self, part: Mapping[str, Any], name: str, default: float) -> float:
        """Reads a number; null gives the default."""
        value = part.get(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise self.make_error(f"{name} is {show(repr(value))}; it must be a number")
        return float(value)

    def read_whole(self, part: Mapping[str, Any], name: str, default: int) -> int:
        """Reads a whole number; null gives the default."""
        value = self.read_number(part, name, float(default))
        if value != round(value):
            raise self.make_error(f"{name} is {value}; it must be a whole number")
        return int(value)

    def read_numbers(self, part: Mapping[str, Any], name: str) -> tuple[int, ...]:
        """Reads a list of whole numbers."""
        value = part.get(name)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.make_error(f"{name} is {show(repr(value))}; it must be a list of whole numbers")
        return tuple(value)


def _read_front_end(parts: ConfigParts, base: FbankConfig) -> FbankConfig:
    options = parts.preprocessor
    rate = parts.read_whole(options, "sample_rate", 16000)
    frame_length = parts.read_number(options, "window_size", 0.02) * rate
    return dataclasses.replace(
        base,
        sample_rate=rate,
        frame_length=int(frame_length),
        frame_shift=int(parts.read_number(options, "window_stride", 0.01) * rate),
        window=options.get("window", "hann"),
        preemphasis=parts.read_number(options, "preemph", 0.0 if "preemph" in options else 0.97),
        fft_size=parts.read_whole(options, "n_fft", 2 ** (int(frame_length) - 1).bit_length()),
        f_min=parts.read_number(options, "lowfreq", 0.0),
        f_max=parts.read_number(options, "highfreq", rate / 2),
        n_mels=parts.read_whole(options, "features", 64),
        floor=parts.read_number(options, "log_zero_guard_value", 2.0**-24),
        floor_mode=options.get("log_zero_guard_type", "add"),
        pad_to=parts.read_whole(options, "pad_to", 16) or 1,
    )


def _read_network(parts: ConfigParts, base: EcapaConfig) -> EcapaConfig:
    filters, kernels, dilations = (
        parts.read_numbers(parts.encoder, name) for name in ("filters", "kernel_sizes", "dilations")
    )
    if not len(filters) == len(kernels) == len(dilations) or len(filters) < 3:
        raise parts.make_error("encoder.filters, kernel_sizes and dilations must be lists of one length, at least 3")
    if dilations[0] != 1:
        raise parts.make_error(f"the first of encoder.dilations is {dilations[0]}; supported: 1")
    sizes = parts.decoder.get("emb_sizes", 256)
    sizes = sizes if isinstance(sizes, list) else [sizes]
    if len(sizes) != 1 or type(sizes[0]) is not int:
        raise parts.make_error(f"decoder.emb_sizes is {show(repr(sizes))}; only one embedding layer is supported")
    return dataclasses.replace(
        base,
        n_mels=parts.read_whole(parts.encoder, "feat_in", 80),
        channels=filters[:-1],
        mfa_channels=filters[-1],
        kernel_sizes=kernels[:-1],
        mfa_kernel_size=kernels[-1],
        dilations=dilations[1:-1],
        mfa_dilation=dilations[-1],
        res2_scale=parts.read_whole(parts.encoder, "scale", 8),
        embedding_dim=sizes[0],
    )


def _make_family(name: str, title: str, *, default: bool, published: tuple[Published, ...]) -> Family:
    def companions(source: Source) -> Companions:
        """Reads front end and network from model_config.yaml."""
        preset = PRESETS[name]
        text = source.inside.get(CONFIG)
        if text is None:
            raise ConversionError(f"{source.path} contains NeMo's weights without {CONFIG}: give the .nemo archive")
        parts = ConfigParts(source.path, text)
        try:
            config = ModelConfig(fbank=_read_front_end(parts, preset.fbank), ecapa=_read_network(parts, preset.ecapa))
        except ConfigError as error:
            raise parts.make_error(str(error)) from error
        return Companions(config=config, stated_in=CONFIG, stated=STATED)

    return Family(
        name=name,
        title=title,
        files=(FILE,),
        signature=("encoder.feature_agg.conv_layer.weight", "decoder._pooling.attention_layer.0.conv_layer.weight"),
        ignored=IGNORED,
        rules=LAYOUT.rules,
        infer=LAYOUT.infer,
        companions=companions,
        # The archive does not show with which featurizer it was trained, so that of the published model is the default.
        recognises=lambda source: default,
        published=published,
        scoring=Scoring(threshold=0.7, score_map="half"),  # the defaults of `verify_speakers`
        scoring_with_mean=Scoring(score_map="half", subtract_mean=True),
    )


FAMILY = _make_family(
    "nemo",
    "NVIDIA NeMo until 2.4",
    default=True,
    published=(
        Published(
            preset="nemo",
            file=FILE,
            licence="see the model card on NGC",
            figures={"VoxCeleb1-O EER %": 0.92, "source": "NeMo's speaker recognition README"},
        ),
    ),
)

FAMILY_2_5 = _make_family("nemo-2.5", "NVIDIA NeMo from 2.5 on", default=False, published=())
"""Trained with the featurizer of NeMo 2.5 or later."""
