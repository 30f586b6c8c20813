"""The HTTP API."""

from __future__ import annotations

import base64
import time
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, HTTPException, Path, Request, Response, UploadFile

from ecapa_jax.diarization.diarize import MOST_SPEAKERS
from ecapa_jax.diarization.formats import Format, as_dict, as_text
from ecapa_jax.errors import UnknownSpeakerError
from ecapa_jax.identify.store import SpeakerStore
from ecapa_jax.serve import schema
from ecapa_jax.serve.service import Service
from ecapa_jax.serve.uploads import FormRoute, read_recording, read_recordings

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.Problem, "description": "The form can't be read."},
    401: {"model": schema.Problem, "description": "The token is missing or wrong."},
    403: {
        "model": schema.Problem,
        "description": "The service does not fetch addresses, or the request comes from another site's page.",
    },
    408: {"model": schema.Problem, "description": "The request did not arrive in time."},
    413: {"model": schema.Problem, "description": "The request or a recording exceeds a limit."},
    415: {"model": schema.Problem, "description": "The request is not multipart/form-data."},
    422: {"model": schema.Problem, "description": "A recording or a value can't be used."},
    429: {"model": schema.Problem, "description": "Too many requests at once; try again."},
    503: {"model": schema.Problem, "description": "The service is stopping, or its store can't be used."},
}
NO_STORE: dict[int | str, dict[str, Any]] = {
    404: {"model": schema.Problem, "description": "The service has no speaker store."}
}
NO_SPEAKER: dict[int | str, dict[str, Any]] = {
    404: {"model": schema.Problem, "description": "Nobody of this name is enrolled, or there is no speaker store."}
}
TURNS_AS_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "The turns, in the chosen format."}
}

SAMPLES = {
    "slt_1.flac": "Woman, sentence 1",
    "slt_2.flac": "Woman, sentence 2",
    "rms_1.flac": "Man, sentence 1",
    "rms_2.flac": "Man, sentence 2",
    "awb_1.flac": "Scottish man, sentence 1",
    "awb_2.flac": "Scottish man, sentence 2",
}
"""Files in static/samples and their titles: the recordings of the repository's examples/audio."""

router = APIRouter(prefix="/v1", route_class=FormRoute, responses=REFUSALS)

Threshold = Annotated[
    float | None, Form(description="Accept scores at or above this value; the default is the model's threshold.")
]
Upload = Annotated[
    UploadFile | None, File(description="WAV, FLAC, OGG or MP3, at any sample rate and with any number of channels.")
]
Uploads = Annotated[list[UploadFile] | None, File(description="Recordings in the formats that verify accepts.")]
Url = Annotated[str | None, Form(description="Address to fetch instead of the file; needs --allow-urls.")]
Count = Annotated[
    int, Form(ge=1, le=MOST_SPEAKERS, description="A bound for the number of speakers, if it is not known.")
]
Urls = Annotated[list[str] | None, Form(description="Addresses to fetch; needs --allow-urls.")]


def get_service(request: Request) -> Service:
    """Returns the app's service."""
    found: Service = request.app.state.service
    return found


def get_store(service: Annotated[Service, Depends(get_service)]) -> SpeakerStore:
    """Returns the service's speaker store."""
    if service.store is None:
        raise HTTPException(404, "this service has no speaker store: start it with --store FILE")
    return service.store


TheService = Annotated[Service, Depends(get_service)]
TheStore = Annotated[SpeakerStore, Depends(get_store)]


@router.get("/model", tags=["about"])
async def model(service: TheService) -> schema.ModelAnswer:
    """Describes the model, its measured error rates, and the limits of this service."""
    encoder, settings = service.encoder, service.settings
    scoring = encoder.scorer.scoring
    return schema.ModelAnswer(
        name=service.name,
        embedding_dim=encoder.config.ecapa.embedding_dim,
        parameters=service.parameters(),
        sample_rate=encoder.sample_rate,
        threshold=scoring.threshold,
        score_type=scoring.score_type,
        scale=encoder.scorer.scale,
        operating_points=[schema.OperatingPoint.model_validate(point) for point in service.points],
        minimum_seconds=service.minimum_seconds,
        max_seconds=settings.max_seconds,
        max_bytes=settings.max_bytes,
        max_files=settings.max_files,
        allow_urls=settings.allow_urls,
        store=service.store is not None,
        samples=[schema.Sample(name=name, title=title) for name, title in SAMPLES.items()],
    )


@router.post("/verify", tags=["score"])
async def verify(
    service: TheService,
    a: Upload = None,
    b: Upload = None,
    a_url: Url = None,
    b_url: Url = None,
    threshold: Threshold = None,
) -> schema.VerifyAnswer:
    """Scores two recordings and says whether one speaker made both."""
    start = time.perf_counter()
    first = await read_recording(a, a_url, "a", service.settings)
    second = await read_recording(b, b_url, "b", service.settings)
    answer, seconds = await service.verify(first, second, threshold)
    return schema.VerifyAnswer(
        score=answer.score,
        same_speaker=answer.same_speaker,
        threshold=answer.threshold,
        score_type=answer.score_type,
        seconds=seconds,
        speech=list(answer.speech),
        milliseconds=_milliseconds_since(start),
        model=service.name,
    )


