import dataclasses
import math

import numpy as np
import pytest

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig
from ecapa_jax.convert.rules import apply_rules, flatten, invert_rules
from ecapa_jax.convert.run import convert
from ecapa_jax.convert.sources import wespeaker
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from helpers import published
from helpers.torch_zip_writer import write_torch_zip
from helpers.trees import assert_same

PRESET = PRESETS["wespeaker-c1024"]
SMALL = dataclasses.replace(PRESET.ecapa, channels=(16,) * 4, mfa_channels=48)
TENSORS = published.random_values(published.wespeaker_shapes(SMALL))


def conversion_error(source, **options):
    with pytest.raises(ConversionError) as error:
        convert(source, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


def test_file_is_recognized_by_its_layout(tmp_path):
    write_torch_zip(tmp_path / "model.pt", TENSORS)
    bundle = convert(tmp_path / "model.pt")
    assert bundle.provenance["family"] == "wespeaker"
    assert bundle.config == dataclasses.replace(PRESET, ecapa=SMALL)
    back = invert_rules(wespeaker.rules(bundle.config.ecapa), bundle.variables)
    assert_same(back, {name: TENSORS[name] for name in back})
    assert back.keys() | bundle.source_extra.keys() == TENSORS.keys()
    assert "the layout of wespeaker, not of 3dspeaker" in conversion_error(tmp_path / "model.pt", family="3dspeaker")


VARIANTS = {
    "no context": ({"global_context": False}, {}),
    "bn2": ({"embedding_norm": True}, {"emb_bn": True}),
    "TSTP": ({"pooling": "mean_std", "global_context": False}, {"pooling_func": "TSTP"}),
    "TAP": ({"pooling": "mean", "global_context": False}, {"pooling_func": "TAP"}),
    "TSDP": ({"pooling": "std", "global_context": False}, {"pooling_func": "TSDP"}),
    "MHASTP": ({"pooling": "multi_head", "global_context": False}, {"pooling_func": "MHASTP"}),
    "MQMHASTP": ({"pooling": "multi_query", "global_context": False}, {"pooling_func": "MQMHASTP"}),
    "XI": ({"pooling": "posterior", "global_context": False}, {"pooling_func": "XI"}),
    "sizes": ({"embedding_dim": 40, "n_mels": 60, "attention_channels": 32, "se_channels": 24, "res2_scale": 4}, {}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_determine_the_pooling_except_single_statistics(tmp_path, name):
    change, arguments = VARIANTS[name]
    config = dataclasses.replace(SMALL, **change)
    tensors = published.random_values(published.wespeaker_shapes(config))
    tensors["bn.num_batches_tracked"] = np.array(2.5, np.float32)  # the counter of an averaged model
    content = {**tensors, "projection.weight": np.ones((6, config.embedding_dim), np.float32)}
    path = tmp_path / "avg_model.pt"
    write_torch_zip(path, {"state_dict": content})
    if config.pooling in ("mean", "std"):
        assert "TAP or TSDP, which have the same tensors" in conversion_error(path)
        base = dataclasses.replace(PRESET.ecapa, pooling=config.pooling, global_context=False)
        assert wespeaker.infer(tensors, base) == config
    else:
        assert convert(path).config.ecapa == config
    document = {**published.wespeaker_document(**arguments), "model": "ECAPA_TDNN_c512"}
    stated, named = wespeaker._read_network(path, document, PRESET.ecapa)
    assert (stated.pooling, stated.embedding_norm, stated.global_context) == (
        config.pooling,
        config.embedding_norm,
        False,
    )
    assert "pooling" in named


def test_published_directory_is_converted_and_checked_against_its_config(tmp_path, monkeypatch):
    # The test treats the small network as the published one.
    monkeypatch.setattr(wespeaker, "MODEL", wespeaker.re.compile(r"ECAPA_TDNN_(GLOB_)?c(16)"))
    document = {**published.wespeaker_document(), "model": "ECAPA_TDNN_GLOB_c16"}
    assert convert(published.wespeaker(tmp_path, TENSORS, document)).config.ecapa == SMALL
    other = {**published.wespeaker_document(embed_dim=256), "model": "ECAPA_TDNN_c16"}
    message = conversion_error(published.wespeaker(tmp_path, TENSORS, other))
    assert (
        "config.yaml describes another network: model gives global_context False, but the tensors give True" in message
    )
    assert "embed_dim gives embedding_dim 256, but the tensors give 192" in message
    run = tmp_path / "exp"
    run.mkdir()
    published.wespeaker(run / "models", TENSORS)
    (run / "config.yaml").write_text("model: 3")
    assert f"{run / 'config.yaml'}: it names no model" in conversion_error(run / "models")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "ResNet34"}, "model ResNet34 is not supported"),
        ({"model_args": {"pooling_func": "ASP"}}, "pooling_func 'ASP' is not supported; supported: ASTP, TAP"),
        ({"model_args": {"feat_dim": "80"}}, "num_mel_bins is 80, but feat_dim is '80'"),
        ({"model_args": {"emb_bn": 1}}, "emb_bn is 1, not of type bool"),
        ({"model_args": [1]}, "model_args is [1], not a mapping"),
        ({"dataset_args": {"frontend": "s3prl"}}, "frontend 's3prl' is not supported"),
        ({"dataset_args": {"resample_rate": 8000}}, "resample_rate 8000 is not supported"),
        ({"dataset_args": {"cmvn": False}}, "cmvn False is not supported"),
        ({"dataset_args": {"cmvn_args": {"norm_var": True}}}, "norm_var True is not supported"),
        ({"dataset_args": {"fbank_args": {"frame_shift": 5}}}, "frame_shift 5 is not supported"),
        ({"dataset_args": {"fbank_args": {"window_type": "povey"}}}, "window_type, which this converter does not"),
    ],
)
def test_config_of_an_unsupported_model_is_refused(tmp_path, change, words):
    document = {**published.wespeaker_document(), **change}
    message = conversion_error(published.wespeaker(tmp_path, TENSORS, document))
    assert message.startswith(f"{tmp_path / 'config.yaml'}: ")
    assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "is not YAML"),
        ("- 1", "names no model"),
        ("model: !!python/object/apply:os.system [true]", "is not YAML"),
        ("model: &a [*a]", "names no model"),
        ("[" * 100_000, "is not YAML"),
        ("x" * 300_000, "larger than 256 kB"),
        ("\xff\x00".encode("latin-1").decode("latin-1"), "is not YAML"),
        ("model: x\ndate: 2001-99-99", "is not YAML"),
        ("? {a: 1}\n: b", "is not YAML"),
    ],
)
def test_invalid_config_is_refused(tmp_path, text, words):
    message = conversion_error(published.wespeaker(tmp_path, TENSORS, text))
    assert message.startswith(f"{tmp_path / 'config.yaml'}: ")
    assert words in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("layer3.se_res2block.1.bns.2.bias"), "missing tensor layer3.se_res2block.1.bns.2.bias"),
        (lambda t: t.update({"pool.linear3.weight": np.ones(2)}), "unexpected tensor pool.linear3.weight"),
        (
            lambda t: t.update({"linear.weight": t["linear.weight"][:, :3]}),
            "linear.weight has shape (192, 3), expected (192, 96)",
        ),
        (lambda t: [t.pop(n) for n in list(t) if n.startswith("layer4.")], "has 2 SE-Res2 blocks"),
    ],
)
def test_error_names_the_damaged_checkpoint(tmp_path, change, words):
    content = dict(TENSORS)
    change(content)
    write_torch_zip(tmp_path / "avg_model.pt", content)
    assert words in conversion_error(tmp_path)


