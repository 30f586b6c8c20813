"""Diarization while the recording is made: samples in, turns so far out, in bounded memory."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from ecapa_jax.diarization.clustering import unit
from ecapa_jax.diarization.settings import FRAMES_A_SECOND
from ecapa_jax.diarization.turns import Turn
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.vad import in_numpy, network
from ecapa_jax.vad.network import FRAME, RATE
from ecapa_jax.vad.weights import packaged_weights

if TYPE_CHECKING:
    from ecapa_jax.encoder import SpeakerEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How a stream is diarized.

    Attributes:
      window, hop: seconds of speech that are embedded, and from one window to the next.
      speech_threshold: least probability of speech.
      fewest_speech: share of a window that must be speech.
      new_speaker: a window that is less like every speaker than this, on a scale on which 1 is as alike as neighbouring
        windows are, begins a new one.
      join: speakers whose centroids are more alike than this, on the same scale, become one.
      pause, shortest_turn: as in `DiarizationSettings`.
    """

    window: float = 1.5
    hop: float = 0.5
    speech_threshold: float = 0.5
    fewest_speech: float = 0.5
    new_speaker: float = 0.45
    join: float = 0.75
    pause: float = 0.3
    shortest_turn: float = 0.25


@dataclasses.dataclass
class _Known:
    """A speaker of a stream: sum of the embeddings, and how many."""

    number: int
    total: np.ndarray
    windows: int = 1

    @property
    def centroid(self) -> np.ndarray:
        return unit(self.total)


