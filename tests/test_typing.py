"""Tests that mypy and pyright accept a user's program, in a new environment, from a checkout and from a wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ecapa_jax
from helpers.environments import make_environment

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "helpers" / "user_program.py"


def test_program_uses_every_public_name() -> None:
    assert set(re.findall(r"ecapa_jax\.(\w+)", PROGRAM.read_text())) - {"convert", "train"} == set(ecapa_jax.__all__)


@pytest.fixture(scope="module", params=["editable", "wheel"])
def user_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the user's program and an environment `env`, which sees only the dependencies."""
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    for name in ("ecapa_jax", "convert", "train"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    python = make_environment(folder, lend=True)
    options = ["-e", str(source)] if request.param == "editable" else [str(source)]
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", *options]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    if request.param == "wheel":
        shutil.rmtree(source)
    return Path(shutil.copy(PROGRAM, folder / "program.py")).parent


def run_tool(user_folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a tool of this environment on the user's environment."""
    command = [sys.executable, "-m", *arguments, "program.py"]
    return subprocess.run(command, cwd=user_folder, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_mypy_accepts_the_program(user_folder: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy (make lint installs it)")
    done = run_tool(user_folder, "mypy", "--strict", "--python-executable", str(user_folder / "env" / "bin" / "python"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_pyright_strict_accepts_the_program(user_folder: Path) -> None:
    """The program enables strict mode, which refuses types that are partially unknown."""
    pytest.importorskip("pyright", reason="needs pyright (make lint installs it)")
    version = subprocess.run(
        [sys.executable, "-m", "pyright", "--version"], capture_output=True, text=True, check=False
    )
    if version.returncode:
        pytest.skip(f"pyright does not run, it needs node: {version.stderr.strip().splitlines()[-1:]}")
    done = run_tool(user_folder, "pyright", "--pythonpath", str(user_folder / "env" / "bin" / "python"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "0 errors, 0 warnings" in done.stdout


@pytest.mark.slow
def test_tools_refuse_an_unknown_argument(user_folder: Path) -> None:
    """This shows that the tools read the package: they refuse an argument that `score_matrix` does not have."""
    pytest.importorskip("mypy", reason="needs mypy (make lint installs it)")
    (user_folder / "program.py").write_text("import ecapa_jax\n\necapa_jax.score_matrix('a', 'b', 'c')\n")
    done = run_tool(user_folder, "mypy", "--strict", "--python-executable", str(user_folder / "env" / "bin" / "python"))
    shutil.copy(PROGRAM, user_folder / "program.py")
    assert done.returncode == 1
    assert "score_matrix" in done.stdout
