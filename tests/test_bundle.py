import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import safetensors.numpy

from ecapa_jax.api import default_bundle
from ecapa_jax.bundle import bundle as bundle_module
from ecapa_jax.bundle import checkpoint
from ecapa_jax.bundle.bundle import FILES, Bundle, load_bundle, read_document, save_bundle
from ecapa_jax.errors import BundleError
from ecapa_jax.scoring.config import Scoring
from helpers.bundles import contents, make
from helpers.checkpoints import CONFIG, SB_CONFIG
from helpers.privileges import unprivileged
from helpers.trees import assert_same, assert_same_leaves


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_bundle(make(), tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture
def bundle_copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "bundle")


def test_save_and_load_preserve_every_part(saved):
    loaded, given = load_bundle(saved), make()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded.variables))
    assert_same_leaves(jax.tree.map(np.asarray, loaded.variables), given.variables)
    for field in ("config", "scoring", "provenance", "operating_points", "parity", "source"):
        assert getattr(loaded, field) == getattr(given, field)
    assert_same(loaded.embedding_mean, given.embedding_mean)
    extra = safetensors.numpy.load_file(saved / "source_extra.safetensors")
    assert_same_leaves(extra, {name: np.array(array, order="C") for name, array in given.source_extra.items()})


def test_bundle_has_every_file_with_default_permissions(saved):
    assert {path.name for path in saved.iterdir()} == FILES
    for path in (saved, *saved.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    assert set(read_document(saved)["checkpoint"]) == {
        path.relative_to(saved / "checkpoint").as_posix()
        for path in (saved / "checkpoint").rglob("*")
        if path.is_file()
    }


def test_bundle_contains_no_local_paths(saved):
    folder = saved.parent
    for path in contents(saved):
        data = (saved / path).read_bytes()
        for secret in (folder.parent.name, str(folder), str(Path.home()), str(Path.cwd())):
            assert secret.encode() not in data, path


def test_bundle_without_optional_parts_has_only_required_files(tmp_path):
    save_bundle(Bundle(config=CONFIG, variables=make().variables), tmp_path / "b")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"model.json", "checkpoint", "README.md"}
    loaded = load_bundle(tmp_path / "b")
    assert (loaded.embedding_mean, loaded.scoring, loaded.operating_points) == (None, Scoring(), [])
    assert (loaded.parity, loaded.source, loaded.provenance) == ({}, {}, {})


def test_float16_kernels_load_as_float32(tmp_path, saved):
    def to_float16(leaf):
        return leaf.astype(np.float16) if leaf.ndim == 3 else leaf

    given = jax.tree.map(to_float16, make().variables)
    save_bundle(make(variables=given), tmp_path / "b")
    loaded = load_bundle(tmp_path / "b").variables
    assert_same_leaves(jax.tree.map(np.asarray, loaded), jax.tree.map(lambda leaf: leaf.astype(np.float32), given))
    size = [sum(map(len, contents(path / "checkpoint").values())) for path in (tmp_path / "b", saved)]
    assert size[0] < 0.8 * size[1]


def test_moved_bundle_loads(bundle_copy, monkeypatch):
    moved = bundle_copy.rename(bundle_copy.with_name("elsewhere"))
    monkeypatch.chdir(moved)
    assert_same_leaves(jax.tree.map(np.asarray, load_bundle(".").variables), make().variables)


def test_existing_bundle_is_replaced_only_with_force(bundle_copy):
    before = contents(bundle_copy)
    with pytest.raises(BundleError, match="exists: choose another output or pass --force"):
        save_bundle(make(1), bundle_copy)
    assert contents(bundle_copy) == before
    save_bundle(make(1), bundle_copy, force=True)
    assert_same_leaves(jax.tree.map(np.asarray, load_bundle(bundle_copy).variables), make(1).variables)
    assert os.listdir(bundle_copy.parent) == ["bundle"]


@pytest.mark.parametrize("kind", ["file", "folder", "bundle with more in it", "dangling link"])
def test_target_that_is_not_a_bundle_is_never_replaced(tmp_path, bundle_copy, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("precious")
    elif kind == "folder":
        (target / "thesis").mkdir(parents=True)
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        bundle_copy.rename(target)
        (target / "notes.txt").write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(BundleError, match=r"is not a bundle|notes.txt, which does not belong") as error:
        save_bundle(make(), target, force=True)
    assert str(error.value).startswith(str(target))
    with pytest.raises(BundleError, match="exists"):
        save_bundle(make(), target)
    assert contents(tmp_path) == before


def test_force_replaces_an_empty_folder_and_a_partial_bundle(tmp_path, bundle_copy):
    (tmp_path / "empty").mkdir()
    shutil.rmtree(bundle_copy / "checkpoint")
    (bundle_copy / "model.json").write_text("")
    for target in (tmp_path / "empty", bundle_copy):
        assert load_bundle(save_bundle(make(), target, force=True)).config == CONFIG


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Stop(), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["weights", "card", "first rename", "second rename"])
def test_failed_save_keeps_the_old_bundle(bundle_copy, monkeypatch, step, error):
    before, calls, rename = contents(bundle_copy.parent), [], Path.rename

    def fail(*_):
        raise error

    def fail_at(path, target):
        calls.append(path)
        if len(calls) == (1 if step == "first rename" else 2):
            raise error
        return rename(path, target)

    if step == "weights":
        monkeypatch.setattr(bundle_module, "save_variables", fail)
    elif step == "card":
        monkeypatch.setattr(bundle_module, "write_card", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail_at)
    expected_error = BundleError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected_error) as caught:
        save_bundle(make(1), bundle_copy, force=True)
    if expected_error is BundleError:
        assert str(caught.value) == f"{bundle_copy} can't be written: No space left on device"
    monkeypatch.undo()
    assert contents(bundle_copy.parent) == before
    assert load_bundle(bundle_copy).config == CONFIG


