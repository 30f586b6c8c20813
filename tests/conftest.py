"""Makes `helpers` importable (pytest's importlib mode leaves sys.path alone), hypothesis safe from speechbrain, and a
process that compiles thousands of programs safe from running out of memory maps.
"""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    _forget_lazy_modules()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _forget_lazy_modules()


def _forget_lazy_modules() -> None:
    """speechbrain leaves modules that import optional packages when touched; hypothesis touches whatever is loaded."""
    for name, module in list(sys.modules.items()):
        if type(module).__module__ == "speechbrain.utils.importutils":
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps() -> Iterator[None]:
    """Linux gives a process 65 530 maps; each compiled program takes some, and past the last the compiler crashes."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        sys.modules["jax"].clear_caches()
        gc.collect()
