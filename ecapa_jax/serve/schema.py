"""The JSON answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from ecapa_jax.scoring.config import ScoreType


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="One line: what is wrong and what to do.")


class VerifyAnswer(BaseModel):
    """The answer to one trial."""

    score: float = Field(description="The score of the two recordings; `score_type` says what it is.")
    same_speaker: bool | None = Field(description="Whether score >= threshold; null without a threshold.")
    threshold: float | None = Field(description="The threshold used: the request's, or else the model's.")
    score_type: ScoreType = Field(description="cosine and half lie in [-1, 1]; the others are not bounded.")
    seconds: list[float] = Field(description="Lengths of the two recordings.")
    speech: list[bool] = Field(description="Whether somebody speaks in each; without speech the score means nothing.")
    milliseconds: float = Field(description="Time from the arrival of the whole request to the answer.")
    model: str


class EmbedAnswer(BaseModel):
    """Embeddings in the order of the recordings: files first, then addresses."""

    embeddings: list[list[float]] = Field(description="[n, embedding_dim]")
    seconds: list[float]
    milliseconds: float
    model: str
    fingerprint: str = Field(description="Embeddings with equal fingerprints may be compared.")


class FeaturesAnswer(BaseModel):
    """The data of the page's pictures."""

    seconds: float
    peaks: list[list[float]] = Field(description="Lowest and highest sample of each equal part.")
    frames: int = Field(description="Number of log-mel frames that the network receives.")
    mels: int
    columns: int = Field(description="Width of the picture; neighbouring frames of long recordings are averaged.")
    lowest: float = Field(description="Value drawn as 0.")
    highest: float = Field(description="Value drawn as 255.")
    image: str = Field(description="mels x columns bytes, row by row from the lowest band, in base64.")


class EnrollAnswer(BaseModel):
    """The result of an enrolment."""

    name: str
    added: int = Field(description="Number of new recordings.")
    known: int = Field(description="Number of recordings that were enrolled already.")


class SpeakerAnswer(BaseModel):
    """An enrolled speaker."""

    name: str
    utterances: int


class CandidateAnswer(BaseModel):
    """A speaker who may have made the recording."""

    name: str
    score: float


class IdentifyAnswer(BaseModel):
    """The speaker of a recording."""

    speaker: str | None = Field(
        description="The best candidate at or above the threshold; null if nobody enrolled reaches it."
    )
    threshold: float | None
    candidates: list[CandidateAnswer]


class RemoveAnswer(BaseModel):
    """The speaker who was removed from the store."""

    name: str
    utterances: int = Field(description="Number of recordings that were removed with the speaker.")


class TurnAnswer(BaseModel):
    """A stretch of a recording in which one speaker speaks."""

    start: float = Field(description="Seconds from the beginning of the recording.")
    end: float
    speaker: str


class VoiceAnswer(BaseModel):
    """Somebody who speaks in a recording."""

    name: str = Field(description="speaker_1 for the speaker who speaks first, or the name of an enrolled person.")
    seconds: float = Field(description="Duration of this speaker's turns, including overlaps.")
    score: float | None = Field(description="Cosine with the enrolled person; null if the speaker is unknown.")


class DiarizeAnswer(BaseModel):
    """Who speaks when in a recording; no turns and no speakers if nobody speaks."""

    recording: str
    duration: float = Field(description="Seconds.")
    speakers: list[VoiceAnswer] = Field(description="In order of appearance.")
    turns: list[TurnAnswer] = Field(description="In order of time; the turns of two speakers may overlap.")
    exclusive: list[TurnAnswer] = Field(description="Turns with one speaker at a time, which transcripts need.")
    milliseconds: float
    model: str


class OperatingPoint(BaseModel):
    """Error rates measured at a threshold."""

    threshold: float
    far: float = Field(description="False acceptance rate.")
    frr: float = Field(description="False rejection rate.")
    trials: str = Field(description="The trial list on which they were measured.")
    n_trials: int | None = None


class Sample(BaseModel):
    """A recording that the page offers."""

    name: str
    title: str


class ModelAnswer(BaseModel):
    """The model, its measured error rates, and the limits of this service."""

    name: str
    embedding_dim: int
    parameters: int
    sample_rate: int
    threshold: float | None
    score_type: ScoreType
    scale: str = Field(description="What the score means.")
    operating_points: list[OperatingPoint]
    minimum_seconds: float
    max_seconds: float
    max_bytes: int
    max_files: int
    allow_urls: bool
    store: bool = Field(description="Whether speakers can be enrolled here.")
    samples: list[Sample]


class Health(BaseModel):
    """The state of the service."""

    status: Literal["ok"] = "ok"
    model: str
    batches: int = Field(description="Batches computed so far.")
    utterances: int = Field(description="Utterances embedded so far; divided by batches, the mean size of a batch.")