def test_full_disk_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 30, free=3_100_000))
    with pytest.raises(BundleError) as error:
        checkpoint.save_variables(tmp_path / "c", {"params": {"x": np.zeros(1 << 20, np.float32)}})
    needs = f"4.2 MB are needed, 3.1 MB are free in {tmp_path}"
    assert str(error.value) == f"the weights can't be written (No space left on device: {needs})"
    assert os.listdir(tmp_path) == []


def test_failed_write_leaves_no_files(tmp_path):
    """Orbax keeps writing after the first error: all thirty arrays are above the size limit of the process."""
    code = (
        "import resource, sys, time; from pathlib import Path; import numpy as np\n"
        "from ecapa_jax.errors import BundleError; from ecapa_jax.bundle.checkpoint import save_variables\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))\n"
        "for turn in range(4):\n"
        "  try: save_variables(Path(sys.argv[1]), {f'x{i}': np.random.rand(1 << 14) for i in range(30)})\n"
        "  except BundleError as error: print(error)\n"
        "  time.sleep(0.3)"
    )
    command = [sys.executable, "-c", code, tmp_path / "c"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.count("the weights can't be written (") == done.stdout.count("\n") == 4
    assert os.listdir(tmp_path) == []


def test_folder_without_write_permission_is_reported():
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o555)
        save_bundle(make(), stack.enter_context(tempfile.TemporaryDirectory()) + "/warm")  # imports everything
        with unprivileged(), pytest.raises(BundleError) as error:
            save_bundle(make(), folder / "b")
        assert str(error.value) == f"{folder / 'b'} can't be written: Permission denied ({folder})"
        assert os.listdir(folder) == []
        folder.chmod(0o755)


DEVICES = """\
import os, sys
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ecapa_jax.bundle.bundle import Bundle, load_bundle, save_bundle
import dataclasses
mesh = Mesh(np.asarray(jax.devices()), ("data",))
assert mesh.size == int(sys.argv[1])
bundle = load_bundle(sys.argv[2], NamedSharding(mesh, PartitionSpec()))
assert all(len(leaf.sharding.device_set) == mesh.size for leaf in jax.tree.leaves(bundle.variables))
split = NamedSharding(mesh, PartitionSpec("data"))
variables = jax.tree.map(
    lambda leaf: jax.device_put(leaf, split) if leaf.shape[0] % mesh.size == 0 else leaf, bundle.variables)
save_bundle(dataclasses.replace(bundle, variables=variables), sys.argv[3])
"""


def test_bundle_loads_on_another_number_of_devices(saved, tmp_path):
    source = saved
    for devices in (8, 2):
        target = tmp_path / str(devices)
        command = [sys.executable, "-c", DEVICES, str(devices), source, target]
        subprocess.run(command, check=True, timeout=300)
        loaded = load_bundle(target)
        assert_same_leaves(jax.tree.map(np.asarray, loaded.variables), make().variables)
        assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(loaded.variables))
        source = target


def test_model_card_describes_the_model(saved, tmp_path):
    text = (saved / "README.md").read_text()
    assert text.startswith("# x.bin\n")
    for line in (
        "- network: 16 channels, 3 SE-Res2 blocks, embedding of 192",
        "- front end: 80 mel bands (kaldi, povey), 16000 Hz, channel rule `first`",
        "- threshold: 0.25, accept at this score or above",
        "- scoring: cosine, from -1 to 1",
        "## Published figures",
        "- EER %: 0.9",
        "- note: of another",
        "| 0.2500 | 1.00 | 2.00 |  | dev |",
    ):
        assert f"\n{line}\n" in text
    named = {"name": "Mañana", "notes": ["First.", "Second."]}
    save_bundle(Bundle(config=SB_CONFIG, variables=make().variables, provenance=named), tmp_path / "b")
    text = (tmp_path / "b" / "README.md").read_text("utf-8")
    assert text.startswith("# Mañana\n")
    assert "\n- threshold: none\n" in text
    assert text.endswith("\n\nFirst.\n\nSecond.\n")
    assert not re.search("Published|Operating|Conversion", text)


def test_values_that_json_can_not_represent_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_bundle(make(parity={"error": float("nan")}), tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_packaged_model_has_threshold_and_operating_points():
    bundle = load_bundle(default_bundle())
    assert bundle.scoring.threshold is not None
    assert any(point["threshold"] == bundle.scoring.threshold for point in bundle.operating_points)
    assert dataclasses.asdict(bundle.config)["fbank"]["sample_rate"] == 16000


def test_load_restores_the_log_level_of_orbax(saved):
    import logging

    load_bundle(saved)
    assert not logging.getLogger("absl").disabled
    with pytest.raises(BundleError):
        checkpoint.restore_variables(saved / "nothing", {}, jax.sharding.SingleDeviceSharding(jax.devices()[0]), {})
    assert not logging.getLogger("absl").disabled
