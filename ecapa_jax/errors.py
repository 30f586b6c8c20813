"""The exceptions a caller may want to catch.

Every message says what is wrong, where, and what to do; the command line prints it as one line and exits with 2.
"""

import os
import sys
from types import FrameType

_PACKAGE = os.path.dirname(__file__) + os.sep


class EcapaError(Exception):
    """Base of every error that the user's input or environment can cause."""


class ConfigError(EcapaError, ValueError):
    """A configuration value is out of range, unknown, or asks for something that is not built."""


class AudioError(EcapaError, ValueError):
    """A recording can't be read, or can't be embedded (too short, not finite, not audio)."""


class TooLongError(AudioError):
    """A recording is longer than allowed."""


class ConversionError(EcapaError, ValueError):
    """A foreign checkpoint can't be converted without a guess or a loss."""


class BundleError(EcapaError, ValueError):
    """A bundle directory is incomplete, damaged, or from another schema."""


class DownloadError(EcapaError, OSError):
    """An address can't be downloaded: refused, unreachable, missing, too large or cut short."""


class ScoringError(EcapaError, ValueError):
    """Scores and labels from which no error rate can be computed."""


class CorpusError(EcapaError, ValueError):
    """A manifest or an output directory of a corpus can't be used: damaged, changed, or in use."""


class StoreError(EcapaError, ValueError):
    """A speaker store can't be used: damaged, of another model, or busy; or a name in it is wrong."""


class UnknownSpeakerError(StoreError):
    """Nobody of this name is enrolled."""


class Stopped(EcapaError):
    """Work ended early because it was asked to, with its state saved; the command line exits with 75."""


class TrialError(EcapaError, ValueError):
    """A trial list, speaker map, enrolment or scores file can't be used: malformed, contradictory, or incomplete."""


class TrainingError(EcapaError):
    """A run can't begin or go on: other data, another configuration, a loss that is not finite."""


class DiarizationError(EcapaError, ValueError):
    """Turns, references or error rates of diarization can't be read, written or compared."""


def without_secrets(url: str) -> str:
    """The URL less its user, password, query and fragment, which may hold keys: fit for messages and logs."""
    scheme, _, rest = one_line(url).partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def one_line(error: object) -> str:
    """What an error says, without line breaks; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def levels_to_user() -> int:
    """The `stacklevel` at which a warning names the line that called this package.

    Decorators of other packages may stand between, which `skip_file_prefixes` of Python 3.12 would stop at.
    """
    files: list[str] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    ours = [index for index, file in enumerate(files) if file.startswith(_PACKAGE)]
    warner = next((index for index in ours if files[index] != __file__), 0)
    return ours[-1] + 2 - warner
