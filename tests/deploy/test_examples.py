"""Tests of the examples that score an exported model without this library: ONNX Runtime, sherpa-onnx, a browser."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

import ecapa_jax
from ecapa_jax.bundle.bundle import Bundle
from ecapa_jax.convert.onnx.sherpa import export_sherpa

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "examples" / "audio"
WEB = Path(os.environ.get("ONNXRUNTIME_WEB", ROOT / ".venv" / "web" / "node_modules" / "onnxruntime-web"))
PAIRS = (("rms_1", "rms_2"), ("rms_1", "slt_1"))
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@functools.cache
def _encoder() -> ecapa_jax.SpeakerEncoder:
    return ecapa_jax.load()


def _expected(a: str, b: str) -> float:
    return _encoder().verify(SPEECH / f"{a}.flac", SPEECH / f"{b}.flac", scoring="cosine").score


def _run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_onnx_runtime_example_scores_as_the_library(exported: Path, a: str, b: str) -> None:
    said = _run("score_onnx.py", exported, SPEECH / f"{a}.flac", SPEECH / f"{b}.flac")
    assert abs(float(said.split()[1].rstrip(",")) - _expected(a, b)) <= 1e-3
    source = (ROOT / "examples" / "score_onnx.py").read_text()
    assert "ecapa_jax" not in source
    assert len(source.splitlines()) <= 20


def test_sherpa_onnx_example_enrols_searches_and_verifies(packaged: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx", reason="needs the test group")
    model = tmp_path / "model.onnx"
    model.write_bytes(export_sherpa(packaged).SerializeToString())
    speakers = [f"{voice}={SPEECH / f'{voice}_1.flac'}" for voice in ("awb", "rms", "slt")]
    threshold = packaged.scoring.threshold
    said = _run(
        "sherpa_speakers.py", model, *speakers, "--who", SPEECH / "rms_2.flac", "--threshold", threshold
    ).splitlines()
    assert said[0] == "it is rms"
    found = {line.split(":")[0]: line for line in said[1:]}
    assert found["rms"].endswith("yes")
    assert found["slt"].endswith("no")
    scores = {name: float(re.findall(r"score (-?\d\.\d+)", line)[0]) for name, line in found.items()}
    # The features of sherpa-onnx are close to those of the model, but not equal.
    assert all(abs(score - _expected(f"{name}_1", "rms_2")) < 0.1 for name, score in scores.items()), scores


@pytest.fixture
def site(exported: Path, tmp_path: Path) -> Iterator[str]:
    """Serves the page's folder, prepared as a user would prepare it."""
    folder = tmp_path / "web"
    shutil.copytree(ROOT / "examples" / "web", folder, ignore=shutil.ignore_patterns("node_modules", "model.onnx"))
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "onnxruntime-web").symlink_to(WEB.resolve())
    shutil.copy(exported, folder / "model.onnx")

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        extensions_map: ClassVar = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

        def log_message(self, *_: object) -> None:
            """Prints nothing."""

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium (make browser)")
@pytest.mark.skipif(not WEB.exists(), reason="needs onnxruntime-web (make browser)")
def test_browser_example_scores_as_the_library(site: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the test group")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page, said, asked = browser.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        result = page.locator("#result")
        for a, b in PAIRS:
            page.goto(site)
            sync_api.expect(result).to_have_text("Choose two recordings.", timeout=60_000)
            page.set_input_files("#a", SPEECH / f"{a}.flac")
            page.set_input_files("#b", SPEECH / f"{b}.flac")
            sync_api.expect(result).to_have_text(re.compile("^Score"), timeout=60_000)
            assert abs(float(result.text_content().split()[1].rstrip(":")) - _expected(a, b)) <= 1e-3
        browser.close()
    assert said == []
    assert all(url.startswith((site, "blob:", "data:")) for url in asked), asked
