"""Tests of export: the written tensors equal those of the source, and other programs compute the same scores."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.export
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
import soundfile

from ecapa_jax import functional
from ecapa_jax.bundle.bundle import Bundle, load_bundle, save_bundle
from ecapa_jax.convert import parity
from ecapa_jax.convert.export import SourceTensors, source_tensors, write_safetensors, write_torch
from ecapa_jax.convert.export_stablehlo import FILES, export_stablehlo
from ecapa_jax.convert.readers.checkpoint import find_tensors, read_checkpoint
from ecapa_jax.convert.rules import flatten, invert_rules
from ecapa_jax.convert.run import convert
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.convert.torch_writer import STORAGES, write_torch_zip
from ecapa_jax.errors import BundleError, ConversionError
from helpers.bundles import contents, make
from helpers.checkpoints import CONFIG, embedding, modelscope, prefixed, tensors
from helpers.cli import run, run_refused
from helpers.sounds import RATE, sound
from helpers.torch_zip_writer import write_torch_zip as write_foreign
from helpers.trees import assert_same, assert_same_leaves
from helpers.weights import small_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    """Disables the run-time type checks of the tests, because symbolic sizes are not integers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def round_trip(tmp_path: Path, content: object, **options: Any) -> tuple[object, SourceTensors]:
    """Converts a source, saves the bundle, exports it, and returns the contents of the written file."""
    write_foreign(tmp_path / "ecapa_tdnn.bin", content)
    bundle = save_bundle(convert(tmp_path / "ecapa_tdnn.bin", **options), tmp_path / "bundle")
    source = source_tensors(bundle)
    write_torch(tmp_path / "out.bin", source)
    return read_checkpoint(tmp_path / "out.bin").content, source


