"""Finds and executes the code blocks of Markdown pages.

A block that can't be executed is checked against the command line's options.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import io
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers.page_service import FOUND, PageService

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]*)(?P<rest>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
INLINE = re.compile(r"`((?:\.venv/bin/)?ecapa-jax [^`]+)`")
NEEDS = re.compile(r"# needs (.+)")
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
EXTRAS = re.compile(r"\[([a-z0-9,]+)\]")

LANGUAGES = ("sh", "python", "toml", "json", "text")
"""Languages of blocks.

`sh` and `python` are executed, `toml` is checked as a training configuration, `json` is parsed, and in `text` only the
options of commands are checked.
"""


class PageError(AssertionError):
    """An error for a block that does not do what its page says."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      page: the file of the page.
      line: the number of its first line of content, from 1.
      language: the language that the fence names.
      text: the content.
      needs: a requirement that is not available here, from a first line `# needs ...`; None if the block can be
        executed.
    """

    page: Path
    line: int
    language: str
    text: str
    needs: str | None

    @property
    def where(self) -> str:
        """The page and line for error messages."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, in order."""
    source, found = page.read_text("utf-8"), []
    for match in FENCE.finditer(source):
        text = textwrap.dedent(match["text"])
        needs = NEEDS.match(text)
        line = source.count("\n", 0, match.start("text")) + 1
        found.append(Block(page, line, match["language"], text, needs[1] if needs else None))
    fences = len(re.findall(r"^ *```", source, re.M))
    if fences != 2 * len(found):
        raise PageError(f"{page.name}: {fences} fences make {len(found)} blocks; one is not closed as it was opened")
    return found


def commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    """Yields each command of a shell block with its line number; a backslash at the end joins lines."""
    first, joined = block.line, ""
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if joined else number
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        words, joined = shlex.split(joined, comments=True), ""
        if words:
            yield first, words


def inline_commands(page: Path) -> Iterator[str]:
    """Yields the commands of this library in running text and tables."""
    without = FENCE.sub("", page.read_text("utf-8"))
    for match in INLINE.finditer(without):
        yield match[1].replace("\\|", "|")


def run_page(page: Path, setting: dict[str, Any]) -> int:
    """Executes a page in the working directory and returns the number of commands and Python blocks that ran.

    Python blocks share one namespace, which initially contains `setting`.

    Raises:
      PageError: if a block fails, or can't be executed and is not marked.
    """
    with PageService() as service:
        executed = _run_blocks(page, setting, service)
    for command in inline_commands(page):
        check_options(command, page.name)
    return executed


def _run_blocks(page: Path, setting: dict[str, Any], service: PageService) -> int:
    namespace, executed = {"__name__": "page", **setting}, 0
    for written in blocks(page):
        block = dataclasses.replace(written, text=service.addressed(written.text))
        if block.language not in LANGUAGES:
            raise PageError(f"{block.where}: name the block's language, one of {', '.join(LANGUAGES)}")
        if block.language == "sh":
            executed += _run_shell(block, service)
        elif block.language == "python":
            executed += _run_python(block, namespace)
        elif block.language == "toml":
            _check_configuration(block)
        elif block.language == "json":
            json.loads(block.text)
        else:
            for line in block.text.splitlines():
                check_options(line, block.where)
    return executed


def _run_python(block: Block, namespace: dict[str, Any]) -> int:
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    if block.needs:
        return 0
    try:
        exec(code, namespace)
    except Exception as error:
        raise PageError(f"{block.where}: {error!r}") from error
    return 1


def _run_shell(block: Block, service: PageService) -> int:
    executed = 0
    for line, words in commands(block):
        where = f"{block.page.name}:{line}"
        program = "ecapa-jax" if words[0].endswith("/ecapa-jax") else words[0]
        if program not in PROGRAMS:
            if not block.needs:
                raise PageError(f"{where}: {words[0]} is not run here; begin the block with '# needs ...'")
            continue
        if block.needs is None and (program, *words[1:2]) == ("ecapa-jax", "serve"):
            _parsed(words[1:], where)
            service.start(words[1:])
            executed += 1
            continue
        executed += PROGRAMS[program](words[1:], where, block.needs is None)
    return executed


