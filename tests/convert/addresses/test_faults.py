"""Tests of addresses with missing files, unsafe names, wrong digests, faulty servers and full disks."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.convert import published
from ecapa_jax.hub import huggingface, repository
from helpers.addresses import (
    POLICY,
    SPEAKERLAB,
    SPEECHBRAIN,
    resolve,
    resolve_error,
    resolve_error_keeping_cache,
    start_resolving,
)
from helpers.bundles import contents
from helpers.checkpoints import CONFIG
from helpers.hub_server import COMMIT, Fault, serving
from helpers.privileges import unprivileged


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf:me/none", "holds no model that this version knows (it holds: README.md)"),
        ("modelscope:me/none", "holds no model that this version knows (it holds: README.md)"),
        ("hf:me/missing", "there is no such repository, or it is private"),
        ("modelscope:me/missing", "the server answered 404"),
        ("hf:me/bundle@v9", "it has no revision v9"),
        ("modelscope:me/bundle@v9", "the server answered 404"),
    ],
)
def test_missing_repository_model_or_revision_is_reported(hub, root, name, words):
    message = resolve_error(name, root)
    assert words in message
    assert not list(root.glob("downloads/*/download.json"))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "checkpoint/../../x", "checkpoint//x", "checkpoint/a\\b"])
@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_unsafe_file_names_are_refused(hub, root, scheme, name):
    files = {"model.json": b"{}", f"checkpoint/{name}" if name == "../x" else name: b"x"}
    hub.repositories["me/evil"] = files
    if name == "/etc/x":  # not a file of a model, so it is ignored
        assert resolve(f"{scheme}:me/evil", root).is_dir()
        assert not hub.requests_to("/etc/x")
        return
    assert "unsafe name" in resolve_error(f"{scheme}:me/evil", root)


def test_wrong_digest_is_refused(hub, root, monkeypatch):
    name = f"modelscope:{SPEAKERLAB}"
    good = hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]
    hub.faults["FilePath=ecapa"] = [Fault(location=f"{hub.url}/other")]
    hub.plain["/other"] = good[:-1] + b"?"
    assert "was expected" in resolve_error(name, root)
    hub.faults["/resolve/"] = [Fault(location=f"{hub.url}/other")] * 9
    monkeypatch.setattr(huggingface, "listing", _listing_with("0" * 64))
    assert "the hub lists" in resolve_error(f"hf:{SPEECHBRAIN}", root)
    monkeypatch.undo()


def _listing_with(digest):
    return lambda *_: huggingface.Listing(COMMIT, {"embedding_model.ckpt": digest, "hyperparams.yaml": None})


def test_published_digest_is_checked(hub, root, monkeypatch):
    entry = published.find_published(f"modelscope:{SPEAKERLAB}")
    wrong = [published.dataclasses.replace(entry, sha256="0" * 64)]
    monkeypatch.setattr(published, "PUBLISHED", tuple(wrong))
    assert f"the published one is {'0' * 64}" in resolve_error(f"modelscope:{SPEAKERLAB}", root)


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_temporary_faults_are_retried(hub, root, scheme, monkeypatch, capsys):
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "DOWNLOAD_CHUNK_SIZE", 1000)
    name = {"hf": f"hf:{SPEECHBRAIN}", "modelscope": f"modelscope:{SPEAKERLAB}"}[scheme]
    weights = {"hf": "embedding_model.ckpt", "modelscope": "FilePath=ecapa_tdnn.bin"}[scheme]
    listing = {"hf": "/api/models/", "modelscope": "/repo/files"}[scheme]
    hub.faults = {
        listing: [Fault(status=503), Fault(status=429, headers={"Retry-After": "0"})],
        weights: [Fault(cut=20_000), Fault(status=429, headers={"Retry-After": "0"})],
    }
    assert load_bundle(resolve(name, root)).config.ecapa == CONFIG.ecapa
    assert "bytes=20000-" in [headers.get("Range", headers.get("range")) for headers in hub.requests_to(weights)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("scheme", ["hf", "modelscope"])
def test_permanent_faults_are_reported(hub, root, scheme):
    name = {"hf": f"hf:{SPEECHBRAIN}", "modelscope": f"modelscope:{SPEAKERLAB}"}[scheme]
    listing = {"hf": "/api/models/", "modelscope": "/repo/files"}[scheme]
    hub.faults[listing] = [Fault(status=503)] * 3
    message = resolve_error(name, root)
    assert "503" in message
    assert "tried 3 times" in message
    hub.faults[listing] = [Fault(status=429, headers={"Retry-After": "999"})]
    assert "it asks to wait 999 s" in resolve_error(name, root)


@pytest.mark.parametrize(
    "document",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"Code": 10010, "Message": "no\\nway"}',
        b'{"Code": 200, "Data": {"Files": [{"Path": "ecapa_tdnn.bin", "Size": "1"}]}}',
    ],
)
def test_invalid_listing_is_refused(hub, root, document):
    hub.faults["/repo/files"] = [Fault(location="/x")]
    hub.plain["/x"] = document
    message = resolve_error(f"modelscope:{SPEAKERLAB}", root)
    assert "is no JSON" in message or "of an unknown form" in message or "ModelScope says" in message


def test_cached_model_is_used_without_a_network(root, monkeypatch, hub):
    name = f"modelscope:{SPEAKERLAB}"
    kept = resolve(name, root)
    for scheme in ("hf", "modelscope"):
        nowhere = repository.Hubs(modelscope="http://127.0.0.1:1", huggingface="http://127.0.0.1:1", policy=POLICY)
        monkeypatch.setattr(repository, "HUBS", nowhere)
        assert "can't be reached" in resolve_error_keeping_cache(f"{scheme}:me/bundle", root)
    assert resolve(name, root) == kept  # the cached model needs no network
    (kept / "model.json").unlink()
    assert load_bundle(resolve(name, root)).config == CONFIG  # converted again from the cached download


def test_missing_huggingface_hub_is_reported(hub, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = resolve_error("hf:me/bundle", root)
    assert message.endswith("hf: addresses need huggingface_hub: pip install 'ecapa-jax[hub]'")


def test_offline_mode_uses_only_cached_models(hub, root, monkeypatch):
    kept = resolve("hf:me/bundle", root)
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    importlib.import_module("huggingface_hub").close_session()
    assert resolve("hf:me/bundle", root) == kept
    assert "is set to offline, and this was not fetched before" in resolve_error(f"hf:{SPEECHBRAIN}", root)
    monkeypatch.undo()
    importlib.import_module("huggingface_hub").close_session()


@pytest.mark.parametrize("how", ["offline", "unreachable"])
@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_hugging_face_cache_is_used_without_a_network(hub, root, tmp_path, monkeypatch, how, revision):
    constants = importlib.import_module("huggingface_hub.constants")
    cached = tmp_path / "models--me--cached"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    for name, content in hub.repositories["me/bundle"].items():
        path = cached / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        nowhere = repository.Hubs(modelscope="http://127.0.0.1:1", huggingface="http://127.0.0.1:1", policy=POLICY)
        monkeypatch.setattr(repository, "HUBS", nowhere)
    importlib.import_module("huggingface_hub").close_session()
    folder = resolve(f"hf:me/cached{revision}", root)
    assert load_bundle(folder).config == CONFIG
    assert not (folder / "extra").exists()
    (cached / "snapshots" / COMMIT / "model.json").unlink()
    assert "Hugging Face's cache has only a part of it" in resolve_error_keeping_cache(
        f"hf:me/cached{revision}", root / "other"
    )
    assert not hub.requests
    monkeypatch.undo()
    importlib.import_module("huggingface_hub").close_session()


@pytest.fixture
def small_disk(tmp_path):
    """A disk with half of the space that the checkpoint needs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", [f"hf:{SPEECHBRAIN}", f"modelscope:{SPEAKERLAB}"])
