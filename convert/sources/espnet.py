"""Converts the ECAPA-TDNN of ESPnet-SPK on mel features, such as `espnet/voxcelebs12_ecapa_mel`."""

from __future__ import annotations

from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.family import Companions, Family, Source
from ecapa_jax.convert.ops import LINEAR, MATRIX
from ecapa_jax.convert.rules import Tensors
from ecapa_jax.convert.sources.layout import Layout
from ecapa_jax.convert.sources.taoruijie import check_filter
from ecapa_jax.presets import PRESETS

FILTER = "frontend.flipped_filter"
IGNORED = (r".*\.num_batches_tracked", r"frontend\.flipped_filter")

LAYOUT = Layout(
    stem=("encoder.conv", "encoder.bn"),
    block_in=("encoder.layer{block}.conv1", "encoder.layer{block}.bn1"),
    res2=("encoder.layer{block}.convs.{chunk}", "encoder.layer{block}.bns.{chunk}"),
    block_out=("encoder.layer{block}.conv3", "encoder.layer{block}.bn3"),
    squeeze=("encoder.layer{block}.se.se.1", "encoder.layer{block}.se.se.3"),
    excite="encoder.layer{block}.se.se.4",
    mfa=("encoder.layer4", None),
    hidden=("pooling.attention.0", "pooling.attention.2"),
    logits="pooling.attention.3",
    pooled_norm="projector.bn",
    projection="projector.fc",
    projection_op=LINEAR,
    mel_matrix="frontend.transform.mel_scale.fb",
    mel_matrix_op=MATRIX,
    window="frontend.transform.spectrogram.window",
)


def infer(tensors: Tensors, base: EcapaConfig) -> EcapaConfig:
    """Infers the sizes of the network from the shapes of its tensors."""
    check_filter(tensors, FILTER, PRESETS["espnet"].fbank.preemphasis)
    return LAYOUT.infer(tensors, base)


def _make_family(name: str, title: str, *, default: bool) -> Family:
    def companions(source: Source) -> Companions:
        del source
        return Companions(config=PRESETS[name])

    return Family(
        name=name,
        title=title,
        files=(),
        signature=("encoder.layer4.weight", "projector.fc.weight"),
        ignored=IGNORED,
        rules=LAYOUT.rules,
        infer=infer,
        companions=companions,
        # Neither tensors nor file names distinguish the two families. The family of the published model is the default.
        recognises=lambda source: default,
        published=(),
    )


FAMILY = _make_family("espnet", "ESPnet-SPK until 202412", default=True)

FAMILY_2025 = _make_family("espnet-2025", "ESPnet-SPK from 202511 on", default=False)
"""This family computes the standard deviation of the context with n instead of n - 1, and with another floor."""
