import dataclasses
import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.convert.rules import invert_rules
from ecapa_jax.convert.run import convert
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from helpers.checkpoints import CONFIG, embedding, modelscope, prefixed, tensors
from helpers.torch_zip_writer import Call, write_torch_zip
from helpers.trees import assert_same, assert_same_leaves
from helpers.weights import random_tensors, small_config, variables_of


def conversion_error(source, **options):
    with pytest.raises(ConversionError) as error:
        convert(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path, content=None):
    write_torch_zip(path, tensors() if content is None else content)
    return path


@pytest.fixture
def bin_file(tmp_path):
    return tmp_path / "ecapa_tdnn.bin"


@pytest.mark.parametrize("name", ["ecapa_tdnn.bin", "ecapa-tdnn.ckpt"])
def test_published_file_names_identify_3dspeaker(tmp_path, name):
    write(tmp_path / name)
    for source in (tmp_path / name, str(tmp_path / name), tmp_path):
        bundle = convert(source)
        assert bundle.config == CONFIG
        assert_same_leaves(bundle.variables, variables_of(CONFIG.ecapa, tensors()))
        assert bundle.provenance["family"] == "3dspeaker"
        assert bundle.provenance["source"] == bundle.source["file"] == name
        assert bundle.scoring.threshold is None
    assert bundle.parity["tensors"] == bundle.parity["tensors_bit_identical"] == 200
    assert bundle.parity["tensors_not_used"] == 31
    assert bundle.parity["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(bundle.variables["params"]))


def test_converted_model_has_the_embedding_of_its_tensors(bin_file):
    bundle = convert(write(bin_file))
    expected = embedding(CONFIG, variables_of(CONFIG.ecapa, tensors()))
    assert np.isfinite(expected).all()
    assert_same(embedding(bundle.config, bundle.variables), expected)


def test_threshold_of_a_modelscope_directory_is_used(tmp_path):
    bundle = convert(modelscope(tmp_path, yesOrno_thr=0.36))
    assert bundle.scoring.threshold == 0.36
    assert convert(modelscope(tmp_path, yesOrno_thr=-1)).scoring.threshold == -1.0
    assert convert(modelscope(tmp_path, yesOrno_thr=None)).scoring.threshold is None
    assert convert(modelscope(tmp_path, type=None, model_config=None)).scoring.threshold == 0.36


def test_modelscope_configuration_may_name_any_file(tmp_path):
    modelscope(tmp_path, name="pretrained.pth")
    assert "give the path of the weight file" in conversion_error(tmp_path)
    assert convert(tmp_path / "pretrained.pth").scoring.threshold == 0.36
    write(tmp_path / "ecapa_tdnn.bin")
    assert convert(tmp_path).scoring.threshold is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "cam++-sv"}, "model type 'cam++-sv' is not supported"),
        ({"type": "rdino_ecapa-tdnn-sv"}, "model type 'rdino_ecapa-tdnn-sv' is not supported"),
        ({"type": 3}, "model type 3 is not supported"),
        ({"model_config": {"sample_rate": 8000}}, "sample_rate 8000 is not supported"),
        ({"model_config": {"sample_rate": "16k"}}, "sample_rate '16k' is not supported"),
        ({"yesOrno_thr": 1.5}, "yesOrno_thr is 1.5"),
        ({"yesOrno_thr": float("nan")}, "yesOrno_thr is nan"),
        ({"yesOrno_thr": "0.3"}, "yesOrno_thr is '0.3'"),
        ({"yesOrno_thr": True}, "yesOrno_thr is True"),
        ({"pretrained_model": None}, "is not a ModelScope configuration (KeyError: 'pretrained_model')"),
    ],
)
def test_modelscope_configuration_of_another_model_is_refused(tmp_path, change, words):
    message = conversion_error(modelscope(tmp_path, **change))
    assert message.startswith(str(tmp_path / "configuration.json"))
    assert words in message


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"model": 3}', '{"model": []}', '{"a": 1}', "[" * 100_000, "\xff"]
)
def test_invalid_modelscope_configuration_is_refused(tmp_path, text):
    modelscope(tmp_path)
    (tmp_path / "configuration.json").write_bytes(text.encode("latin-1"))
    message = conversion_error(tmp_path / "ecapa_tdnn.bin")
    assert f"{tmp_path / 'configuration.json'} is not a ModelScope configuration" in message
    assert len(message) < 400


