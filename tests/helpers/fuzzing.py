"""Reads files in a separate process with a memory limit, and reports the outcome of each."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ALLOWED = 64 << 20
"""Bytes that a reader may use in addition to twice the size of the tensors that the file declares."""

WORKER = """
import base64, gc, json, os, sys, tempfile, time, warnings
import encodings.cp437, encodings.raw_unicode_escape, encodings.unicode_escape, encodings.utf_8_sig  # else on demand
warnings.simplefilter("error")
from ecapa_jax.convert.readers import arrays, checkpoint
from ecapa_jax.errors import EcapaError
import numpy as np

declared = 0
original = arrays.TreeBuilder._build_array
def counting(self, view):
    global declared
    count = view.storage.dtype.itemsize
    for dim in view.shape:
        count *= dim
    declared += min(count, self._max_bytes)
    return original(self, view)
arrays.TreeBuilder._build_array = counting

def audit(event, args):
    if armed and event in EVENTS:
        os.write(2, f"forbidden: {event} {args}".encode())
        os._exit(70)
EVENTS = ("os.system", "subprocess.Popen", "os.exec", "os.fork", "os.remove", "os.mkdir", "os.rename", "os.symlink",
          "exec", "compile", "socket.connect", "shutil.rmtree", "os.chmod", "ctypes.dlopen", "pickle.find_class")
armed = False
sys.addaudithook(audit)

def size(node, seen):
    if id(node) in seen:
        return 0
    seen.add(id(node))
    if isinstance(node, np.ndarray):
        return node.nbytes
    if isinstance(node, dict):
        return sum(size(value, seen) for value in node.values())
    if isinstance(node, (list, tuple)):
        return sum(size(value, seen) for value in node)
    return 0

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

folder = tempfile.mkdtemp()
path = os.path.join(folder, "file")
for line in sys.stdin:
    with open(path, "wb") as file:
        file.write(base64.b64decode(line))
    declared, held, outcome = 0, 0, "read"
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts anew
    before = memory("VmRSS")
    start = time.perf_counter()
    armed = True
    try:
        held = size(checkpoint.read_checkpoint(path).content, set())
    except EcapaError as error:
        outcome = "refused" if "\\n" not in str(error) and len(str(error)) < 600 else f"a message: {str(error)[:300]!r}"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    armed = False
    peak = max(memory("VmHWM") - before, 0)
    if os.listdir(folder) != ["file"]:
        outcome = f"wrote {os.listdir(folder)}"
    print(json.dumps([outcome, max(declared, held), peak, time.perf_counter() - start]), flush=True)
"""


class Reader:
    """A process that reads one file after another. If it dies or does not answer, the current file has failed."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._process: subprocess.Popen | None = None
        self.examples = 0
        self.outcomes: dict[str, int] = {}
        self.worst_ratio = 0.0
        self.worst_bytes = 0
        self.slowest = 0.0

    def read(self, data: bytes) -> str:
        """Reads a file and returns `read` or `refused`.

        Raises:
          AssertionError: if the process raises another exception, crashes, runs code, writes a file, or uses too much
            memory.
        """
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-c", WORKER]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=self._cwd)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(base64.b64encode(data).decode() + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process died: {self._process.communicate(timeout=10)[1]}"
        return self._judge(*json.loads(answer))

    def _judge(self, outcome: str, declared: int, peak: int, seconds: float) -> str:
        self.examples += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        limit = 2 * declared + ALLOWED
        self.worst_ratio = max(self.worst_ratio, peak / limit)
        self.worst_bytes = max(self.worst_bytes, peak)
        self.slowest = max(self.slowest, seconds)
        assert outcome in ("read", "refused"), outcome
        assert peak <= limit, f"{peak} bytes for tensors of {declared}"
        return outcome

    def summary(self) -> dict[str, Any]:
        """Returns the number of examples by outcome, and the worst memory and time."""
        return {
            "examples": self.examples,
            **self.outcomes,
            "worst memory / (2 x declared + 64 MB)": round(self.worst_ratio, 3),
            "worst memory, MB": round(self.worst_bytes / 1e6, 1),
            "slowest, s": round(self.slowest, 2),
        }

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate(timeout=60)
