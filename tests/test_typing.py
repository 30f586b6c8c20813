"""What mypy and pyright say of a user's program, in an environment of its own: from a checkout, and from a wheel."""

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


def test_the_program_uses_every_public_name() -> None:
    assert set(re.findall(r"ecapa_jax\.(\w+)", PROGRAM.read_text())) - {"convert", "train"} == set(ecapa_jax.__all__)


@pytest.fixture(scope="module", params=["editable", "wheel"])
def user(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's program and an environment `env`, to which only the dependencies are lent."""
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


def run(user: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A tool of this environment that looks at the user's."""
    command = [sys.executable, "-m", *arguments, "program.py"]
    return subprocess.run(command, cwd=user, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_mypy_finds_no_fault(user: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy (make lint installs it)")
    done = run(user, "mypy", "--strict", "--python-executable", str(user / "env" / "bin" / "python"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_pyright_knows_every_type(user: Path) -> None:
    """Its strict mode, which the program asks for, refuses what is partially unknown."""
    pytest.importorskip("pyright", reason="needs pyright (make lint installs it)")
    version = subprocess.run(
        [sys.executable, "-m", "pyright", "--version"], capture_output=True, text=True, check=False
    )
    if version.returncode:
        pytest.skip(f"pyright does not run, it needs node: {version.stderr.strip().splitlines()[-1:]}")
    done = run(user, "pyright", "--pythonpath", str(user / "env" / "bin" / "python"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "0 errors, 0 warnings" in done.stdout


@pytest.mark.slow
def test_a_mistake_is_found(user: Path) -> None:
    """The tools do look into the package: an argument that `score_matrix` does not have is refused."""
    pytest.importorskip("mypy", reason="needs mypy (make lint installs it)")
    (user / "program.py").write_text("import ecapa_jax\n\necapa_jax.score_matrix('a', 'b', 'c')\n")
    done = run(user, "mypy", "--strict", "--python-executable", str(user / "env" / "bin" / "python"))
    shutil.copy(PROGRAM, user / "program.py")
    assert done.returncode == 1
    assert "score_matrix" in done.stdout