def to_half_precision(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rounds floats to bfloat16 values, stored as bfloat16 in kernels and as float16 in biases if they fit."""
    kinds = {"weight": ml_dtypes.bfloat16, "bias": np.float64}
    return {
        name: value.astype(ml_dtypes.bfloat16).astype(kinds.get(name.split(".")[-1], np.float32))
        if value.dtype == np.float32
        else value
        for name, value in content.items()
    }


@pytest.mark.parametrize(
    ("content", "wrapper"),
    [
        (tensors(), ""),
        (dict(reversed(tensors().items())), ""),
        (prefixed("module.", tensors()) | {"module.classifier.weight": np.ones((9, 192), np.float32)}, ""),
        ({"state_dict": prefixed("model.", tensors()), "epoch": 3}, "state_dict"),
        (to_half_precision(tensors()), ""),
    ],
    ids=["bare", "another order", "prefix and classifier", "wrapper", "dtypes"],
)
def test_round_trip_is_bit_identical(tmp_path, content, wrapper):
    """Names, order, dtypes, shapes and bits are equal; of a wrapper, only the tensors are compared."""
    expected = content[wrapper] if wrapper else content
    written, source = round_trip(tmp_path, content)
    found, where = find_tensors(written)
    assert where == wrapper
    assert source.as_source
    assert_same(dict(found), expected)
    write_safetensors(tmp_path / "out.safetensors", source)
    again = read_checkpoint(tmp_path / "out.safetensors")
    assert again.format == "safetensors"
    assert_same_leaves(dict(again.content), expected)


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_writer_supports_every_dtype_and_shape(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 2, 24).astype(dtype)
    content = {
        "scalar": values[:1].reshape(()),
        "strided": values.reshape(2, 3, 4).transpose(2, 0, 1),
        "empty": np.empty((0, 3), dtype),
        "Ψ": values,
    }
    write_torch_zip(tmp_path / "x.pt", content)
    assert_same(
        dict(read_checkpoint(tmp_path / "x.pt").content),
        {k: np.ascontiguousarray(v).reshape(v.shape) for k, v in content.items()},
    )
    write_torch_zip(tmp_path / "y.pt", content)
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "y.pt").read_bytes()


def test_model_without_a_source_is_exported_in_the_layout_of_3dspeaker(tmp_path):
    bundle = save_bundle(make(source={}, source_extra={}, provenance={}), tmp_path / "bundle")
    source = source_tensors(bundle)
    assert (source.family, source.as_source) == ("3dspeaker", False)
    counters = {name: np.zeros((), np.int64) for name in tensors() if name.endswith("num_batches_tracked")}
    assert_same_leaves(source.tensors, tensors() | counters)
    write_torch(tmp_path / "ecapa_tdnn.bin", source)
    again = convert(tmp_path / "ecapa_tdnn.bin")
    assert_same(embedding(again.config, again.variables), embedding(CONFIG, make().variables))


def test_layout_that_does_not_fit_the_model_is_refused(tmp_path):
    bundle = save_bundle(make(), tmp_path / "bundle")
    with pytest.raises(ConversionError, match=r"SpeechBrain has a different front end \(channel is mean, but"):
        source_tensors(bundle, "speechbrain")
    with pytest.raises(ConversionError, match="unknown family 'nobody'"):
        source_tensors(bundle, "nobody")
    zeros = small_config(width=16, padding="zeros")
    other = save_bundle(Bundle(config=zeros, variables=make().variables), tmp_path / "other")
    with pytest.raises(
        ConversionError, match=r"3D-Speaker / ModelScope has a different network \(padding is reflect, but"
    ):
        source_tensors(other)
    summed = small_config(width=16, mfa_norm=False)
    variables = functional.init(summed, jax.random.key(0))
    other = save_bundle(Bundle(config=summed, variables=variables), tmp_path / "third")
    with pytest.raises(ConversionError, match="no layout for this network"):
        source_tensors(other)


def test_source_of_other_weights_is_refused(tmp_path):
    bundle = save_bundle(convert(modelscope(tmp_path / "published")), tmp_path / "bundle")
    document = json.loads((bundle / "source.json").read_text())
    first = next(iter(document["tensors"]))
    for change in ({first: {"dtype": "float32", "shape": [1]}}, {"further": {"dtype": "float32", "shape": [1]}}):
        changed = {**document, "tensors": {**document["tensors"], **change}}
        (bundle / "source.json").write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=next(iter(change))):
            source_tensors(bundle)


def test_nemo_archive_is_written_if_the_source_was_one(tmp_path):
    config = "sample_rate: 16000\n"
    content = {"encoder.x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    source = SourceTensors(family="nemo", tensors=content, inside={"model_config.yaml": config})
    write_torch(tmp_path / "a.nemo", source)
    with tarfile.open(tmp_path / "a.nemo") as archive:
        assert archive.getnames() == ["./model_config.yaml", "./model_weights.ckpt"]
        weights = archive.extractfile("./model_weights.ckpt").read()
    read = read_checkpoint(tmp_path / "a.nemo")
    assert read.format == "nemo"
    assert read.inside["model_config.yaml"] == config.encode()
    assert_same(dict(read.content), content)
    (tmp_path / "weights.ckpt").write_bytes(weights)
    assert_same(dict(read_checkpoint(tmp_path / "weights.ckpt").content), content)


def test_rules_of_every_family_invert_on_disk(tmp_path):
    """Inverts the rules for random variables of a small network, writes and reads the file, and compares."""
    from ecapa_jax.presets import PRESETS

    for name, family in FAMILIES.items():
        preset = PRESETS[family.published[0].preset if family.published else name]
        network = preset.ecapa
        small = dataclasses.replace(network, channels=(16,) * len(network.channels), mfa_channels=48)
        config = dataclasses.replace(preset, ecapa=small)
        variables = jax.tree.map(np.asarray, functional.init(config, jax.random.key(1)))
        found = invert_rules(family.rules(small), variables)
        write_torch_zip(tmp_path / f"{name}.pt", found)
        assert_same(dict(read_checkpoint(tmp_path / f"{name}.pt").content), found)
        assert len(found) == len(flatten(variables))


@pytest.mark.usefixtures("no_type_checks")
def test_stablehlo_example_scores_without_this_library(capsys, tmp_path):
    """One file serves every batch and length. The example runs it in a process that can't import ecapa_jax."""
    pytest.importorskip("flatbuffers", reason="jax.export serializes with flatbuffers (pip install ecapa-jax[export])")
    bundle, out = save_bundle(make(), tmp_path / "bundle"), tmp_path / "exported"
    result = run(capsys, "export", bundle, "--to", "stablehlo", "-o", out, "--json")
    assert (result.code, result.json["platforms"]) == (0, "cpu, cuda, tpu")
    assert {path.name for path in out.iterdir()} == FILES
    embed = jax.export.deserialize(bytearray((out / "embed.jax_export").read_bytes()))
    assert set(embed.platforms) == {"cpu", "cuda", "tpu"}
    model = load_bundle(bundle)
    ours = jax.jit(functional.embed, static_argnums=0)
    for lengths in ([1040], [16000, 9000, 1040]):
        waveforms = np.random.default_rng(1).standard_normal((len(lengths), max(lengths))).astype(np.float32)
        counts = np.array(lengths, np.int32)
        theirs, expected = embed.call(waveforms, counts), ours(model.config, model.variables, waveforms, counts)
        np.testing.assert_allclose(theirs, expected, atol=1e-5 * np.abs(expected).max())
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path, samples in zip(paths, (sound(0.7), sound(1.1)[::-1]), strict=True):
        soundfile.write(path, samples, RATE, subtype="FLOAT")
    blocked = (
        "import runpy, sys; sys.modules['ecapa_jax'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert [name for name in sys.modules if name.startswith('ecapa')] == ['ecapa_jax']"
    )
    script = ROOT / "examples" / "score_stablehlo.py"
    assert len(script.read_text().splitlines()) <= 20
    done = subprocess.run(
        [sys.executable, "-c", blocked, script, out, *paths], capture_output=True, text=True, timeout=300, check=False,
        cwd=tmp_path, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    batch = np.zeros((2, 17600), np.float32)
    batch[0, :11200], batch[1] = sound(0.7), sound(1.1)[::-1]
    a, b = np.asarray(ours(model.config, model.variables, batch, np.array([11200, 17600], np.int32)))
    score = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert float(done.stdout.split()[1]) == pytest.approx(float(score), abs=1e-4)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_exports_with_symbolic_sizes_for_three_platforms(family):
    """The test runs the exported model only for the family whose front end adds frames."""
    pytest.importorskip("flatbuffers", reason="jax.export serializes with flatbuffers (pip install ecapa-jax[export])")
    config, variables = parity.golden_model(FAMILIES[family])
    artefact, about = export_stablehlo(Bundle(config=config, variables=variables))
    assert about["minimum_samples"] == functional.minimum_samples(config)
    if family == "nemo":
        lengths = np.array([9001, about["minimum_samples"]], np.int32)
        waveforms = np.random.default_rng(1).standard_normal((2, 9001)).astype(np.float32)
        theirs = jax.export.deserialize(bytearray(artefact)).call(waveforms, lengths)
        ours = jax.jit(functional.embed, static_argnums=0)(config, variables, waveforms, lengths)
        np.testing.assert_allclose(theirs, ours, atol=1e-5 * np.abs(ours).max())


def test_failed_export_leaves_no_file(capsys, tmp_path):
    bundle, out = save_bundle(convert(modelscope(tmp_path / "published")), tmp_path / "bundle"), tmp_path / "out.bin"
    result = run(capsys, "export", bundle, "--to", "torch", "-o", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{out}: family 3dspeaker, tensors 231, layout same as the source\n"
    assert "--force" in run_refused(capsys, tmp_path, "export", bundle, "--to", "torch", "-o", out)
    assert run(capsys, "export", bundle, "--to", "safetensors", "-o", out, "--force").code == 0
    assert read_checkpoint(out).format == "safetensors"
    assert "another --family" in run_refused(
        capsys, tmp_path, "export", bundle, "--to", "torch", "-o", out, "--force", "--family", "speechbrain"
    )
    message = run_refused(capsys, tmp_path, "export", bundle, "--to", "torch", "-o", bundle, "--force")
    assert "will not be replaced" in message
    message = run_refused(capsys, tmp_path, "export", bundle, "--to", "stablehlo", "-o", bundle, "--force")
    assert "will not be replaced" in message
    assert "has no such layout" in run_refused(
        capsys, tmp_path, "export", bundle, "--to", "stablehlo", "-o", tmp_path / "x", "--family", "3dspeaker"
    )
    assert "not a bundle" in run_refused(
        capsys, tmp_path, "export", tmp_path / "none", "--to", "torch", "-o", tmp_path / "x"
    )
    assert run(capsys, "export", bundle, "--to", "onnx", "-o", tmp_path / "x").code == 2
    before = contents(tmp_path)
    assert "no folder" in run_refused(capsys, tmp_path, "export", bundle, "--to", "torch", "-o", tmp_path / "no" / "x")
    assert contents(tmp_path) == before


@pytest.mark.peers
@pytest.mark.parametrize("family", ["3dspeaker", "speechbrain"])
def test_torch_and_the_original_class_load_the_export(tmp_path, family):
    """`torch.load(weights_only=True)` and `load_state_dict(strict=True)` accept the file, as the original file."""
    torch = pytest.importorskip("torch")
    from ecapa_jax.convert import live

    if live.available(family) is None:
        pytest.skip(f"the original code of {family} is not installed")
    written, _ = round_trip(tmp_path, tensors(), family=family)
    state = torch.load(tmp_path / "out.bin", weights_only=True)
    assert list(state) == list(written)
    for name, tensor in tensors().items():
        assert state[name].numpy().tobytes() == tensor.tobytes()
        assert tuple(state[name].shape) == tensor.shape
    network = live.network(family, CONFIG.ecapa)
    assert network.load_state_dict(state, strict=True)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    (tmp_path / "again.bin").write_bytes(buffer.getvalue())
    assert_same_leaves(dict(read_checkpoint(tmp_path / "again.bin").content), dict(written))
