"""New Python environments, as a user has them."""

from __future__ import annotations

import sys
import venv
from pathlib import Path


def make_environment(folder: Path, *, lend: bool) -> Path:
    """Creates an environment in `folder / "env"` and returns its Python.

    Args:
      folder: the folder that will contain the environment.
      lend: whether the environment sees the packages that are installed here. It does not read the .pth files among
        them, so it does not see this checkout.
    """
    venv.create(folder / "env", with_pip=True)
    if lend:
        (site,) = (folder / "env" / "lib").glob("python*/site-packages")
        (site / "lent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    return folder / "env" / "bin" / "python"
