"""Tests of `SpeakerStore` against NumPy: centroids, exact search, decisions, names, models."""

from __future__ import annotations

import shutil
import threading
import unicodedata
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecapa_jax.encoder import SpeakerEncoder
from ecapa_jax.errors import AudioError, ConfigError, EcapaError, StoreError
from ecapa_jax.identify.database import Database, Speaker, check_name
from ecapa_jax.identify.store import Enrolment, SpeakerStore
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.scorer import Scorer
from helpers.corpora import RATE, speech
from helpers.weights import random_tensors, variables_of

A, B, C = (speech(0.6 + 0.1 * seed, seed) for seed in range(3))


def random_embeddings(n: int, seed: int = 0) -> np.ndarray:
    """Returns embeddings of very different lengths, like those of a model."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, 192)) * np.exp(rng.standard_normal((n, 1)))).astype(np.float32)


def brute_force(names: list[str], embeddings: np.ndarray, query: np.ndarray) -> list[tuple[str, float]]:
    """Returns names and float64 cosines with the centroids of length-normalized embeddings, best first."""
    unit = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    scores = {}
    for name in dict.fromkeys(names):
        centroid = unit[[other == name for other in names]].mean(axis=0)
        scores[name] = query @ centroid / np.linalg.norm(query) / np.linalg.norm(centroid)
    return sorted(scores.items(), key=lambda item: -item[1])


def test_search_equals_brute_force(store: SpeakerStore) -> None:
    """The store has 700 utterances of 200 speakers, enrolled in three parts, some of them twice."""
    rng = np.random.default_rng(5)
    names = [f"speaker {index}" for index in rng.integers(0, 200, 700)]
    embeddings = random_embeddings(700)
    added = [store.enroll_embeddings(names[i:j], embeddings[i:j]) for i, j in ((0, 300), (250, 600), (600, 700))]
    assert added == [300, 300, 100]
    worst = 0.0
    queries = np.concatenate([random_embeddings(8, 1), embeddings[:8]])
    for query, found in zip(queries, store.search(queries, top=20), strict=True):
        expected = brute_force(names, embeddings, query.astype(np.float64))[:20]
        assert [candidate.name for candidate in found] == [name for name, _ in expected]
        worst = max(worst, *(abs(c.score - score) for c, (_, score) in zip(found, expected, strict=True)))
    print(f"largest error of a score: {worst:.1e}")
    assert worst < 1e-6
    assert len(store.search(queries, top=10**6)[0]) == len(set(names))


def test_recording_is_identified(store: SpeakerStore, encoder: SpeakerEncoder) -> None:
    assert store.identify(A).candidates == ()
    assert store.identify(A).speaker is None
    assert store.enroll("Ann", [A, B]) == Enrolment("Ann", 2, 0)
    assert store.enroll("Bob", [C]) == Enrolment("Bob", 1, 0)
    answer = store.identify(C)
    assert (answer.speaker, answer.threshold) == ("Bob", 0.5)
    assert answer.candidates[0].score == pytest.approx(1, abs=1e-5)
    assert store.identify(A, top=1).candidates[0].name == "Ann"
    # With one enrolled utterance, the score equals that of verify.
    scores = {candidate.name: candidate.score for candidate in store.identify(A).candidates}
    assert scores["Bob"] == pytest.approx(encoder.verify(A, C).score, abs=1e-5)
    best = answer.candidates[0].score
    assert store.identify(C, threshold=best).speaker == "Bob"
    if best < 1:
        assert store.identify(C, threshold=float(np.nextafter(best, 2))).speaker is None
    assert store.speakers() == [Speaker("Ann", 2), Speaker("Bob", 1)]
    assert store.remove("Bob") == 1
    assert [candidate.name for candidate in store.identify(C).candidates] == ["Ann"]


def test_enrolling_twice_changes_nothing(store: SpeakerStore) -> None:
    store.enroll("Ann", [A])
    before = store.search(random_embeddings(1))
    assert store.enroll("Ann", [A]) == Enrolment("Ann", 0, 1)
    assert store.enroll("Ann", [B, A, B]) == Enrolment("Ann", 1, 2)
    assert store.enroll("Bob", [A]) == Enrolment("Bob", 1, 0)
    assert store.speakers() == [Speaker("Ann", 2), Speaker("Bob", 1)]
    assert store.search(random_embeddings(1)) != before


def test_unreadable_recording_enrols_nothing(store: SpeakerStore) -> None:
    for bad, words in ((np.zeros(RATE, np.float32), "no signal"), (A[:500], "too short"), (A * np.nan, "not finite")):
        with pytest.raises(AudioError, match=words):
            store.enroll("Ann", [A, bad])
        with pytest.raises(AudioError, match=words):
            store.identify(bad)
    with pytest.raises(StoreError, match="no recordings"):
        store.enroll("Ann", [])
    assert store.speakers() == []


def test_invalid_arguments_are_refused(store: SpeakerStore) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        store.identify(A, threshold=1.5)
    with pytest.raises(StoreError, match="ask for 1 or more"):
        store.identify(A, top=0)
    with pytest.raises(StoreError, match="no speaker is named 'Zoe'; ecapa-jax list"):
        store.remove("Zoe")
    rows = random_embeddings(3)
    for names, values, words in (
        (["a", "b"], rows, r"2 names and embeddings of shape \(3, 192\); give \[2, 192\]"),
        (["a", "b", "c"], rows[:, :100], "give"),
        (["a", "b", "c"], rows * [[1], [np.nan], [1]], "embedding 1 is zero or not finite"),
        (["a", "b", "c"], rows * [[1], [1], [0]], "embedding 2 is zero or not finite"),
        (["a", "", "c"], rows, "name is empty"),
    ):
        with pytest.raises(StoreError, match=words):
            store.enroll_embeddings(names, values)
    assert store.speakers() == []


NAMES = [
    "Ann",
    "ann",
    "Ünïcode 名前 🎤",
    "O'Brien",
    'say "hi"',
    "a;DROP TABLE speaker;--",
    "100%",
    "\u0646\u0627\u0645\u200c\u0647\u0627",
    "x" * 200,
]


def test_any_text_is_accepted_as_a_name(store: SpeakerStore) -> None:
    store.enroll_embeddings(NAMES, random_embeddings(len(NAMES)))
    assert sorted(speaker.name for speaker in store.speakers()) == sorted(NAMES)
    for name, embedding in zip(NAMES, random_embeddings(len(NAMES)), strict=True):
        assert store.search(embedding[None], top=1)[0][0].name == name
        assert store.remove(name) == 1


def test_names_are_unicode_normalized(store: SpeakerStore) -> None:
    composed, decomposed = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    assert composed != decomposed
    store.enroll_embeddings([composed, f"  {decomposed} "], random_embeddings(2))
    assert store.speakers() == [Speaker(composed, 2)]
    assert store.remove(decomposed) == 2


@pytest.mark.parametrize("name", ["", "  ", "\n", "a\nb", "a\x00b", "bell\x07", "x" * 201, "\udcff.wav"])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="name") as caught:
        check_name(name)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


@given(st.text(max_size=50))
@settings(deadline=None)
def test_any_name_is_stored_as_checked_or_refused(name: str) -> None:
    try:
        checked = check_name(name)
    except StoreError:
        return
    assert check_name(checked) == checked
    assert checked == unicodedata.normalize("NFC", name).strip()


def test_store_of_another_model_is_refused(tmp_path: Path, encoder: SpeakerEncoder) -> None:
    with SpeakerStore.open(tmp_path / "s.db", encoder) as store:
        store.enroll_embeddings(["Ann"], random_embeddings(1))
    other = SpeakerEncoder(encoder.config, variables_of(encoder.config.ecapa, random_tensors(encoder.config.ecapa, 1)))
    before = (tmp_path / "s.db").read_bytes()
    with pytest.raises(StoreError, match=f"holds embeddings of another model .*{other.fingerprint[:12]}"):
        SpeakerStore.open(tmp_path / "s.db", other)
    assert (tmp_path / "s.db").read_bytes() == before
    same = SpeakerEncoder(encoder.config, encoder.variables, scoring=Scoring(threshold=0.1))
    with SpeakerStore.open(tmp_path / "s.db", same) as store:
        assert len(store.speakers()) == 1


def test_scores_use_the_scoring_of_the_model(tmp_path: Path, encoder: SpeakerEncoder) -> None:
    """The store subtracts the mean embedding if the model does, and makes no decision without a threshold."""
    mean = random_embeddings(1, 9)[0].astype(np.float64)
    centred = SpeakerEncoder(
        encoder.config, encoder.variables, scoring=Scoring(subtract_mean=True), embedding_mean=mean
    )
    query, enrolled = random_embeddings(2, 3)
    with SpeakerStore.open(tmp_path / "s.db", centred) as store:
        store.enroll_embeddings(["Ann"], enrolled[None])
        (found,) = store.search(query[None])[0]
        assert found.score == pytest.approx(centred.score(query, enrolled), abs=1e-6)
        assert abs(found.score - encoder.score(query, enrolled)) > 1e-3


@pytest.mark.parametrize(
    ("scoring", "threshold"),
    [
        (Scoring(threshold=0.7, score_map="half"), 0.4),
        (Scoring(threshold=0.7, views="whole_and_windows"), None),
        (Scoring(threshold=0.7), 0.7),
    ],
)
def test_threshold_of_another_type_of_score_is_not_used_for_cosines(
    store: SpeakerStore, encoder: SpeakerEncoder, monkeypatch, scoring: Scoring, threshold: float | None
) -> None:
    monkeypatch.setattr(encoder, "scorer", Scorer(scoring))
    store.enroll("Ann", [A])
    answer = store.identify(A)
    assert answer.threshold == (None if threshold is None else pytest.approx(threshold))
    assert answer.speaker == (None if threshold is None else "Ann")
    assert answer.candidates[0].score == pytest.approx(1, abs=1e-5)


def test_changes_by_another_process_are_visible(tmp_path: Path, store: SpeakerStore, encoder: SpeakerEncoder) -> None:
    store.enroll_embeddings(["Ann"], random_embeddings(1))
    query = random_embeddings(1, 7)
    assert len(store.search(query)[0]) == 1
    gallery = store.gallery()
    assert store.gallery() is gallery
    with SpeakerStore.open(tmp_path / "s.db", encoder) as other:
        other.enroll_embeddings(["Bob"], random_embeddings(1, 1))
    assert len(store.search(query)[0]) == 2
    with Database.open(tmp_path / "s.db") as database:
        database.remove("Ann")
    assert [candidate.name for candidate in store.search(query)[0]] == ["Bob"]


def test_enrolment_does_not_recompile_the_search(store: SpeakerStore) -> None:
    from ecapa_jax.scoring.search import search

    query = random_embeddings(1, 7)
    store.enroll_embeddings(["a", "b", "c"], random_embeddings(3))
    store.search(query, top=3)
    before = search._cache_size()
    for seed in range(5):
        store.enroll_embeddings([f"more {seed}"], random_embeddings(1, 10 + seed))
        assert len(store.search(query, top=3)[0]) == 3
    assert search._cache_size() == before


def test_threads_share_a_store(store: SpeakerStore) -> None:
    failures: list[EcapaError] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                store.enroll_embeddings([f"{number}-{turn}"], random_embeddings(1, 100 * number + turn))
                store.search(random_embeddings(1), top=3)
        except EcapaError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.speakers()) == 40


def test_copied_file_is_a_valid_store(tmp_path: Path, store: SpeakerStore, encoder: SpeakerEncoder) -> None:
    store.enroll_embeddings(["Ann", "Bob"], random_embeddings(2))
    assert [path.name for path in tmp_path.iterdir()] == ["s.db"]
    shutil.copy(tmp_path / "s.db", tmp_path / "copy.db")
    with SpeakerStore.open(tmp_path / "copy.db", encoder) as copy:
        assert copy.search(random_embeddings(1, 4)) == store.search(random_embeddings(1, 4))


def test_run_time_type_checks_are_enabled() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        check_name(3)  # type: ignore[arg-type]
