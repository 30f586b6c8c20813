"""The `ecapa-jax` command: parses, runs one verb, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 internal fault, 2 wrong input or usage, 75 stopped on request with the
state saved (run again to continue), 130 interrupted, 141 nobody reads the output any more. docs/questions.md has the
table for users.
"""

from __future__ import annotations

import difflib
import errno
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, get_args

import tyro

import ecapa_jax
from ecapa_jax.cli.calibrate import Calibrate
from ecapa_jax.cli.cohort import MakeCohort
from ecapa_jax.cli.convert import Convert
from ecapa_jax.cli.der import Der
from ecapa_jax.cli.diarize import Diarize
from ecapa_jax.cli.doctor import Doctor
from ecapa_jax.cli.embed import Embed
from ecapa_jax.cli.evaluate import Evaluate
from ecapa_jax.cli.export import Export
from ecapa_jax.cli.identify import Enroll, Identify, List, Remove
from ecapa_jax.cli.info import Info
from ecapa_jax.cli.plan import PlanStep
from ecapa_jax.cli.prepare import Prepare
from ecapa_jax.cli.serve import Serve
from ecapa_jax.cli.threshold import Threshold
from ecapa_jax.cli.train import Train
from ecapa_jax.cli.vad import DetectSpeech
from ecapa_jax.cli.verify import Verify
from ecapa_jax.cli.views import WriteViews
from ecapa_jax.cli.whiten import Whiten
from ecapa_jax.errors import EcapaError, Stopped
from ecapa_jax.runtime import compile_cache
from ecapa_jax.runtime.machine import explain_backend_failure

Verb = (
    Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Embed, tyro.conf.subcommand("embed")]
    | Annotated[DetectSpeech, tyro.conf.subcommand("vad")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Diarize, tyro.conf.subcommand("diarize")]
    | Annotated[Der, tyro.conf.subcommand("der")]
    | Annotated[Enroll, tyro.conf.subcommand("enroll")]
    | Annotated[Identify, tyro.conf.subcommand("identify")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Remove, tyro.conf.subcommand("remove")]
    | Annotated[Threshold, tyro.conf.subcommand("threshold")]
    | Annotated[MakeCohort, tyro.conf.subcommand("cohort")]
    | Annotated[Whiten, tyro.conf.subcommand("whiten")]
    | Annotated[Calibrate, tyro.conf.subcommand("calibrate")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[WriteViews, tyro.conf.subcommand("views")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[PlanStep, tyro.conf.subcommand("plan")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"ecapa-jax {ecapa_jax.__version__}")
        return 0
    if arguments and (refusal := _explain_unknown_verb(arguments[0])):
        print(f"ecapa-jax: {refusal}", file=sys.stderr)
        return 2
    verb = tyro.cli(
        Verb,
        prog="ecapa-jax",
        description="ECAPA-TDNN speaker verification in JAX.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _ignore if verb.output.quiet else _warn
        return _run(verb)


def _explain_unknown_verb(verb: str) -> str | None:
    """Suggests the verb that a mistyped one resembles; None for a known verb, an option or a word like no verb."""
    names = [get_args(choice)[1].name for choice in get_args(Verb)]
    if verb in names or not (close := difflib.get_close_matches(verb, names, n=1)):
        return None
    return f"there is no verb {verb!r}; did you mean {close[0]}?"


def _run(verb: Verb) -> int:
    try:
        verb.run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the result has gone, as in `| head`; Python would complain once more at its own end.
        _discard_output()
        return 141
    except Stopped as error:
        return _fail(error, str(error), 75, verb.output.debug)
    except EcapaError as error:
        return _fail(error, str(error), 2, verb.output.debug)
    except KeyboardInterrupt as error:
        return _fail(error, "interrupted", 130, verb.output.debug)
    except OSError as error:
        _discard_output()
        return _fail(error, explain_os_error(error), 2, verb.output.debug)
    except Exception as error:
        if reason := explain_backend_failure():
            return _fail(error, reason, 2, verb.output.debug)
        return _fail(error, f"internal fault, please report it: {error!r} (--debug shows where)", 1, verb.output.debug)
    return 0


def _discard_output() -> None:
    """Keeps Python from trying once more, at its end, to write what can't be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explain_os_error(error: OSError) -> str:
    """Says what the operating system refused, such as to write to standard output on a full disk."""
    where = "" if error.filename is None else f"{os.fspath(error.filename)}: "
    remedy = "; free some space, or write elsewhere" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{where}{error.strerror or error}{remedy}"


def _fail(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        raise error
    print(f"ecapa-jax: {' '.join(message.split())}", file=sys.stderr)
    return code


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    if not compile_cache.forget_unreadable(str(message)):
        print(f"ecapa-jax: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _ignore(message: Warning | str, *_: object, **__: object) -> None:
    """No warning with --quiet."""
    compile_cache.forget_unreadable(str(message))


def program() -> None:
    """The command line as a process of its own."""
    code = main()
    gc.freeze()  # at its end Python would look for garbage in all that was imported, which takes 0.2 s
    sys.exit(code)


if __name__ == "__main__":
    program()
