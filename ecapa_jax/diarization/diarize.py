"""Diarizes a recording: finds who speaks when.

1. Two networks process the recording at 16 kHz: silero-vad detects speech, and segmentation-3.0 (if `overlap` is on)
   detects changes of voice and speech of two people at once.
2. The encoder embeds windows of one voice.
3. Clustering estimates the number of speakers, and assigns a speaker to each window.
4. Each 10 ms frame of speech is assigned to the speaker whose centroid is most like the windows around it. A frame in
   which two voices are detected is assigned to a second speaker too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int64

from ecapa_jax.audio.decoding import Channel
from ecapa_jax.audio.load import AudioSource
from ecapa_jax.diarization import clustering, segmentation
from ecapa_jax.diarization.activity import Voices, cut_windows, hear_voices, runs
from ecapa_jax.diarization.clustering import SpeakerCount
from ecapa_jax.diarization.recordings import RereadableRecording, span_samples
from ecapa_jax.diarization.result import Diarization, Speaker
from ecapa_jax.diarization.settings import FRAMES_A_SECOND, DiarizationSettings
from ecapa_jax.diarization.turns import (
    Labelled,
    Turn,
    frame_scores,
    frames_of,
    make_turns,
    second_speakers,
    speaker_frames,
    speech_frames,
    stretches,
)
from ecapa_jax.errors import ConfigError
from ecapa_jax.vad.gate import holds_speech
from ecapa_jax.vad.network import FRAME
from ecapa_jax.vad.recordings import stream_probabilities

if TYPE_CHECKING:
    from ecapa_jax.encoder import SpeakerEncoder

Blocks: TypeAlias = Iterable[Float32[np.ndarray, " _"]]
Vad: TypeAlias = Callable[[Blocks], tuple[Float32[np.ndarray, " frames"], int]]
"""Maps blocks of samples at 16 kHz to a probability of speech for each 512 samples, and the number of samples."""

Clusterer: TypeAlias = Callable[
    [Float32[np.ndarray, "windows embedding"], Int64[np.ndarray, "windows 2"], SpeakerCount, DiarizationSettings],
    Int64[np.ndarray, " windows"],
]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of the current step, how much of it is done, and how much there is in total (0: unknown)."""

MOST_SPEAKERS = 100
HEARD = 0.5
"""Probability of speech from which on somebody is certainly heard."""


def diarize(
    encoder: SpeakerEncoder,
    recording: AudioSource,
    speakers: int | None = None,
    *,
    min_speakers: int = 1,
    max_speakers: int = 15,
    overlap: bool | segmentation.Segmenter = True,
    vad: Vad | None = stream_probabilities,
    sample_rate: int | str | None = None,
    channel: Channel | None = None,
    settings: DiarizationSettings | None = None,
    clusterer: Clusterer = clustering.cluster,
    progress: Progress | None = None,
) -> Diarization:
    """Finds who speaks when in a recording.

    Args:
      encoder: any model.
      recording: path, http(s) URL, bytes, binary file, or an array [samples] or [samples, channels]. A file longer than
        20 minutes is read in parts, so that it is never in memory as a whole.
      speakers: number of speakers; None if it is not known.
      min_speakers, max_speakers: bounds of the number of speakers if it is not known.
      overlap: whether to detect changes of voice and speech of two people at once; without it, diarization takes about
        half the time. A `Segmenter` brings its own weights.
      vad: function that detects speech; None leaves this to overlap detection.
      sample_rate: sample rate of an array, Hz; None means the sample rate of the model.
      channel: which channel to use if there are several: the first, their mean, or a number from 0; None means the
        channel that the model takes.
      settings: thresholds; None means the defaults.
      clusterer: function that assigns speakers to windows.
      progress: called while the recording is processed.

    Returns:
      Turns and speakers; none if nobody speaks.

    Raises:
      AudioError: the recording can't be read, or holds samples that are not finite.
      ConfigError: the numbers of speakers contradict each other, or both `overlap` and `vad` are off.
    """
    settings = settings or DiarizationSettings()
    count = _check_count(speakers, min_speakers, max_speakers)
    segmenter = _packaged_segmenter() if overlap is True else overlap or None
    if segmenter is None and vad is None:
        raise ConfigError("overlap is False and vad is None: one of them must find where somebody speaks")
    report = progress or (lambda what, done, total: None)
    rate = encoder.sample_rate
    chosen = encoder.config.fbank.channel if channel is None else channel
    audio = RereadableRecording(recording, rate if sample_rate is None else sample_rate, chosen)
    voices, probability, duration = _listen(audio, segmenter, vad, settings, report)
    speech = speech_frames(probability, settings)
    spans = _windows(stretches(speech, None if voices is None else voices.tracks(), settings), count, settings)
    if not len(spans):
        return Diarization([], [], [], duration)
    embeddings = _embed(
        encoder, span_samples(audio.blocks(rate), spans, rate, encoder.minimum_samples), len(spans), report
    )
    rows = subtract_mean(encoder, embeddings)
    windows = Labelled(spans, rows, clusterer(rows, spans, count, settings))
    frames, second = _frames(windows, speech, voices, settings)
    return _result(frames, second, embeddings, windows.labels, settings, duration)


