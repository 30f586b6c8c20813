"""The families of checkpoints, each with its rule table."""

from ecapa_jax.convert.family import Family
from ecapa_jax.convert.sources import (
    espnet,
    mvector,
    nemo,
    self_supervised,
    speechbrain,
    taoruijie,
    three_d_speaker,
    wespeaker,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        three_d_speaker.FAMILY,
        self_supervised.RDINO,
        self_supervised.SDPN,
        self_supervised.MODELSCOPE,
        speechbrain.FAMILY,
        speechbrain.LANGUAGE_ID,
        mvector.FAMILY,
        wespeaker.FAMILY,
        taoruijie.FAMILY,
        nemo.FAMILY,
        nemo.FAMILY_2_5,
        espnet.FAMILY,
        espnet.FAMILY_2025,
    )
}
