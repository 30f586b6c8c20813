import numpy as np
import pytest

from ecapa_jax.convert.run import convert
from ecapa_jax.errors import ConversionError
from helpers.checkpoints import CONFIG, prefixed, tensors
from helpers.torch_zip_writer import write_torch_zip
from helpers.trees import assert_same, assert_same_leaves
from helpers.weights import variables_of


def conversion_error(source, **options):
    with pytest.raises(ConversionError) as error:
        convert(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path, content):
    write_torch_zip(path, content)
    return path


@pytest.fixture
def bin_file(tmp_path):
    return tmp_path / "ecapa_tdnn.bin"


CLASSIFIER = np.ones((5, 192), np.float32)


@pytest.mark.parametrize(
    ("wrap", "wrapper", "prefix"),
    [
        (lambda t: t, "", ""),
        (lambda t: {**t, "classifier.weight": CLASSIFIER, "projection.weight": CLASSIFIER}, "", ""),
        (lambda t: prefixed("module.", t), "", "module."),
        (lambda t: prefixed("model.", t) | {"classifier.weight": CLASSIFIER}, "", "model."),
        (lambda t: prefixed("model.", t) | {"model.classifier.weight": CLASSIFIER}, "", "model."),
        (lambda t: prefixed("embedding_model.", t) | {"classifier.weight": CLASSIFIER}, "", "embedding_model."),
        (lambda t: prefixed("_orig_mod.module.", t), "", "_orig_mod.module."),
        (lambda t: prefixed("speaker_encoder.", t), "", "speaker_encoder."),
        (lambda t: prefixed("0.", t) | {"loss.weight": CLASSIFIER}, "", "0."),
        (
            lambda t: prefixed("mods.embedding_model.", t) | {"mods.classifier.weight": CLASSIFIER},
            "",
            "mods.embedding_model.",
        ),
        (lambda t: {"state_dict": t, "epoch": 3, "name": "x"}, "state_dict", ""),
        (lambda t: {"model": prefixed("module.", t), "optimizer": {"state": {0: CLASSIFIER}}}, "model", "module."),
        (lambda t: {"model_state_dict": t, "best": 0.5}, "model_state_dict", ""),
        (lambda t: {"embedding_model": t, "classifier": {"weight": CLASSIFIER}}, "embedding_model", ""),
        (
            lambda t: {"state_dict": prefixed("model.embedding_model.", t) | {"model.loss.weight": CLASSIFIER}},
            "state_dict",
            "model.embedding_model.",
        ),
    ],
)
def test_network_is_found_inside_wrappers_and_prefixes(bin_file, wrap, wrapper, prefix):
    content = wrap(tensors())
    bundle = convert(write(bin_file, content))
    assert_same_leaves(bundle.variables, variables_of(CONFIG.ecapa, tensors()))
    assert (bundle.source["wrapper"], bundle.source["prefix"]) == (wrapper, prefix)
    named = content[wrapper] if wrapper else content
    assert bundle.source["tensors"].keys() == {name for name, value in named.items() if isinstance(value, np.ndarray)}
    used = {name for name in named if name.startswith(prefix) and name.removeprefix(prefix) in tensors()}
    counters = {name for name in used if name.endswith("num_batches_tracked")}
    assert bundle.source_extra.keys() == (bundle.source["tensors"].keys() - used) | counters
    for name, tensor in bundle.source_extra.items():
        assert_same(tensor, named[name])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"dec.weight": CLASSIFIER[:, :80]}, "unexpected tensor dec.weight (5, 80)"),
        (
            prefixed("model.", tensors()) | {"vocoder.weight": CLASSIFIER[:, :80]},
            "tensor vocoder.weight (5, 80) beside",
        ),
        (prefixed("a.", tensors()) | prefixed("b.", tensors()), "several networks (a.*, b.*)"),
        (tensors() | prefixed("ema.", tensors()), "several networks (*, ema.*)"),
        ({"model": [tensors()]}, "has no dict of tensors"),
        ({"epoch": 3}, "has no dict of tensors"),
        ({"w": CLASSIFIER, "b\nb": CLASSIFIER}, r"this version knows (its tensors: w, 'b\nb', ...)"),
    ],
)
def test_content_without_exactly_one_network_is_refused(bin_file, content, words):
    content = tensors() | content if "dec.weight" in content else content
    message = conversion_error(write(bin_file, content))
    assert message.startswith(f"{bin_file}: ")
    assert words in message


OTHERS = {
    "a ResNet": ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "seg_1.weight"],
    "a CAM++": ["head.conv1.weight", "head.layer1.0.conv1.weight", "xvector.tdnn.linear.weight"],
    "an ERes2Net": ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.convs.0.weight", "seg_1.weight"],
    "lawlict's ECAPA-TDNN": ["layer1.conv.weight", "layer2.0.conv.weight", "layer2.1.convs.0.weight"],
    "Qwen's speaker encoder": [
        f"speaker_encoder.{name}.weight" for name in ("blocks.0.conv", "blocks.1.tdnn1.conv", "mfa.conv", "fc")
    ],
}


@pytest.mark.parametrize("what", OTHERS)
def test_error_names_the_other_network(tmp_path, what):
    # The file name has no influence, and the error comes before the question for a family.
    path = write(tmp_path / "model.pt", {name: np.ones((2, 2, 1), np.float32) for name in OTHERS[what]})
    assert conversion_error(path).startswith(f"{path}: this is {what}")
    assert conversion_error(path, family="3dspeaker").startswith(f"{path}: this is {what}")


@pytest.mark.peers
@pytest.mark.parametrize(
    ("module", "name", "what"),
    [
        ("campplus.DTDNN", "CAMPPlus", "a CAM++"),
        ("eres2net.ERes2Net", "ERes2Net", "an ERes2Net"),
        ("eres2net.ERes2NetV2", "ERes2NetV2", "an ERes2Net"),
        ("res2net.Res2Net", "Res2Net", "an ERes2Net or Res2Net"),
        ("resnet.ResNet", "ResNet", "a ResNet"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_other_networks_of_3dspeaker_are_refused(tmp_path, module, name, what):
    torch = pytest.importorskip("torch")
    network = getattr(pytest.importorskip(f"speakerlab.models.{module}"), name)()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert conversion_error(tmp_path / "model.pt").startswith(f"{tmp_path / 'model.pt'}: this is {what}")