def _frames(
    windows: Labelled, speech: Bool[np.ndarray, " frames"], voices: Voices | None, settings: DiarizationSettings
) -> tuple[Int64[np.ndarray, " frames"], Int64[np.ndarray, " frames"] | None]:
    """The speaker of each frame, and the second speaker where voices are known."""
    tracks = None if voices is None else voices.tracks()
    frames = _restore_speakers(speaker_frames(windows, speech, tracks, settings), windows, settings)
    if voices is None:
        return frames, None
    return frames, second_speakers(frames, voices, frame_scores(windows, len(speech)), settings)


@functools.cache
def _packaged_segmenter() -> segmentation.Segmenter:
    return segmentation.Segmenter()


def _check_count(speakers: int | None, least: int, most: int) -> SpeakerCount:
    if speakers is not None and not 1 <= speakers <= MOST_SPEAKERS:
        raise ConfigError(f"speakers is {speakers}; it must be between 1 and {MOST_SPEAKERS}")
    if not 1 <= least <= most <= MOST_SPEAKERS:
        raise ConfigError(
            f"min_speakers is {least} and max_speakers {most}; they must be in order, between 1 and {MOST_SPEAKERS}"
        )
    return SpeakerCount(speakers, least, most)


def _listen(
    audio: RereadableRecording,
    segmenter: segmentation.Segmenter | None,
    vad: Vad | None,
    settings: DiarizationSettings,
    report: Progress,
) -> tuple[Voices | None, Float32[np.ndarray, " frames"], float]:
    """Returns the voices, the probability of speech in each 10 ms frame, and the length in seconds."""
    voices, found = None, []
    n_samples = 0
    if vad is not None:
        report("finding speech", 0, 0)
        blocks = audio.blocks(segmentation.RATE)
        probabilities, n_samples = vad(blocks)
        if not (probabilities >= HEARD).any() and _is_without_speech(blocks):
            return None, on_frames(np.zeros_like(probabilities), n_samples), n_samples / segmentation.RATE
        found.append(on_frames(probabilities, n_samples))
    if segmenter is not None:
        report("hearing voices", 0, 0)
        voices, n_samples = hear_voices(segmenter, audio.blocks(segmentation.RATE), settings.chunk_hop)
        found.append(voices.speech())
    speech = np.asarray(np.mean(np.stack(found), axis=0, dtype=np.float32))
    return voices, speech, n_samples / segmentation.RATE


def _is_without_speech(blocks: Blocks) -> bool:
    """Whether nobody speaks in a recording that is held in memory, not even quietly.

    Overlap detection takes beeps and clicks for voices in a recording that has no voices to compare them with.
    """
    return isinstance(blocks, list) and not any(
        len(block) and holds_speech(block, segmentation.RATE) for block in blocks
    )


