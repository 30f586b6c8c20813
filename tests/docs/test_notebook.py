"""Tests that examples/verify.ipynb runs in a new kernel and is committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook runs with nbclient (make docs installs it)")
nbclient = pytest.importorskip("nbclient", reason="the notebook runs with nbclient (make docs installs it)")
pytest.importorskip("ipykernel", reason="the notebook needs a kernel (make docs installs it)")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "verify.ipynb"


def test_committed_notebook_has_no_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for name, value in KERNEL.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    streams = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not streams, streams
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    if target := os.environ.get("KEEP_NOTEBOOK"):  # a folder in which to keep the executed notebook
        nbformat.write(notebook, target)


KERNEL = {
    "JUPYTER_PREFER_ENV_PATH": "1",
    "IPYTHONDIR": "{}/ipython",
    "JUPYTER_RUNTIME_DIR": "{}/runtime",
    "MPLCONFIGDIR": "{}/matplotlib",
    "TMPDIR": "{}",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": "{}/programs",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
"""Settings of the kernel.

The kernel writes only to the test's folder, does not optimize programs that run only a few times, and does not compile
the same program again for another encoder.
"""
