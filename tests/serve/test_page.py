"""Tests of the page in Chromium: samples, uploads, drag and drop, microphone, threshold, keyboard, accessibility."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright", reason="needs the test group")
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import ecapa_jax
from ecapa_jax.vad import gate
from helpers.chromium import AXE, CHROMIUM, FLAGS, LOOKS, violations
from helpers.nonspeech import nonspeech
from helpers.serving import Running, running
from helpers.sounds import encode, sound

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")

ROOT = Path(__file__).parents[2]
SHOTS = os.environ.get("SCREENSHOTS")  # a folder in which the tests keep screenshots
SPEECH = ROOT / "examples" / "audio"
SPEAKS = gate._speaks  # the original, which a fixture replaces
WAIT = 60_000  # the first request of each length compiles


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ecapa_jax.load(), max_seconds=20.0, max_bytes=2_000_000) as service:
        service.service.points = ecapa_jax.bundle.bundle.read_operating_points(ecapa_jax.api.default_bundle())
        yield service


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """The recording that the simulated microphone repeats."""
    path = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    samples = ecapa_jax.load().read(SPEECH / "slt_2.flac")
    path.write_bytes(encode(np.repeat(samples, 3), rate=48000))
    return path


@pytest.fixture(scope="module")
def browser(spoken) -> Iterator[Browser]:
    fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={spoken}"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS + fake)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, server, request) -> Iterator[Page]:
    """The open page, in a context with the options of the parameter; its console must be empty at the end."""
    options = {"viewport": {"width": 1100, "height": 1000}, "reduced_motion": "reduce", **getattr(request, "param", {})}
    context: BrowserContext = browser.new_context(**options)
    context.grant_permissions(["microphone"], origin=server.url)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked_for: asked.append(asked_for.url))
    page.goto(server.url)
    expect(page.locator("#model")).to_contain_text("million")
    page.said = said
    yield page
    if SHOTS:
        page.screenshot(
            path=Path(SHOTS) / f"{re.sub('[^a-z0-9]+', '-', request.node.name.lower())}.png", full_page=True
        )
    context.close()
    assert [text for text in said if "status of 4" not in text] == []  # Chromium logs the 4xx responses
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked), asked


def choose_samples(page: Page, a: str = "slt_1.flac", b: str = "slt_2.flac") -> None:
    page.select_option("#sample-A", a)
    page.select_option("#sample-B", b)
    expect(page.locator("#compare")).to_be_enabled(timeout=WAIT)


def compare(page: Page) -> None:
    page.click("#compare")
    expect(page.locator("#decision")).to_contain_text("speaker", timeout=WAIT)


def slot(page: Page, letter: str):
    return page.locator(f"#slot-{letter}")


def test_comparison_of_two_samples_equals_the_library(opened) -> None:
    choose_samples(opened)
    compare(opened)
    encoder = ecapa_jax.load()
    expected = encoder.verify(SPEECH / "slt_1.flac", SPEECH / "slt_2.flac")
    assert opened.text_content("#score") == f"{expected.score:.3f}"
    assert opened.text_content("#decision") == "Same speaker"
    assert re.search(r"\d+ ms in the service", opened.text_content("#taken"))
    frames = (len(encoder.read(SPEECH / "slt_1.flac")) - 400) // 160 + 1
    assert f"80 log-mel bands, {frames} frames" in slot(opened, "a").locator(".mel-caption").text_content()
    for kind in ("wave", "mel"):
        painted = (
            slot(opened, "a")
            .locator(f".{kind}")
            .evaluate(
                "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
            )
        )
        assert painted > 20


def test_sample_can_be_played(opened) -> None:
    choose_samples(opened)
    audio = slot(opened, "a").locator("audio")
    audio.evaluate("sound => sound.play()")
    opened.wait_for_function("sound => sound.currentTime > 0", arg=audio.element_handle(), timeout=WAIT)
    assert audio.evaluate("sound => sound.duration") == pytest.approx(4.94, abs=0.1)


def test_threshold_changes_decision_and_error_rates(opened) -> None:
    choose_samples(opened)
    compare(opened)
    row = opened.locator("#rates tbody tr").first
    assert row.locator("td").all_text_contents() == ["11 %", "5.0 %"]
    opened.locator("#threshold").fill("0.55")
    assert row.locator("td").all_text_contents() == ["2.8 to 11 %", "5.0 to 22 %"]
    opened.locator("#threshold").fill("0.99")
    assert opened.text_content("#decision") == "Different speakers"
    assert row.locator("td").all_text_contents() == ["at most 0.1 %", "at least 60 %"]
    opened.click("#reset")
    assert opened.text_content("#decision") == "Same speaker"
    assert opened.text_content("#threshold-value") == "0.478"


def test_threshold_mark_can_be_dragged(opened) -> None:
    box = opened.locator("#dial").bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"] / 320, box["y"] + y * box["height"] / 190)  # noqa: E731
    mark = opened.locator("#dial .mark .line").bounding_box()
    opened.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
    opened.mouse.down()
    opened.mouse.move(*at(160 - 85, 160 - 85), steps=5)
    opened.mouse.up()
    assert opened.text_content("#threshold-value") == "\N{MINUS SIGN}0.500"
    opened.mouse.move(*at(160, 20))
    assert opened.text_content("#threshold-value") == "\N{MINUS SIGN}0.500"


def test_page_can_be_used_with_the_keyboard(opened) -> None:
    for letter in "AB":
        opened.locator(f"#sample-{letter}").focus()
        opened.keyboard.press("ArrowDown")
        opened.keyboard.press("Enter")
    expect(opened.locator("#compare")).to_be_enabled(timeout=WAIT)
    for _ in range(30):
        if opened.evaluate("() => document.activeElement.id") == "compare":
            break
        opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    expect(opened.locator("#decision")).to_have_text("Same speaker", timeout=WAIT)
    before = opened.text_content("#threshold-value")
    opened.locator("#threshold").focus()
    opened.keyboard.press("ArrowRight")
    assert float(opened.text_content("#threshold-value")) == pytest.approx(float(before) + 0.001)


@pytest.mark.parametrize("kind", ["FLAC", "MP3", "WAV"])
def test_uploaded_files_are_compared(opened, kind, tmp_path) -> None:
    path = tmp_path / f"one.{kind.lower()}"
    path.write_bytes(encode(sound(4.2, rate=44100, channels=2), kind, rate=44100))
    slot(opened, "a").locator("input[type=file]").set_input_files(path)
    expect(slot(opened, "a").locator(".name")).to_have_text(re.compile(rf"{path.name} · 4\.[23] s"), timeout=WAIT)
    opened.select_option("#sample-B", "rms_1.flac")
    expect(opened.locator("#compare")).to_be_enabled(timeout=WAIT)
    compare(opened)
    assert opened.text_content("#decision") == "Different speakers"


DROP = """(target, [name, text]) => {
  const carried = new DataTransfer();
  carried.items.add(new File([text], name));
  for (const kind of ["dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""


def test_dropped_text_file_is_refused(opened) -> None:
    choose_samples(opened)
    slot(opened, "b").evaluate(DROP, ["<b>notes.txt", "dear diary\n" * 99])
    expect(slot(opened, "b").locator(".message")).to_have_text(re.compile("notes.txt: is not audio"))
    expect(opened.locator("#compare")).to_be_disabled()
    assert slot(opened, "b").locator(".message b").count() == 0
    opened.select_option("#sample-B", "rms_1.flac")
    expect(opened.locator("#compare")).to_be_enabled(timeout=WAIT)
    assert slot(opened, "b").locator(".message").text_content() == ""


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (sound(0.01), "too short"),
        (np.zeros(16000, np.float32), "silent"),
        (sound(25), "longer than 20 seconds"),
        (sound(40), "too large: 1.3 MB, this service accepts 1.0 MB"),
    ],
)
def test_invalid_recordings_show_a_message(opened, samples, why, tmp_path) -> None:
    path = tmp_path / "one.wav"
    path.write_bytes(encode(samples))
    slot(opened, "a").locator("input[type=file]").set_input_files(path)
    expect(slot(opened, "a").locator(".message")).to_contain_text(why, timeout=WAIT)


def test_recording_without_speech_is_named_beside_the_score(opened, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gate, "_speaks", SPEAKS)
    choose_samples(opened)
    compare(opened)
    expect(opened.locator("#warning")).to_be_hidden()
    path = tmp_path / "hum.wav"
    path.write_bytes(encode(nonspeech("hum", 1)))
    slot(opened, "b").locator("input[type=file]").set_input_files(path)
    expect(opened.locator("#compare")).to_be_enabled(timeout=WAIT)
    opened.click("#compare")
    expect(opened.locator("#warning")).to_have_text(
        "Hardly any speech in recording B: this score means nothing.", timeout=WAIT
    )
    opened.select_option("#sample-B", "rms_1.flac")
    expect(opened.locator("#warning")).to_be_hidden()


def test_microphone_recording_is_compared(opened, server, monkeypatch) -> None:
    heard = []
    decoded = type(server.service)._decode
    monkeypatch.setattr(
        type(server.service), "_decode", lambda self, one: heard.append(decoded(self, one)) or heard[-1]
    )
    button = slot(opened, "a").locator(".record")
    button.click()
    expect(button).to_have_text("Stop")
    opened.wait_for_timeout(3000)
    assert (
        float(
            slot(opened, "a").locator(".level").get_attribute("value")
            or slot(opened, "a").locator(".level").evaluate("m => m.value")
        )
        > 0
    )
    assert re.match(r"[23]\.\d s", slot(opened, "a").locator(".clock").text_content())
    button.click()
    expect(slot(opened, "a").locator(".name")).to_contain_text("recording A.wav", timeout=WAIT)
    expect(button).to_have_text("Record")
    (samples,) = heard
    assert 2.5 * 16000 < len(samples) < 4 * 16000
    assert np.abs(samples).max() > 0.05
    opened.select_option("#sample-B", "slt_2.flac")
    expect(opened.locator("#compare")).to_be_enabled(timeout=WAIT)
    compare(opened)
    assert opened.text_content("#decision") == "Same speaker"


def test_refused_microphone_shows_a_message(browser, server) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'));"
        )
        page.goto(server.url)
        expect(page.locator("#model")).to_contain_text("million")
        slot(page, "a").locator(".record").click()
        expect(slot(page, "a").locator(".message")).to_contain_text("refused the microphone")
        expect(slot(page, "a").locator(".record")).to_have_text("Record")


