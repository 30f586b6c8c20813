"""Converts WeSpeaker's `avg_model.pt` with its `config.yaml`.

Reference: `wespeaker.models.ecapa_tdnn.ECAPA_TDNN`, `wespeaker.models.pooling_layers`, `wespeaker.dataset.processor`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from ecapa_jax.config import EcapaConfig, FbankConfig, ModelConfig, Pooling
from ecapa_jax.convert.family import Companions, Family, Published, Source
from ecapa_jax.convert.ops import MATRIX
from ecapa_jax.convert.readers.pickle_machine import show
from ecapa_jax.convert.rules import Rule, Tensors, conv, linear, norm
from ecapa_jax.convert.sources import shapes
from ecapa_jax.errors import ConfigError, ConversionError
from ecapa_jax.nn.poolings import SHAPES
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.config import Scoring

WEIGHTS, CONFIG = "avg_model.pt", "config.yaml"
_MAX_BYTES = 1 << 18

MODEL = re.compile(r"ECAPA_TDNN_(GLOB_)?c(512|1024)")
POOLINGS: dict[str, Pooling] = {
    "ASTP": "attentive",
    "TAP": "mean",
    "TSDP": "std",
    "TSTP": "mean_std",
    "MHASTP": "multi_head",
    "MQMHASTP": "multi_query",
    "XI": "posterior",
}
"""Supported values of `pooling_func`."""

BOTTLENECKS: dict[Pooling, str] = {
    "multi_head": "pool.heads_att_trans.0.att_0",
    "multi_query": "pool.n_query.0.heads_att_trans.0.att_0",
    "posterior": "pool.lin1_relu_bn.0",
    "attentive": "pool.linear1",
}
"""Name of the tensor that shows a pooling with weights and the width of its bottleneck."""

STATED = {
    "channels": "model",
    "global_context": "model",
    "n_mels": "feat_dim",
    "embedding_dim": "embed_dim",
    "embedding_norm": "emb_bn",
    "pooling": "pooling_func",
}
"""WeSpeaker's arguments by the names of our fields."""

SIGNATURE = ("layer2.se_res2block.0.conv.weight", "layer2.se_res2block.3.linear1.weight")


def _map_unit(source: str, target: str) -> list[Rule]:
    return [*conv(f"{source}.conv", f"{target}/conv"), *norm(f"{source}.bn", f"{target}/norm")]


def _map_block(config: EcapaConfig, index: int) -> list[Rule]:
    source, target = f"layer{index + 2}.se_res2block", f"block_{index}"
    rules = _map_unit(f"{source}.0", f"{target}/tdnn_in")
    for chunk in range(config.res2_scale - 1):
        rules += conv(f"{source}.1.convs.{chunk}", f"{target}/res2/chunk_{chunk}/conv")
        rules += norm(f"{source}.1.bns.{chunk}", f"{target}/res2/chunk_{chunk}/norm")
    rules += _map_unit(f"{source}.2", f"{target}/tdnn_out")
    rules += linear(f"{source}.3.linear1", f"{target}/se/squeeze")
    return rules + linear(f"{source}.3.linear2", f"{target}/se/excite")


def rules(config: EcapaConfig) -> list[Rule]:
    """Makes the table for a network of this shape."""
    table = _map_unit("layer1", "stem")
    for index in range(config.n_blocks):
        table += _map_block(config, index)
    table += conv("conv", "mfa/conv")
    table += _map_pooling(config.pooling)
    table += [*norm("bn", "pooled_norm"), *linear("linear", "projection")]
    return table + (norm("bn2", "embedding_norm") if config.embedding_norm else [])


def _map_pooling(pooling: Pooling) -> list[Rule]:
    if pooling == "attentive":
        return [*conv("pool.linear1", "pooling/hidden"), *conv("pool.linear2", "pooling/logits")]
    if pooling == "posterior":
        names = (("prior_mean", "prior_mean"), ("prior_logprec", "prior_log_precision"))
        priors = [Rule(source=f"pool.{a}", target=f"params/pooling/{b}", op=MATRIX) for a, b in names]
        inner = [*conv("pool.lin1_relu_bn.0", "pooling/hidden"), *norm("pool.lin1_relu_bn.2", "pooling/norm")]
        return [*priors, *inner, *conv("pool.lin2", "pooling/precision")]
    queries, heads, _ = SHAPES.get(pooling, (0, 0, False))
    table: list[Rule] = []
    for query, head in itertools.product(range(queries), range(heads)):
        within = f"pool.n_query.{query}" if pooling == "multi_query" else "pool"
        source, target = f"{within}.heads_att_trans.{head}", f"pooling/query_{query}_head_{head}"
        table += [*conv(f"{source}.att_0", f"{target}/hidden"), *conv(f"{source}.att_1", f"{target}/logits")]
    return table


