"""Tests of the parity report of a conversion, and of conversion without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from ecapa_jax.bundle.bundle import load_bundle, save_bundle
from ecapa_jax.convert import parity
from ecapa_jax.convert.run import convert
from ecapa_jax.convert.sources import FAMILIES
from ecapa_jax.errors import ConversionError
from helpers.checkpoints import modelscope
from helpers.cli import run

STAGES = ["features", "stem", "block_0", "block_1", "block_2", "mfa", "pooled", "embedding"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_within_the_bounds_of_its_golden_values(family, record_property):
    """The test covers every stage in the part of the full report that needs no weights."""
    about, theirs = parity._load_golden(FAMILIES[family])
    assert sorted(theirs) == sorted(STAGES)
    config, variables = parity._make_checked_model(FAMILIES[family], about)
    ours = parity.our_stages(config, variables, parity.waveform(config.fbank.sample_rate))
    errors = parity._make_report(parity.sample_stage(ours), theirs, parity._describe_golden(about))["errors"]
    worst = max(errors, key=lambda name: errors[name]["max_abs_over_max"])
    print(f"{family}: worst stage {worst} {errors[worst]}")
    assert list(errors) == STAGES
    assert sum(x.nbytes for x in theirs.values()) < 12000


def test_conversion_fails_if_golden_values_are_not_reproduced(monkeypatch, tmp_path):
    family = FAMILIES["3dspeaker"]
    values = dict(parity.golden())
    wrong = {**values, "3dspeaker/embedding": values["3dspeaker/embedding"] * np.linspace(1, 1.001, 192)}
    monkeypatch.setattr(parity, "golden", lambda: wrong)
    with pytest.raises(ConversionError, match="parity check failed at embedding"):
        parity.quick_report(family)
    about = json.loads(str(values["3dspeaker/about"])) | {"weights": "0"}
    monkeypatch.setattr(parity, "golden", lambda: {**values, "3dspeaker/about": np.array(json.dumps(about))})
    with pytest.raises(ConversionError, match="can't be made here"):
        parity.quick_report(family)
    nan = {"embedding": np.full(192, np.nan, np.float32)}
    with pytest.raises(ConversionError, match="failed at embedding"):
        parity._make_report(nan, {"embedding": np.ones(192, np.float32)}, {"reference_code": "x"})


def test_quick_report_is_in_bundle_card_and_info(capsys, tmp_path):
    bundle = convert(modelscope(tmp_path / "published"))
    saved = save_bundle(bundle, tmp_path / "bundle")
    report = json.loads((saved / "parity.json").read_text())
    assert report == bundle.parity == load_bundle(saved).parity
    assert (report["reference"], list(report["errors"])) == ("golden", ["embedding"])
    assert report["errors"]["embedding"]["max_abs_over_max"] <= parity.BOUND
    assert "don't prove the weights of this bundle" in report["proves"]
    row = f"| embedding | {report['errors']['embedding']['max_abs_over_max']:.1e} | 1.0000000 |"
    assert row in (saved / "README.md").read_text()
    assert row in run(capsys, "info", saved).out
    assert run(capsys, "info", saved, "--json").json["parity"] == report


def test_verify_without_the_original_reports_every_stage(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ecapa_jax.convert.live", None)
    monkeypatch.delattr(sys.modules["ecapa_jax.convert"], "live", raising=False)  # an earlier test may have imported it
    report = convert(modelscope(tmp_path), verify=True).parity
    assert (report["reference"], list(report["errors"])) == ("golden", STAGES)
    assert 0 <= report["batch_equals_single"] <= parity.BOUND


def test_plain_conversion_does_not_import_torch(tmp_path):
    source = modelscope(tmp_path)
    code = (
        f"import sys; from ecapa_jax.convert.run import convert; convert({str(source)!r}); "
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'speakerlab', 'speechbrain')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.peers
@pytest.mark.parametrize("family", ["3dspeaker", "speechbrain"])
def test_verify_with_the_original_checks_the_bundle(capsys, tmp_path, family):
    live = pytest.importorskip("ecapa_jax.convert.live", reason="make peers installs torch", exc_type=ImportError)
    if live.available(family) is None:
        pytest.skip(f"the original code of {family} is not installed")
    source, out = modelscope(tmp_path / "published"), tmp_path / "bundle"
    assert run(capsys, "convert", source, "-o", out, "--verify", "--family", family).code == 0
    report = load_bundle(out).parity
    print(family, report["errors"])
    assert (report["reference"], report["reference_weights"]) == ("live", "this model's")
    assert list(report["errors"]) == STAGES
    assert report["batch_equals_single"] <= parity.BOUND
