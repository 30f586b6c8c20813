"""What the verbs share: common options, and results on stdout."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ecapa_jax.config import ScoringName, Short

if TYPE_CHECKING:
    from ecapa_jax.audio.decoding import Channel
    from ecapa_jax.encoder import SpeakerEncoder


ShortOption = Annotated[
    Short,
    tyro.conf.arg(help="What to do with a recording that is too short for the model: report an error, or repeat it."),
]
AnySound = Annotated[
    bool,
    tyro.conf.arg(help="Also accept recordings in which no speech is detected.", help_behavior_hint=""),
]
Vad = Annotated[
    bool,
    tyro.conf.arg(help="Embed only the speech, without the silence between.", help_behavior_hint=""),
]
ChannelOption = Annotated[
    str | None,
    tyro.conf.arg(
        name="channel",
        metavar="C",
        help="Channel of recordings with several channels: left, right, mean, or a number from 1.",
        help_behavior_hint="(default: the one that the model takes)",
    ),
]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]


@dataclasses.dataclass(frozen=True)
class Output:
    """Options of every verb."""

    json: Flag = False
    """Print the result as one JSON object."""
    quiet: Flag = False
    """Print no warnings and notes on stderr, only errors."""
    debug: Flag = False
    """Show the traceback of an error."""

    def result(self, value: dict[str, Any], text: str) -> None:
        """Prints the result on stdout."""
        print(json.dumps(value) if self.json else text)

    def note(self, text: str) -> None:
        """Prints a remark on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Model:
    """Which model."""

    model: Annotated[
        str | None, tyro.conf.arg(metavar="BUNDLE", help_behavior_hint="(default: the packaged model)")
    ] = None
    """The model: a bundle directory written by `ecapa-jax convert`, a .onnx file written by `ecapa-jax export`, or an
    address such as hf:ORG/NAME, which is downloaded once. `default` is the packaged model."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Data type of the computation; auto selects bfloat16 if it is faster on this device, else float32."""

    def load(self, scoring: ScoringName = "publisher", *, quiet: bool = False) -> SpeakerEncoder:
        """Loads the encoder. Downloads a model that is not here yet, with a progress bar unless `quiet`."""
        from ecapa_jax import api
        from ecapa_jax.runtime import compile_cache

        compile_cache.use_compile_cache()
        return api.load(self.model, dtype=self.dtype, scoring=scoring, progress=not quiet)

    def fetch(self, *, quiet: bool) -> None:
        """Downloads the model, before other work begins: it may take minutes, and the user may interrupt it."""
        from ecapa_jax import api

        api.resolve(self.model, progress=not quiet)

    @property
    def name(self) -> str:
        """The model's name in results."""
        from ecapa_jax.hub.address import is_address, parse

        if self.model and is_address(self.model) and not os.path.exists(self.model):
            return str(parse(self.model))
        return Path(self.model).absolute().name if self.model else "default"


OutputOptions = Annotated[Output, tyro.conf.OmitArgPrefixes]
ModelOptions = Annotated[Model, tyro.conf.OmitArgPrefixes]


def check_standard_input(*names: str) -> None:
    """Refuses to read standard input, `-`, as more than one recording.

    Raises:
      EcapaError: it is named twice, or it is a terminal.
    """
    from ecapa_jax.errors import EcapaError

    if names.count("-") > 1:
        raise EcapaError("- is standard input, which holds one recording: name the other one as a file")
    if "-" in names and sys.stdin is not None and sys.stdin.isatty():
        raise EcapaError("- is standard input, and this is a terminal: pipe a recording into the command")


def parse_channel(text: str | None) -> Channel | None:
    """Converts the value of --channel, or of a manifest's column `channel`, for `load_audio`.

    Raises:
      EcapaError: the text names no channel.
    """
    from ecapa_jax.audio.decoding import channel_from_text
    from ecapa_jax.errors import EcapaError

    if text is None:
        return None
    channel = channel_from_text(text)
    if channel is None:
        raise EcapaError(f"--channel is {text!r}; it must be left, right, first, mean, or a number from 1")
    return channel


def count_of(number: int, noun: str) -> str:
    """Writes a number of things with their noun in singular or plural, as in "1 speaker", "1,200 speakers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def packaged_recipes() -> list[str]:
    """Returns the names of the packaged recipes, for help texts."""
    folder = resources.files("ecapa_jax.train") / "configs"
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def local_path(name: str) -> Path:
    """Returns an output path, after checking that it can be written.

    Raises:
      EcapaError: its folder does not exist or may not be written to.
    """
    from ecapa_jax.errors import EcapaError

    path = Path(name)
    folder = path.absolute().parent
    if not os.path.isdir(folder):  # not Path.is_dir, which raises where a folder above may not be entered
        raise EcapaError(f"{path} can't be written: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise EcapaError(f"{path} can't be written: Permission denied ({folder})")
    return path
