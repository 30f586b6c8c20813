"""Tests of `--version`, and of the suggestion for a mistyped verb."""

import importlib.metadata

import pytest

import ecapa_jax
from ecapa_jax.cli.main import main


def test_version_equals_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert ecapa_jax.__version__ == importlib.metadata.version("ecapa-jax")
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ecapa-jax {ecapa_jax.__version__}\n"


@pytest.mark.parametrize(("typed", "meant"), [("verfy", "verify"), ("embedd", "embed"), ("trian", "train")])
def test_mistyped_verb_gets_a_suggestion(capsys: pytest.CaptureFixture[str], typed: str, meant: str) -> None:
    assert main([typed, "a.wav", "b.wav"]) == 2
    assert capsys.readouterr().err == f"ecapa-jax: there is no verb {typed!r}; did you mean {meant}?\n"
