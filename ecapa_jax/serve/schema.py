"""The JSON answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

ScoreType = Literal["cosine", "half", "normalised", "llr"]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="One line: what is wrong and what to do.")


class VerifyAnswer(BaseModel):
    """The answer to one trial."""

    score: float = Field(description="Of both recordings, as `score_type` says.")
    same_speaker: bool | None = Field(description="score >= threshold; null without a threshold.")
    threshold: float | None = Field(description="The one used: the request's, or the model's.")
    score_type: ScoreType = Field(description="cosine and half lie in [-1, 1]; the others are not bounded.")
    seconds: list[float] = Field(description="Length of both recordings.")
    milliseconds: float = Field(description="Time taken from the whole request to the answer.")
    model: str


class EmbedAnswer(BaseModel):
    """Embeddings in the order of the recordings: files first, then addresses."""

    embeddings: list[list[float]] = Field(description="[n, embedding_dim]")
    seconds: list[float]
    milliseconds: float
    model: str
    fingerprint: str = Field(description="Embeddings with equal fingerprints may be compared.")


class FeaturesAnswer(BaseModel):
    """What there is to see of a recording."""

    seconds: float
    peaks: list[list[float]] = Field(description="Lowest and highest sample of each equal part.")
    frames: int = Field(description="Of log-mel features, as the network sees them.")
    mels: int
    columns: int = Field(description="Of the picture; neighbouring frames are averaged in long recordings.")
    lowest: float = Field(description="Value drawn as 0.")
    highest: float = Field(description="Value drawn as 255.")
    image: str = Field(description="mels x columns bytes, row by row from the lowest band, in base64.")


class EnrollAnswer(BaseModel):
    """What an enrolment did."""

    name: str
    added: int = Field(description="Recordings that were new.")
    known: int = Field(description="Recordings that had been enrolled before.")


class SpeakerAnswer(BaseModel):
    """An enrolled speaker."""

    name: str
    utterances: int


class CandidateAnswer(BaseModel):
    """A speaker who may be the one."""

    name: str
    score: float


class IdentifyAnswer(BaseModel):
    """Who speaks."""

    speaker: str | None = Field(description="The best candidate at or above the threshold; null: nobody known.")
    threshold: float | None
    candidates: list[CandidateAnswer]


class OperatingPoint(BaseModel):
    """Error rates measured at a threshold."""

    threshold: float
    far: float = Field(description="False acceptance rate.")
    frr: float = Field(description="False rejection rate.")
    trials: str = Field(description="The list they come from.")
    n_trials: int | None = None


class Sample(BaseModel):
    """A recording that the page offers."""

    name: str
    title: str


class ModelAnswer(BaseModel):
    """The model, what it was measured at, and what this service allows."""

    name: str
    embedding_dim: int
    parameters: int
    sample_rate: int
    threshold: float | None
    score_type: ScoreType
    scale: str = Field(description="What the score is, in words.")
    operating_points: list[OperatingPoint]
    minimum_seconds: float
    max_seconds: float
    max_bytes: int
    max_files: int
    allow_urls: bool
    store: bool = Field(description="Whether speakers can be enrolled here.")
    samples: list[Sample]


class Health(BaseModel):
    """That the service is up."""

    status: Literal["ok"] = "ok"
    model: str
    batches: int = Field(description="Computed so far.")
    utterances: int = Field(description="Embedded so far; over batches: the batching that the load allows.")
