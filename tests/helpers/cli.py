"""Helpers that run the command line in this process, and the path of the installed program."""

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
    """The exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Parses the only line on stdout as JSON."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Runs one command. The SystemExit of a usage error becomes the exit code."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return Result(code, *capsys.readouterr())


def run_refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """Runs a command that must refuse its input and write nothing to `folder`; returns its line on stderr."""
    before = contents(folder)
    result = run(capsys, *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("ecapa-jax: ")
    assert result.err.count("\n") == 1
    assert len(result.err) < 800
    assert contents(folder) == before
    return result.err


def write_wav(path: Path, samples: np.ndarray | None = None, **options: Any) -> Path:
    """Writes a file of 0.9 s, so that a codec's padding does not move it to the next length bucket."""
    path.write_bytes(encode(sound(0.9) if samples is None else samples, **options))
    return path
