"""Tests of the operation counts and reports of `make bench`."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.speed import plot, tables, turns
from benchmarks.speed.work import network_flops
from ecapa_jax import functional
from helpers.weights import small_config

FRAMES = 100


@pytest.mark.parametrize("width", [64, 128])
def test_operation_count_is_close_to_xla(width: int) -> None:
    """XLA also counts the operations between the products, whose share falls with the width; here it is below 5 %."""
    config = small_config(width=width)
    features = jax.ShapeDtypeStruct((1, FRAMES, 80), np.float32)
    mask = jax.ShapeDtypeStruct((1, FRAMES), bool)
    apply = jax.jit(lambda variables, x, mask: functional.apply(config.ecapa, variables, x, mask)[0])
    counted = apply.lower(functional.abstract(config), features, mask).cost_analysis()["flops"]
    more = counted / network_flops(config.ecapa, FRAMES) - 1
    print(f"C = {width}: XLA counts {more:.2%} more")
    assert 0 <= more <= 0.05


@pytest.mark.peers
def test_operation_count_equals_pytorch() -> None:
    """The counts are equal, except that PyTorch's attention repeats mean and deviation for every frame."""
    torch = pytest.importorskip("torch")
    counter = pytest.importorskip("torch.utils.flop_counter")
    speakerlab = pytest.importorskip("speakerlab.models.ecapa_tdnn.ECAPA_TDNN")
    ecapa = small_config(width=64).ecapa
    network = speakerlab.ECAPA_TDNN(80, channels=[*ecapa.channels, ecapa.mfa_channels], lin_neurons=192).eval()
    with torch.inference_mode(), counter.FlopCounterMode(display=False) as counted:
        network(torch.zeros(1, FRAMES, 80))
    repeated = 2 * (FRAMES - 1) * 2 * ecapa.mfa_channels * ecapa.attention_channels
    assert counted.get_total_flops() == network_flops(ecapa, FRAMES) + repeated


def test_turns_rotate_and_slow_calls_are_not_warmed_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(turns, "PAUSE", 0.0)
    monkeypatch.setattr(turns, "time_call", lambda call: call() or 1.0)
    jobs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = turns.time_in_turns(jobs, seconds=3.0)
    assert {name: len(every) for name, every in times.items()} == dict.fromkeys("abc", turns.FEWEST)
    assert "".join(calls) == "abc" + "bca" + "cab"
    calls.clear()
    times = turns.time_in_turns(jobs, seconds=1000.0)
    assert {name: len(every) for name, every in times.items()} == dict.fromkeys("abc", turns.MOST)
    assert len(calls) == 3 * (1 + turns.MOST)
    assert {calls.count(name) for name in "abc"} == {1 + turns.MOST}


def test_ratios_are_computed_per_turn() -> None:
    """A turn in which the machine was busy does not change the ratios."""
    assert turns.times_as_fast([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 2.0


def _figures(median: float, than_ours: float, than_eager: float, gap: float | None) -> dict[str, Any]:
    return {
        "times": [median],
        "median": median,
        "than_ours": than_ours,
        "than_eager": than_eager,
        "gflops": 5.0 / median,
        "hours": 3 / median / 2,
        "gap": gap,
    }


RESULTS: dict[str, Any] = {
    "date": "2026-01-31",
    "machine": "a processor",
    "cores": 2,
    "versions": {"jax": "0.10.2", "torch": "2.13.0"},
    "notes": {"OpenVINO float32": "RuntimeError: no"},
    "peaks": {"float32": {"jax": 200.0, "torch": 250.0}, "bfloat16": {"jax": 1000.0, "torch": 900.0}},
    "grid": [
        {
            "width": width, "batch": 1, "seconds": seconds, "kind": kind,
            "engines": {
                "ours": _figures(0.025, 1.0, 4.0, 0.0),
                "torch": _figures(0.1, 0.25, 1.0, 1e-6),
                **({"flaxspeaker": _figures(0.05, 0.5, 2.0, None)} if kind == "network" else {}),
            },
        }
        for kind, width, seconds in itertools.product(("embed", "network"), (512, 1024), (1.0, 3.0))
    ],
    "features": [{"seconds": 3.0, "engines": {"ours": {"median": 0.001, "than_ours": 1.0, "gap": 0.0},
                                              "native": {"median": 0.002, "than_ours": 0.5, "gap": 1e-4}}}],
    "memory": [{"engine": "torch", "kind": "embed", "width": 1024, "batch": 16, "seconds": 3.0,
                "loaded_mib": 400.2, "peak_mib": 900.7}],
    "start_up": [{"model": "C = 1024", "median": {"ours": 2.0, "speechbrain": 5.0}, "than_speechbrain": 2.5}],
    "files": [{"dtype": "float32", "width": 1024, "files": 200, "audio_seconds": 2200.0, "padding": 0.06,
               "median": {"embed": 52.0, "bare": 50.0}, "share": 0.96, "gap": 1e-6}],
}  # fmt: skip


def test_report_has_times_and_ratios() -> None:
    text = tables.markdown(RESULTS)
    lines = text.splitlines()
    assert "| 1024 | 1 | 3 | 25.0 | 100 | 50.0 |" in lines  # network time in ms
    assert "| 1024 | 1 | 3 | 4.00x | 1.00x |" in lines  # waveform to embedding, which has no column for FlaxSpeaker
    assert "| ecapa-jax float32 | 25.0 | 4.00x | 1.00x | 60.0 | 200 | 80% | 0e+00 |" in lines
    assert "| FlaxSpeaker's ECAPA | 50.0 | 2.00x | 0.50x | 30.0 | 100 | 40% | - |" in lines
    assert "C = 1024, one recording of 3 s:" in lines
    assert not any(line.startswith("C = 512") for line in lines)  # only the widest network is shown in full
    assert "| 3 | kaldi-native-fbank | 2.00 | 2.00x | 1e-04 |" in lines
    assert "| 3D-Speaker, PyTorch eager | waveform to embedding | 16 | 3 | 400 | 901 |" in lines
    assert "| C = 1024 | 2.00 | 5.00 | 2.50x |" in lines
    assert "| float32 | 1024 | 200 | 2200 | 6% | 52.0 | 50.0 | 96% | 1e-06 |" in lines
    assert lines[-1] == "- OpenVINO float32: RuntimeError: no"


def test_table_rows_have_as_many_cells_as_the_header() -> None:
    """Checks every table of the report."""
    for block in tables.markdown(RESULTS).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_report_of_incomplete_results() -> None:
    """Cells of failed engines have a dash, and parts that were not run are omitted."""
    results = copy.deepcopy({**RESULTS, "features": [], "memory": [], "start_up": [], "files": [], "notes": {}})
    del results["grid"][0]["engines"]["torch"]
    results["grid"][0]["engines"]["ours"]["than_eager"] = None
    text = tables.markdown(results)
    assert "| 512 | 1 | 1 | 25.0 | - |" in text
    assert "| 512 | 1 | 1 | - | - |" in text
    for absent in ("Features alone", "Peak memory", "Start-up", "Files", "Not measured"):
        assert f"### {absent}" not in text


def test_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = copy.deepcopy(RESULTS)
    for found in results["grid"][0]["engines"].values():
        found["than_eager"] = None  # PyTorch failed in this cell
    plot.draw(results, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    for row in results["grid"]:
        del row["engines"]["torch"]
    with pytest.raises(ValueError, match="PyTorch eager"):
        plot.draw(results, tmp_path / "other.png")
