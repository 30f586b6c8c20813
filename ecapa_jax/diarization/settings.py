"""The thresholds and lengths of diarization."""

from __future__ import annotations

import dataclasses

FRAMES_A_SECOND = 100
"""Number of frames in a second. Speech, voices and speakers are decided for each frame of 10 ms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiarizationSettings:
    """Thresholds and lengths; `benchmarks/diarization.py --tune` measures them on conversations of dev speakers.

    Attributes:
      window, hop: length of the windows that are embedded, and distance from one window to the next, in seconds.
      shortest_window: a stretch of one voice shorter than this, in seconds, is embedded only if all are shorter.
      bridge: a pause shorter than this, in seconds, does not end a stretch of one voice.
      chunk_hop: seconds from one ten-second chunk of overlap detection to the next.
      speech_threshold: smallest probability of speech at which a frame counts as speech.
      padding: seconds by which speech is extended on both sides.
      pause: a pause of a speaker that is shorter than this, in seconds, is part of a turn.
      shortest_turn: a turn that is shorter than this, in seconds, is dropped.
      snap: seconds by which a change of speaker may move to the change of voice that overlap detection finds.
      overlap_voices: mean number of voices at or above which two people speak at once.
      overlap_reach: seconds before and after an overlap in which the second speaker is looked for.
      same_speaker: likeness at or above which two clusters are more likely one speaker than two; the likeness of the
        windows within a cluster is 1.
      likeness_width: width of the logistic function around `same_speaker` by which likenesses are compared.
      undivided: likeness that is assumed for an undivided recording, which has no two clusters to compare.
      fewest_windows: smallest number of windows of a speaker, unless the number of speakers is given.
      prior_pairs: weight of the mean over all clusters in the mean of each cluster, as a number of pairs of windows.
      block_windows: number of windows that are clustered at once; the clusters of all blocks are then merged.
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
    """Thresholds and lengths of a stream: those of a recording, and when to cluster the windows again.

    Attributes:
      new_speaker: between two clusterings, a window that is less like every known speaker than this is assigned to a
        new speaker; 1 is the likeness of neighbouring windows of one speaker.
      regroup_windows, regroup_share: windows are clustered again after this number of new windows, or after this share
        of the open windows, whichever is more.
      fewest_so_far: replaces `fewest_windows` until the end of the stream, because a new speaker has few windows.
    """

    new_speaker: float = 0.45
    regroup_windows: int = 8
    regroup_share: float = 0.1
    fewest_so_far: int = 2
