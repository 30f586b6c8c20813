"""Test that scores of many trials at once equal the scores of single trials."""

import inspect
import types

import numpy as np
import pytest

from ecapa_jax.evaluation import scores
from ecapa_jax.scoring.config import Scoring
from ecapa_jax.scoring.scorer import Scorer

WAYS = {
    "cosine": Scoring(),
    "less mean": Scoring(subtract_mean=True),
    "half": Scoring(score_map="half"),
    "two views": Scoring(views="whole_and_windows"),
    "two views less mean": Scoring(views="whole_and_windows", subtract_mean=True),
}


@pytest.mark.parametrize("scoring", WAYS.values(), ids=WAYS)
def test_scores_of_a_list_equal_scores_of_single_trials(scoring, monkeypatch):
    monkeypatch.setattr(scores, "BLOCK_TRIALS", 64)
    rng = np.random.default_rng(0)
    mean = rng.normal(size=24).astype(np.float32)
    scorer = Scorer(scoring, mean)
    encoder = types.SimpleNamespace(scorer=scorer, scoring=scoring, embedding_mean=mean)
    embeddings = rng.normal(0.5, 1, (30, scorer.n_views, 24)).astype(np.float32)
    embeddings[1] = 2 * embeddings[0]
    vectors = inspect.unwrap(scores.speaker_vectors)(encoder, embeddings)
    pairs = np.stack([rng.integers(30, size=150), rng.integers(30, size=150)])
    pairs[:, 0] = 0, 1
    singles = scores.average_enrolments(vectors, [[row] for row in range(30)])
    found = scores.map_cosines.__wrapped__(encoder, scores.score_pairs(singles, vectors, pairs))
    expected = [scorer.score(embeddings[a], embeddings[b]) for a, b in pairs.T]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.shape == (150,)
