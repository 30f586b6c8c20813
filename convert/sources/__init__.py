"""One rule table a family, and the list of them."""

from ecapa_jax.convert.family import Family
from ecapa_jax.convert.sources import espnet, nemo, speechbrain, taoruijie, three_d_speaker

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        three_d_speaker.FAMILY,
        speechbrain.FAMILY,
        taoruijie.FAMILY,
        nemo.FAMILY,
        nemo.FAMILY_2_5,
        espnet.FAMILY,
        espnet.FAMILY_2025,
    )
}