@pytest.mark.parametrize("name", ["embedding_model.ckpt", "model.pt", "avg_model.pt", "x"])
def test_ambiguous_file_name_needs_the_family(tmp_path, name):
    write(tmp_path / name)
    families = ("3dspeaker", "speechbrain", "mvector")
    assert all(f"--family {family}" in conversion_error(tmp_path / name) for family in families)
    for family in families:
        bundle = convert(tmp_path / name, family=family)
        assert bundle.provenance["family"] == family
        assert bundle.config.fbank == PRESETS[family].fbank
        assert bundle.config.ecapa == CONFIG.ecapa
    assert f"unknown family 'other'; known: {', '.join(FAMILIES)}" in conversion_error(tmp_path / name, family="other")
    assert "its tensors have the layout of 3dspeaker or" in conversion_error(tmp_path / name, family="nemo")
    assert ", not of wespeaker" in conversion_error(tmp_path / name, family="wespeaker")


def test_family_option_overrides_the_file_name(bin_file):
    assert convert(write(bin_file), family="speechbrain").provenance["family"] == "speechbrain"


def test_directories_without_exactly_one_known_file_are_refused(tmp_path):
    assert "no such file or directory" in conversion_error(tmp_path / "missing")
    assert "none of the known weight files (ecapa_tdnn.bin, ecapa-tdnn.ckpt, " in conversion_error(tmp_path)
    for name in ("ecapa_tdnn.bin", "embedding_model.ckpt"):
        write(tmp_path / name)
    assert "several weight files (ecapa_tdnn.bin, embedding_model.ckpt): give the path of the" in conversion_error(
        tmp_path
    )


CLASSIFIER = np.ones((5, 192), np.float32)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_convert_without_loss(bin_file, dtype):
    content = {
        name: tensor.astype(ml_dtypes.bfloat16 if dtype == np.float64 else dtype).astype(dtype)
        if tensor.dtype == np.float32
        else tensor
        for name, tensor in tensors().items()
    }
    bundle = convert(write(bin_file, content))
    widened = {name: tensor.astype(np.float32) for name, tensor in content.items()}
    assert_same_leaves(bundle.variables, variables_of(CONFIG.ecapa, widened))
    assert bundle.source["tensors"]["fc.conv.bias"] == {"dtype": np.dtype(dtype).name, "shape": [192]}


def test_doubles_that_float32_can_not_represent_are_refused(bin_file):
    content = {**tensors(), "fc.conv.bias": np.full(192, 0.1)}
    assert "fc.conv.bias (float64) has values that float32 can't" in conversion_error(write(bin_file, content))


def test_safetensors_convert(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(prefixed("module.", tensors()), path)
    bundle = convert(path, family="3dspeaker")
    assert_same_leaves(bundle.variables, variables_of(CONFIG.ecapa, tensors()))
    assert bundle.source["format"] == "safetensors"


@pytest.mark.parametrize(
    ("change", "dilations"),
    [
        ({"channels": (16,) * 3, "kernel_sizes": (5, 3, 3), "dilations": (2, 5), "mfa_kernel_size": 3}, (2, 5)),
        (
            {"channels": (24, 16, 16, 16, 16, 16), "kernel_sizes": (3, 5, 3, 3, 3, 1), "dilations": (1, 2, 3, 4, 5)},
            (1, 2, 3, 4, 5),
        ),
        (
            {"global_context": False, "res2_scale": 4, "embedding_dim": 40, "n_mels": 60, "dilations": (2, 3, 5)},
            (2, 3, 5),
        ),
    ],
)
def test_other_architectures_convert(bin_file, change, dilations):
    config = dataclasses.replace(small_config(width=16).ecapa, **change)
    content = random_tensors(config)
    write(bin_file, content)
    if len(dilations) != 3:
        assert "tensors don't show dilations, so pass" in conversion_error(bin_file)
    bundle = convert(bin_file, dilations=dilations)
    assert bundle.config.ecapa == config
    assert bundle.config.fbank.n_mels == config.n_mels
    assert_same_leaves(bundle.variables, variables_of(config, content))
    assert "has 9 SE" not in conversion_error(bin_file, dilations=(1,) * 9)


def test_shapes_of_no_network_are_refused(bin_file):
    content = tensors()
    for block in (1, 2, 3):
        for name in [name for name in content if name.startswith(f"blocks.{block}.res2net_block.")]:
            content[name] = np.ones((3, 3, 3)[: content[name].ndim], np.float32)
    assert "its shapes don't describe a valid network: EcapaConfig: block channels" in conversion_error(
        write(bin_file, content)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("blocks.2.se_block.conv1.conv.bias"), "missing tensor blocks.2.se_block.conv1.conv.bias"),
        (lambda t: t.update(stray=np.ones((2, 3, 5), np.float32)), "unexpected tensor stray (2, 3, 5)"),
        (lambda t: t.update({"fc.conv.weight": t["fc.conv.weight"].T}), "fc.conv.weight has shape (1, 96, 192), expe"),
        (lambda t: t.update({"fc.conv.bias": t["fc.conv.bias"] * np.nan}), "fc.conv.bias holds NaN"),
    ],
)
def test_error_names_the_damaged_checkpoint(bin_file, change, words):
    content = tensors()
    change(content)
    message = conversion_error(write(bin_file, content))
    assert message.startswith(f"{bin_file}: the checkpoint does not fit: ")
    assert words in message


