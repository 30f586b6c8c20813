"""Tests of the OpenAPI schema with schemathesis: every response is in the schema, and none is a 5xx."""

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
        # the overlap network compiles slowly
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


def test_every_operation_is_tested(schema) -> None:
    assert sorted((found.ok().method.upper(), found.ok().path) for found in schema.get_all_operations()) == sorted(
        OPERATIONS
    )


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_responses_conform_to_the_schema(schema, method, path, mode) -> None:
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
    def check_case(case: schemathesis.Case, real: bool) -> None:
        if real and path in FIELDS and isinstance(case.body, dict):  # real recordings reach the code after the decoder
            case.body = {key: value for key, value in case.body.items() if "_url" not in key} | FIELDS[path]
        response = case.call(timeout=120)  # the first recording of each length compiles
        statuses.add(response.status_code)
        check_response(case, response, real)

    def check_response(case: schemathesis.Case, response: schemathesis.Response, real: bool) -> None:
        # The schema can't express that random bytes are not a recording, or that a file or an address is needed.
        unsaid = [positive_data_acceptance, *([negative_data_rejection] if real else [])]
        case.validate_response(response, excluded_checks=unsaid)

    if mode == "positive" and path in FIELDS:  # options that are drawn may contradict each other in every example
        plain = operation.Case(body=dict(FIELDS[path]), media_type="multipart/form-data")
        response = plain.call(timeout=120)
        statuses.add(response.status_code)
        check_response(plain, response, real=True)
    try:
        check_case()
    except hypothesis.errors.Unsatisfiable:
        assert mode == "negative"  # a GET without parameters can't be invalid
        return
    assert all(status < 500 for status in statuses)
    if mode == "positive":
        assert (404 if method == "DELETE" else 200) in statuses  # no speaker has a random name
