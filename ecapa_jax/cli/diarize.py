"""`ecapa-jax diarize FILES...`: find out who speaks when."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ecapa_jax.cli.common import (
    ChannelOption,
    Flag,
    Model,
    ModelOptions,
    Output,
    OutputOptions,
    parse_channel,
)
from ecapa_jax.files.atomic import write_whole

if TYPE_CHECKING:
    from ecapa_jax.diarization.result import Diarization
    from ecapa_jax.encoder import SpeakerEncoder

Kind = Literal["rttm", "json", "srt", "vtt", "audacity", "csv"]

_AUDIO = {
    ".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".mp4", ".aac", ".webm", ".wma", ".amr", ".aif", ".aiff", ".au",
    ".mkv", ".mov", ".3gp", ".w64", ".caf",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Diarize:
    """Say who speaks when in recordings: turns with a start, an end and a speaker."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILES...")]
    """Recordings: files, folders of them, or http(s) URLs."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="DIR", help_behavior_hint="")] = None
    """Folder for the results, one file for each recording and format. Without it the turns are printed. If the run is
    interrupted, run the same command again: recordings that have their results are skipped."""
    format: tuple[Kind, ...] = ("rttm",)
    """Formats to write; audacity is a label track of Audacity, a .txt file."""
    force: Flag = False
    """Write results again that exist already."""
    speakers: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: estimated)")] = None
    """Number of speakers, if it is known."""
    min_speakers: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Lowest number of speakers, if the number is not known."""
    max_speakers: Annotated[int, tyro.conf.arg(metavar="N")] = 15
    """Highest number of speakers, if the number is not known."""
    exclusive: Flag = False
    """Let only one speaker speak at a time, so that turns do not overlap."""
    fast: Flag = False
    """Leave out overlap detection, which takes less than half the time and makes more errors."""
    channel: ChannelOption = None
    store: Annotated[str | None, tyro.conf.arg(metavar="STORE", help_behavior_hint="")] = None
    """File of enrolled speakers. Speakers found in it get their names."""
    threshold: Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: the model's)")] = None
    """Lowest cosine at which a speaker counts as an enrolled one."""
    enroll: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPEAKER=NAME", help_behavior_hint="")] = ()
    """Enrol speakers of one recording in the store under these names, as in speaker_1=Ann."""
    plot: Annotated[str | None, tyro.conf.arg(metavar="PNG", help_behavior_hint="")] = None
    """Draw the turns of one recording into this file."""
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Writes or prints the turns."""
        from ecapa_jax.cli.progress import stop_signals
        from ecapa_jax.errors import AudioError, DiarizationError, Stopped

        recordings = self._recordings()
        waiting = [name for name in recordings if self.force or self.out is None or not self._done(name)]
        if len(waiting) < len(recordings):
            self.output.note(f"{len(recordings) - len(waiting)} of {len(recordings)} recordings have results already")
        encoder = self.model.load(quiet=self.output.quiet) if waiting else None
        failed: list[str] = []
        results: list[dict[str, Any]] = []
        begun = time.monotonic()
        note = "ecapa-jax: stopping after this recording; a second signal stops at once\n"
        # With one recording left, a signal acts as usual: there is nothing to finish for the next run.
        deferred = stop_signals("" if self.output.quiet else note) if len(waiting) > 1 else contextlib.nullcontext()
        with deferred as stop:
            for index, name in enumerate(waiting):
                assert encoder is not None
                self._say(index, len(waiting), name, time.monotonic() - begun)
                try:
                    results.append(self._one(encoder, name))
                except AudioError as error:
                    if len(recordings) == 1:
                        raise
                    failed.append(name)
                    self.output.note(f"ecapa-jax: {' '.join(str(error).split())}")
                if stop is not None and stop.is_set() and index + 1 < len(waiting):
                    raise Stopped(
                        f"stopped on request; {index + 1} of {len(waiting)} recordings are done: run the same "
                        "command again to continue"
                    )
        if self.output.json:
            self.output.result({"recordings": results, "failed": failed, "model": self.model.name}, "")
        if failed:
            raise DiarizationError(f"{len(failed)} of {len(recordings)} recordings could not be read: {failed[0]}"
                                   + (", ..." if len(failed) > 1 else ""))  # fmt: skip

    def _recordings(self) -> list[str]:
        """Returns the recordings, after checking every option that can be checked without reading them."""
        from ecapa_jax.errors import DiarizationError

        if not self.files:
            raise DiarizationError("no recordings given: ecapa-jax diarize FILES...")
        found = [path for name in self.files for path in _list_recordings(name)]
        one = [option for option, given in (("--plot", self.plot), ("--enroll", self.enroll)) if given]
        if len(found) > 1 and one:
            raise DiarizationError(f"{one[0]} is for one recording, and {len(found)} are given")
        if self.enroll and self.store is None:
            raise DiarizationError("--enroll needs the store to add to: --store FILE")
        if any(not all(part.strip() for part in pair.partition("=")[::2]) for pair in self.enroll):
            raise DiarizationError("--enroll takes SPEAKER=NAME, as in speaker_1=Ann")
        parse_channel(self.channel)
        if self.out is None and len(self.format) > 1:
            raise DiarizationError("several formats need a folder: -o DIR")
        if self.out is not None:
            self._prepare(Path(self.out), found)
        return found

    def _prepare(self, folder: Path, recordings: list[str]) -> None:
        from ecapa_jax.errors import DiarizationError

        stems: dict[str, str] = {}
        for name in recordings:
            other = stems.setdefault(_stem(name), name)
            if other != name:
                raise DiarizationError(
                    f"{other} and {name} would both be written to {_stem(name)}: give them in separate runs"
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiarizationError(f"{folder} can't be made: {error.strerror}") from error

    def _paths(self, name: str) -> dict[Kind, Path]:
        from ecapa_jax.diarization.formats import SUFFIXES

        return {kind: Path(self.out or "") / f"{_stem(name)}{SUFFIXES[kind]}" for kind in self.format}

    def _done(self, name: str) -> bool:
        return all(path.is_file() for path in self._paths(name).values())

    def _say(self, index: int, total: int, name: str, elapsed: float) -> None:
        from ecapa_jax.cli.progress import clock

        if total > 1:
            left = f", {clock(elapsed / index * (total - index))} left" if index else ""
            self.output.note(f"{index + 1} of {total}: {name}{left}")

    def _one(self, encoder: SpeakerEncoder, name: str) -> dict[str, Any]:
        from ecapa_jax.diarization.diarize import diarize
        from ecapa_jax.diarization.formats import as_dict, as_text
        from ecapa_jax.diarization.plot import plot_turns

        with _Progress(quiet=self.output.quiet) as progress:
            result = diarize(
                encoder,
                name,
                self.speakers,
                min_speakers=self.min_speakers,
                max_speakers=self.max_speakers,
                overlap=not self.fast,
                channel=parse_channel(self.channel),
                progress=progress,
            )
        result = self._name_speakers(encoder, result, name)
        stem = _stem(name)
        if not result.turns:
            self.output.note(f"{name}: no speech was found")
        for kind, path in self._paths(name).items() if self.out else ():
            text = as_text(result, stem, kind, exclusive=self.exclusive)
            write_whole(path, functools.partial(Path.write_text, data=text, encoding="utf-8"))
        if self.plot is not None:
            write_whole(Path(self.plot), lambda to: plot_turns(to, result, stem, exclusive=self.exclusive))
        if self.out is None and not self.output.json:
            print(as_text(result, stem, self.format[0], exclusive=self.exclusive), end="")
        return as_dict(result, name, exclusive=self.exclusive)

    def _name_speakers(self, encoder: SpeakerEncoder, result: Diarization, name: str) -> Diarization:
        from ecapa_jax.diarization.names import enroll_speakers, link_speakers
        from ecapa_jax.identify.store import SpeakerStore
        from ecapa_jax.scoring.scorer import check_threshold

        if self.store is None:
            return result
        threshold = None if self.threshold is None else check_threshold(self.threshold)
        with SpeakerStore.open(self.store, encoder, create=bool(self.enroll)) as store:
            if not self.enroll:
                return link_speakers(result, store, threshold)
            names = {speaker.strip(): person.strip() for speaker, _, person in (p.partition("=") for p in self.enroll)}
            added = enroll_speakers(result, store, names, name)
            self.output.note(f"{self.store}: {added} enrolled")
            return result.rename(names)


class _Progress:
    """Shows on a terminal which step of a recording is running."""

    def __init__(self, *, quiet: bool):
        from ecapa_jax.cli.progress import EvaluationProgress

        self._bar = EvaluationProgress(quiet=quiet)

    def __call__(self, what: str, done: int, total: int) -> None:
        self._bar(what, done, total or 1)

    def __enter__(self) -> _Progress:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)


def _list_recordings(name: str) -> list[str]:
    from ecapa_jax.errors import DiarizationError

    if not os.path.isdir(name):
        return [name]
    found = sorted(str(path) for path in Path(name).rglob("*") if path.suffix.lower() in _AUDIO and path.is_file())
    if not found:
        raise DiarizationError(f"{name}: no recordings in this folder ({', '.join(sorted(_AUDIO)[:4])}, ...)")
    return found


def _stem(name: str) -> str:
    """Returns the name of a recording in results: the name of the file without folder and suffix."""
    return Path(name.partition("?")[0]).stem or "recording"
