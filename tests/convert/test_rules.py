import dataclasses
import itertools
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax import functional
from ecapa_jax.config import EcapaConfig, ModelConfig
from ecapa_jax.convert.ops import CONV1D, IDENTITY, LINEAR
from ecapa_jax.convert.rules import (
    MOST_REPORTED,
    Rule,
    apply_rules,
    conv,
    flatten,
    invert_rules,
    move_tensors,
    norm,
    unflatten,
)
from ecapa_jax.convert.sources import FAMILIES, sb_layout
from ecapa_jax.errors import ConversionError
from ecapa_jax.presets import PRESETS
from helpers.trees import assert_same
from helpers.weights import random_tensors, small_config, variables_of

SMALL = small_config(width=16, se_channels=12, attention_channels=10, embedding_dim=24, n_mels=40).ecapa


def abstract_variables(config):
    fbank = dataclasses.replace(PRESETS["3dspeaker"].fbank, n_mels=config.n_mels)
    return functional.abstract(ModelConfig(fbank=fbank, ecapa=config))


def fill_variables(config, tensors):
    return apply_rules(sb_layout.rules(config), sb_layout.IGNORED, tensors, abstract_variables(config))


def infer_and_fill(tensors, dilations=(2, 3, 4)):
    """Infers the network from the shapes of a checkpoint, and fills its variables, as the converter does."""
    blocks = len(dilations)
    base = dataclasses.replace(
        PRESETS["3dspeaker"].ecapa,
        channels=(1024,) * (blocks + 1),
        kernel_sizes=(5, *[3] * blocks),
        dilations=dilations,
    )
    config = sb_layout.infer(tensors, base)
    return config, fill_variables(config, tensors)[0]


def conversion_error(tensors, dilations=(2, 3, 4)):
    with pytest.raises(ConversionError) as error:
        infer_and_fill(tensors, dilations)
    return str(error.value)


@st.composite
def architectures(draw):
    """Draws the fields of a network: all that SpeechBrain's class supports, and different widths of the blocks.

    The strategy returns fields instead of a config, because a config's run-time type checks draw random numbers.
    """
    blocks, scale = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 4, 8]))
    kernel = st.sampled_from([1, 3, 5])
    return {
        "n_mels": draw(st.integers(5, 100)),
        "channels": (draw(st.integers(1, 40)), *(scale * draw(st.integers(1, 5)) for _ in range(blocks))),
        # A block with one chunk has no convolution from which the kernel size can be read.
        "kernel_sizes": (draw(kernel), *(draw(kernel) if scale > 1 else 3 for _ in range(blocks))),
        "dilations": tuple(draw(st.integers(1, 6)) for _ in range(blocks)),
        "res2_scale": scale,
        "se_channels": draw(st.integers(1, 20)),
        "attention_channels": draw(st.integers(1, 20)),
        "mfa_channels": draw(st.integers(14, 60)),
        "mfa_kernel_size": draw(kernel),
        "embedding_dim": draw(st.integers(1, 50)),
        "global_context": draw(st.booleans()),
    }


@settings(deadline=None, max_examples=10)
@given(architectures(), st.integers(0, 99))
def test_rules_cover_every_leaf_and_invert_bit_for_bit(fields, seed):
    config = EcapaConfig(**fields)
    table, shapes = sb_layout.rules(config), flatten(abstract_variables(config))
    assert sorted(rule.target for rule in table) == sorted(shapes)
    assert len({rule.source for rule in table}) == len(table)
    tensors = random_tensors(config, seed)
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert {rule.source for rule in table} == tensors.keys() - counters
    variables, skipped = fill_variables(config, tensors)
    assert set(skipped) == counters
    assert jax.tree.structure(variables) == jax.tree.structure(abstract_variables(config))
    assert_same(flatten(variables), {name: flatten(variables_of(config, tensors))[name] for name in flatten(variables)})
    assert all(
        abstract_leaf.dtype == np.float32 and abstract_leaf.flags.c_contiguous
        for abstract_leaf in flatten(variables).values()
    )
    restored = invert_rules(table, variables)
    assert_same(restored, {name: tensors[name] for name in restored})
    # The shapes determine the network except for its dilations.
    assert infer_and_fill(tensors, config.dilations)[0] == config


