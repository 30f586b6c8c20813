"""Tests of the memory that converting a full-size checkpoint needs; benchmarks/convert.py measures time."""

import sys

import pytest

from ecapa_jax.api import load
from ecapa_jax.convert import parity
from ecapa_jax.presets import PRESETS
from helpers.footprint import measure_footprint
from helpers.torch_zip_writer import write_torch_zip
from helpers.weights import random_tensors

MOST, MOST_WITH_EMITTERS = 2.5, 4.5
"""The largest allowed ratio of peak memory (above that of the process after its imports) to file size.

The second value is for jaxlib 0.12, whose XLA needs the fusion emitters; compiling then takes half of the memory.
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_full_size_model_is_in_memory_about_once(tmp_path):
    source = tmp_path / "ecapa_tdnn.bin"
    write_torch_zip(source, random_tensors(PRESETS["3dspeaker"].ecapa))
    found = measure_footprint(source, tmp_path / "bundle")
    size = source.stat().st_size
    assert size > 4 * 20_000_000
    ratio = found["peak_bytes"] / size
    print(f"peak {found['peak_bytes'] / 1e6:.0f} MB above {found['base_bytes'] / 1e6:.0f} MB: {ratio:.2f} x the file")
    most = MOST if "xla_cpu_use_fusion_emitters" in parity._compiler_options() else MOST_WITH_EMITTERS
    assert 1 < ratio < most  # a ratio below one would mean a wrong measurement
    assert not found["torch"]
    assert load(tmp_path / "bundle").config == PRESETS["3dspeaker"]


def test_unknown_xla_options_are_omitted(monkeypatch):
    monkeypatch.setattr(parity, "_CHEAP", {"xla_of_another_version": 1, "xla_backend_optimization_level": 0})
    assert parity._compiler_options.__wrapped__() == {"xla_backend_optimization_level": 0}
