"""Converts TaoRuijie's ECAPA-TDNN from `exps/pretrain.model`, which is the whole training module with its front end."""

from __future__ import annotations

import numpy as np

from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.family import Companions, Family, Published, Source
from ecapa_jax.convert.ops import LINEAR, MATRIX
from ecapa_jax.convert.rules import Tensors
from ecapa_jax.convert.sources.layout import Layout
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from ecapa_jax.scoring.config import Scoring

FILE = "pretrain.model"
FILTER = "torchfbank.0.flipped_filter"
IGNORED = (r".*\.num_batches_tracked", r"torchfbank\.0\.flipped_filter")

LAYOUT = Layout(
    stem=("conv1", "bn1"),
    block_in=("layer{block}.conv1", "layer{block}.bn1"),
    res2=("layer{block}.convs.{chunk}", "layer{block}.bns.{chunk}"),
    block_out=("layer{block}.conv3", "layer{block}.bn3"),
    squeeze=("layer{block}.se.se.1", None),
    excite="layer{block}.se.se.3",
    mfa=("layer4", None),
    hidden=("attention.0", "attention.2"),
    logits="attention.4",
    pooled_norm="bn5",
    projection="fc6",
    projection_op=LINEAR,
    embedding_norm="bn6",
    mel_matrix="torchfbank.1.mel_scale.fb",
    mel_matrix_op=MATRIX,
    window="torchfbank.1.spectrogram.window",
)


def check_filter(tensors: Tensors, name: str, preemphasis: float) -> None:
    """Raises an error if a stored pre-emphasis differs from the pre-emphasis of the front end.

    Raises:
      ConversionError: the two differ; the message gives both.
    """
    stored = tensors.get(name)
    if stored is not None and not np.array_equal(stored.reshape(-1), np.array([-preemphasis, 1], np.float32)):
        raise ConversionError(f"{name} is {stored.reshape(-1)[:4].tolist()}, expected [-{preemphasis}, 1.0]")


def infer(tensors: Tensors, base: EcapaConfig) -> EcapaConfig:
    """Infers the sizes of the network from the shapes of its tensors."""
    check_filter(tensors, FILTER, PRESETS["taoruijie"].fbank.preemphasis)
    return LAYOUT.infer(tensors, base)


def companions(source: Source) -> Companions:
    """Returns the published preset, because there are no files beside the weights."""
    del source
    return Companions(config=PRESETS["taoruijie"])


def recognises(source: Source) -> bool:
    """Recognises the family by the tensors alone, which no other family has."""
    del source
    return True


FAMILY = Family(
    name="taoruijie",
    title="TaoRuijie/ECAPA-TDNN",
    files=(FILE,),
    signature=("fc6.weight", "bn6.weight"),
    ignored=IGNORED,
    rules=LAYOUT.rules,
    infer=infer,
    companions=companions,
    recognises=recognises,
    published=(
        Published(
            preset="taoruijie",
            file=FILE,
            licence="MIT",
            figures={
                "VoxCeleb1-O EER % (two views)": 0.96,
                "VoxCeleb1-O EER % with as-norm": 0.86,
                "source": "README of TaoRuijie/ECAPA-TDNN",
            },
        ),
    ),
    scoring=Scoring(views="whole_and_windows"),
)
