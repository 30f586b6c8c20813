"""Tests of the built site: all links work, and nothing is loaded from other sites."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from helpers.pages import ROOT

pytest.importorskip("material", reason="the site needs mkdocs-material (make docs installs it)")
pytest.importorskip("mkdocstrings", reason="the site needs mkdocstrings (make docs installs it)")

LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "use": "href"}
"""Attributes whose address a browser fetches automatically, unlike links."""


class Page(HTMLParser):
    """The ids, links and fetched resources of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") != "canonical":
            self.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the site as `make docs` does, from a copy."""
    copy = tmp_path_factory.mktemp("site")
    for name in ("docs", "ecapa_jax"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "default_model"))
    shutil.copy(ROOT / "mkdocs.yml", copy)
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=copy, env=settings, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return copy / "build" / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_pages_fetch_nothing_from_other_sites(site: Path, pages: dict[Path, Page]) -> None:
    remote = [(path.name, url) for path, page in pages.items() for url in page.loaded if urlparse(url).netloc]
    assert remote == []
    styles = [path.read_text("utf-8") for path in site.rglob("*.css")]
    assert styles
    assert not [found for style in styles for found in re.findall(r"url\((?:https?:)?//[^)]+\)|@import[^;]+;", style)]


def test_every_internal_link_has_a_target(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, because it is shown at any address
            continue
        for link in [*page.links, *page.loaded]:
            address, anchor = urldefrag(link)
            if urlparse(address).scheme:
                continue
            target = (path.parent / unquote(address)).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            lost = bool(anchor) and target in pages and unquote(anchor) not in pages[target].ids
            if lost or not target.is_file():
                broken.append((path.name, link))
    assert broken == []


def test_diagram_is_embedded_in_its_page(site: Path) -> None:
    text = (site / "model.html").read_text("utf-8")
    assert "--8<--" not in text
    assert len(re.findall(r'<a href="api/model.html#ecapa_jax\.', text)) >= 10