def on_frames(probabilities: Float32[np.ndarray, " vad_frames"], n_samples: int) -> Float32[np.ndarray, " frames"]:
    """Interpolates speech probabilities of 512 samples each at the 10 ms frames of `n_samples` samples at 16 kHz."""
    samples_a_frame = segmentation.RATE // FRAMES_A_SECOND
    n_frames = -(-n_samples // samples_a_frame)
    if not len(probabilities):
        return np.zeros(n_frames, np.float32)
    times = (np.arange(n_frames) + 0.5) * samples_a_frame
    return np.interp(times, (np.arange(len(probabilities)) + 0.5) * FRAME, probabilities).astype(np.float32)


def _windows(
    found: list[tuple[int, int]], count: SpeakerCount, settings: DiarizationSettings
) -> Int64[np.ndarray, "windows 2"]:
    """Cuts the stretches into windows; into shorter ones if there would be fewer windows than speakers."""
    window, hop = frames_of(settings.window), frames_of(settings.hop)
    needed = count.limits(MOST_SPEAKERS)[0]
    spans = cut_windows(found, window, hop)
    while len(spans) < needed and window > 2 and len(spans):
        window, hop = window // 2, max(window // 4, 1)
        spans = cut_windows(found, window, hop)
    return spans


def _embed(
    encoder: SpeakerEncoder, waveforms: Iterable[np.ndarray], total: int, report: Progress
) -> Float32[np.ndarray, "windows embedding"]:
    rows: dict[int, np.ndarray] = {}
    report("embedding", 0, total)
    for indices, embeddings in encoder.embed_stream(waveforms):
        rows.update(zip(indices, embeddings, strict=True))
        report("embedding", len(rows), total)
    return np.stack([rows[index] for index in range(total)])


def subtract_mean(
    encoder: SpeakerEncoder, embeddings: Float32[np.ndarray, "windows embedding"]
) -> Float32[np.ndarray, "windows embedding"]:
    """Subtracts the mean embedding of the model from embeddings, if the model has one."""
    mean = encoder.scorer.embedding_mean
    return embeddings if mean is None else embeddings - mean.astype(np.float32)


def _restore_speakers(
    frames: Int64[np.ndarray, " frames"], windows: Labelled, settings: DiarizationSettings
) -> Int64[np.ndarray, " frames"]:
    """Assigns the windows of a speaker to this speaker again if the speaker has too few frames for a turn."""
    shortest = frames_of(settings.shortest_turn)
    seen = [speaker for start, end, speaker in runs(frames) if end - start >= shortest]
    for speaker in np.setdiff1d(np.arange(windows.labels.max() + 1), seen):
        for start, end in windows.spans[windows.labels == speaker]:
            middle, reach = (start + end) // 2, max((end - start) // 4, 6)
            frames[max(middle - reach, start) : min(middle + reach, end)] = speaker
    return frames


def _result(
    frames: Int64[np.ndarray, " frames"],
    second: Int64[np.ndarray, " frames"] | None,
    embeddings: Float32[np.ndarray, "windows embedding"],
    labels: Int64[np.ndarray, " windows"],
    settings: DiarizationSettings,
    duration: float,
) -> Diarization:
    labels_in_frames, first_frames = np.unique(np.where(frames < 0, labels.max() + 1, frames), return_index=True)
    all_names = [str(label) for label in range(int(labels.max()) + 1)]
    # A speaker whose every turn is too short is left out.
    with_turns = {int(turn.speaker) for turn in make_turns(frames, second, all_names, settings)}
    by_appearance = sorted(zip(first_frames, labels_in_frames, strict=True))
    order = [int(speaker) for _, speaker in by_appearance if int(speaker) in with_turns]
    new_numbers = np.full(int(labels.max()) + 2, -1, np.int64)  # the last stands for nobody
    new_numbers[order] = np.arange(len(order))
    frames, names = new_numbers[frames], [f"speaker_{index + 1}" for index in range(len(order))]
    second = None if second is None else new_numbers[second]
    turns = [_clip_turn(turn, duration) for turn in make_turns(frames, second, names, settings)]
    exclusive = [_clip_turn(turn, duration) for turn in make_turns(frames, None, names, settings)]
    speakers = []
    for name, label in zip(names, order, strict=True):
        seconds = sum(turn.end - turn.start for turn in turns if turn.speaker == name)
        speakers.append(Speaker(name, embeddings[labels == label].mean(axis=0), round(seconds, 2)))
    return Diarization(turns, exclusive, speakers, duration)


def _clip_turn(turn: Turn, duration: float) -> Turn:
    return turn._replace(end=min(turn.end, round(duration, 3)))
