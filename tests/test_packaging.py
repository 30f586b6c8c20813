"""Tests of the wheel (one top-level name, every module, the model) and of the lazy import."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ecapa_jax

ROOT = Path(__file__).parents[1]
HOMES = {"ecapa_jax": "ecapa_jax", "convert": "ecapa_jax.convert", "train": "ecapa_jax.train"}


def _modules() -> dict[str, Path]:
    """Returns every Python file of the source tree by its path in the wheel."""
    found = {}
    for folder, package in HOMES.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder)
            found[f"{package.replace('.', '/')}/{inside.as_posix()}"] = path
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # The test builds from a copy, because a stale build folder in the tree would hide missing files.
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    for folder in HOMES:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ecapa_jax"}


def test_wheel_contains_every_module_and_the_model(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert set(_modules()) <= names
    assert "ecapa_jax/py.typed" in names
    assert {"ecapa_jax/vad/silero_16k.safetensors", "ecapa_jax/vad/LICENSE.silero-vad"} <= names
    assert {
        "ecapa_jax/diarization/segmentation_3.0.safetensors",
        "ecapa_jax/diarization/LICENSE.pyannote",
    } <= names
    model = ROOT / "ecapa_jax" / "default_model"
    files = {f"ecapa_jax/default_model/{path.relative_to(model).as_posix()}" for path in model.rglob("*")}
    files = {name for name in files if (ROOT / name).is_file()}
    assert files
    assert files <= names
    assert sum(wheel.getinfo(name).file_size for name in files) < 13e6


def test_wheel_contains_no_local_paths(wheel: zipfile.ZipFile) -> None:
    home = str(ROOT.parent).encode()
    assert [name for name in wheel.namelist() if home in wheel.read(name)] == []


def test_public_names_can_be_imported() -> None:
    for name in ecapa_jax.__all__:
        assert getattr(ecapa_jax, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        ecapa_jax.nothing_here  # noqa: B018


def test_import_is_lazy_and_torch_free() -> None:
    code = (
        "import sys, ecapa_jax; assert not {'jax', 'flax', 'orbax', 'librosa'} & set(sys.modules), 'import ecapa_jax';"
        "import ecapa_jax.cli.main; assert 'jax' not in sys.modules, 'import ecapa_jax.cli.main';"
        "ecapa_jax.load; import ecapa_jax.convert.run;"
        "assert not {'torch', 'librosa', 'soundfile'} & set(sys.modules), 'load and convert'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_lazy_table_matches_the_names_for_type_checkers() -> None:
    """`__init__` lists each public object three times: for type checkers, in the lazy table, and in `__all__`."""
    source = (ROOT / "ecapa_jax" / "__init__.py").read_text()
    (typed,) = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names if alias.asname == alias.name}
    assert homes == ecapa_jax._MODULE_OF
    assert sorted(homes) == sorted(ecapa_jax.__all__)


def test_folders_at_the_top_are_packages_of_the_library() -> None:
    """Symbolic links make them packages, because every tool that reads a source tree follows links."""
    for name in ("convert", "train"):
        link = ROOT / "ecapa_jax" / name
        assert not link.is_symlink() or link.readlink() == Path(
            "..", name
        )  # a source archive contains copies instead of links
        assert (link / "__init__.py").read_text() == (ROOT / name / "__init__.py").read_text()