def infer(tensors: Tensors, base: EcapaConfig) -> EcapaConfig:
    """Infers sizes and pooling from the tensors; everything else comes from `base`.

    Raises:
      ConversionError: the number of blocks is not the number of dilations in `base`, or the pooling is not supported or
        can't be determined.
    """
    n_blocks = next(
        n for n in itertools.count() if not any(name.startswith(f"layer{n + 2}.se_res2block.") for name in tensors)
    )
    shapes.check_dilations(n_blocks, base.dilations)
    blocks = [f"layer{index + 2}.se_res2block" for index in range(n_blocks)]
    stem = shapes.infer_width(tensors, [("layer1.conv", "layer1.bn")], base.channels[0])
    channels = [
        shapes.infer_width(tensors, [(f"{block}.{part}.conv", f"{block}.{part}.bn") for part in (0, 2)], stem)
        for block in blocks
    ]
    chunks = [_count_chunks(tensors, block) for block in blocks]
    inner = [
        shapes.infer_width(tensors, [(f"{block}.1.convs.{n}", f"{block}.1.bns.{n}") for n in range(count)], width // 8)
        for block, count, width in zip(blocks, chunks, channels, strict=True)
    ]
    mfa = shapes.infer_width(tensors, [("conv", None)], base.mfa_channels)
    pooling = _infer_pooling(tensors, mfa, base)
    hidden = base.attention_channels
    if pooling in BOTTLENECKS:
        hidden = shapes.infer_width(tensors, [(BOTTLENECKS[pooling], None)], hidden)
    _, n_mels, kernel = shapes.find_shape(tensors, "layer1.conv", stem) or (stem, base.n_mels, base.kernel_sizes[0])
    _, seen, _ = shapes.find_shape(tensors, "pool.linear1", hidden) or (hidden, 0, 1)
    kernels = [
        shapes.infer_kernel(tensors, f"{block}.1.convs.0", width, width) or 3
        for block, width in zip(blocks, inner, strict=True)
    ]
    return dataclasses.replace(
        base,
        n_mels=n_mels,
        channels=(stem, *channels),
        kernel_sizes=(kernel, *kernels),
        res2_scale=shapes.choose_majority([count + 1 for count in chunks], base.res2_scale),
        se_channels=shapes.infer_width(tensors, [(f"{block}.3.linear1", None) for block in blocks], base.se_channels),
        attention_channels=hidden,
        pooling=pooling,
        global_context=pooling == "attentive" and {mfa: False, 3 * mfa: True}.get(seen, base.global_context),
        mfa_channels=mfa,
        mfa_kernel_size=shapes.infer_kernel(tensors, "conv", mfa, sum(channels)) or base.mfa_kernel_size,
        embedding_dim=shapes.infer_width(tensors, [("linear", None)], base.embedding_dim),
        embedding_norm=any(name.startswith("bn2.") for name in tensors),
    )


def _count_chunks(tensors: Tensors, block: str) -> int:
    """Counts the convolutions of a Res2 chain; the last chunk has no convolution."""
    return next(n for n in itertools.count() if f"{block}.1.convs.{n}.weight" not in tensors)


def _infer_pooling(tensors: Tensors, mfa: int, base: EcapaConfig) -> Pooling:
    for pooling, name in BOTTLENECKS.items():
        if f"{name}.weight" in tensors:
            return pooling
    if any(name.startswith("pool.") for name in tensors):
        return "attentive"  # a tensor is missing, and the rule table reports which one
    if shapes.infer_width(tensors, [("bn", "bn")], 2 * mfa) == 2 * mfa:
        return "mean_std"
    if base.pooling in ("mean", "std"):
        return base.pooling
    raise ConversionError(
        f"its pooling is TAP or TSDP, which have the same tensors: put the {CONFIG} with pooling_func beside the file"
    )


def companions(source: Source) -> Companions:
    """Reads network and front end from config.yaml, or returns the preset if there is no such file.

    The file lies beside the weights, or above the folder `models` of a training run.
    The published scores subtract the mean embedding of VoxCeleb 2, which is not published with the weights.
    """
    preset = PRESETS["wespeaker-c1024"]
    folder = source.path.parent
    places = [folder / CONFIG, *([folder.parent / CONFIG] if folder.name == "models" else [])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return Companions(config=preset)
    document = _read_document(path)
    try:
        fbank = _read_fbank(path, document, preset.fbank)
        ecapa, stated = _read_network(path, document, preset.ecapa)
        config = ModelConfig(fbank=dataclasses.replace(fbank, n_mels=ecapa.n_mels), ecapa=ecapa)
    except (ConfigError, TypeError) as error:
        raise ConversionError(f"{path}: {error}") from error
    return Companions(config=config, stated_in=CONFIG, stated=stated)


def _read_document(path: Path) -> dict[str, Any]:
    """Reads the file as plain data. safe_load makes no objects, and repeated anchors cost nothing."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise ConversionError(
                f"{path}: it is larger than {_MAX_BYTES >> 10} kB, so it is not a WeSpeaker configuration"
            )
        document = yaml.safe_load(text.decode("utf-8-sig"))
    except ConversionError:
        raise
    except OSError as error:
        raise ConversionError(f"{path}: it can't be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise ConversionError(f"{path}: it is not YAML ({show(str(error))}); correct or remove it") from error
    if not isinstance(document, dict) or not isinstance(document.get("model"), str):
        raise ConversionError(
            f"{path}: it names no model, so it is not a WeSpeaker configuration; correct or remove it"
        )
    return document


def _get_part(path: Path, document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    if part is not None and not isinstance(part, dict):
        raise ConversionError(f"{path}: {name} is {show(repr(part))}, not a mapping")
    return part or {}


def _read_fbank(path: Path, document: dict[str, Any], base: FbankConfig) -> FbankConfig:
    dataset = _get_part(path, document, "dataset_args")
    arguments = _get_part(path, dataset, "fbank_args")
    cmvn = _get_part(path, dataset, "cmvn_args")
    fixed = (
        (dataset, "frontend", "fbank"),
        (dataset, "resample_rate", base.sample_rate),
        (dataset, "cmvn", True),
        (cmvn, "norm_mean", True),
        (cmvn, "norm_var", False),
        (arguments, "frame_length", 25),
        (arguments, "frame_shift", 10),
    )
    for part, name, value in fixed:
        if part.get(name, value) != value:
            raise ConversionError(f"{path}: {name} {show(repr(part[name]))} is not supported; supported: {value!r}")
    known = {"frame_length", "frame_shift", "num_mel_bins", "dither"}  # dither is for training
    if unknown := sorted(str(name) for name in set(arguments) - known):
        raise ConversionError(f"{path}: fbank_args has {show(unknown[0])}, which this converter does not know")
    n_mels = arguments.get("num_mel_bins", base.n_mels)
    stated = _get_part(path, document, "model_args").get("feat_dim", n_mels)
    if n_mels != stated:
        raise ConversionError(f"{path}: num_mel_bins is {show(repr(n_mels))}, but feat_dim is {show(repr(stated))}")
    return base


def _read_network(path: Path, document: dict[str, Any], base: EcapaConfig) -> tuple[EcapaConfig, dict[str, str]]:
    model = MODEL.fullmatch(document["model"])
    if not model:
        raise ConversionError(
            f"{path}: model {show(document['model'])} is not supported; supported: ECAPA_TDNN_c512, _c1024, "
            "_GLOB_c512, _GLOB_c1024; use another network with WeSpeaker itself"
        )
    arguments = _get_part(path, document, "model_args")
    pooling = arguments.get("pooling_func", "ASTP")
    if pooling not in POOLINGS:
        raise ConversionError(
            f"{path}: pooling_func {show(repr(pooling))} is not supported; supported: {', '.join(POOLINGS)}"
        )
    for name, kind in (("feat_dim", int), ("embed_dim", int), ("emb_bn", bool)):
        if name in arguments and type(arguments[name]) is not kind:
            raise ConversionError(f"{path}: {name} is {show(repr(arguments[name]))}, not of type {kind.__name__}")
    ecapa = dataclasses.replace(
        base,
        channels=(int(model[2]),) * 4,
        global_context=pooling == "ASTP" and model[1] is not None,
        pooling=POOLINGS[pooling],
        n_mels=arguments.get("feat_dim", base.n_mels),
        embedding_dim=arguments.get("embed_dim", base.embedding_dim),
        embedding_norm=arguments.get("emb_bn", False),
    )
    optional = ("feat_dim", "embed_dim")
    return ecapa, {field: name for field, name in STATED.items() if name not in optional or name in arguments}


FAMILY = Family(
    name="wespeaker",
    title="WeSpeaker",
    files=(WEIGHTS,),
    signature=SIGNATURE,
    ignored=(r".*\.num_batches_tracked",),
    rules=rules,
    infer=infer,
    companions=companions,
    recognises=lambda source: source.path.name == WEIGHTS,
    scoring=Scoring(score_map="half"),  # scoring of `wespeaker.cli`; the published figures subtract a mean
    published=tuple(
        Published(
            preset=f"wespeaker-c{width}",
            file=WEIGHTS,
            licence="CC-BY-4.0",
            figures={
                "VoxCeleb1-O EER %": plain,
                "VoxCeleb1-O EER % with large-margin fine-tuning": tuned,
                "source": "WeSpeaker's VoxCeleb recipe, with the mean of VoxCeleb 2 subtracted",
            },
        )
        for width, plain, tuned in ((512, 1.069, 0.878), (1024, 0.856, 0.798))
    ),
)