def test_published_models_have_the_published_parameter_counts():
    counts = {}
    for width, mfa, dim in ((1024, 3072, 192), (512, 1536, 192), (1024, 3072, 512)):
        config = EcapaConfig(channels=(width,) * 4, mfa_channels=mfa, embedding_dim=dim)
        counts[width, dim] = sum(
            math.prod(abstract_leaf.shape) for abstract_leaf in flatten(abstract_variables(config)["params"]).values()
        )
    assert counts == {(1024, 192): 20_767_552, (512, 192): 6_194_048, (1024, 512): 22_733_952}
    assert len(sb_layout.rules(EcapaConfig())) == 200


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_float_dtype_inverts_bit_for_bit(dtype):
    halves = np.float16 if dtype == np.float16 else ml_dtypes.bfloat16
    tensors = {
        name: tensor.astype(halves).astype(dtype) if tensor.dtype == np.float32 else tensor
        for name, tensor in random_tensors(SMALL).items()
    }
    # These are the smallest and largest values and both zeros.
    limits = ml_dtypes.finfo(halves)
    tensors["fc.conv.bias"][:5] = [limits.smallest_subnormal, -0.0, 0.0, limits.max, -limits.tiny]
    _, variables = infer_and_fill(tensors)
    for name, tensor in invert_rules(sb_layout.rules(SMALL), variables).items():
        assert tensor.dtype == np.float32
        assert tensor.astype(dtype).tobytes() == tensors[name].tobytes()


def test_inverse_operations_restore_the_array():
    a = np.arange(24.0).reshape(2, 3, 4)
    for op in (IDENTITY, CONV1D):
        assert_same(op.inverse(op.forward(a)), a)
    assert CONV1D.forward(a).shape == (4, 3, 2)
    assert (CONV1D.forward(a)[1, 2] == a[:, 2, 1]).all()
    assert_same(LINEAR.inverse(LINEAR.forward(a[0])), a[0])
    assert LINEAR.forward(a[0]).shape == (1, 4, 3)
    assert (LINEAR.forward(a[0])[0, 2] == a[0, :, 2]).all()


def test_unflatten_inverts_flatten():
    tree = {"params": {"a": {"kernel": 1, "bias": 2}, "b": 3}, "batch_stats": {"a": {"mean": 4}}}
    leaves = flatten(tree)
    assert leaves == {"params/a/kernel": 1, "params/a/bias": 2, "params/b": 3, "batch_stats/a/mean": 4}
    assert unflatten(leaves) == tree
    assert flatten({"constants": {}}) == {}


def abstract_leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def test_all_errors_are_reported_in_one_message():
    table = [*conv("c", "conv"), *norm("n", "norm"), *conv("e", "extra")]
    table += [Rule(source="n.bias", target="params/norm/bias", op=IDENTITY)]
    shapes = {
        "params": {
            "conv": {"kernel": abstract_leaf(3, 2, 4), "bias": abstract_leaf(4)},
            "norm": {"scale": abstract_leaf(4), "bias": abstract_leaf(4)},
        },
        "batch_stats": {
            "norm": {"mean": abstract_leaf(4), "var": abstract_leaf(4)},
            "other": {"mean": abstract_leaf(4)},
        },
        "constants": {},
    }
    tensors = {
        "c.weight": np.zeros((4, 3, 2), np.float32),
        "n.weight": np.array([1, 2, np.nan, 4], np.float32),
        "n.bias": np.zeros(4, np.int32),
        "n.running_mean": np.zeros((4, 1), np.float32),
        "n.running_var": np.array([1, 1, -1e-9, 1], np.float32),
        "n.num_batches_tracked": np.array(3),
        "e.weight": np.zeros((1, 1, 1), np.float32),
        "stray": np.zeros(2, np.float32),
    }
    with pytest.raises(ConversionError) as error:
        apply_rules(table, [r".*\.num_batches_tracked"], tensors, shapes)
    message = str(error.value)
    for part in (
        "unexpected tensor stray (2,)",
        "tensor n.bias used twice",
        "params/norm/bias filled twice",
        "no rule for unknown target params/extra/kernel",
        "target batch_stats/other/mean not filled",
        "c.weight has shape (4, 3, 2), expected (4, 2, 3)",
        "missing tensor c.bias",
        "n.weight holds NaN",
        "n.bias has dtype int32, expected a float",
        "n.running_mean has shape (4, 1), expected (4,)",
        "(and 2 more)",
    ):
        assert part in message
    assert "\n" not in message
    assert message.count(";") == MOST_REPORTED - 1


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mfa.conv.conv.weight", lambda a: a[..., 0], "has shape (48, 48), expected (48, 48, 1)"),
        ("fc.conv.bias", lambda a: a[:, None], "has shape (24, 1), expected (24,)"),
        ("asp_bn.norm.bias", lambda a: a.astype(np.int64), "has dtype int64, expected a float"),
        ("asp_bn.norm.bias", lambda a: a > 0, "has dtype bool, expected a float"),
        ("asp_bn.norm.bias", lambda a: a.astype(np.complex64), "has dtype complex64, expected a float"),
        ("blocks.0.norm.norm.bias", lambda a: np.where(a == a.max(), np.inf, a), "holds NaN, infinity"),
        (
            "blocks.0.norm.norm.bias",
            lambda a: a.astype(np.float64) * 1e300,
            "holds NaN, infinity or values that float32 can't",
        ),
        ("mfa.norm.norm.running_var", lambda a: -a, "holds a negative variance"),
        ("mfa.norm.norm.running_var", lambda a: a.astype(ml_dtypes.bfloat16) * -1, "holds a negative variance"),
        ("mfa.norm.norm.running_mean", lambda a: a * np.float32(np.nan), "holds NaN"),
    ],
)
def test_error_names_the_invalid_tensor(name, change, words):
    tensors = random_tensors(SMALL)
    assert f": {name} {words}" in conversion_error({**tensors, name: change(tensors[name])})


