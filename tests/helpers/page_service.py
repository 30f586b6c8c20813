"""The service that a documentation page starts, and to which the page's requests go."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from types import TracebackType

ADDRESS = "http://127.0.0.1:8000"
"""The address in the pages; the service of a test uses a free port instead."""

FOUND = re.compile(r"http://127\.0\.0\.1:\d+")
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAXTYPING_DISABLE": "1"}


class PageService:
    """At most one running `ecapa-jax serve`, which is stopped at the end of the page.

    Attributes:
      address: the address of the running service, or None before a service is started.
    """

    def __init__(self) -> None:
        self.address: str | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> PageService:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def addressed(self, text: str) -> str:
        """Replaces the address in a block's text by that of the running service."""
        return text.replace(ADDRESS, self.address) if self.address else text

    def start(self, arguments: list[str]) -> None:
        """Stops the previous service, starts `ecapa-jax serve`, and returns when it accepts requests."""
        self.stop()
        command = [sys.executable, "-m", "ecapa_jax.cli.main", *arguments, "--port", "0"]
        self._process = subprocess.Popen(command, env={**os.environ, **QUICK}, stderr=subprocess.PIPE, text=True)
        said = []
        for line in self._process.stderr:
            said.append(line)
            if found := FOUND.search(line):
                self.address = found[0]
                with urllib.request.urlopen(f"{self.address}/healthz", timeout=60):  # waits for the first response
                    return
        self._process = None
        raise AssertionError(f"the service ended before it listened: {''.join(said)[-2000:]}")

    def stop(self) -> None:
        """Stops the service as a user does, and checks that it exits without an error."""
        if self._process is None:
            return
        process, self._process, self.address = self._process, None, None
        process.terminate()
        try:
            _, rest = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert process.returncode == 0, f"ended with {process.returncode}: {rest[-2000:]}"
