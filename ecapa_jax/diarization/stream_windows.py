"""Cuts windows of speech from a stream of samples: the windows that `diarize` cuts from the whole recording.

A window is cut as soon as its last frame is known to be speech. The last window of a stretch of speech ends with the
stretch, so it is cut only when a pause has lasted long enough to end the stretch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32

from ecapa_jax.diarization.activity import runs
from ecapa_jax.diarization.diarize import HEARD, on_frames
from ecapa_jax.diarization.settings import FRAMES_A_SECOND, DiarizationSettings
from ecapa_jax.diarization.turns import frames_of
from ecapa_jax.vad import in_numpy, network
from ecapa_jax.vad.gate import holds_speech
from ecapa_jax.vad.network import FRAME, RATE
from ecapa_jax.vad.weights import packaged_weights

_SAMPLES = RATE // FRAMES_A_SECOND  # in a 10 ms frame
_ALIGNED = 5  # frames of speech detection that last as long as a whole number of 10 ms frames


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """A window of speech.

    Attributes:
      start, end: first 10 ms frame of the window, counted from the start of the stream, and the frame after its last.
      samples: the samples of the window, at 16 kHz.
    """

    start: int
    end: int
    samples: Float32[np.ndarray, " samples"]


class WindowCutter:
    """Finds speech in a stream, and cuts the windows that `speech_frames`, `stretches` and `cut_windows` would cut.

    A cutter keeps only the samples from which it can still cut windows: about two seconds.

    Attributes:
      heard: whether the stream holds speech for certain so far. Until then, the windows may contain only noise.
    """

    def __init__(self, settings: DiarizationSettings) -> None:
        """Begins a stream.

        Args:
          settings: thresholds and lengths.
        """
        self.heard = False
        self._settings = settings
        self._padding, self._pause = frames_of(settings.padding), max(frames_of(settings.pause), 1)
        self._state, self._weights = network.initial_state(1), packaged_weights()
        self._waiting = np.zeros(0, np.float32)  # less than a frame of speech detection
        self._samples, self._first_sample = np.zeros(0, np.float32), 0
        self._probabilities, self._first_probability = np.zeros(0, np.float32), 0
        self._frames = 0  # number of 10 ms frames whose probability can no longer change
        self._start, self._end = -1, -1  # frames of the current stretch of speech; -1 if nobody speaks
        self._begins: list[int] = []  # start of the last window cut from it, if any

    def push(self, samples: Float32[np.ndarray, " samples"]) -> list[Window]:
        """Takes the next samples, and returns the windows that are now complete, in order of time.

        Args:
          samples: at 16 kHz, finite.
        """
        held = np.concatenate([self._waiting, samples])
        whole = len(held) - len(held) % FRAME
        self._waiting = held[whole:]
        if not whole:
            return []
        self._detect(held[:whole])
        n_probabilities = self._first_probability + len(self._probabilities)
        # The probability of a frame is certain once speech detection has a frame whose middle is not before its own.
        certain = (n_probabilities * FRAME - FRAME // 2 - _SAMPLES // 2) // _SAMPLES + 1
        found = self._take(certain, n_probabilities * FRAME)
        if self._start >= 0 and certain - self._padding - self._end >= self._pause:
            found += self._end_stretch()
        self._forget()
        return found

    def finish(self) -> list[Window]:
        """Ends the stream, and returns the last windows."""
        n_waiting = len(self._waiting)
        if n_waiting:
            self._detect(np.pad(self._waiting, (0, FRAME - n_waiting)))
            self._samples = self._samples[: n_waiting - FRAME]
            self._waiting = np.zeros(0, np.float32)
        n_samples = self._first_sample + len(self._samples)
        n_frames = -(-n_samples // _SAMPLES)
        found = self._take(n_frames, n_samples)
        if self._start >= 0:
            self._end = min(self._end, n_frames)
            found += self._end_stretch()
        return found

    def _detect(self, samples: Float32[np.ndarray, " samples"]) -> None:
        """Runs speech detection on samples, a whole number of its frames."""
        probabilities, self._state = in_numpy.advance(self._weights, samples, self._state)
        self.heard = self.heard or bool((probabilities >= HEARD).any())
        self._probabilities = np.concatenate([self._probabilities, probabilities])
        self._samples = np.concatenate([self._samples, samples])

    def _take(self, certain: int, n_samples: int) -> list[Window]:
        """Follows the speech up to the last certain frame, and returns the windows that are complete by then."""
        first = self._first_probability * FRAME // _SAMPLES
        probability = on_frames(self._probabilities, certain * _SAMPLES - self._first_probability * FRAME)
        new = probability[self._frames - first :] >= self._settings.speech_threshold
        found: list[Window] = []
        for start, end in self._padded_runs(new):
            if self._start >= 0 and start - self._end >= self._pause:
                found += self._end_stretch()
            if self._start < 0:
                self._start = start
            self._end = end
            found += self._cut_complete(n_samples)
        self._frames = certain
        return found + self._cut_complete(n_samples)

    def _padded_runs(self, speech: Bool[np.ndarray, " frames"]) -> list[tuple[int, int]]:
        """Returns the first frame, and the frame after the last, of each run of speech, with padding on both sides."""
        return [
            (max(self._frames + start - self._padding, 0), self._frames + end + self._padding)
            for start, end, value in runs(speech.astype(np.int64))
            if value
        ]

    def _cut_complete(self, n_samples: int) -> list[Window]:
        """Cuts the windows of the current stretch whose last frame is certain."""
        window, hop = frames_of(self._settings.window), frames_of(self._settings.hop)
        certain = min(self._end, n_samples // _SAMPLES)
        found: list[Window] = []
        if self._start < 0 or certain - self._start < frames_of(self._settings.shortest_turn):
            return found
        begin = self._begins[-1] + hop if self._begins else self._start
        while begin + window <= certain:
            found.append(self._cut(begin, begin + window))
            self._begins = [begin]
            begin += hop
        return found

    def _end_stretch(self) -> list[Window]:
        """Ends the current stretch, and cuts the window that ends with it, unless one has been cut."""
        window, start, end = frames_of(self._settings.window), self._start, self._end
        found = self._cut_complete(end * _SAMPLES)
        if not self._begins and end - start >= frames_of(self._settings.shortest_turn):
            found.append(self._cut(start, end))
        elif self._begins and self._begins[-1] + window < end:
            found.append(self._cut(end - window, end))
        self._start, self._end, self._begins = -1, -1, []
        return found

    def _cut(self, start: int, end: int) -> Window:
        samples = self._samples[start * _SAMPLES - self._first_sample : end * _SAMPLES - self._first_sample]
        self.heard = self.heard or holds_speech(samples, RATE)
        return Window(start, end, samples)

    def _forget(self) -> None:
        """Drops the samples and probabilities that no later window needs."""
        if self._begins:
            needed = self._begins[-1]
        else:
            needed = self._start if self._start >= 0 else max(self._frames - self._padding, 0)
        drop = max(needed * _SAMPLES - self._first_sample, 0)
        self._samples, self._first_sample = self._samples[drop:], self._first_sample + drop
        # The probability before the next frame is needed too, because frames are interpolated between probabilities.
        drop = max((self._frames * _SAMPLES // FRAME - 1 - self._first_probability) // _ALIGNED * _ALIGNED, 0)
        self._probabilities, self._first_probability = self._probabilities[drop:], self._first_probability + drop
