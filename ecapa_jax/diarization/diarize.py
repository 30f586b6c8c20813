"""diarize: a recording in, turns with speakers out.

1. Two networks hear the recording at 16 kHz: silero-vad says where somebody speaks, segmentation-3.0 (with `overlap`)
   where the voice changes and where two speak at once.
2. Windows of one voice are embedded by the encoder, in its batches.
3. The embeddings are clustered: how many speakers there are, and whose each window is.
4. Each 10 ms frame of speech goes to the speaker whom the windows around it are most like; where two voices are heard,
   a second speaker is added.
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
"""From blocks of samples at 16 kHz to a probability of speech for each 512 samples, and the number of samples."""

Clusterer: TypeAlias = Callable[
    [Float32[np.ndarray, "windows embedding"], Int64[np.ndarray, "windows 2"], SpeakerCount, DiarizationSettings],
    Int64[np.ndarray, " windows"],
]
Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: not known)."""

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
    """Finds out who speaks when.

    Args:
      encoder: any model.
      recording: path, http(s) URL, bytes, binary file, or an array [samples] or [samples, channels]. Of a file longer
        than 20 minutes memory holds a part.
      speakers: how many speak, where that is known.
      min_speakers, max_speakers: bounds where it is not.
      overlap: find where two speak at once and where voices change; False takes about half the time. A `Segmenter`
        stands for other weights.
      vad: speech detection; None leaves it to overlap detection.
      sample_rate: of an array, Hz; None means the model's.
      channel: of a recording with several: the first, their mean, or a number from 0; None means the model's choice.
      settings: thresholds; None means the defaults.
      clusterer: groups windows by speaker.
      progress: called now and then.

    Returns:
      Turns and speakers; none where nobody speaks.

    Raises:
      AudioError: the recording can't be read, or holds samples that are not finite.
      ConfigError: the numbers of speakers contradict each other, or neither `overlap` nor `vad` is to find speech.
    """
    settings = settings or DiarizationSettings()
    count = _checked(speakers, min_speakers, max_speakers)
    segmenter = _segmenter() if overlap is True else overlap or None
    if segmenter is None and vad is None:
        raise ConfigError("overlap is False and vad is None: one of them must find where somebody speaks")
    told = progress or (lambda what, done, total: None)
    rate = encoder.sample_rate
    chosen = encoder.config.fbank.channel if channel is None else channel
    audio = RereadableRecording(recording, rate if sample_rate is None else sample_rate, chosen)
    voices, probability, duration = _listen(audio, segmenter, vad, settings, told)
    speech = speech_frames(probability, settings)
    spans = _windows(stretches(speech, None if voices is None else voices.tracks(), settings), count, settings)
    if not len(spans):
        return Diarization([], [], [], duration)
    embeddings = _embed(
        encoder, span_samples(audio.blocks(rate), spans, rate, encoder.minimum_samples), len(spans), told
    )
    rows = centred(encoder, embeddings)
    windows = Labelled(spans, rows, clusterer(rows, spans, count, settings))
    frames, second = _frames(windows, speech, voices, settings)
    return _result(frames, second, embeddings, windows.labels, settings, duration)


def _frames(
    windows: Labelled, speech: Bool[np.ndarray, " frames"], voices: Voices | None, settings: DiarizationSettings
) -> tuple[Int64[np.ndarray, " frames"], Int64[np.ndarray, " frames"] | None]:
    """The speaker of each frame, and the second speaker where voices are known."""
    tracks = None if voices is None else voices.tracks()
    frames = _with_everyone(speaker_frames(windows, speech, tracks, settings), windows, settings)
    if voices is None:
        return frames, None
    return frames, second_speakers(frames, voices, frame_scores(windows, len(speech)), settings)


@functools.cache
def _segmenter() -> segmentation.Segmenter:
    return segmentation.Segmenter()


def _checked(speakers: int | None, least: int, most: int) -> SpeakerCount:
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
    told: Progress,
) -> tuple[Voices | None, Float32[np.ndarray, " frames"], float]:
    """Voices, probability of speech a 10 ms frame, and seconds."""
    voices, found = None, []
    n_samples = 0
    if vad is not None:
        told("finding speech", 0, 0)
        blocks = audio.blocks(segmentation.RATE)
        probabilities, n_samples = vad(blocks)
        if not (probabilities >= HEARD).any() and _is_without_speech(blocks):
            return None, on_frames(np.zeros_like(probabilities), n_samples), n_samples / segmentation.RATE
        found.append(on_frames(probabilities, n_samples))
    if segmenter is not None:
        told("hearing voices", 0, 0)
        voices, n_samples = hear_voices(segmenter, audio.blocks(segmentation.RATE), settings.chunk_hop)
        found.append(voices.speech())
    speech = np.asarray(np.mean(np.stack(found), axis=0, dtype=np.float32))
    return voices, speech, n_samples / segmentation.RATE


