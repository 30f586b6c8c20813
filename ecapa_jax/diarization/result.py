"""The result of a diarization."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from ecapa_jax.diarization.turns import Turn


@dataclasses.dataclass(frozen=True, eq=False)
class Speaker:
    """Somebody who speaks in a recording.

    Attributes:
      name: `speaker_1` for the speaker who speaks first, or the name of an enrolled person.
      embedding: [D], mean embedding of the windows of this speaker; it can be scored and enrolled like any embedding.
      seconds: duration of the turns of this speaker, including overlaps with others.
      score: cosine with the enrolled person; None if the speaker is unknown.
    """

    name: str
    embedding: Float32[np.ndarray, " embedding"]
    seconds: float
    score: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Diarization:
    """Who speaks when in a recording.

    Attributes:
      turns: turns of all speakers, in order of time; turns of two speakers may overlap.
      exclusive: turns with one speaker at a time, which transcripts need.
      speakers: the speakers in order of appearance.
      duration: length of the recording in seconds.
    """

    turns: list[Turn]
    exclusive: list[Turn]
    speakers: list[Speaker]
    duration: float

    def rename(self, names: Mapping[str, str], scores: Mapping[str, float] | None = None) -> Diarization:
        """Returns a copy with other names; speakers that `names` lacks keep their names.

        Args:
          names: new name by old name.
          scores: cosine with the enrolled person, by old name.
        """
        scores = scores or {}
        speakers = [
            dataclasses.replace(
                speaker, name=names.get(speaker.name, speaker.name), score=scores.get(speaker.name, speaker.score)
            )
            for speaker in self.speakers
        ]
        turns, exclusive = (
            [turn._replace(speaker=names.get(turn.speaker, turn.speaker)) for turn in kind]
            for kind in (self.turns, self.exclusive)
        )
        return dataclasses.replace(self, turns=turns, exclusive=exclusive, speakers=speakers)
