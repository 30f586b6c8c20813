"""Makes turns from windows with speakers: finds the speakers of each 10 ms frame, and where turns begin and end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from scipy.ndimage import distance_transform_edt

from ecapa_jax.diarization.activity import Voices, runs
from ecapa_jax.diarization.clustering import centroids_of, unit
from ecapa_jax.diarization.settings import FRAMES_A_SECOND, DiarizationSettings

Frames = Int64[np.ndarray, " frames"]


class Turn(NamedTuple):
    """A stretch in which one speaker speaks.

    Attributes:
      start, end: seconds from the beginning of the recording.
      speaker: the speaker's name.
    """

    start: float
    end: float
    speaker: str


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Windows and their speakers.

    Attributes:
      spans: first frame, and frame after the last, of each window.
      embeddings: embedding of each window.
      labels: speaker of each window, numbered from 0.
    """

    spans: Int64[np.ndarray, "windows 2"]
    embeddings: Float32[np.ndarray, "windows embedding"]
    labels: Int64[np.ndarray, " windows"]


def frames_of(seconds: float) -> int:
    """Converts seconds to a number of frames."""
    return round(seconds * FRAMES_A_SECOND)


def speech_frames(
    probability: Float32[np.ndarray, " frames"], settings: DiarizationSettings
) -> Bool[np.ndarray, " frames"]:
    """Returns which frames are speech: extends detected speech, fills short pauses, and drops what is too short."""
    speech = probability >= settings.speech_threshold
    reach = frames_of(settings.padding)
    sums = np.concatenate([[0], np.cumsum(speech)])
    positions = np.arange(len(speech))
    around = sums[np.minimum(positions + reach + 1, len(speech))] - sums[np.maximum(positions - reach, 0)]
    speech = around > 0
    pause, shortest = frames_of(settings.pause), frames_of(settings.shortest_turn)
    for start, end, value in runs(speech.astype(np.int64)):
        if not value and end - start < pause and start > 0 and end < len(speech):
            speech[start:end] = True
    for start, end, value in runs(speech.astype(np.int64)):
        if value and end - start < shortest:
            speech[start:end] = False
    return speech


def stretches(
    speech: Bool[np.ndarray, " frames"], tracks: Frames | None, settings: DiarizationSettings
) -> list[tuple[int, int]]:
    """Returns the stretches from which windows are cut: stretches of speech, and of one voice if voices are known.

    Args:
      speech: whether each frame is speech.
      tracks: voice of each frame, as `Voices.tracks` returns it; None without overlap detection.
      settings: thresholds and lengths.
    """
    whole = [(start, end) for start, end, value in runs(speech.astype(np.int64)) if value]
    if tracks is None:
        return whole
    bridge = frames_of(settings.bridge)
    one_voice: list[tuple[int, int, int]] = []
    for start, end, voice in runs(np.where(speech, tracks, -1)):
        if voice < 0:
            continue
        if one_voice and one_voice[-1][2] == voice and start - one_voice[-1][1] < bridge:
            between = tracks[one_voice[-1][1] : start]
            if not (between == -2).any():
                one_voice[-1] = (one_voice[-1][0], end, voice)
                continue
        one_voice.append((start, end, voice))
    shortest = frames_of(settings.shortest_window)
    return [(start, end) for start, end, _ in one_voice if end - start >= shortest] or whole


def speaker_frames(
    windows: Labelled, speech: Bool[np.ndarray, " frames"], tracks: Frames | None, settings: DiarizationSettings
) -> Frames:
    """Returns the speaker of each frame of speech, and -1 for other frames.

    A frame is assigned to the speaker whose centroid is most like the windows around it. A change of speaker then moves
    to the nearest change of voice that overlap detection finds, if that is near enough.
    """
    scores = frame_scores(windows, len(speech))
    heard = scores.any(axis=1)
    if not heard.any():
        return np.full(len(speech), -1, np.int64)
    speakers = scores.argmax(axis=1)
    nearest = distance_transform_edt(~heard, return_distances=False, return_indices=True)[0]
    labels = np.where(speech, speakers[nearest], -1).astype(np.int64)
    return labels if tracks is None else _snap_changes(labels, tracks, frames_of(settings.snap))


