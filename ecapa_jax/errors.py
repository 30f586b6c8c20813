"""The exceptions that a caller may want to catch.

Every message says what is wrong, where, and what to do; the command line prints it as one line and exits with 2.
"""

import os
import sys
from types import FrameType

_PACKAGE = os.path.dirname(__file__) + os.sep


class EcapaError(Exception):
    """Base of every error that the input or the environment of the user can cause."""


class ConfigError(EcapaError, ValueError):
    """A configuration value is out of range, unknown, or not supported."""


class AudioError(EcapaError, ValueError):
    """A recording can't be read, or can't be embedded (too short, not finite, not audio)."""


class TooLongError(AudioError):
    """A recording is longer than allowed."""


class ConversionError(EcapaError, ValueError):
    """A checkpoint of another library can't be converted without a guess or a loss."""


class BundleError(EcapaError, ValueError):
    """A bundle directory is incomplete, damaged, or from another schema."""


class DownloadError(EcapaError, OSError):
    """An address can't be downloaded: refused, unreachable, missing, too large or cut short."""


class ScoringError(EcapaError, ValueError):
    """No error rate can be computed from the given scores and labels."""


class CorpusError(EcapaError, ValueError):
    """A manifest or an output directory of a corpus can't be used: damaged, changed, or in use."""


class StoreError(EcapaError, ValueError):
    """A speaker store can't be used: it is damaged, busy, or belongs to another model; or a name in it is wrong."""


class UnknownSpeakerError(StoreError):
    """Nobody of this name is enrolled."""


class Stopped(EcapaError):
    """Work stopped early on request and saved its state; the command line exits with 75."""


class TrialError(EcapaError, ValueError):
    """A trial list, speaker map, enrolment or scores file can't be used: malformed, contradictory, or incomplete."""


class TrainingError(EcapaError):
    """A run can't begin or go on: data or configuration have changed, or a loss is not finite."""


class DiarizationError(EcapaError, ValueError):
    """Turns, references or error rates of diarization can't be read, written or compared."""


def without_secrets(url: str) -> str:
    """Removes user, password, query and fragment from a URL: they may hold keys, which don't belong in messages."""
    scheme, _, rest = one_line(url).partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def one_line(error: object) -> str:
    """Returns the message of an error without line breaks, or the name of its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def levels_to_user() -> int:
    """Returns the `stacklevel` at which a warning names the line that called this package.

    The `skip_file_prefixes` of Python 3.12 can't do this: it stops at decorators of other packages.
    """
    files: list[str] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    ours = [index for index, file in enumerate(files) if file.startswith(_PACKAGE)]
    warner = next((index for index in ours if files[index] != __file__), 0)
    return ours[-1] + 2 - warner
