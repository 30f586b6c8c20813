"""Diarization while the recording is made: samples in, turns so far out, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from ecapa_jax.diarization.activity import runs
from ecapa_jax.diarization.clustering import unit
from ecapa_jax.diarization.diarize import subtract_mean
from ecapa_jax.diarization.recordings import repeat_samples
from ecapa_jax.diarization.settings import FRAMES_A_SECOND, StreamSettings
from ecapa_jax.diarization.stream_speakers import SpeakerTracker
from ecapa_jax.diarization.stream_windows import Window, WindowCutter
from ecapa_jax.diarization.turns import Turn, frames_of, spread_over_frames
from ecapa_jax.errors import AudioError, ConfigError
from ecapa_jax.vad.network import RATE

if TYPE_CHECKING:
    from ecapa_jax.encoder import SpeakerEncoder

_PART = 30 * RATE  # samples that are worked on at a time


class Diarizer:
    """Turns of a stream of samples, at most two seconds behind it.

    A stream is diarized as `diarize` does it without overlap detection, step by step. Each window of speech is embedded
    once, as soon as it is complete, and goes to the speaker whom it is most like, or to a new one. Now and then
    `Diarizer` clusters the windows of about the last 20 minutes of speech again. So a later call may correct earlier
    turns: who speaks, and where a turn begins or ends. Turns of older speech are final. After `finish`, a stream with
    less speech than that has the turns of `diarize`; only the numbers in the names can differ.

    Speakers keep their names when windows are clustered again: a speaker has the name of the earlier speaker with whom
    it shares most windows. If two speakers turn out to be one, one of their names is free, and a new speaker may get
    it.

    Memory holds the last seconds of sound, the embeddings of the windows that can still change, one centroid for each
    speaker, and the turns.

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
        self._encoder = encoder
        self._cutter = WindowCutter(self.settings)
        self._speakers = SpeakerTracker(max_speakers, self.settings)
        self._pieces: list[tuple[int, int, int]] = []  # first frame, frame after the last, speaker; can still change
        self._final: list[Turn] = []
        self._first_open = 0  # first frame whose speaker can still change
        self._open: list[Turn] | None = []  # turns of `_pieces`; None when these have changed
        self._n_samples = 0
        self._is_finished = False

    def push(self, samples: Float32[np.ndarray, " samples"]) -> list[Turn]:
        """Takes the next samples; returns all turns so far, which later calls may correct.

        Args:
          samples: at 16 kHz, in [-1, 1], as many as there are.

        Raises:
          AudioError: the samples are no vector, or not finite, or the stream has been finished.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise AudioError("a stream takes samples of shape [samples], all of them finite")
        if self._is_finished:
            raise AudioError("the stream has been finished; begin another one with a new Diarizer")
        self._n_samples += len(samples)
        for start in range(0, len(samples), _PART):
            self._take(self._cutter.push(samples[start : start + _PART]))
        return self.turns()

    def finish(self) -> list[Turn]:
        """Ends the stream; returns all turns."""
        if not self._is_finished:
            self._is_finished = True
            self._take(self._cutter.finish())
            if self._speakers.finish():
                self._label_from(self._first_open)
        return self.turns()

    def turns(self) -> list[Turn]:
        """All turns so far, in order of time."""
        if not self._cutter.heard:
            return []
        if self._open is None:
            self._open = self._turns_of(self._pieces)
        return self._final + self._open

    def _take(self, windows: list[Window]) -> None:
        """Embeds windows, finds their speakers, and then those of the frames."""
        minimum = self._encoder.minimum_samples
        waveforms = [repeat_samples(window.samples, minimum) for window in windows]
        rows = dict[int, np.ndarray]()
        for indices, embeddings in self._encoder.embed_stream(waveforms):
            rows.update(zip(indices, unit(subtract_mean(self._encoder, embeddings)), strict=True))
        for index, window in enumerate(windows):
            regrouped = self._speakers.add((window.start, window.end), rows[index])
            self._label_from(self._first_open if regrouped else window.start)
            if self._speakers.is_full():
                self._close(len(self._speakers.spans) // 2)

    def _label_from(self, first: int) -> None:
        """Decides again who speaks in all frames from the first on."""
        self._open = None
        while self._pieces and self._pieces[-1][1] > first:
            start, _, speaker = self._pieces.pop()
            if start < first:
                self._pieces.append((start, first, speaker))
        numbers, spans, cosines = self._speakers.cosines(first)
        starts_stretch = np.append(True, spans[1:, 0] > spans[:-1, 1])
        for rows in np.split(np.arange(len(spans)), np.flatnonzero(starts_stretch)[1:]):
            base, end = int(spans[rows[0], 0]), int(spans[rows[-1], 1])
            speakers = spread_over_frames(spans[rows] - base, cosines[rows], end - base).argmax(axis=1)
            begin = max(base, first)
            for start, end, speaker in runs(numbers[speakers][begin - base :]):
                self._add_piece(begin + start, begin + end, speaker)

    def _add_piece(self, start: int, end: int, speaker: int) -> None:
        if self._pieces and self._pieces[-1][1] == start and self._pieces[-1][2] == speaker:
            start = self._pieces.pop()[0]
        self._pieces.append((start, end, speaker))

    def _close(self, n_windows: int) -> None:
        """Makes the speakers of the oldest windows final."""
        self._speakers.close(n_windows)
        self._first_open = self._speakers.spans[0][0]
        kept = next(index for index, piece in enumerate(self._pieces) if piece[1] >= self._first_open)
        self._final += self._turns_of(self._pieces[:kept])
        self._pieces, self._open = self._pieces[kept:], None

    def _turns_of(self, pieces: list[tuple[int, int, int]]) -> list[Turn]:
        duration = round(self._n_samples / RATE, 3)
        return [
            Turn(start / FRAMES_A_SECOND, min(end / FRAMES_A_SECOND, duration), f"speaker_{speaker + 1}")
            for start, end, speaker in pieces
            if end - start >= frames_of(self.settings.shortest_turn)
        ]
