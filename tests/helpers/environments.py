"""Python environments of their own, as a user has."""

from __future__ import annotations

import sys
import venv
from pathlib import Path


def make_environment(folder: Path, *, lend: bool) -> Path:
    """The Python of a new environment in `folder / "env"`.

    Args:
      folder: where it is made.
      lend: whether it finds what is installed here. A path in a .pth file is searched, but the .pth files there, one of
        which names this checkout, are not.
    """
    venv.create(folder / "env", with_pip=True)
    if lend:
        (site,) = (folder / "env" / "lib").glob("python*/site-packages")
        (site / "lent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    return folder / "env" / "bin" / "python"