@pytest.mark.parametrize(
    ("changes", "total"),
    [
        ({"channels": (512,) * 4}, 6_190_720),
        ({"channels": (512,) * 4, "global_context": False}, 5_797_504),
        ({"channels": (512,) * 4, "embedding_norm": True}, 6_190_720 + 384),
        ({}, 14_657_088),
    ],
)
def test_published_models_have_the_published_parameter_counts(changes: dict, total: int):
    config = dataclasses.replace(PRESET.ecapa, **changes)
    assert count_parameters(config) == total
    shapes = published.wespeaker_shapes(config)
    assert sum(math.prod(shape) for name, shape in shapes.items() if "running" not in name) == total
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert wespeaker.infer(empty, PRESET.ecapa) == config
    table = wespeaker.rules(config)
    assert {rule.source for rule in table} == shapes.keys()


def count_parameters(config: EcapaConfig) -> int:
    model = dataclasses.replace(PRESET, ecapa=config)
    return sum(math.prod(leaf.shape) for leaf in flatten(functional.abstract(model)["params"]).values())


def test_every_tensor_fills_its_leaf():
    shapes = functional.abstract(dataclasses.replace(PRESET, ecapa=SMALL))
    variables, skipped = apply_rules(wespeaker.rules(SMALL), wespeaker.FAMILY.ignored, TENSORS, shapes)
    assert len(skipped) == 29
    assert_same(variables["params"]["projection"]["kernel"][0], np.ascontiguousarray(TENSORS["linear.weight"].T))
    assert variables["params"]["block_0"]["se"]["squeeze"]["kernel"].shape == (1, 16, 128)