@pytest.mark.parametrize("place", ["value", "beside"])
def test_code_in_a_pickle_is_not_executed(tmp_path, bin_file, place):
    sentinel = tmp_path / "ran"
    call = Call("os", "system", (f"touch {sentinel}",))
    content = call if place == "value" else {**tensors(), "extra": call}
    assert "names os.system, which plain weights don't need, and none of it was run" in conversion_error(
        write(bin_file, content)
    )
    assert not sentinel.exists()


def test_published_figures_are_stored_for_the_published_network_only(tmp_path, monkeypatch):
    # The test treats the small network as the published one.
    bundle = convert(write(tmp_path / "ecapa_tdnn.bin"))
    assert not {"published", "licence"} & bundle.provenance.keys()
    monkeypatch.setitem(PRESETS, "3dspeaker", CONFIG)
    published = convert(tmp_path / "ecapa_tdnn.bin").provenance["published"]
    assert published["VoxCeleb1-O EER %"] == 0.862
    assert "sha256 of this file was not checked" in published["note"]
    # The figures do not apply to the file of another corpus, or to any other file of that shape.
    assert "published" not in convert(write(tmp_path / "ecapa-tdnn.ckpt")).provenance
    assert "published" not in convert(write(tmp_path / "model.pt"), family="3dspeaker").provenance


def test_bundle_stores_what_the_export_to_the_source_needs(tmp_path, bin_file):
    content = {
        **prefixed("module.", tensors()),
        "module.loss.half": np.array([[1, 2]], ml_dtypes.bfloat16),
        "module.loss.empty": np.zeros((0, 3), np.float16),
        "module.loss.flag": np.array(True),
    }
    save_bundle(convert(write(bin_file, content)), tmp_path / "bundle")
    source = json.loads((tmp_path / "bundle" / "source.json").read_text())
    extra = safetensors.numpy.load_file(tmp_path / "bundle" / "source_extra.safetensors")
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.source == source
    rules = FAMILIES["3dspeaker"].rules(loaded.config.ecapa)
    back = {source["prefix"] + name: tensor for name, tensor in invert_rules(rules, loaded.variables).items()} | extra
    assert_same({name: back[name] for name in source["tensors"]}, content)


def test_conversion_does_not_import_torch(tmp_path, bin_file):
    write(bin_file)
    code = (
        "import sys; sys.modules['torch'] = None; from ecapa_jax.convert.run import convert; "
        f"print(convert({str(bin_file)!r}).parity['tensors_bit_identical'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert (done.stdout, done.stderr) == ("200\n", "")


def test_conversion_does_not_change_the_source(bin_file):
    write(bin_file)
    before = bin_file.read_bytes()
    convert(bin_file)
    assert bin_file.read_bytes() == before
    assert [path.name for path in bin_file.parent.iterdir()] == ["ecapa_tdnn.bin"]
