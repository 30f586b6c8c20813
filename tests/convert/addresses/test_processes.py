"""Tests of addresses that several processes resolve, and of processes that are killed."""

import shutil
import time

import pytest

from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.convert import remote
from ecapa_jax.errors import DownloadError
from helpers.addresses import SPEAKERLAB, resolve, resolve_error, start_resolving
from helpers.checkpoints import CONFIG
from helpers.hub_server import Fault


def count_conversions(root):
    try:
        return (root.parent / f"{root.name}.log").read_text().count("converted")
    except FileNotFoundError:
        return 0


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_only_one_of_two_processes_converts(hub, root):
    both = [start_resolving(hub, root, pause=1.0), start_resolving(hub, root, pause=1.0)]
    outputs = [process.communicate(timeout=90) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert count_conversions(root) == 1
    assert outputs[0][0] == outputs[1][0]
    assert len(hub.requests_to("FilePath=ecapa_tdnn.bin")) == 1
    waited = [err for _, err in outputs if "waiting for process" in err]
    assert len(waited) == 1
    assert str(both[1].pid if waited[0] == outputs[0][1] else both[0].pid) in waited[0]
    assert not list(root.glob("*/*.owner.json"))


def test_killed_conversion_leaves_no_partial_bundle(hub, root):
    process = start_resolving(hub, root, pause=60.0)
    wait_until(lambda: count_conversions(root) == 1)
    [half] = [path.with_name(f".{path.name.removesuffix('.lock')}.partial-x") for path in root.glob("bundles/*.lock")]
    half.mkdir()
    with (
        pytest.warns(UserWarning, match=f"waiting for process {process.pid} on "),
        pytest.raises(DownloadError, match=rf"is still being made by process {process.pid} on .* wait for it, or end"),
    ):
        remote.bundle_folder(f"modelscope:{SPEAKERLAB}", cache_dir=root, patience=0.2)
    process.kill()
    process.communicate()
    assert not list(root.glob("bundles/*/model.json"))
    folder = resolve(f"modelscope:{SPEAKERLAB}", root)
    assert load_bundle(folder).config == CONFIG
    assert not half.exists()
    assert len(hub.requests_to("FilePath=ecapa_tdnn.bin")) == 1


def test_killed_download_is_resumed(hub, root):
    size = len(hub.repositories[SPEAKERLAB]["ecapa_tdnn.bin"])
    hub.faults["FilePath=ecapa_tdnn.bin"] = [Fault(cut=size - 1000, slow=30.0)]
    process = start_resolving(hub, root)
    wait_until(lambda: any(path.stat().st_size for path in root.glob("downloads/*/files/.*.partial")))
    process.kill()
    process.communicate()
    assert not list(root.glob("downloads/*/download.json"))
    assert load_bundle(resolve(f"modelscope:{SPEAKERLAB}", root)).config == CONFIG
    assert hub.requests_to("FilePath=ecapa_tdnn.bin")[-1]["Range"].startswith("bytes=")


def test_stale_files_of_an_earlier_attempt_are_removed(hub, root):
    hub.faults["FilePath=ecapa"] = [Fault(status=404)]
    resolve_error(f"modelscope:{SPEAKERLAB}", root)
    [folder] = root.glob("downloads/*.partial/files")
    (folder / "other.bin").write_bytes(b"left")
    (folder / "configuration.json").write_bytes(b"left")
    assert load_bundle(resolve(f"modelscope:{SPEAKERLAB}", root)).config == CONFIG
    [files] = root.glob("downloads/*/files")
    assert sorted(path.name for path in files.iterdir()) == ["configuration.json", "ecapa_tdnn.bin"]
    assert not list(root.glob("downloads/*.partial"))


def test_incomplete_download_is_fetched_again(hub, root):
    resolve(f"modelscope:{SPEAKERLAB}", root)
    [weights] = root.glob("downloads/*/files/ecapa_tdnn.bin")
    weights.write_bytes(b"cut")
    shutil.rmtree(root / "bundles")
    assert load_bundle(resolve(f"modelscope:{SPEAKERLAB}", root)).config == CONFIG