def test_full_disk_is_reported_and_download_resumes(hub, small_disk, name):
    assert len(hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]) > 300_000
    message = resolve_error(name, small_disk)
    assert "can't be written: No space left on device; make room and run again" in message
    assert str(small_disk) in message
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert load_bundle(resolve(name, small_disk)).config.ecapa == CONFIG.ecapa


def test_disk_that_fills_up_during_conversion_is_reported(hub, small_disk):
    size = len(hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"]) // 1000 + 100
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_disk)], check=True)
    process = start_resolving(hub, small_disk)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    [line] = [line for line in err.splitlines() if line.startswith("ecapa_jax.errors.")]
    assert line.startswith("ecapa_jax.errors.BundleError: the weights can't be written (No space left on device: ")
    assert re.search(r": 0\.\d MB are needed, 0\.\d MB are free in ", line)
    assert "Event loop" not in err
    assert not [path for path in small_disk.glob("bundles/*") if path.is_dir()]
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert load_bundle(resolve(f"modelscope:{SPEAKERLAB}", small_disk)).config == CONFIG


def test_tokens_are_sent_to_the_hub_only(hub, root, monkeypatch):
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_TOKEN_PATH", os.devnull)
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    with serving() as other:
        other.url = other.url.replace("127.0.0.1", "localhost")
        weights = hub.repositories[SPEECHBRAIN]["embedding_model.ckpt"]
        other.plain["/cdn"] = weights
        hub.faults["embedding_model.ckpt"] = [Fault(location=f"{other.url}/cdn")]
        assert load_bundle(resolve(f"hf:{SPEECHBRAIN}", root)).config.ecapa == CONFIG.ecapa
        assert "secretsecret" in str(hub.requests)
        assert other.requests_to("/cdn")
        assert "secretsecret" not in str(other.requests)
    hub.faults["/api/models/"] = [Fault(status=401)] * 3
    assert "secretsecret" not in resolve_error_keeping_cache("hf:me/bundle", root)
    assert not any(b"secretsecret" in content for content in contents(root).values())


def test_cache_that_can_not_be_written(hub, tmp_path, root):
    kept = resolve(f"modelscope:{SPEAKERLAB}", root)
    tmp_path.chmod(0o755)
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for above in list(tmp_path.parents)[:3]:
        above.chmod(above.stat().st_mode | 0o055)
    with unprivileged():
        assert resolve(f"modelscope:{SPEAKERLAB}", root) == kept
        message = resolve_error_keeping_cache("hf:me/bundle", root)
    assert message.startswith(f"the cache {root / 'downloads'} can't be written: Permission denied; pass cache_dir")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
