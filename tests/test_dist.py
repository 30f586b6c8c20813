"""Tests of `make dist`: it builds a source archive, and from that a wheel that works without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from helpers.environments import make_environment

ROOT = Path(__file__).parents[1]
RECORDINGS = [ROOT / "examples" / "audio" / name for name in ("rms_1.flac", "rms_2.flac")]
CONSTRAINTS = "constraints-py311.txt" if sys.version_info < (3, 12) else "constraints-latest.txt"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder that `make dist` filled, or builds both archives from a copy of the tracked files."""
    if folder := os.environ.get("DIST_FOLDER"):
        return Path(folder)
    # `make lint` leaves a folder named build, which Python can import too, but it has no such module.
    pytest.importorskip("build.env", reason="archives are made with build (make dist installs it)")
    if not (ROOT / ".git").exists():
        pytest.skip("git says which files belong to the source: run it in a clone")
    out = tmp_path_factory.mktemp("dist")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    archive = subprocess.run(
        ["tar", "c", "--null", "-T", "-"], cwd=ROOT, input=names.encode(), capture_output=True, check=True
    ).stdout
    (out / "source").mkdir()
    subprocess.run(["tar", "x"], cwd=out / "source", input=archive, check=True)
    # `build` without --wheel builds the wheel from the source archive.
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(out / "source")]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_source_archive_contains_every_tracked_file(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        inside = b"".join(archive.extractfile(member).read() for member in archive if member.isfile())
    for needed in ("Makefile", "tests/helpers/pages.py", "docs/images/ecapa.svg", "mkdocs.yml", "convert/golden.npz"):
        assert needed in names
    assert {"tests/conftest.py", "train/configs/smoke.toml", "examples/audio/rms_1.flac", ".ci/run"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert str(ROOT.parent).encode() + b"/" not in inside


def test_wheel_verifies_outside_the_repository(dist: Path, tmp_path: Path) -> None:
    """Installs the wheel in a new environment that sees the installed dependencies but not this repository."""
    python = make_environment(tmp_path, lend=True)
    _pip(python, "--no-deps", str(_wheel(dist)))
    assert _installed(python, tmp_path).is_relative_to(tmp_path / "env")
    _verify(python, tmp_path)


@pytest.mark.slow
def test_wheel_installs_its_dependencies(dist: Path, tmp_path: Path) -> None:
    """Installs the wheel as a user does: pip fetches the dependencies from a package index."""
    python = make_environment(tmp_path, lend=False)
    _pip(python, "-c", str(ROOT / CONSTRAINTS), str(_wheel(dist)))
    _verify(python, tmp_path)


def _wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path.resolve()


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def _installed(python: Path, folder: Path) -> Path:
    command = [str(python), "-c", "import ecapa_jax.convert, ecapa_jax.train; print(ecapa_jax.__file__)"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return Path(done.stdout.strip())


def _verify(python: Path, folder: Path) -> None:
    command = [str(python.with_name("ecapa-jax")), "verify", *map(str, RECORDINGS)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "same speaker  yes" in done.stdout
