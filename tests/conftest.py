"""Makes `helpers` importable (pytest's importlib mode leaves sys.path alone), and hypothesis safe from speechbrain."""

import sys
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
