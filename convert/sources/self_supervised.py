"""Converts 3D-Speaker's self-supervised models RDINO and SDPN from the `backbone` of the `teacher` in a checkpoint.

Reference: `speakerlab.bin.infer_sv_ssl`, `speakerlab.models.rdino.ECAPA_TDNN` (mel, logarithm and instance norm).
"""

from __future__ import annotations

import dataclasses

from ecapa_jax.convert.family import Companions, Family, Published, Source
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.presets import PRESETS

RDINO_FILES = ("pretrained_rdino.pth", "rdino.pth")
SDPN_FILES = ("sdpn.pth",)
SOURCE = "3D-Speaker's table of models"


def is_teacher(source: Source) -> bool:
    """Whether the network is the teacher that RDINO and SDPN train."""
    return source.wrapper == "teacher" and source.prefix.endswith("backbone.")


RDINO = Family(
    name="rdino",
    title="3D-Speaker RDINO",
    files=RDINO_FILES,
    signature=sb_layout.SIGNATURE,
    ignored=sb_layout.IGNORED,
    rules=sb_layout.rules,
    infer=sb_layout.infer,
    companions=lambda source: Companions(config=PRESETS["rdino"]),
    recognises=lambda source: is_teacher(source) and source.path.name in RDINO_FILES,
    published=(
        Published(
            preset="rdino",
            file="pretrained_rdino.pth",
            licence="Apache-2.0",
            figures={"VoxCeleb1-O EER %": 3.16, "VoxCeleb1-O minDCF (p 0.05)": 0.223, "source": SOURCE},
        ),
    ),
)

SDPN = dataclasses.replace(
    RDINO,
    name="sdpn",
    title="3D-Speaker SDPN",
    files=SDPN_FILES,
    recognises=lambda source: is_teacher(source) and source.path.name in SDPN_FILES,
    published=(
        Published(
            preset="rdino",
            file="sdpn.pth",
            licence="Apache-2.0",
            figures={"VoxCeleb1-O EER %": 1.80, "VoxCeleb1-O minDCF (p 0.05)": 0.139, "source": SOURCE},
        ),
    ),
)

MODELSCOPE = dataclasses.replace(
    RDINO,
    name="ssl-modelscope",
    title="RDINO or SDPN as the ModelScope library runs them",
    files=(),
    companions=lambda source: Companions(config=PRESETS["ssl-modelscope"]),
    recognises=lambda source: False,
    published=(),
)
"""The ModelScope library runs the same weights on Kaldi's fbank, on which they were not trained. Users must name this
family, because nothing else shows it."""
