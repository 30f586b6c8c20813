"""One rule table a family, and the list of them."""

from ecapa_jax.convert.family import Family
from ecapa_jax.convert.sources import speechbrain, three_d_speaker

FAMILIES: dict[str, Family] = {family.name: family for family in (three_d_speaker.FAMILY, speechbrain.FAMILY)}
