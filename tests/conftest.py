"""Makes `helpers` importable (pytest's importlib mode leaves sys.path alone) and hypothesis safe from speechbrain; has
no program compiled twice in a process, nor a process that compiles thousands run out of memory maps.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

THOROUGH = (
    "bench",
    "convert/addresses/test_processes.py",
    "convert/test_footprint.py",
    "convert/test_reader_fuzz.py",
    "convert/test_torch_zip_hostile.py",
    "corpus/test_ray.py",
    "corpus/test_ten_thousand.py",
    "deploy/test_examples.py",
    "deploy/test_families.py",
    "docs",
    "serve/test_fetch_tls.py",
    "serve/test_load.py",
    "serve/test_page.py",
    "serve/test_schema.py",
    "test_dist.py",
    "test_memory.py",
    "test_mutations.py",
    "test_windows.py",
    "train/test_cluster.py",
    "train/test_faults.py",
    "train/test_mesh.py",
    "train/test_plan.py",
    "train/test_processes.py",
)
"""Files and folders that `make test` leaves to `make test-all`; a test or a file can also carry the marker itself."""
ALWAYS = ("test_killed_in_the_middle_of_a_save",)
"""Tests of those files that `make test` runs all the same: one short training run with a kill."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _forget_lazy_modules()
    for item in items:
        path = item.path.relative_to(TESTS)
        if item.name not in ALWAYS and any(path.is_relative_to(name) for name in THOROUGH):
            item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _forget_lazy_modules()


def _forget_lazy_modules() -> None:
    """speechbrain leaves modules that import optional packages when touched; hypothesis touches whatever is loaded."""
    for name, module in list(sys.modules.items()):
        if type(module).__module__ == "speechbrain.utils.importutils":
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compiling is most of a run's time: what one worker has compiled, the others read.

    The folder belongs to this run, because JAX writes its files in place, and a run that is killed may leave half a
    file. With a largest size given, JAX locks the folder while it reads and writes.
    """
    import jax

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 1 << 30)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture
def every_sound_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the sounds that tests make pass as speech."""
    from ecapa_jax.vad import gate

    monkeypatch.setattr(gate, "_speaks", lambda *_: True)


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps() -> Iterator[None]:
    """Linux gives a process 65 530 maps; each compiled program takes some, and past the last the compiler crashes."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        sys.modules["jax"].clear_caches()
        gc.collect()
