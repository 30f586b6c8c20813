"""Every number that decides how a recording is diarized, in one place."""

from __future__ import annotations

import dataclasses

FRAMES_A_SECOND = 100
"""Frames on which speech, voices and speakers are decided: 10 ms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiarizationSettings:
    """Thresholds and lengths; `benchmarks/diarization.py --tune` measures them on conversations of dev speakers.

    Attributes:
      window, hop: seconds of speech that are embedded at a time, and from one window's start to the next's.
      shortest_window: seconds; a shorter stretch of one voice is embedded only if there is no longer one.
      bridge: seconds; a voice that comes back after a shorter pause is still the same stretch.
      chunk_hop: seconds from one ten-second chunk of overlap detection to the next.
      speech_threshold: least probability of speech.
      padding: seconds by which speech is extended on both sides.
      pause: seconds; a speaker's shorter pause is part of the turn.
      shortest_turn: seconds; a shorter turn is dropped.
      snap: seconds by which a change of speakers may move to where overlap detection hears the voice change.
      overlap_voices: mean number of voices from which on two speak at once.
      overlap_reach: seconds around two voices within which the second speaker is looked for.
      same_speaker: two clusters that are at least this alike, on a scale on which 1 is as alike as the windows of one
        cluster, are more likely one speaker than two.
      likeness_width: width of the logistic function around `same_speaker` by which likenesses are compared.
      undivided: likeness that stands for a recording that is not divided, and so has no two clusters to compare.
      fewest_windows: no speaker has fewer windows, unless the number of speakers is given.
      prior_pairs: pairs of windows that the mean of all clusters counts for, where a cluster has few of its own.
      block_windows: windows that are clustered at a time; the clusters of several blocks are clustered again.
    """

    window: float = 1.5
    hop: float = 0.75
    shortest_window: float = 0.4
    bridge: float = 0.5
    chunk_hop: float = 2.5
    speech_threshold: float = 0.2
    padding: float = 0.08
    pause: float = 0.3
    shortest_turn: float = 0.1
    snap: float = 0.0
    overlap_voices: float = 1.5
    overlap_reach: float = 1.0
    same_speaker: float = 0.75
    likeness_width: float = 0.1
    undivided: float = 0.7
    fewest_windows: int = 4
    prior_pairs: float = 4.0
    block_windows: int = 1500


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings(DiarizationSettings):
    """Thresholds and lengths of a stream: those of a recording, and when windows are grouped by speaker.

    Attributes:
      new_speaker: until windows are grouped again, a window that is less like every speaker than this begins a new one;
        1 is as alike as neighbouring windows of one speaker are.
      regroup_windows, regroup_share: windows are grouped again after so many new ones, or after this share of those
        that can still change, whichever is more.
      fewest_so_far: in place of `fewest_windows` as long as windows can change: who speaks for the first time has few.
    """

    new_speaker: float = 0.45
    regroup_windows: int = 8
    regroup_share: float = 0.1
    fewest_so_far: int = 2