@router.post("/embed", tags=["score"])
async def embed(service: TheService, file: Uploads = None, file_url: Urls = None) -> schema.EmbedAnswer:
    """Embeds recordings; each embedding is the same as if its recording were sent alone."""
    start = time.perf_counter()
    found = await read_recordings(file or [], file_url or [], "file", service.settings)
    waveforms, rows = await service.embed(found)
    return schema.EmbedAnswer(
        embeddings=rows.tolist(),
        seconds=[len(waveform) / service.encoder.sample_rate for waveform in waveforms],
        milliseconds=_milliseconds_since(start),
        model=service.name,
        fingerprint=service.fingerprint,
    )


@router.post("/features", tags=["score"])
async def features(service: TheService, file: Upload = None, file_url: Url = None) -> schema.FeaturesAnswer:
    """Returns a recording's waveform and the log-mel features that the network receives, for pictures."""
    picture, seconds = await service.picture(await read_recording(file, file_url, "file", service.settings))
    mels, columns = picture.features.shape
    return schema.FeaturesAnswer(
        seconds=seconds,
        peaks=picture.peaks.round(4).astype(float).tolist(),
        frames=picture.frames,
        mels=mels,
        columns=columns,
        lowest=picture.lowest,
        highest=picture.highest,
        image=base64.b64encode(picture.features.tobytes()).decode(),
    )


@router.post("/diarize", tags=["score"], response_model=schema.DiarizeAnswer, responses=TURNS_AS_TEXT)
async def diarize(
    service: TheService,
    file: Upload = None,
    file_url: Url = None,
    speakers: Annotated[
        int | None, Form(ge=1, le=MOST_SPEAKERS, description="The number of speakers, if it is known.")
    ] = None,
    min_speakers: Count = 1,
    max_speakers: Count = 15,
    format: Annotated[Format, Form(description="What to return: json, or text in another format.")] = "json",
    exclusive: Annotated[bool, Form(description="One speaker at a time in a text format; json has both.")] = False,
    threshold: Annotated[
        float | None,
        Form(
            description="Smallest cosine at which a speaker counts as enrolled; the default is the model's threshold."
        ),
    ] = None,
) -> schema.DiarizeAnswer | Response:
    """Says who speaks when in a recording, with the names of enrolled speakers if the service has a store."""
    start = time.perf_counter()
    recording = await read_recording(file, file_url, "file", service.settings)
    result = await service.diarize(
        recording, speakers, min_speakers=min_speakers, max_speakers=max_speakers, threshold=threshold
    )
    name = PurePath(recording.name).stem
    if format != "json":
        return Response(as_text(result, name, format, exclusive=exclusive), media_type="text/plain; charset=utf-8")
    return schema.DiarizeAnswer(
        **as_dict(result, name),
        exclusive=as_dict(result, name, exclusive=True)["turns"],
        milliseconds=_milliseconds_since(start),
        model=service.name,
    )


@router.post("/enroll", tags=["speakers"], responses=NO_STORE)
async def enroll(
    service: TheService,
    store: TheStore,
    name: Annotated[str, Form(description="The speaker's name.")],
    file: Uploads = None,
    file_url: Urls = None,
) -> schema.EnrollAnswer:
    """Enrols recordings of a new or known speaker: all of them, or none if one can't be used."""
    done = await service.enroll(
        store, name, await read_recordings(file or [], file_url or [], "file", service.settings)
    )
    return schema.EnrollAnswer(name=done.name, added=done.added, known=done.known)


@router.post("/identify", tags=["speakers"], responses=NO_STORE)
async def identify(
    service: TheService,
    store: TheStore,
    file: Upload = None,
    file_url: Url = None,
    top: Annotated[int, Form(ge=1, le=100, description="Candidates to return.")] = 5,
    threshold: Threshold = None,
) -> schema.IdentifyAnswer:
    """Says which enrolled speaker made a recording, or that none did."""
    recording = await read_recording(file, file_url, "file", service.settings)
    answer = await service.identify(store, recording, top=top, threshold=threshold)
    candidates = [schema.CandidateAnswer(name=candidate.name, score=candidate.score) for candidate in answer.candidates]
    return schema.IdentifyAnswer(speaker=answer.speaker, threshold=answer.threshold, candidates=candidates)


@router.get("/speakers", tags=["speakers"], responses=NO_STORE)
async def speakers(service: TheService, store: TheStore) -> list[schema.SpeakerAnswer]:
    """Lists the enrolled speakers by name."""
    everyone = await service.speakers(store)
    return [schema.SpeakerAnswer(name=speaker.name, utterances=speaker.utterances) for speaker in everyone]


@router.delete("/speakers/{name:path}", tags=["speakers"], responses=NO_SPEAKER)
async def remove(
    service: TheService, store: TheStore, name: Annotated[str, Path(description="The speaker's name.")]
) -> schema.RemoveAnswer:
    """Removes a speaker and all the speaker's recordings from the store."""
    try:
        return schema.RemoveAnswer(name=name, utterances=await service.remove(store, name))
    except UnknownSpeakerError as error:
        raise HTTPException(404, f"no speaker is named {name!r}; GET /v1/speakers lists who is enrolled") from error


def _milliseconds_since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 1)
