"""Test of examples/embed_ray.py on a local cluster with two workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ecapa_jax.encoder import SpeakerEncoder

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed_ray.py"


@pytest.mark.slow
def test_local_cluster_writes_every_row_once(
    tmp_path: Path, bundle: Path, encoder: SpeakerEncoder, folder: Path
) -> None:
    pytest.importorskip("ray", reason="needs ray[data]")
    names = [f"good_{index:02d}.wav" for index in range(24)] + ["gone.wav"]
    (tmp_path / "m.txt").write_text("\n".join(str(folder / name) for name in names))
    command = [
        sys.executable,
        EXAMPLE,
        tmp_path / "m.txt",
        "-o",
        tmp_path / "out",
        "--model",
        bundle,
        "--batch-size",
        "5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {Path(row["id"]).name: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert sorted(rows) == sorted(names)
    assert pq.read_table(tmp_path / "out").num_rows == len(names)
    assert "no such file" in rows["gone.wav"]["error"]
    assert (rows["gone.wav"]["embedding"], rows["gone.wav"]["seconds"]) == (None, None)
    expected = encoder.embed([folder / name for name in names[:24]])
    found = np.array([rows[name]["embedding"] for name in names[:24]], np.float32)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    print(f"largest error: {error:.1e} of the largest value")
    assert error < 1e-4
    assert [rows[name]["error"] for name in names[:24]] == [None] * 24
