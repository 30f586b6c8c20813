"""Tests of the settings of the service, and of the errors for invalid ones."""

from __future__ import annotations

import sys

import pytest

from ecapa_jax.errors import ConfigError
from ecapa_jax.serve.settings import Settings, is_loopback
from helpers.cli import run, run_refused


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_bytes": 0}, "max-mb"),
        ({"max_bytes": 2**31}, "max-mb"),
        ({"max_seconds": float("nan")}, "max-seconds"),
        ({"max_requests": 0}, "max-requests"),
        ({"body_seconds": 0.0}, "body-seconds"),
        ({"token": ""}, "token"),
        ({"token": "two words"}, "token"),
    ],
)
def test_invalid_settings_are_refused(options, why) -> None:
    with pytest.raises(ConfigError, match=why):
        Settings(**options)


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.2", False), ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_is_loopback(host, own) -> None:
    assert is_loopback(host) == own


def test_empty_token_is_refused(capsys, tmp_path, monkeypatch) -> None:
    pytest.importorskip("fastapi_offline", reason="needs the extra serve")
    monkeypatch.setenv("ECAPA_JAX_TOKEN", "")
    assert "the token is empty" in run_refused(capsys, tmp_path, "serve", "--port", 0)
    monkeypatch.setenv("ECAPA_JAX_TOKEN", "s3cret")
    assert "the token is empty" in run_refused(capsys, tmp_path, "serve", "--port", 0, "--token", "")


def test_invalid_options_are_refused_in_one_line(capsys, tmp_path) -> None:
    pytest.importorskip("fastapi_offline", reason="needs the extra serve")
    assert "max-mb" in run_refused(capsys, tmp_path, "serve", "--max-mb", 0)
    assert "choose another" in run_refused(capsys, tmp_path, "serve", "--host", "203.0.113.7")
    assert "the token is empty" in run_refused(capsys, tmp_path, "serve", "--token", "")
    assert "--store is empty" in run_refused(capsys, tmp_path, "serve", "--store", "")
    assert "from 0 to 65535" in run_refused(capsys, tmp_path, "serve", "--port", 99999)
    assert "no-model" in run_refused(capsys, tmp_path, "serve", "--port", 0, "--model", tmp_path / "no-model")
    assert "directory" in run_refused(capsys, tmp_path, "serve", "--port", 0, "--store", tmp_path)


def test_missing_extra_is_reported(capsys, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("ecapa_jax.serve.app", "ecapa_jax.serve.run"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = run(capsys, "serve", "--port", 0)
    assert (result.code, result.out) == (2, "")
    assert "pip install 'ecapa-jax[serve]'" in result.err
