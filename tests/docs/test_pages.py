"""Tests of README and docs: every block is executed, or says what it needs and is checked against the options."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxtyping
import pytest

from helpers.pages import ROOT, PageError, blocks, check_options, run_page
from helpers.sandbox import fill_sandbox, page_namespace

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


GIVEN = {"serve.md": {"my_model": "mine"}}
"""Files that a page assumes and that another page makes."""


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Shares compiled programs between commands, because each command makes a new encoder."""
    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax.clear_caches()  # programs that compiled with these options round differently


@pytest.fixture(scope="module")
def filled_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_sandbox(tmp_path_factory.mktemp("furnished"))


@pytest.fixture
def _no_type_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disables the run-time type checks, as for a user; symbolic shapes would fail them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("_no_type_checks")
@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_page_runs(page: Path, filled_sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    shutil.copytree(filled_sandbox, here)
    for name, source in GIVEN.get(page.name, {}).items():
        shutil.copytree(here / source, here / name)
    if "ecapa-jax serve" in page.read_text("utf-8"):
        for module in ("fastapi", "fastapi_offline", "uvicorn", "python_multipart"):
            pytest.importorskip(module, reason="the service needs pip install ecapa-jax[serve]")
        if not shutil.which("curl"):
            pytest.skip("the page's requests are made with curl")
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    executed = run_page(page, page_namespace())
    marked = sum(block.needs is not None for block in blocks(page))
    print(f"{page.name}: {executed} executed, {marked} blocks need what is not here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```sh\necapa-jax info --nonsense\n```", "exit code 2"),
        ("```sh\n# needs the network\necapa-jax verify a.wav --modell x\n```", "not a command"),
        ("```sh\ncurl -O http://localhost/x\n```", "begin the block with"),
        ("```sh\nmake nothing\n```", "no target"),
        ('```sh\npip install "ecapa-jax[nothing]"\n```', "no extra nothing"),
        ("```sh\npython examples/nothing.py\n```", "no script"),
        ("```text\necapa-jax convert SOURCE --nonsense\n```", "no option --nonsense"),
        ("```text\necapa-jax nonsense\n```", "no verb"),
        ("Use `ecapa-jax info --nonsense`.", "no option"),
        ("```python\n1 / 0\n```", "ZeroDivisionError"),
        ("```\nplain\n```", "language"),
        ("```python\nnever closed", "not closed"),
    ],
)
def test_page_with_an_error_fails(text: str, message: str, tmp_path: Path) -> None:
    page = tmp_path / "wrong.md"
    page.write_text(text + "\n")
    with pytest.raises(PageError, match=message):
        run_page(page, {})


def test_options_of_shown_commands_exist() -> None:
    check_options("ecapa-jax verify A B [--threshold X] --json", "here")
    with pytest.raises(PageError, match="--treshold"):
        check_options("ecapa-jax verify A B [--treshold X]", "here")