def _is_without_speech(blocks: Blocks) -> bool:
    """Whether nobody speaks in a recording that is held in memory, however quietly.

    Overlap detection takes beeps and clicks for voices where there are no voices to compare them with.
    """
    return isinstance(blocks, list) and not any(
        len(block) and holds_speech(block, segmentation.RATE) for block in blocks
    )


def on_frames(probabilities: Float32[np.ndarray, " vad_frames"], n_samples: int) -> Float32[np.ndarray, " frames"]:
    """Probabilities of 512 samples each, at the 10 ms frames of as many samples at 16 kHz."""
    samples_a_frame = segmentation.RATE // FRAMES_A_SECOND
    n_frames = -(-n_samples // samples_a_frame)
    if not len(probabilities):
        return np.zeros(n_frames, np.float32)
    times = (np.arange(n_frames) + 0.5) * samples_a_frame
    return np.interp(times, (np.arange(len(probabilities)) + 0.5) * FRAME, probabilities).astype(np.float32)


def _windows(
    found: list[tuple[int, int]], count: SpeakerCount, settings: DiarizationSettings
) -> Int64[np.ndarray, "windows 2"]:
    """Windows of the stretches: shorter ones where there would be fewer than speakers."""
    window, hop = frames_of(settings.window), frames_of(settings.hop)
    needed = count.bounded(MOST_SPEAKERS)[0]
    spans = cut_windows(found, window, hop)
    while len(spans) < needed and window > 2 and len(spans):
        window, hop = window // 2, max(window // 4, 1)
        spans = cut_windows(found, window, hop)
    return spans


def _embed(
    encoder: SpeakerEncoder, waveforms: Iterable[np.ndarray], total: int, told: Progress
) -> Float32[np.ndarray, "windows embedding"]:
    rows: dict[int, np.ndarray] = {}
    told("embedding", 0, total)
    for indices, embeddings in encoder.embed_stream(waveforms):
        rows.update(zip(indices, embeddings, strict=True))
        told("embedding", len(rows), total)
    return np.stack([rows[index] for index in range(total)])


def centred(
    encoder: SpeakerEncoder, embeddings: Float32[np.ndarray, "windows embedding"]
) -> Float32[np.ndarray, "windows embedding"]:
    """Embeddings without the mean embedding of the model's training, if the model brings one."""
    mean = encoder.scorer.embedding_mean
    return embeddings if mean is None else embeddings - mean.astype(np.float32)


def _with_everyone(
    frames: Int64[np.ndarray, " frames"], windows: Labelled, settings: DiarizationSettings
) -> Int64[np.ndarray, " frames"]:
    """The frames with the windows of those speakers who would have none, or too few for a turn."""
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
    present, first = np.unique(np.where(frames < 0, labels.max() + 1, frames), return_index=True)
    everyone = [str(label) for label in range(int(labels.max()) + 1)]
    heard = {int(turn.speaker) for turn in make_turns(frames, second, everyone, settings)}  # not too short to be a turn
    order = [int(speaker) for _, speaker in sorted(zip(first, present, strict=True)) if int(speaker) in heard]
    number = np.full(int(labels.max()) + 2, -1, np.int64)  # the last stands for nobody
    number[order] = np.arange(len(order))
    frames, names = number[frames], [f"speaker_{index + 1}" for index in range(len(order))]
    second = None if second is None else number[second]
    turns = [_within(turn, duration) for turn in make_turns(frames, second, names, settings)]
    exclusive = [_within(turn, duration) for turn in make_turns(frames, None, names, settings)]
    found = []
    for name, label in zip(names, order, strict=True):
        seconds = sum(turn.end - turn.start for turn in turns if turn.speaker == name)
        found.append(Speaker(name, embeddings[labels == label].mean(axis=0), round(seconds, 2)))
    return Diarization(turns, exclusive, found, duration)


def _within(turn: Turn, duration: float) -> Turn:
    return turn._replace(end=min(turn.end, round(duration, 3)))