def test_error_names_each_missing_tensor():
    tensors = random_tensors(SMALL)
    for name in tensors:
        left = {other: tensor for other, tensor in tensors.items() if other != name}
        if name.endswith("num_batches_tracked"):
            assert infer_and_fill(left)[0] == SMALL
        else:
            assert conversion_error(left).endswith(f": missing tensor {name}")


def test_error_names_each_transposed_tensor():
    tensors = random_tensors(SMALL)
    n_refused = 0
    for name, tensor in tensors.items():
        for axes in itertools.permutations(range(tensor.ndim)):
            if tensor.transpose(axes).shape != tensor.shape:
                assert f"{name} has shape {tensor.transpose(axes).shape}, expected" in conversion_error(
                    {**tensors, name: tensor.transpose(axes)}
                )
                n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize(
    "name",
    [
        "stray",
        "blocks.4.tdnn1.conv.conv.weight",
        "blocks.1.res2net_block.blocks.7.conv.conv.weight",
        "blocks.2.shortcut.conv.weight",
        "blocks.0.conv.conv.weight_g",
        "mfa.conv.conv.weight.num_batches_tracked_",
    ],
)
def test_error_names_an_extra_tensor(name):
    extra = np.ones((16, 16, 1), np.float32)
    assert conversion_error({**random_tensors(SMALL), name: extra}).endswith(f": unexpected tensor {name} (16, 16, 1)")


def test_error_names_missing_blocks():
    tensors = {name: tensor for name, tensor in random_tensors(SMALL).items() if name.startswith(("mfa", "asp", "fc"))}
    message = conversion_error(tensors)
    assert "missing tensor blocks.0.conv.conv.weight" in message
    assert "more)" in message


@pytest.mark.parametrize("blocks", [1, 2, 4, 5])
def test_other_block_counts_need_dilations(blocks):
    config = dataclasses.replace(
        SMALL, channels=(16,) * (blocks + 1), kernel_sizes=(5, *[3] * blocks), dilations=(2,) * blocks
    )
    tensors = random_tensors(config)
    assert f"pass {blocks} of them, such as --dilations {','.join('23456'[:blocks])}" in conversion_error(tensors)
    assert infer_and_fill(tensors, (2,) * blocks)[0] == config


def test_signature_of_every_family_is_consistent():
    for name, family in FAMILIES.items():
        assert family.name == name
        for model in family.published:
            assert model.file in family.files
            assert PRESETS[model.preset]
            names = {rule.source for rule in family.rules(PRESETS[model.preset].ecapa)}
            assert set(family.signature) <= names
            # `find_network` treats the text before any family's signature as the prefix of a wrapper.
            for part in {part for other in FAMILIES.values() for part in other.signature}:
                ends = sum(f".{other}".endswith(f".{part}") for other in names)
                assert ends == (part in family.signature)


def test_move_tensors_removes_used_tensors():
    tensors = random_tensors(SMALL)
    given, table = dict(tensors), sb_layout.rules(SMALL)
    variables = move_tensors(table, given, abstract_variables(SMALL))
    assert given.keys() == tensors.keys() - {rule.source for rule in table}
    for abstract_leaf in flatten(variables).values():
        assert abstract_leaf.ctypes.data % 64 == 0  # JAX would copy unaligned arrays
        assert not any(np.shares_memory(abstract_leaf, tensor) for tensor in tensors.values())


@pytest.mark.parametrize("value", [1 + 2.0**-40, 1e-300, 3e-46])
def test_error_names_the_tensor_that_float32_would_round(value):
    tensors = {name: tensor.astype(np.float64) for name, tensor in random_tensors(SMALL).items()}
    tensors["fc.conv.bias"][3] = value
    with pytest.raises(ConversionError, match=r"fc\.conv\.bias \(float64\) has values that float32 can't"):
        move_tensors(sb_layout.rules(SMALL), tensors, abstract_variables(SMALL))
