"""`ecapa-jax vad FILES...`."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ecapa_jax.cli.common import Output, OutputOptions

if TYPE_CHECKING:
    from ecapa_jax.vad.segments import Segment


@dataclasses.dataclass(frozen=True)
class DetectSpeech:
    """Find speech in recordings, and print one line per segment with its start and end in seconds."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILES...")]
    """Recordings: files or http(s) URLs. If there are several, each line ends with the name of the recording."""
    threshold: Annotated[float, tyro.conf.arg(metavar="P")] = 0.5
    """Probability of speech at or above which a segment begins."""
    neg_threshold: Annotated[
        float | None, tyro.conf.arg(metavar="P", help_behavior_hint="(default: 0.15 less than the threshold)")
    ] = None
    """Probability of speech below which a segment ends."""
    min_speech: Annotated[float, tyro.conf.arg(metavar="MS")] = 250.0
    """Leave out segments that are not longer than this time, in milliseconds."""
    min_silence: Annotated[float, tyro.conf.arg(metavar="MS")] = 100.0
    """Pauses shorter than this time do not end a segment, in milliseconds."""
    pad: Annotated[float, tyro.conf.arg(metavar="MS")] = 30.0
    """Extend each segment on both sides by this time, in milliseconds."""
    max_speech: Annotated[float, tyro.conf.arg(metavar="SECONDS", help_behavior_hint="(default: no limit)")] = math.inf
    """Cut longer segments at their longest pause."""
    channel: Literal["first", "mean"] = "mean"
    """Channel to read from recordings with several channels."""
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints the segments."""
        from ecapa_jax.errors import EcapaError
        from ecapa_jax.runtime import compile_cache
        from ecapa_jax.vad.network import RATE
        from ecapa_jax.vad.recordings import recording_probabilities
        from ecapa_jax.vad.segments import SegmentOptions, segments_from_probabilities

        if not self.files:
            raise EcapaError("no recordings given: ecapa-jax vad FILES...")
        compile_cache.use_compile_cache()
        options = SegmentOptions(
            threshold=self.threshold,
            neg_threshold=self.neg_threshold,
            min_speech_duration_ms=self.min_speech,
            min_silence_duration_ms=self.min_silence,
            speech_pad_ms=self.pad,
            max_speech_duration_s=self.max_speech,
        )
        lines: list[str] = []
        results: list[dict[str, Any]] = []
        for file in self.files:
            probabilities, n_samples = recording_probabilities(file, channel=self.channel)
            segments = segments_from_probabilities(probabilities, n_samples, options)
            if not segments:
                self.output.note(f"{file}: no speech found")
            lines += [_line(segment, file if len(self.files) > 1 else "") for segment in segments]
            speech = sum(segment.end - segment.start for segment in segments)
            results.append(
                {
                    "file": file,
                    "seconds": n_samples / RATE,
                    "speech_seconds": speech,
                    "segments": [list(segment) for segment in segments],
                }
            )
        if lines or self.output.json:
            self.output.result({"threshold": self.threshold, "files": results}, "\n".join(lines))


def _line(segment: Segment, name: str) -> str:
    return f"{segment.start:9.3f} {segment.end:9.3f}" + (f"  {name}" if name else "")
