"""Decodes formats that libsndfile can't read by PyAV or ffmpeg: MP4 and M4A (as in VoxCeleb2), WebM, WMA, AAC, AMR."""

from __future__ import annotations

import importlib.util
import io
import itertools
import shutil
import tempfile
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from ecapa_jax.errors import AudioError

# The formats that are decoded: offset and bytes that identify each format, and its name in FFmpeg. Other files are not
# given to FFmpeg, because it takes some text files for playlists and opens the files that they name.
_KINDS: dict[str, tuple[int, bytes | tuple[bytes, ...], str]] = {
    "MP4/M4A": (4, b"ftyp", "mp4"),
    "WebM/Matroska": (0, b"\x1aE\xdf\xa3", "matroska"),
    "WMA": (0, b"0&\xb2u", "asf"),
    "AAC": (0, (b"\xff\xf1", b"\xff\xf9"), "aac"),
    "AMR": (0, b"#!AMR", "amr"),
    "WAV": (0, b"\0no magic of its own", "wav"),
}
# PCM, Microsoft and IMA ADPCM, float, A-law, mu-law, GSM 6.10, NMS ADPCM, G.721, G.723, Ogg and extensible.
_CODINGS_OF_LIBSNDFILE = {0x1, 0x2, 0x3, 0x6, 0x7, 0x11, 0x14, 0x31, 0x38, 0x40, 0x55, 0x674F, 0xFFFE}


HEAD = 22
"""Number of bytes that identify the format of a file."""


def kind_of(content: bytes) -> str | None:
    """Returns the format of a file that begins with these bytes; None if this module does not decode it.

    A WAV file is decoded here only if libsndfile does not know its coding.
    """
    if content.startswith(b"RIFF") and content[8:16] == b"WAVEfmt ":
        return "WAV" if int.from_bytes(content[20:22], "little") not in _CODINGS_OF_LIBSNDFILE else None
    return next((kind for kind, (at, magic, _) in _KINDS.items() if content.startswith(magic, at)), None)


def decode(
    file: io.BufferedIOBase, name: str, kind: str, max_seconds: float
) -> Iterator[tuple[int, Float32[np.ndarray, "samples channels"]]]:
    """Yields sample rate and samples of a file, in blocks, up to about `max_seconds`.

    PyAV yields one block for each packet; librosa, which calls ffmpeg, yields the whole recording.

    Args:
      file: a seekable file, at its beginning.
      name: name of the file, for messages.
      kind: format from `kind_of`.
      max_seconds: duration after which decoding stops.

    Raises:
      AudioError: the file is damaged, or neither PyAV nor ffmpeg is installed.
    """
    with_av = importlib.util.find_spec("av") is not None
    try:
        yield from _decode_by_av(file, kind, max_seconds) if with_av else _decode_by_librosa(file, max_seconds)
    except Exception as error:  # decoders raise errors of any type, even when they are imported
        missing = "" if with_av else ", or its decoder is missing: pip install 'ecapa-jax[av]'"
        reason = f"{type(error).__name__}: it is damaged{missing}"
        raise AudioError(f"{name}: this {kind} can't be decoded here ({reason}); convert it to WAV") from error


def _decode_by_av(
    file: io.BufferedIOBase, kind: str, max_seconds: float
) -> Iterator[tuple[int, Float32[np.ndarray, "samples channels"]]]:
    import av

    with av.open(file, "r", format=_KINDS[kind][2]) as container:
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        n_samples = 0
        for frame in itertools.chain(container.decode(stream), [None]):
            for block in to_float.resample(frame):
                yield stream.rate, np.ascontiguousarray(block.to_ndarray().T)
            n_samples += frame.samples if frame is not None else 0
            if n_samples > max_seconds * stream.rate:
                return


def _decode_by_librosa(
    file: io.BufferedIOBase, max_seconds: float
) -> Iterator[tuple[int, Float32[np.ndarray, "samples channels"]]]:
    import librosa

    with tempfile.NamedTemporaryFile(suffix=".audio") as copy, warnings.catch_warnings():
        shutil.copyfileobj(file, copy)
        copy.flush()
        warnings.simplefilter("ignore")  # librosa warns whenever it calls ffmpeg
        samples, rate = librosa.load(copy.name, sr=None, mono=False, duration=max_seconds)
    yield int(rate), np.ascontiguousarray(np.atleast_2d(samples).T.astype(np.float32, copy=False))
