"""Schemathesis on the OpenAPI: whatever is sent, the answer is one that the schema names, and never a 5xx."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

pytest.importorskip("schemathesis", reason="needs the test group")

import hypothesis
import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from ecapa_jax.diarization import diarize as diarization
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.serve import service
from helpers.serving import running
from helpers.sounds import encode, sound


@pytest.fixture(scope="module")
def schema(encoder, tmp_path_factory) -> Iterator[schemathesis.BaseSchema]:
    store = SpeakerStore.open(tmp_path_factory.mktemp("store") / "team.db", encoder)
    with pytest.MonkeyPatch.context() as patch, running(encoder, store=store) as server:
        # the overlap network takes long to compile
        patch.setattr(service, "diarize", functools.partial(diarization.diarize, overlap=False))
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


OPERATIONS = [
    ("GET", "/healthz"), ("GET", "/v1/model"), ("GET", "/v1/speakers"), ("POST", "/v1/verify"), ("POST", "/v1/embed"),
    ("POST", "/v1/features"), ("POST", "/v1/diarize"), ("POST", "/v1/enroll"), ("POST", "/v1/identify"),
    ("DELETE", "/v1/speakers/{name}"),
]  # fmt: skip

WAV = encode(sound(0.6))
FIELDS = {
    "/v1/verify": {"a": WAV, "b": WAV}, "/v1/embed": {"file": [WAV]}, "/v1/features": {"file": WAV},
    "/v1/diarize": {"file": WAV},
    "/v1/enroll": {"file": [WAV]}, "/v1/identify": {"file": WAV},
}  # fmt: skip


def test_no_operation_is_left_out(schema) -> None:
    assert sorted((found.ok().method.upper(), found.ok().path) for found in schema.get_all_operations()) == sorted(
        OPERATIONS
    )


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_api_keeps_to_its_schema(schema, method, path, mode) -> None:
    operation = schema[path][method]
    strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    statuses = set()

    @hypothesis.settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=strategy, real=hypothesis.strategies.booleans())
    def each(case: schemathesis.Case, real: bool) -> None:
        if real and path in FIELDS and isinstance(case.body, dict):  # reach what comes after the decoder too
            case.body = {key: value for key, value in case.body.items() if "_url" not in key} | FIELDS[path]
        response = case.call(timeout=120)  # the first recording of a length compiles
        statuses.add(response.status_code)
        # That random bytes are no recording, and that one of a file and an address is needed, a schema can't say.
        unsaid = [positive_data_acceptance, *([negative_data_rejection] if real else [])]
        case.validate_response(response, excluded_checks=unsaid)

    try:
        each()
    except hypothesis.errors.Unsatisfiable:
        assert mode == "negative"  # nothing of a bare GET can be wrong
        return
    assert all(status < 500 for status in statuses)
    if mode == "positive":
        assert (404 if method == "DELETE" else 200) in statuses  # nobody has a name made up by chance
