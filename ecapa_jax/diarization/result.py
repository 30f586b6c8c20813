"""What `diarize` returns."""

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
      name: `speaker_1` for the first who speaks, or the name of an enrolled person.
      embedding: [D], the mean of the windows in which this speaker speaks; the encoder's stores and scores take it.
      seconds: how long this speaker speaks, overlaps included.
      score: cosine with the enrolled person; None for somebody unknown.
    """

    name: str
    embedding: Float32[np.ndarray, " embedding"]
    seconds: float
    score: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Diarization:
    """Who speaks when in a recording.

    Attributes:
      turns: of all speakers, in order of time; two speakers' turns may overlap.
      exclusive: the same with one speaker at a time, as transcripts need it.
      speakers: in order of appearance.
      duration: of the recording, seconds.
    """

    turns: list[Turn]
    exclusive: list[Turn]
    speakers: list[Speaker]
    duration: float

    def renamed(self, names: Mapping[str, str], scores: Mapping[str, float] | None = None) -> Diarization:
        """The same with other names; speakers that are not in `names` keep theirs.

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
