"""Formats that libsndfile does not read: MP4 and M4A (as VoxCeleb2 has), WebM, WMA, AAC, AMR; by PyAV, or by ffmpeg."""

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

# What a decoder is asked to decode: offset and bytes that tell the format, and FFmpeg's name for it. Nothing else,
# because FFmpeg takes some text files for playlists and opens what is written in them.
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
"""Bytes that tell."""


def kind_of(content: bytes) -> str | None:
    """The format of a file's bytes, if it is one of those.

    A WAV is one of those where its coding is none that libsndfile knows.
    """
    if content.startswith(b"RIFF") and content[8:16] == b"WAVEfmt ":
        return "WAV" if int.from_bytes(content[20:22], "little") not in _CODINGS_OF_LIBSNDFILE else None
    return next((kind for kind, (at, magic, _) in _KINDS.items() if content.startswith(magic, at)), None)


def decode(
    file: io.BufferedIOBase, name: str, kind: str, max_seconds: float
) -> Iterator[tuple[int, Float32[np.ndarray, "samples channels"]]]:
    """Rate and samples of a file, in blocks; what comes after `max_seconds` is left out.

    PyAV gives one block a packet; librosa, which asks ffmpeg, the whole recording.

    Args:
      file: at its beginning; can be sought.
      name: of the file, for messages.
      kind: what `kind_of` says.
      max_seconds: most that is decoded.

    Raises:
      AudioError: it is damaged, or neither PyAV nor ffmpeg is installed.
    """
    with_av = importlib.util.find_spec("av") is not None
    try:
        yield from _by_av(file, kind, max_seconds) if with_av else _by_librosa(file, max_seconds)
    except Exception as error:  # decoders raise whatever they like, at import too
        missing = "" if with_av else ", or its decoder is missing: pip install 'ecapa-jax[av]'"
        reason = f"{type(error).__name__}: it is damaged{missing}"
        raise AudioError(f"{name}: this {kind} can't be decoded here ({reason}); convert it to WAV") from error


def _by_av(
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


def _by_librosa(
    file: io.BufferedIOBase, max_seconds: float
) -> Iterator[tuple[int, Float32[np.ndarray, "samples channels"]]]:
    import librosa

    with tempfile.NamedTemporaryFile(suffix=".audio") as copy, warnings.catch_warnings():
        shutil.copyfileobj(file, copy)
        copy.flush()
        warnings.simplefilter("ignore")  # it warns whenever it takes this way
        samples, rate = librosa.load(copy.name, sr=None, mono=False, duration=max_seconds)
    yield int(rate), np.ascontiguousarray(np.atleast_2d(samples).T.astype(np.float32, copy=False))
