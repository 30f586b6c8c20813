"""Tests of plans for TPUs: analysis of a program's text, and the TPU compiler if it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ecapa_jax.train.scale.hlo import Traffic, count_products, find_collectives, traffic
from ecapa_jax.train.scale.plan import CHIPS, Program, times
from helpers.cli import run

HLO = """
  %a = bf16[8,298,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,64]{1,0} parameter(1)
  %c = f32[64,64]{1,0} parameter(2)
  %convolution.1 = f32[8,298,64]{2,1,0} convolution(%a, %b), dim_labels=bf_io->bf
  %dot.7 = f32[8,298,64]{2,1,0} dot(%a, %c), lhs_contracting_dims={2}
  ROOT %dot.8 = f32[64,64]{1,0} dot(%c, %c), lhs_contracting_dims={1}
  %all-reduce.3 = (f32[64]{0}, f32[3,8]{1,0}) all-reduce(%x, %y), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %all-gather-start.1 = (f32[4,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%e), replica_groups=[4,2]<=[8], dimensions={0}
  %all-gather-done.1 = f32[8,16]{1,0} all-gather-done(%all-gather-start.1)
  %reduce-scatter.2 = bf16[2,16]{1,0} reduce-scatter(%g), replica_groups=[2,4]<=[8], dimensions={0}
  %all-reduce.9 = f32[] all-reduce(%z), replica_groups={}, to_apply=%max
"""


def test_messages_are_read_from_a_program():
    assert list(find_collectives(HLO)) == [
        ("all-reduce", (64,), 256, 4),
        ("all-reduce", (3, 8), 96, 4),
        ("all-gather", (8, 16), 512, 2),
        ("reduce-scatter", (2, 16), 256, 4),
        ("all-reduce", (), 4, 1),
    ]
    assert traffic(HLO, 8) == (
        Traffic("all-gather", 2, 1, 512),
        Traffic("all-reduce", 4, 1, 352),
        Traffic("all-reduce", 8, 1, 4),
        Traffic("reduce-scatter", 4, 1, 256),
    )


def test_products_are_distinguished_by_their_operand_dtypes():
    assert count_products(HLO) == {"bfloat16": 1, "mixed": 1, "float32": 1}


def test_step_time_is_the_maximum_of_products_and_memory_plus_links():
    sent = Traffic("all-reduce", 4, 2, 400_000_000)
    assert sent.seconds(200e9) == pytest.approx(2 * 400e6 * 0.75 / 200e9 + 2 * 2 * 2e-6)
    program = Program(64, 4, 0, 0, 0, 197e9, 819e6, (sent,), {})
    found = times(program, CHIPS["v5e"], "bfloat16")
    assert (found.products, found.memory, found.links) == pytest.approx((1e-3, 1e-3, 3.008e-3))
    assert found.step == pytest.approx(4.008e-3)
    assert times(program, CHIPS["v5e"], "float32").products == pytest.approx(6e-3)
    assert times(program, CHIPS["v5e"], "float32").step == pytest.approx(9.008e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "smoke", "--topology", "v5e:2x4"), "give --speakers N or --set data.manifest=M"),
        (("plan", "smoke", "--topology", "v9:1", "--speakers", "9"), "kinds: v4, v5e, v5p, v6e"),
        (("plan", "smoke", "--topology", "v5e:2x4", "--speakers", "1"), "needs two or more"),
    ],
)
def test_invalid_plans_are_reported(capsys, arguments, words):
    result = run(capsys, *arguments)
    assert result.code == 2
    assert words in result.err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is installed")
def test_error_without_the_compiler_says_what_to_install(capsys):
    result = run(capsys, "plan", "smoke", "--topology", "v5e:2x4", "--speakers", "9")
    assert result.code == 2
    assert "pip install 'ecapa-jax[tpu]'" in result.err


def run_plan(*arguments: str) -> Any:
    command = [sys.executable, "-m", "ecapa_jax.cli.main", "plan", "smoke", "--speakers", "1001", "--json", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: ecapa-jax[tpu]")
def test_tpu_compiler_plans_a_step():
    """The plan has eight chips, the classifier on two, bfloat16 products, and room for twice the batch."""
    changes = ("mesh.model=2", "step.dtype=bfloat16", "data.batch_size=64")
    plan = run_plan("--topology", "v5e:2x4", *(part for change in changes for part in ("--set", change)), "--quick")
    assert (plan["chips"], plan["mesh"]) == (8, {"data": 4, "model": 2})
    assert plan["memory"]["arguments"] + plan["memory"]["temporaries"] <= plan["memory"]["total"] * 1.01
    assert plan["memory"]["total"] < plan["memory"]["available"]
    assert plan["products"]["bfloat16"] >= 20
    kinds = {(kind["kind"], kind["group"]) for kind in plan["collectives"]}
    assert {("all-gather", 2), ("reduce-scatter", 2), ("all-reduce", 8)} <= kinds
    gathered = sum(kind["n_bytes"] for kind in plan["collectives"] if kind["kind"] == "all-gather")
    assert gathered < 1001 * 192 * 4  # the classifier is not gathered
    alone = run_plan("--topology", "v5e:1x1", "--quick")
    assert (alone["chips"], alone["collectives"]) == (1, [])
    refused = run_plan("--topology", "v5e:2x4", "--set", "mesh.model=3")
    assert refused.returncode == 2
    assert "8 chips can't be divided by mesh.model 3" in refused.stderr
