"""Test of benchmarks/corpus.py with 10 000 clips of real speech: repeated kills, memory, throughput."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_ten_thousand_files_are_complete_after_repeated_kills(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("corpus_benchmark", ROOT / "benchmarks" / "corpus.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    report = benchmark.measure(tmp_path, DATA, n_files=10_000, n_kills=5, model=None)  # raises if a bit differs
    print(json.dumps(report, indent=2))
    assert (report["rows_identical_after_kills"], report["errors"]) == (10_000, 0)
    assert len(report["kills"]) == 5
    assert report["peak_rss_mib_second_half"] < 1.1 * report["peak_rss_mib_first_half"]
    assert report["share_of_bare_throughput"] > 0.5