class Diarizer:
    """Turns of a stream of samples, at most two seconds behind it.

    Each window of speech is embedded once and goes to the speaker whose running centroid it is most like, or to a new
    one. What is decided is not taken back, but for two speakers who turn out to be one. Memory holds the last seconds
    of sound, a centroid a speaker, and the turns.

        diarizer = Diarizer(ecapa_jax.load())
        for samples in microphone:
            turns = diarizer.push(samples)
        turns = diarizer.finish()
    """

    def __init__(self, encoder: SpeakerEncoder, *, max_speakers: int = 15, settings: StreamSettings | None = None):
        """Begins a stream.

        Args:
          encoder: a model at 16 kHz.
          max_speakers: the most there may be.
          settings: thresholds; None means the defaults.

        Raises:
          ConfigError: the model has another rate, or there may be no speaker.
        """
        if encoder.sample_rate != RATE:
            raise ConfigError(f"this model's rate is {encoder.sample_rate} Hz; a stream needs one of {RATE} Hz")
        if max_speakers < 1:
            raise ConfigError(f"max_speakers is {max_speakers}; it must be 1 or more")
        self.settings = settings or StreamSettings()
        self._encoder, self._most = encoder, max_speakers
        self._state, self._weights = network.initial_state(1), packaged_weights()
        self._waiting = np.zeros(0, np.float32)  # less than a frame of speech detection
        self._samples, self._first = np.zeros(0, np.float32), 0  # of the last windows, and where they begin
        self._speech: list[bool] = []  # a frame of speech detection each, from `_first_frame` on
        self._first_frame = 0
        self._next = 0  # first sample of the next window
        self._likeness = [0.6]  # cosines of neighbouring windows, the scale of all thresholds
        self._last: tuple[int, np.ndarray] | None = None
        self._known: list[_Known] = []
        self._named = 0
        self._turns: list[tuple[int, int, int]] = []  # first frame of 10 ms, frame after the last, speaker
        self._done = 0  # samples that are decided

    def push(self, samples: Float32[np.ndarray, " samples"]) -> list[Turn]:
        """Takes the next samples; returns all turns so far.

        Args:
          samples: at 16 kHz, in [-1, 1], as many as there are.

        Raises:
          AudioError: the samples are no vector, or not finite.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise AudioError("a stream takes samples of shape [samples], all of them finite")
        self._detect(samples)
        window, hop = round(self.settings.window * RATE), round(self.settings.hop * RATE)
        while self._next + window <= self._first_frame * FRAME + len(self._speech) * FRAME:
            self._decide(self._next, window, self._next + (window + hop) // 2)
            self._next += hop
            self._forget()
        return self.turns()

    def finish(self) -> list[Turn]:
        """Ends the stream; returns all turns."""
        rest = len(self._waiting)
        self._detect(np.zeros(-rest % FRAME, np.float32))
        window = round(self.settings.window * RATE)
        end = self._first + len(self._samples)
        if end > self._done:
            start = max(self._first, end - window)
            self._decide(start, end - start, end)
        return self.turns()

    def turns(self) -> list[Turn]:
        """All turns so far, in order of time."""
        shortest, pause = self.settings.shortest_turn * FRAMES_A_SECOND, self.settings.pause * FRAMES_A_SECOND
        joined: dict[int, list[list[int]]] = {}
        for start, end, speaker in self._turns:
            own = joined.setdefault(speaker, [])
            if own and start - own[-1][1] < pause:
                own[-1][1] = end
            else:
                own.append([start, end])
        return sorted(
            Turn(start / FRAMES_A_SECOND, end / FRAMES_A_SECOND, f"speaker_{speaker + 1}")
            for speaker, own in joined.items()
            for start, end in own
            if end - start >= shortest
        )

    def _detect(self, samples: Float32[np.ndarray, " samples"]) -> None:
        held = np.concatenate([self._waiting, samples])
        whole = len(held) - len(held) % FRAME
        if whole:
            probabilities, self._state = in_numpy.advance(self._weights, held[:whole], self._state)
            self._speech += (probabilities >= self.settings.speech_threshold).tolist()
            self._samples = np.concatenate([self._samples, held[:whole]])
        self._waiting = held[whole:]

    def _decide(self, start: int, length: int, until: int) -> None:
        """Gives what is not decided before `until` to the speaker of a window."""
        speech = np.repeat(np.array(self._speech), FRAME)
        offset = self._first_frame * FRAME
        window = speech[start - offset :][:length]
        ends_in_speech = bool(window[-len(window) // 3 :].all())
        first, self._done = self._done, max(until, self._done)
        if window.mean() >= self.settings.fewest_speech or ends_in_speech:
            samples = self._samples[start - self._first :][:length]
            padded = np.resize(samples, max(len(samples), self._encoder.minimum_samples))
            self._add(
                speech[first - offset : self._done - offset], first, self._speaker(self._encoder.embed(padded)[0])
            )
        elif self._last is not None:
            self._add(speech[first - offset : self._done - offset], first, self._last[0])

    def _speaker(self, embedding: Float32[np.ndarray, " embedding"]) -> int:
        mean = self._encoder.scorer.embedding_mean
        x = unit(embedding if mean is None else embedding - mean.astype(np.float32))
        scale = max(float(np.median(self._likeness)), 0.1)
        scores = np.array([float(known.centroid @ x) for known in self._known])
        if len(scores) and (scores.max() >= self.settings.new_speaker * scale or len(self._known) >= self._most):
            known = self._known[int(scores.argmax())]
            known.total = known.total + x
            known.windows += 1
        else:
            known = _Known(self._named, x.copy())
            self._named += 1
            self._known.append(known)
        if self._last is not None and self._last[0] == known.number:
            self._likeness = [*self._likeness[-99:], float(self._last[1] @ x)]
        self._last = known.number, x
        return self._joined(known, scale)

    def _joined(self, known: _Known, scale: float) -> int:
        """The speaker's number, once it is joined with another that it turned out to be."""
        for other in self._known:
            if other is known or float(other.centroid @ known.centroid) < self.settings.join * scale:
                continue
            kept, gone = sorted((known, other), key=lambda one: one.number)
            kept.total, kept.windows = kept.total + gone.total, kept.windows + gone.windows
            self._known.remove(gone)
            self._turns = [(a, b, kept.number if who == gone.number else who) for a, b, who in self._turns]
            self._last = None if self._last is None else (kept.number, self._last[1])
            return kept.number
        return known.number

    def _add(self, speech: np.ndarray, first: int, speaker: int) -> None:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], speech.astype(np.int8), [0]])))
        for start, end in edges.reshape(-1, 2):
            begin, last = (round((first + at) * FRAMES_A_SECOND / RATE) for at in (start, end))
            if self._turns and self._turns[-1][2] == speaker and begin - self._turns[-1][1] <= 1:
                self._turns[-1] = (self._turns[-1][0], last, speaker)
            else:
                self._turns.append((begin, last, speaker))

    def _forget(self) -> None:
        """Drops samples and frames that no window needs any more."""
        frames = min(self._next, self._done) // FRAME - self._first_frame
        if frames > 0:
            self._speech = self._speech[frames:]
            self._first_frame += frames
        samples = self._first_frame * FRAME - self._first
        self._samples, self._first = self._samples[samples:], self._first + samples
