"""Converts mvector's (VoiceprintRecognition-Pytorch) `model.pth`, a `Sequential` that begins with SpeechBrain's layout.

mvector scales a recording to -20 dB before its Kaldi fbank. A constant gain cancels when the mean of each band is
subtracted, except where the energy is at the floor of the fbank. This library leaves the gain out.

Reference: `mvector.models.ecapa_tdnn.EcapaTdnn`, `mvector.data_utils.featurizer.AudioFeaturizer`.
"""

from __future__ import annotations

from ecapa_jax.convert.family import Companions, Family, Source
from ecapa_jax.convert.sources import sb_layout
from ecapa_jax.presets import PRESETS

WEIGHTS = "model.pth"


def recognises(source: Source) -> bool:
    """Recognises the family by the name of the weights together with the prefix of the `Sequential`."""
    return source.path.name == WEIGHTS and source.prefix.endswith("0.")


FAMILY = Family(
    name="mvector",
    title="mvector",
    files=(WEIGHTS,),
    signature=sb_layout.SIGNATURE,
    ignored=sb_layout.IGNORED,
    rules=sb_layout.rules,
    infer=sb_layout.infer,
    companions=lambda source: Companions(config=PRESETS["mvector"]),
    recognises=recognises,
    published=(),
)
