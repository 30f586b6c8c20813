"""Tests of `machine.keep_memory` in separate processes, because its effect can't be undone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from ecapa_jax.runtime import machine
assert machine.keep_memory() is True
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sum(jnp.sort(jnp.outer(x, x), axis=0)))  # 64 MB and more of intermediate results
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(jnp.arange(4096.0)).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults)
assert max(faults[2:]) < 2000, faults
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs GNU's C library")
def test_kept_memory_is_reused() -> None:
    """Without `keep_memory`, each call has about 16 000 page faults for 64 MB."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-2000:]


def test_keep_memory_does_nothing_if_an_accelerator_may_exist() -> None:
    code = "import importlib.util as u; u.find_spec = lambda name: True; from ecapa_jax.runtime import machine; "
    command = [sys.executable, "-c", code + "print(machine.keep_memory())"]
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
