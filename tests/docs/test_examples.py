"""Tests of the scripts in examples/ that documentation pages name but can't run completely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ecapa_jax.bundle.bundle import load_bundle
from helpers.pages import ROOT
from helpers.sandbox import fill_sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return fill_sandbox(tmp_path / "here")


def _run(script: str, sandbox: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    return subprocess.run(command, cwd=sandbox, env=settings, capture_output=True, text=True, timeout=300, check=False)


def test_finetune_trains_from_a_bundle_and_resumes(sandbox: Path) -> None:
    for module in ("grain", "pyarrow"):
        pytest.importorskip(module, reason="training needs pip install ecapa-jax[train]")
    arguments = ("wav", "-o", "tuned", "--model", "BUNDLE", "--steps", "2", "--crop-seconds", "0.5")
    done = _run("finetune.py", sandbox, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "24 utterances of 6 speakers" in done.stdout
    assert "weights of BUNDLE" in done.stdout
    before, after = load_bundle(sandbox / "BUNDLE"), load_bundle(sandbox / "tuned" / "run" / "bundle")
    assert after.config == before.config
    kernels = [bundle.variables["params"]["projection"]["kernel"] for bundle in (before, after)]
    assert 0 < abs(kernels[1] - kernels[0]).max() < 0.01
    lines = (sandbox / "tuned" / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2


def test_own_jit_prints_the_scores_of_the_encoder(sandbox: Path) -> None:
    done = _run("own_jit.py", sandbox, "a.wav", "b.wav", "who.wav", "--model", "BUNDLE")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[float(value) for value in line.strip(" []\n").split()] for line in done.stdout.splitlines()]
    assert [len(row) for row in rows] == [3, 3, 3]
    assert [rows[index][index] for index in range(3)] == [1.0, 1.0, 1.0]


def test_diarize_finds_two_speakers(sandbox: Path) -> None:
    done = _run("diarize.py", sandbox)
    assert done.returncode == 0, done.stderr[-3000:]
    turns = [line.split() for line in done.stdout.splitlines() if line.startswith("SPEAKER conversation 1 ")]
    assert len({fields[7] for fields in turns}) == 2
    assert turns[0][7] == turns[2][7] != turns[1][7] == turns[3][7]
