"""The command line, in process and as a program."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecapa_jax.cli.main import main
from helpers.bundles import contents
from helpers.sounds import encode, sound

PROGRAM = Path(sys.executable).with_name("ecapa-jax")


@dataclasses.dataclass
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one line on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """One command; a usage error's SystemExit counts as its exit code."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return Result(code, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """A command that must fail as for a wrong input, without a trace in `folder`; returns its line on stderr."""
    before = contents(folder)
    result = run(capsys, *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("ecapa-jax: ")
    assert result.err.count("\n") == 1
    assert len(result.err) < 800
    assert contents(folder) == before
    return result.err


def write_wav(path: Path, samples: np.ndarray | None = None, **options: Any) -> Path:
    """0.9 s, so that a codec's padding does not take it to another bucket."""
    path.write_bytes(encode(sound(0.9) if samples is None else samples, **options))
    return path
