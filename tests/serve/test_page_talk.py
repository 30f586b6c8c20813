"""Tests of the page's other tabs in Chromium: diarization, and the speakers of a store."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright", reason="needs the test group")

from playwright.sync_api import Browser, Page, expect, sync_playwright

import ecapa_jax
from ecapa_jax.diarization import diarize as diarization
from ecapa_jax.diarization.formats import as_dict, as_text
from ecapa_jax.diarization.rttm import read_rttm
from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.serve import service
from ecapa_jax.vad import gate
from helpers.chromium import AXE, CHROMIUM, FLAGS, LOOKS, violations
from helpers.nonspeech import nonspeech
from helpers.serving import Running, running
from helpers.sounds import encode

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")

SHOTS = os.environ.get("SCREENSHOTS")  # a folder in which the tests keep screenshots
SPEAKS = gate._speaks  # the original, which a fixture replaces
SPEECH = Path(__file__).parents[2] / "examples" / "audio"
ORDER = ("slt_1", "awb_1", "slt_2", "awb_2")
WAIT = 120_000  # the first request compiles
diarize = functools.partial(diarization.diarize, overlap=False)  # the overlap network compiles slowly


@pytest.fixture(scope="module")
def packaged() -> SpeakerEncoder:
    return ecapa_jax.load()


@pytest.fixture(scope="module")
def server(packaged, tmp_path_factory) -> Iterator[Running]:
    store = SpeakerStore.open(tmp_path_factory.mktemp("store") / "team.db", packaged)
    limits = {"max_seconds": 30.0, "max_bytes": 2_000_000}
    with pytest.MonkeyPatch.context() as patch, running(packaged, store=store, **limits) as server:
        patch.setattr(service, "diarize", diarize)
        yield server


@pytest.fixture(scope="module")
def talk(packaged) -> np.ndarray:
    pause = np.zeros(8000, np.float32)
    return np.concatenate([part for name in ORDER for part in (packaged.read(SPEECH / f"{name}.flac"), pause)])


@pytest.fixture(scope="module")
def recording(talk, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "a talk.wav"
    path.write_bytes(encode(talk))
    return path


@pytest.fixture(scope="module")
def browser(recording) -> Iterator[Browser]:
    fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={recording}"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS + fake)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, server, request) -> Iterator[Page]:
    """The page, opened at the tab of conversations; its console must be empty at the end."""
    options = {"viewport": {"width": 1100, "height": 1000}, "reduced_motion": "reduce", **getattr(request, "param", {})}
    context = browser.new_context(**options)
    context.grant_permissions(["microphone"], origin=server.url)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked_for: asked.append(asked_for.url))
    page.goto(f"{server.url}/#talk")
    expect(page.locator("#model")).to_contain_text("million")
    yield page
    if SHOTS:
        name = re.sub("[^a-z0-9]+", "-", request.node.name.lower())
        page.screenshot(path=Path(SHOTS) / f"talk-{name}.png", full_page=True)
    context.close()
    assert [text for text in said if "status of 4" not in text] == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked), asked


def upload(page: Page, recording: Path) -> None:
    page.locator("#slot-talk input[type=file]").set_input_files(recording)
    expect(page.locator("#diarize")).to_be_enabled(timeout=WAIT)


def search(page: Page, count: str = "2") -> None:
    page.select_option("#count", count)
    page.click("#diarize")
    expect(page.locator("#found")).to_contain_text("speaker", timeout=WAIT)


def download(page: Page, kind: str) -> tuple[str, str]:
    with page.expect_download() as waiting:
        page.click(f"button.download[value={kind}]")
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_text("utf-8")


def test_turns_are_shown_renamed_and_downloaded(opened, packaged, recording, tmp_path) -> None:
    upload(opened, recording)
    search(opened)
    expected = diarize(packaged, recording, 2)
    assert opened.text_content("#found") == f"2 speakers, {len(expected.turns)} turns"
    assert opened.locator("#timeline .turn").count() == len(expected.turns)
    assert opened.locator("#turns tbody tr").count() == len(expected.turns)
    assert download(opened, "rttm") == ("a talk.rttm", as_text(expected, "a talk", "rttm"))
    assert download(opened, "srt") == ("a talk.srt", as_text(expected, "a talk", "srt"))
    name, text = download(opened, "json")
    assert (name, json.loads(text)) == ("a talk.json", as_dict(expected, "a talk"))

    names = opened.locator("#timeline input")
    names.nth(0).fill("Ann <b>O'Neil</b>")
    names.nth(0).press("Enter")
    assert "Ann <b>O'Neil</b>" in opened.locator("#turns tbody tr").first.text_content()
    assert opened.locator("#turns b").count() == 0
    names.nth(1).fill("Ann <b>O'Neil</b>")
    names.nth(1).press("Enter")
    expect(opened.locator("#names-message")).to_contain_text("is named Ann <b>O'Neil</b> already")
    assert names.nth(1).input_value() == "speaker_2"
    names.nth(1).fill("  ")
    names.nth(1).press("Enter")
    assert names.nth(1).input_value() == "speaker_2"
    renamed = expected.rename({"speaker_1": "Ann <b>O'Neil</b>"})
    rttm = download(opened, "rttm")[1]
    assert rttm == as_text(renamed, "a talk", "rttm")
    (tmp_path / "a.rttm").write_text(rttm)
    assert {turn.speaker for turn in read_rttm(tmp_path / "a.rttm")["a_talk"]} == {"Ann_<b>O'Neil</b>", "speaker_2"}
    assert json.loads(download(opened, "json")[1])["speakers"][0]["name"] == "Ann <b>O'Neil</b>"


def test_timeline_shows_and_plays_turns(opened, recording) -> None:
    upload(opened, recording)
    search(opened)
    titles = opened.locator("#timeline .turn").evaluate_all(
        "turns => turns.sort((one, other) => parseFloat(one.style.left) - parseFloat(other.style.left))"
        ".map((turn) => turn.title)"
    )
    turns = [opened.get_by_title(title, exact=True) for title in titles]
    tracks = opened.locator("#timeline .voice .track")
    box, turn = tracks.nth(0).bounding_box(), turns[0].bounding_box()
    start, end = (float(part) for part in re.search(r", ([\d.]+) to ([\d.]+)", titles[0]).groups())
    seconds = float(re.search(r"([\d.]+) seconds", opened.get_attribute("#timeline canvas", "aria-label"))[1])
    assert turn["x"] - box["x"] == pytest.approx(start / seconds * box["width"], abs=4)
    assert turn["width"] == pytest.approx((end - start) / seconds * box["width"], abs=8)
    colours = opened.locator("#timeline canvas").evaluate(
        "canvas => { const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        " const seen = {}; for (let i = 0; i < all.length; i += 4) if (all[i + 3] === 255)"
        " { const key = all.slice(i, i + 3).join(); seen[key] = (seen[key] ?? 0) + 1; }"
        " return Object.values(seen).filter((count) => count > 50).length; }"
    )
    assert colours == 3  # two speakers and silence

    audio = opened.locator("#slot-talk audio")
    turns[1].click()
    expect(opened.locator("#stop-turn")).to_be_enabled()
    opened.wait_for_timeout(400)
    place = audio.evaluate("sound => sound.currentTime")
    second = float(re.search(r", ([\d.]+) to", titles[1])[1])
    assert second <= place < second + 3
    assert "playing" in turns[1].get_attribute("class")
    opened.click("#stop-turn")
    expect(opened.locator("#stop-turn")).to_be_disabled()
    assert "playing" not in turns[1].get_attribute("class")

    turns[1].focus()
    opened.keyboard.press("ArrowRight")
    assert turns[2].evaluate("turn => turn === document.activeElement")
    assert [turns[index].get_attribute("tabindex") for index in range(3)] == ["-1", "-1", "0"]
    opened.keyboard.press("Enter")
    expect(opened.locator("#stop-turn")).to_be_enabled()


def test_playback_stops_at_the_end_of_a_turn(opened, recording) -> None:
    upload(opened, recording)
    search(opened)
    audio, last = opened.locator("#slot-talk audio"), opened.locator("#turns tbody tr").last
    opened.locator("#slot-talk audio").evaluate("sound => { sound.playbackRate = 8; }")
    opened.locator("#turns tbody tr button").first.click()
    expect(opened.locator("#stop-turn")).to_be_disabled(timeout=15_000)
    end = float(re.search(r"to ([\d.]+)", opened.locator("#timeline .turn").first.get_attribute("title"))[1])
    assert end - 0.1 <= audio.evaluate("sound => sound.currentTime") < end + 1.5
    assert last.locator("button").get_attribute("aria-label").startswith("Play ")


def test_sample_is_replaced_by_another_recording(opened) -> None:
    opened.select_option("#sample-talk", "two")
    expect(opened.locator("#slot-talk .name")).to_have_text(re.compile(r"Two people in turn · 2\d\.\d s"), timeout=WAIT)
    search(opened)
    opened.locator("#slot-talk input[type=file]").set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"dear diary\n" * 99}
    )
    expect(opened.locator("#slot-talk .message")).to_contain_text("is not audio")
    expect(opened.locator("#timeline")).to_be_hidden()
    expect(opened.locator("#diarize")).to_be_disabled()
    assert opened.text_content("#found") == "No turns yet"


def test_recording_without_speech_shows_a_message(opened, tmp_path) -> None:
    time = np.arange(3 * 16000) / 16000
    path = tmp_path / "hum.wav"
    path.write_bytes(encode((0.2 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)))
    upload(opened, path)
    opened.click("#diarize")
    expect(opened.locator("#found")).to_have_text("Nobody speaks", timeout=WAIT)
    expect(opened.locator("#talk-answer")).to_be_hidden()


def test_conversation_can_be_recorded(opened) -> None:
    button = opened.locator("#slot-talk .record")
    button.click()
    expect(button).to_have_text("Stop")
    opened.wait_for_timeout(4000)
    button.click()
    expect(opened.locator("#slot-talk .name")).to_contain_text("conversation.wav", timeout=WAIT)
    search(opened, "")
    assert opened.locator("#timeline .turn").count() >= 1


def test_tabs_can_be_selected_by_keyboard_and_address(opened, server) -> None:
    assert opened.locator("[role=tabpanel]:visible").get_attribute("id") == "talk-panel"
    opened.focus("#tab-talk")
    opened.keyboard.press("ArrowRight")
    assert opened.locator("[role=tabpanel]:visible").get_attribute("id") == "people-panel"
    opened.keyboard.press("ArrowRight")
    assert opened.evaluate("() => document.activeElement.id") == "tab-compare"
    assert opened.url.endswith("#compare")
    assert opened.title() == "Same speaker? ecapa-jax"
    opened.reload()
    assert opened.locator("[role=tabpanel]:visible").get_attribute("id") == "compare-panel"
    opened.goto(server.url)
    assert opened.locator("[role=tab][aria-selected=true]").get_attribute("id") == "tab-compare"


def test_speakers_are_enrolled_named_and_removed(opened, server) -> None:
    opened.click("#tab-people")
    expect(opened.locator("#nobody")).to_be_visible()
    expect(opened.locator("#identify")).to_be_disabled()
    for sample, name in (("slt_1.flac", "Ann & Co/<i>"), ("awb_1.flac", "Bob")):
        opened.select_option("#sample-person", sample)
        expect(opened.locator("#enroll-button")).to_be_enabled(timeout=WAIT)
        opened.fill("#name", name)
        opened.click("#enroll-button")
        expect(opened.locator("#people-hint")).to_have_text(f"{name} is enrolled with this recording.", timeout=WAIT)
    opened.fill("#name", "Bob")
    opened.click("#enroll-button")
    expect(opened.locator("#people-hint")).to_contain_text("already", timeout=WAIT)
    opened.select_option("#sample-person", "slt_2.flac")
    expect(opened.locator("#identify")).to_be_enabled(timeout=WAIT)
    opened.click("#identify")
    expect(opened.locator("#who")).to_have_text("Ann & Co/<i>", timeout=WAIT)
    assert opened.locator("#candidates tbody th").all_text_contents() == ["Ann & Co/<i>", "Bob"]
    found = server.service.store.identify(SPEECH / "slt_2.flac")
    assert opened.locator("#candidates tbody td").first.text_content() == f"{found.candidates[0].score:.3f}"
    assert opened.locator("#everyone tbody th").all_text_contents() == ["Ann & Co/<i>", "Bob"]

    opened.once("dialog", lambda dialog: dialog.dismiss())
    opened.locator("#everyone button").first.click()
    assert opened.locator("#everyone tbody tr").count() == 2
    opened.once("dialog", lambda dialog: dialog.accept())
    opened.locator("#everyone button").first.click()
    expect(opened.locator("#people-hint")).to_have_text("Ann & Co/<i> is removed.")
    assert [speaker.name for speaker in server.service.store.speakers()] == ["Bob"]
    assert opened.text_content("#who") == "No answer yet"
    if SHOTS:
        opened.screenshot(path=Path(SHOTS) / "talk-people.png", full_page=True)
    server.service.store.remove("Bob")


def test_enrolment_without_speech_is_refused(opened, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(gate, "_speaks", SPEAKS)
    opened.click("#tab-people")
    path = tmp_path / "hum.wav"
    path.write_bytes(encode(nonspeech("hum", 1)))
    opened.locator("#slot-person input[type=file]").set_input_files(path)
    expect(opened.locator("#identify")).to_be_enabled(timeout=WAIT)
    opened.click("#identify")
    expect(opened.locator("#people-hint")).to_contain_text("hum.wav: holds less than half a second of speech")
    opened.fill("#name", "Hum")
    opened.click("#enroll-button")
    expect(opened.locator("#people-hint")).to_contain_text("hum.wav: holds less than half a second of speech")
    expect(opened.locator("#enroll-button")).to_be_enabled()
    assert opened.locator("#everyone tbody tr").count() == 0


def test_page_without_a_store_and_with_a_token(browser, packaged) -> None:
    with running(packaged, token="s3cret") as locked, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{locked.url}/#people")
        page.fill("#token", "s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("#no-store")).to_contain_text("--store FILE")
        expect(page.locator("#people")).to_be_hidden()


@pytest.mark.parametrize("opened", LOOKS, indirect=True)
def test_layouts_and_accessibility(opened, recording, request) -> None:
    check = (lambda: violations(opened)) if AXE.exists() else (lambda: [])
    assert check() == []
    upload(opened, recording)
    search(opened)
    assert opened.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    assert check() == []
    if "phone" in request.node.name:
        for control in opened.locator("#talk-panel :is(button, input, select, .button):visible:not([type=file])").all():
            assert control.bounding_box()["height"] >= 40
    opened.click("#tab-people")
    assert check() == []
    assert opened.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    opened.click("#tab-talk")
