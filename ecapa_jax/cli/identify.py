"""`ecapa-jax enroll`, `identify`, `list`, `remove`: speakers in a store."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import tyro

from ecapa_jax.cli.common import (
    AnySound,
    ChannelOption,
    Model,
    ModelOptions,
    Output,
    OutputOptions,
    ShortOption,
    count_of,
    parse_channel,
)

Store = Annotated[str, tyro.conf.arg(metavar="STORE", help="File that holds the enrolled speakers.")]
Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME", help="The speaker's name.")]


@dataclasses.dataclass(frozen=True)
class Enroll:
    """Add recordings of a new or known speaker to a store. If one can't be used, none is added."""

    name: Name
    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILES...")]
    """Recordings: files or http(s) URLs."""
    store: Store
    short: ShortOption = "error"
    any_sound: AnySound = False
    channel: ChannelOption = None
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints how many recordings were added."""
        from ecapa_jax.identify.database import check_name
        from ecapa_jax.identify.store import Enrolment, SpeakerStore, embed_utterances

        name = check_name(self.name)
        encoder = self.model.load()
        encoder.channel = parse_channel(self.channel)
        # The store is opened last, so that a bad recording does not leave an empty one behind.
        utterances = embed_utterances(encoder, self.files, short=self.short, any_sound=self.any_sound)
        with SpeakerStore.open(self.store, encoder) as store:
            added = store.database.enroll(name, utterances)
        done = Enrolment(name, added, len(utterances) - added)
        text = f"{done.name}: {count_of(done.added, 'recording')} added"
        text += f", {done.known} enrolled before" if done.known else ""
        self.output.result({**dataclasses.asdict(done), "store": self.store, "model": self.model.name}, text)


@dataclasses.dataclass(frozen=True)
class Identify:
    """Say which enrolled speaker made a recording, or that none did."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """A recording: a file or an http(s) URL."""
    store: Store
    top: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """Number of candidates to print."""
    threshold: Annotated[float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: the model's)")] = None
    """Lowest score at which a candidate counts as the speaker; a cosine, from -1 to 1."""
    short: ShortOption = "error"
    any_sound: AnySound = False
    channel: ChannelOption = None
    model: ModelOptions = Model()
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints the decision and the candidates."""
        from ecapa_jax.identify.database import Database, format_name
        from ecapa_jax.identify.store import SpeakerStore
        from ecapa_jax.scoring.scorer import check_threshold

        threshold = None if self.threshold is None else check_threshold(self.threshold)
        channel = parse_channel(self.channel)
        with Database.open(self.store) as database:
            store = SpeakerStore(database, self.model.load())
            store.encoder.channel = channel
            answer = store.identify(
                self.file, top=self.top, threshold=threshold, short=self.short, any_sound=self.any_sound
            )
        lines = [f"{candidate.score:7.4f}  {format_name(candidate.name)}" for candidate in answer.candidates]
        if not lines:
            self.output.note("nobody is enrolled in this store")
        if answer.threshold is None:
            self.output.note("this model has no threshold: pass --threshold to get a decision")
        else:
            lines.insert(0, f"{format_name(answer.speaker or 'unknown')}   (threshold {answer.threshold:.4f})")
        self.output.result(
            {"file": self.file, **dataclasses.asdict(answer), "model": self.model.name}, "\n".join(lines)
        )


@dataclasses.dataclass(frozen=True)
class List:
    """List the speakers that are enrolled in a store."""

    store: Store
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints names and numbers of utterances."""
        from ecapa_jax.identify.database import Database, format_name

        with Database.open(self.store) as database:
            speakers = database.speakers()
        lines = [f"{speaker.utterances:6d}  {format_name(speaker.name)}" for speaker in speakers]
        value = {"store": self.store, "speakers": [dataclasses.asdict(speaker) for speaker in speakers]}
        self.output.result(value, "\n".join(lines) or "nobody is enrolled")


@dataclasses.dataclass(frozen=True)
class Remove:
    """Remove a speaker from a store."""

    name: Name
    store: Store
    output: OutputOptions = Output()

    def run(self) -> None:
        """Prints what was removed."""
        from ecapa_jax.identify.database import Database

        with Database.open(self.store) as database:
            count = database.remove(self.name)
        self.output.result(
            {"name": self.name, "utterances": count, "store": self.store},
            f"{self.name}: removed, {count_of(count, 'recording')}",
        )
