"""Opens ordinary files, pipes and standard input, but no devices, which may never end."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import time

from ecapa_jax.errors import AudioError

STANDARD_INPUT = "-"
MAX_STREAM_BYTES = 1 << 30  # limit for streams; six hours of 16-bit samples at 16 kHz are 0.7 GB
_WAIT_SECONDS = 5.0  # time in which a program must write into a named pipe


def open_binary(path: str | os.PathLike[str], name: str) -> io.BufferedReader:
    """Opens the file at a path, or standard input for `-`.

    Raises:
      AudioError: the path names a device or a socket, or a named pipe into which nobody writes.
      OSError: as for `open`.
    """
    if os.fspath(path) == STANDARD_INPUT and not os.path.exists(path):
        return _open_standard_input(name)
    mode = os.stat(path).st_mode
    _refuse_devices(mode, name)
    if not stat.S_ISFIFO(mode) or not _is_named(path):
        return open(path, "rb")
    # An ordinary `open` of a named pipe waits until somebody writes into it, perhaps for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    return os.fdopen(descriptor, "rb")


def read_stream(file: io.IOBase, name: str) -> bytes:
    """Reads a pipe to its end.

    Raises:
      AudioError: the pipe holds more than `MAX_STREAM_BYTES`, or nobody writes into a named pipe for some seconds.
    """
    content = bytearray()
    descriptor, waits = file.fileno(), not os.get_blocking(file.fileno())
    while len(content) <= MAX_STREAM_BYTES:
        if waits:
            _wait(descriptor, name)
        block = os.read(descriptor, 1 << 20)
        if not block:
            return bytes(content)
        content += block
    raise AudioError(f"{name}: gives more than {MAX_STREAM_BYTES / 2**30:g} GiB and has no end; give a file")


def _wait(descriptor: int, name: str) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + _WAIT_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if poll.poll(1000 * left):
            return
    raise AudioError(f"{name}: is a named pipe into which nobody writes; write it to a file first")


def _is_named(path: str | os.PathLike[str]) -> bool:
    """Whether a pipe is in a folder, not among the open files of a process."""
    return not os.path.realpath(path).startswith(("/proc/", "/dev/fd/"))


def _refuse_devices(mode: int, name: str) -> None:
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise AudioError(f"{name}: is a device, not a recording; give an audio file")
    if stat.S_ISSOCK(mode):
        raise AudioError(f"{name}: is a socket, not a recording; give an audio file")


def _open_standard_input(name: str) -> io.BufferedReader:
    if sys.stdin is None or sys.stdin.closed:
        raise AudioError(f"{name}: standard input is closed; pipe a recording into it")
    mode = os.fstat(descriptor := sys.stdin.fileno()).st_mode
    if stat.S_ISCHR(mode):
        raise AudioError(f"{name}: standard input is a terminal or a device; pipe a recording into it")
    return os.fdopen(os.dup(descriptor), "rb")
