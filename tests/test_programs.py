"""Tests of the compiled programs that are kept on disk for the next process.

A kept program is found again, is never mistaken for another one, and is compiled anew if its file is damaged.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import ecapa_jax
from ecapa_jax import functional
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import ConfigError
from ecapa_jax.runtime import compile_cache, programs
from ecapa_jax.runtime.programs import Programs, kept_shapes
from helpers.weights import random_tensors, shallow_config, variables_of

AUDIO = sorted((Path(__file__).parents[1] / "examples" / "audio").glob("*.flac"))
CONFIG = shallow_config()


def make_encoder(folder: Path | None, **changes: Any) -> SpeakerEncoder:
    return SpeakerEncoder(
        CONFIG, variables_of(CONFIG.ecapa, random_tensors(CONFIG.ecapa)), **{"programs": folder, **changes}
    )


def make_waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(samples).astype(np.float32) for samples in (16000, 30000)]


def square_programs(folder: Path) -> Programs:
    """Returns the programs of a small function, because keeping a program does not depend on what it computes."""
    return Programs(lambda x: (x @ x.T).sum(0), "squares", folder)


MATRIX = jax.numpy.arange(12.0).reshape(3, 4)
EXPECTED = (np.asarray(MATRIX) @ np.asarray(MATRIX).T).sum(0)


def list_programs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("shapes-"))


def test_second_encoder_uses_kept_programs(tmp_path: Path) -> None:
    """The embeddings are identical to those of the first encoder and of an encoder that keeps no programs.

    `fetch` reads the programs of both recordings of a trial at once.
    """
    first, second = make_encoder(tmp_path), make_encoder(tmp_path)
    made = first.embed(make_waveforms())
    assert (first.programs.compile_count, len(list_programs(tmp_path))) == (2, 2)
    second.programs.fetch(second._describe_arguments(batch) for batch in second.buckets.plan([16000, 30000]))
    assert len(second.programs._ready) == 2
    np.testing.assert_array_equal(second.embed(make_waveforms()), made)
    assert second.programs.compile_count == 0
    np.testing.assert_array_equal(make_encoder(None).embed(make_waveforms()), made)


def test_other_config_dtype_or_shape_compiles_another_program(tmp_path: Path) -> None:
    make_encoder(tmp_path).embed(make_waveforms()[0])
    other = dataclasses.replace(CONFIG, fbank=dataclasses.replace(CONFIG.fbank, window="hamming"))
    variables = variables_of(other.ecapa, random_tensors(other.ecapa))
    others = [
        SpeakerEncoder(other, variables, programs=tmp_path),
        make_encoder(tmp_path, dtype="bfloat16"),
        make_encoder(tmp_path),
    ]
    for number, each in enumerate(others[:2], 2):
        each.embed(make_waveforms()[0])
        assert (each.programs.compile_count, len(list_programs(tmp_path))) == (1, number)
    others[2].embed([make_waveforms()[0]] * 4)
    assert (others[2].programs.compile_count, len(list_programs(tmp_path))) == (1, 4)


def test_programs_do_not_contain_weights(tmp_path: Path) -> None:
    first = make_encoder(tmp_path)
    before = first.embed(make_waveforms()[0])
    first.variables = variables_of(CONFIG.ecapa, random_tensors(CONFIG.ecapa, seed=9))
    again = make_encoder(tmp_path)
    again.variables = first.variables
    after = again.embed(make_waveforms()[0])
    assert (first.programs.compile_count, again.programs.compile_count) == (1, 0)
    np.testing.assert_array_equal(first.embed(make_waveforms()[0]), after)
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another", "a folder"])
def test_damaged_program_is_compiled_again(tmp_path: Path, damage: str) -> None:
    square_programs(tmp_path)(MATRIX)
    (path,) = list_programs(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    else:
        whole = Path(path.parent, "x")
        programs._keep(whole, b"no program")
        kinds = {"cut": content[:1000], "flipped": content, "empty": b"", "another": whole.read_bytes()}
        whole.unlink()
        path.write_bytes(kinds[damage])
    again = square_programs(tmp_path)
    np.testing.assert_array_equal(again(MATRIX), EXPECTED)
    assert again.compile_count == 1
    assert not list(tmp_path.glob("*.partial-*"))


def test_folder_that_can_not_be_written_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        np.testing.assert_array_equal(square_programs(folder)(MATRIX), EXPECTED)


def test_other_code_or_settings_compile_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square_programs(tmp_path)(MATRIX)
    monkeypatch.setattr(programs, "_describe_compiler", lambda: "other")
    again = square_programs(tmp_path)
    again(MATRIX)
    assert again.compile_count == 1


def test_compiler_description_includes_versions_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = programs._describe_compiler()
    assert all(word in before for word in (jax.__version__, "jax_enable_x64"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert "--xla_cpu_enable_fast_math=false" in programs._describe_compiler()
    monkeypatch.undo()
    assert programs._describe_compiler() == before
    with jax.default_matmul_precision("highest"):
        assert programs._describe_compiler() != before
    with jax.numpy_rank_promotion("raise"), jax.enable_x64(True):  # programs compile under the library's own modes
        assert programs._describe_compiler() == before


def test_source_digest_depends_on_every_source_file(tmp_path: Path) -> None:
    """Editing, adding or renaming any file changes the digest.

    Conversion and training are excluded, because they do not compute embeddings.
    """
    package = Path(ecapa_jax.__file__).parent
    assert package == programs._PACKAGE
    copy = tmp_path / "ecapa_jax"
    ignored = shutil.ignore_patterns("__pycache__", "default_model", "static", "convert", "train")
    shutil.copytree(package, copy, ignore=ignored)
    digests = [programs._source_digest(copy)]
    assert digests[0] == programs._source_digest(package)
    for path in sorted(copy.rglob("*.py")):
        path.write_text(path.read_text() + "# edited\n")
        digests.append(programs._source_digest(copy))
    (copy / "nn" / "layers.py").rename(copy / "nn" / "others.py")
    digests.append(programs._source_digest(copy))
    assert len(set(digests)) == len(digests) > 100


def test_least_recently_used_programs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_KEPT_BYTES", 250)
    for name in "abcd":
        programs._keep(tmp_path / name, bytes(60))
    assert {path.name for path in tmp_path.iterdir()} <= {"b", "c", "d"}
    assert (tmp_path / "d").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 250


def test_shapes_of_variables_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = functional.abstract(CONFIG)
    assert kept_shapes(tmp_path, CONFIG) == expected
    monkeypatch.setattr(functional, "abstract", None)
    assert kept_shapes(tmp_path, CONFIG) == expected


def test_programs_of_any_function_are_kept(tmp_path: Path) -> None:
    for count in (1, 0):
        doubled = Programs(lambda tree: 2 * tree["a"], "double", tmp_path)
        np.testing.assert_array_equal(doubled({"a": jax.numpy.arange(3)}), [0, 2, 4])
        assert doubled.compile_count == count


SCRIPT = """
import json, sys
from ecapa_jax.cli.main import main
code = main(["verify", *sys.argv[1:], "--json"])
print(json.dumps({"code": code, "modules": [name for name in ("flax", "orbax", "jax") if name in sys.modules]}))
assert not [name for name in sys.modules if name.startswith(("ecapa_jax.convert", "ecapa_jax.train"))], "no part"
"""


def test_second_command_does_not_import_flax_or_orbax(tmp_path: Path) -> None:
    """Two separate processes give the same answer, and the second one imports neither flax nor orbax."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin", "HOME": str(tmp_path)}
    answers = []
    for _ in range(2):
        command = [sys.executable, "-c", SCRIPT, str(AUDIO[0]), str(AUDIO[-1])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        answers.append([json.loads(line) for line in done.stdout.splitlines()])
    assert answers[0][0] == answers[1][0]
    assert "flax" in answers[0][1]["modules"]
    assert answers[1][1] == {"code": 0, "modules": ["jax"]}


JITTED = """
import warnings, jax
from ecapa_jax.runtime import compile_cache
from ecapa_jax.cli import main
compile_cache.use_compile_cache()
warnings.simplefilter("always")
warnings.showwarning = main._warn
jax.jit(lambda x: 2 * x + 1)(1.0)
"""


def test_truncated_jax_cache_entry_is_compiled_again(tmp_path: Path) -> None:
    """Without this library, JAX would warn about the entry in every process and compile again each time."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin", "HOME": str(tmp_path)}
    sizes = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", JITTED], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        (kept,) = (tmp_path / "cache").glob("*lambda*-cache")
        sizes.append(kept.stat().st_size)
        kept.write_bytes(kept.read_bytes()[:50])
    assert sizes == [sizes[0]] * 3
    assert sizes[0] > 50


def test_disabled_jax_cache_keeps_no_programs(tmp_path: Path) -> None:
    settings = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = {**settings, "PATH": "/usr/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(AUDIO[0]), str(AUDIO[-1])]
    subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert not list(tmp_path.rglob("programs"))


def test_load_accepts_a_programs_folder(tmp_path: Path) -> None:
    expected = ecapa_jax.load(keep_programs=False).embed(AUDIO[:1])
    for count in (1, 0):
        loaded = ecapa_jax.load(programs_dir=str(tmp_path))
        np.testing.assert_array_equal(loaded.embed(AUDIO[:1]), expected)
        assert loaded.programs.compile_count == count


def test_load_keeps_programs_by_default() -> None:
    """The default folder is inside JAX's own cache folder, if that is set."""
    folder = ecapa_jax.load().programs.folder
    assert folder == Path(jax.config.jax_compilation_cache_dir) / "programs"
    assert ecapa_jax.load(keep_programs=False).programs.folder is None


@pytest.fixture
def no_jax_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Unsets JAX's cache folder, and returns the folder that the library then uses."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(compile_cache, "compile_cache_folder", lambda: tmp_path / "compiled")
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "compiled"
    jax.config.update("jax_compilation_cache_dir", before)


def test_default_folder_is_accessible_to_its_owner_only(no_jax_folder: Path) -> None:
    folder = compile_cache.programs_folder()
    assert folder == no_jax_folder / "programs"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (no_jax_folder, folder)] == [0o700, 0o700]
    assert compile_cache.programs_folder() == folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_folder_that_other_users_can_write_to_is_refused(no_jax_folder: Path, mode: int) -> None:
    """The default folder is skipped with a warning. A folder that the caller names raises an error."""
    no_jax_folder.mkdir()
    no_jax_folder.chmod(mode)
    with pytest.warns(UserWarning, match=r"not kept: other users can write to .*compiled, .*chmod go-w"):
        assert compile_cache.programs_folder() is None
    compile_cache.use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None
    with pytest.raises(ConfigError, match="other users can write to"):
        square_programs(no_jax_folder)
    with pytest.raises(ConfigError, match="other users can write to"):
        ecapa_jax.load(programs_dir=no_jax_folder)
    assert not list(no_jax_folder.iterdir())


def test_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        square_programs(tmp_path)


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kept", [True, False])
def test_compiling_is_announced_once_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    folder = tmp_path if kept else None
    first, again = (Programs(lambda x: 2 * x, "double", folder, announce=True) for _ in range(2))
    for matrix in (MATRIX, MATRIX[:1]):
        first(matrix)
    if kept:
        again(MATRIX)  # compiles nothing
    Programs(lambda x: 3 * x, "triple", folder)(MATRIX)  # does not announce
    assert sys.stderr.getvalue() == f"compiling{' once for this machine' * kept} (about 10 s)\n"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Programs(lambda x: 4 * x, "four times", folder, announce=True)(MATRIX)
    assert sys.stderr.getvalue() == ""
