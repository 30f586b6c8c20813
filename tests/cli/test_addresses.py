"""Tests of models by address on the command line, with a server in the layout of the hub."""

import json

import numpy as np
import pytest
from rich.console import Console

from ecapa_jax import api
from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.convert import run as conversion
from ecapa_jax.hub import repository
from ecapa_jax.hub.download import Policy
from helpers.bundles import contents
from helpers.checkpoints import SB_CONFIG, speechbrain
from helpers.cli import run, run_refused
from helpers.hub_server import COMMIT, Fault, serving

NAME = "speechbrain/spkrec-ecapa-voxceleb"


def repository_files(folder):
    return {name.as_posix(): content for name, content in contents(folder).items()}


@pytest.fixture
def hub(tmp_path_factory, monkeypatch, model):
    folder = tmp_path_factory.mktemp("published")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(conversion, "_probe", lambda *_: np.ones(192, np.float32))  # the probe compiles for seconds
    with serving() as server:
        server.repositories |= {NAME: repository_files(speechbrain(folder)), "me/mine": repository_files(model)}
        hubs = repository.Hubs(modelscope=server.url, huggingface=server.url, policy=Policy(attempts=2, pause=0.01))
        monkeypatch.setattr(repository, "HUBS", hubs)
        yield server


def test_convert_accepts_an_address(capsys, tmp_path, hub):
    result = run(capsys, "convert", f"hf:{NAME}", "-o", tmp_path / "bundle", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json["family"] == "speechbrain"
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.config == SB_CONFIG
    assert bundle.provenance["revision"] == COMMIT
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"- address: hf:{NAME}\n" in card
    assert "- VoxCeleb1-O, s-norm: EER %: 0.8\n" in card
    result = run(capsys, "info", tmp_path / "bundle", "--json")
    assert result.json["provenance"]["address"] == f"hf:{NAME}"


def test_verify_accepts_an_address(capsys, hub, model, wav):
    there = run(capsys, "verify", wav, wav, "--model", "hf:me/mine", "--json")
    assert (there.code, there.err) == (0, "")
    assert there.json["model"] == "hf:me/mine"
    here = run(capsys, "verify", wav, wav, "--model", model, "--json")
    assert there.json["score"] == here.json["score"]


def test_every_verb_accepts_an_address(capsys, tmp_path, hub, wav, monkeypatch):
    asked = []
    monkeypatch.setattr(api, "resolve", lambda name, **options: asked.append((name, options)) or tmp_path / "none")
    (tmp_path / "list.csv").write_text(f"path\n{wav}\n")
    corpus = ["embed", "--manifest", tmp_path / "list.csv", "--output", tmp_path / "out"]
    for verb in (["verify", wav, wav], ["embed", wav, "-o", tmp_path / "x.npz"], corpus):
        run_refused(capsys, tmp_path, *verb, "--model", f"hf:{NAME}@main")
        run_refused(capsys, tmp_path, *verb, "--model", f"hf:{NAME}@main", "--quiet")
    run_refused(capsys, tmp_path, "info", f"hf:{NAME}@main", "--quiet")
    assert {name for name, _ in asked} == {f"hf:{NAME}@main"}
    shows_progress = [options["progress"] for _, options in asked]
    assert shows_progress[:4] == [True, False, True, False]
    assert shows_progress[4] is True  # once before the corpus starts
    assert shows_progress[-1] is False


def test_errors_are_reported_in_one_line(capsys, tmp_path, hub, wav):
    hub.faults["/api/models"] = [Fault(status=500)] * 2
    assert "the hub answered 500" in run_refused(capsys, tmp_path, "verify", wav, wav, "--model", "hf:me/mine")
    assert "no such repository" in run_refused(capsys, tmp_path, "info", "hf:me/other")
    for source, words in (
        ("hf:me/mine", "already holds a bundle"),
        ("x:y", "no such file"),
        ("hff:a/b", "'hff' is no known"),
    ):
        assert words in run_refused(capsys, tmp_path, "convert", source, "-o", tmp_path / "b")
    assert "SOURCE and -o BUNDLE are needed" in run_refused(capsys, tmp_path, "convert", f"hf:{NAME}")
    assert "SOURCE and -o BUNDLE are needed" in run_refused(capsys, tmp_path, "convert")


def test_list_shows_the_published_models(capsys):
    result = run(capsys, "convert", "--list")
    assert (result.code, result.err) == (0, "")
    rows = {line.split()[1]: line for line in result.out.splitlines() if len(line.split()) > 2}
    row = rows["modelscope:iic/speech_ecapa-tdnn_sv_en_voxceleb_16k@v1.0.1"]
    assert row.split()[::2] == ["3dspeaker", "ecapa_tdnn.bin", "(VoxCeleb1-O)"]
    assert "0.862 (VoxCeleb1-O)" in row
    listed = run(capsys, "convert", "--list", "--json").json["published"]
    assert json.dumps(listed)
    first = next(entry for entry in listed if entry["address"] == f"hf:{NAME}")
    assert first["licence"] == "Apache-2.0"
    assert [figure["eer"] for figure in first["figures"]] == [0.9, 0.8]
    assert all(entry["address"] in result.out for entry in listed)


def test_list_is_complete_on_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(capsys, "convert", "--list").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    assert all(word in "".join(lines) for word in ("licence", "Apache-", "0.862"))
    start = next(line for line in lines if "address" in line).index("address")
    column = "".join(line[start:].split("  ")[0].strip() for line in lines)
    assert "modelscope:iic/speech_ecapa-tdnn_sv_en_voxceleb_16k@v1.0.1" in column