def test_page_asks_for_the_token(browser, server, monkeypatch) -> None:
    monkeypatch.setattr(type(server.service.settings), "admits", lambda _, given: given == "Bearer s3cret")
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(server.url)
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.fill("#token", "s3cret")
        page.keyboard.press("Enter")
        choose_samples(page)
        compare(page)
        expect(page.locator("#access")).to_be_hidden()


@pytest.mark.parametrize("opened", LOOKS, indirect=True)
def test_layouts(opened, request) -> None:
    choose_samples(opened)
    compare(opened)
    assert opened.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    dark = "dark" in request.node.name
    paper = [
        int(part)
        for part in re.findall(r"\d+", opened.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    ]
    assert (sum(paper) < 200) == dark
    if "phone" in request.node.name:
        for control in opened.locator("button:visible, select:visible, .button:visible").all():
            assert control.bounding_box()["height"] >= 40


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core (npm install --prefix .venv/axe axe-core)")
@pytest.mark.parametrize("opened", LOOKS, indirect=True)
def test_axe_finds_no_serious_violation(opened) -> None:
    assert violations(opened) == []
    choose_samples(opened)
    compare(opened)
    slot(opened, "b").evaluate(DROP, ["notes.txt", "dear diary"])
    expect(slot(opened, "b").locator(".message")).to_contain_text("is not audio")
    assert violations(opened) == []


def test_documentation_works_without_a_network(browser, server) -> None:
    with browser.new_context() as context:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"{server.url}/docs")
        expect(page.locator(".opblock-summary-path").first).to_be_visible()
        assert page.locator(".opblock").count() == 10
        assert said == []
