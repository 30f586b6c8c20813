"""Tests of reading checkpoints without Orbax: the arrays are equal, and other layouts are left to Orbax."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.bundle.checkpoint import restore_variables, save_variables
from ecapa_jax.bundle.ocdbt import OtherLayoutError, read_arrays
from ecapa_jax.errors import BundleError
from helpers.bundles import make
from helpers.trees import assert_same_leaves

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
TREE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.float32([np.pi])}, "none": {}}
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int32, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=1)
)


def flatten(tree: dict[str, Any], name: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        below = flatten(value, f"{name}{key}/") if isinstance(value, dict) else {f"{name}{key}": value}
        found.update(below)
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.from_regex(r"[a-z_0-9]{1,8}", fullmatch=True), st.one_of(ARRAYS, st.just({})), min_size=1),
)
def test_saved_tree_is_read_back(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("tree") / "checkpoint"
    save_variables(folder, {"tree": tree})
    found = read_arrays(folder)
    expected = flatten({"tree": tree})
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_bundle_loads_equally_with_and_without_orbax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_bundle(make(), tmp_path / "bundle")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "orbax.checkpoint", None)
        ours = load_bundle(path).variables
    monkeypatch.setattr("ecapa_jax.bundle.checkpoint.read_arrays", lambda path: 1 / 0)
    theirs = load_bundle(path).variables
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert_same_leaves(jax.tree.map(np.asarray, ours), jax.tree.map(np.asarray, theirs))
    assert all(leaf.sharding == HERE for leaf in jax.tree.leaves(ours))


@pytest.mark.parametrize("options", [{"use_zarr3": True}, {"use_ocdbt": False}])
def test_other_layout_is_read_with_orbax(tmp_path: Path, options: dict[str, bool]) -> None:
    folder = tmp_path / "checkpoint"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, ocp.args.PyTreeSave(TREE))
    with pytest.raises(OtherLayoutError):
        read_arrays(folder)
    restored = restore_variables(folder, TREE, HERE, {})
    assert_same_leaves(jax.tree.map(np.asarray, restored), TREE)


def test_list_in_the_tree_is_refused_as_other_layout(tmp_path: Path) -> None:
    save_variables(tmp_path / "checkpoint", {"a": [np.zeros(2)]})
    with pytest.raises(OtherLayoutError):
        read_arrays(tmp_path / "checkpoint")


def test_error_names_missing_arrays_and_wrong_shapes(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    digests = save_variables(folder, TREE)
    for wrong, words in (
        ({**TREE, "b": np.zeros(3)}, r"b is missing, expected \(3,\)"),
        ({"a": TREE["a"], "none": {}, "more": {}}, ""),
        ({"a": {"kernel": TREE["a"]["kernel"]}, "none": {}}, r"a/bias is \(1,\), expected absent"),
        ({"a": {**TREE["a"], "bias": np.zeros(2)}, "none": {}}, r"a/bias is \(1,\), expected \(2,\)"),
    ):
        if words:
            with pytest.raises(BundleError, match=words):
                restore_variables(folder, wrong, HERE, digests)
        else:
            assert jax.tree.structure(restore_variables(folder, wrong, HERE, digests)) == jax.tree.structure(wrong)