def _ecapa_jax(words: list[str], where: str, run: bool) -> int:
    """Runs a command in this process, or only parses its arguments if it can't run here."""
    arguments = [name for word in words for name in _expanded(word)]
    if not run:
        _parsed(arguments, where)
        return 0
    from ecapa_jax.cli.main import main

    code, output = _called(lambda: main(arguments))
    if code:
        raise PageError(f"{where}: exit code {code} from ecapa-jax {shlex.join(arguments)}\n{output}")
    return 1


def _parsed(arguments: list[str], where: str) -> None:
    import tyro

    from ecapa_jax.cli.main import Verb
    from ecapa_jax.cli.train import Train
    from ecapa_jax.train.settings import load_config

    made: list[Any] = []
    marks = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    code, output = _called(lambda: made.append(tyro.cli(Verb, args=arguments, config=marks)) or 0)
    if code:
        raise PageError(f"{where}: not a command: ecapa-jax {shlex.join(arguments)}\n{output}")
    if isinstance(made[0], Train):
        load_config(made[0].config, made[0].set)


def _called(command: Callable[[], int]) -> tuple[int, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = command()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, output.getvalue()


def _expanded(word: str) -> list[str]:
    return sorted(glob.glob(word)) or [word] if "*" in word else [word]


def _python(words: list[str], where: str, run: bool) -> int:
    """Runs a script of the repository, or checks its options against its help."""
    script = ROOT / words[0]
    if not script.is_file() or ROOT not in script.resolve().parents:
        raise PageError(f"{where}: {words[0]} is no script of this repository")
    if run and words[0].startswith("examples/"):
        command = [sys.executable, str(script), *(name for word in words[1:] for name in _expanded(word))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            raise PageError(f"{where}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        return 1
    source = script.read_text("utf-8")
    if unknown := [word for word in words[1:] if OPTION.fullmatch(word) and f'"{word}"' not in source]:
        raise PageError(f"{where}: {words[0]} has no option {unknown[0]}")
    return 0


def _make(words: list[str], where: str, run: bool) -> int:
    """Checks that a make target exists; .ci/run runs the targets."""
    for target in words:
        if "=" not in target and not re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M):
            raise PageError(f"{where}: the Makefile has no target {target}")
    return 0


def _pip(words: list[str], where: str, run: bool) -> int:
    """Checks that the extras of an installation exist."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for group in EXTRAS.findall(" ".join(words)):
        if unknown := [name for name in group.split(",") if name not in known]:
            raise PageError(f"{where}: there is no extra {unknown[0]}; there are: {', '.join(known)}")
    return 0


def _curl(words: list[str], where: str, run: bool) -> int:
    """Sends a request to the page's service, which must respond with success."""
    if not run:
        return 0
    if not any(FOUND.match(word) for word in words):
        raise PageError(f"{where}: curl asks elsewhere; begin the block with '# needs ...'")
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *words], capture_output=True, timeout=120, check=False)
    if done.returncode:
        raise PageError(f"{where}: curl ends with {done.returncode}\n{(done.stdout + done.stderr).decode()[-2000:]}")
    return 1


PROGRAMS: dict[str, Callable[[list[str], str, bool], int]] = {
    "ecapa-jax": _ecapa_jax,
    "python": _python,
    "make": _make,
    "pip": _pip,
    "curl": _curl,
}


def check_options(line: str, where: str) -> None:
    """Checks that the verb and options of a command that is only shown exist."""
    match = re.match(r"\s*(?:\S*/)?ecapa-jax ([a-z]+)\b(.*)", line)
    if not match:
        return
    known = options_of(match[1])
    if known is None:
        raise PageError(f"{where}: there is no verb {match[1]}")
    if unknown := [option for option in OPTION.findall(match[2].partition(" #")[0]) if option not in known]:
        raise PageError(f"{where}: ecapa-jax {match[1]} has no option {unknown[0]}")


@functools.cache
def options_of(verb: str) -> frozenset[str] | None:
    """Returns the options that `ecapa-jax VERB --help` lists, or None if the verb does not exist."""
    from ecapa_jax.cli.main import main

    code, text = _called(lambda: main([verb, "--help"]))
    known = code == 0 and re.match(rf"usage: ecapa-jax {verb}\b", text)
    return frozenset(OPTION.findall(text)) if known else None


def _check_configuration(block: Block) -> None:
    from ecapa_jax.train.settings import build_config

    build_config(tomllib.loads(block.text))