def frame_scores(windows: Labelled, n_frames: int) -> Float32[np.ndarray, "frames speakers"]:
    """How much the windows around each frame are like each speaker's centroid; windows count by how central it is."""
    x = unit(windows.embeddings)
    return spread_over_frames(windows.spans, x @ centroids_of(windows.labels, x).T, n_frames)


def spread_over_frames(
    spans: Int64[np.ndarray, "windows 2"], cosines: Float32[np.ndarray, "windows speakers"], n_frames: int
) -> Float32[np.ndarray, "frames speakers"]:
    """The mean score of the windows around each frame; windows count by how central it is.

    Args:
      spans: first frame and frame after the last of each window.
      cosines: of each window and each speaker's centroid.
      n_frames: how many frames there are.

    Returns:
      Cosines plus 1, so that only frames without a window are 0.
    """
    total = np.zeros((n_frames, cosines.shape[1]), np.float32)
    weight = np.zeros((n_frames, 1), np.float32)
    for (start, end), row in zip(spans, cosines + 1.0, strict=True):
        end = min(end, n_frames)
        place = np.arange(end - start)
        central = np.minimum(place + 1, end - start - place)[:, None].astype(np.float32)
        total[start:end] += central * row
        weight[start:end] += central
    np.divide(total, weight, out=total, where=weight > 0)
    return total


def _snap_changes(labels: Frames, tracks: Frames, reach: int) -> Frames:
    """Moves each change of speaker to the nearest change of voice within `reach` frames."""
    changes = np.flatnonzero(np.diff(tracks)) + 1
    if not len(changes):
        return labels
    labels = labels.copy()
    for start, _, speaker in runs(labels):
        if start == 0 or speaker < 0 or labels[start - 1] < 0:
            continue
        nearest = int(changes[np.abs(changes - start).argmin()])
        if abs(nearest - start) > reach:
            continue
        if nearest < start:
            if (labels[nearest:start] >= 0).all():
                labels[nearest:start] = speaker
        elif (labels[start:nearest] == speaker).all():
            labels[start:nearest] = labels[start - 1]
    return labels


def second_speakers(
    labels: Frames, voices: Voices, scores: Float32[np.ndarray, "frames speakers"], settings: DiarizationSettings
) -> Frames:
    """Returns the second speaker of each frame with two voices, and -1 for other frames.

    The second speaker is the other speaker who speaks nearest to the overlap, before or after it. If nobody else speaks
    nearby, it is the other speaker whose centroid is most like the windows around the overlap.
    """
    result = np.full(len(labels), -1, np.int64)
    if scores.shape[1] < 2:
        return result
    both = (voices.counts() >= settings.overlap_voices) & (labels >= 0)
    reach = frames_of(settings.overlap_reach)
    for start, end, value in runs(both.astype(np.int64)):
        if not value:
            continue
        low, high = max(0, start - reach), min(len(labels), end + reach)
        around, distance = labels[low:high], np.abs(np.arange(low, high) - (start + end) / 2)
        for speaker in np.unique(labels[start:end]):
            others = (around >= 0) & (around != speaker)
            if others.any():
                other = around[others][distance[others].argmin()]
            else:
                likeness = scores[start:end].mean(axis=0)
                likeness[speaker] = -np.inf
                other = likeness.argmax()
            has_speaker = labels[start:end] == speaker
            result[start:end][has_speaker] = other
    return result


def make_turns(
    labels: Frames, second: Frames | None, names: Sequence[str], settings: DiarizationSettings
) -> list[Turn]:
    """Makes turns, in order of time; short pauses of a speaker are part of a turn."""
    turns: list[Turn] = []
    pause, shortest = frames_of(settings.pause), frames_of(settings.shortest_turn)
    for number, name in enumerate(names):
        speaks = labels == number
        if second is not None:
            speaks |= second == number
        joined: list[list[int]] = []
        for start, end, value in runs(speaks.astype(np.int64)):
            if not value:
                continue
            if (
                joined
                and start - joined[-1][1] < pause
                and (second is not None or _is_silent(labels, joined[-1][1], start))
            ):
                joined[-1][1] = end
            else:
                joined.append([start, end])
        turns += [
            Turn(start / FRAMES_A_SECOND, end / FRAMES_A_SECOND, name)
            for start, end in joined
            if end - start >= shortest
        ]
    return sorted(turns)


def _is_silent(labels: Frames, start: int, end: int) -> bool:
    """Whether nobody speaks from frame `start` up to frame `end`."""
    return bool((labels[start:end] < 0).all())
