"""Clusters the embeddings of windows: estimates the number of speakers, and assigns a speaker to each window.

The number of speakers depends on how alike the parts of a recording are. This likeness is measured relative to the
likeness of the windows within each part, so that one threshold serves models whose cosines differ.
`spectral_clustering` estimates the number as the recipe of 3D-Speaker does.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.linalg import eigh

from ecapa_jax.diarization.settings import DiarizationSettings

Embeddings = Float[np.ndarray, "windows embedding"]
Spans = Int64[np.ndarray, "windows 2"]
Labels = Int64[np.ndarray, " windows"]

_ROUNDS = 5
_RESTARTS = 4
_P_VALUE, _NEIGHBOURS = 0.012, 6  # from the recipe of 3D-Speaker
_FEWEST_DIVIDED = 8
"""Fewer windows are one speaker, unless the number of speakers is given."""


@dataclasses.dataclass(frozen=True)
class SpeakerCount:
    """The number of speakers in a recording, or its bounds.

    Attributes:
      exact: the number of speakers; None if it is not known.
      least, most: smallest and largest number of speakers if `exact` is None.
    """

    exact: int | None = None
    least: int = 1
    most: int = 15

    def limits(self, n_windows: int) -> tuple[int, int]:
        """Returns the smallest and the largest number of clusters for a number of windows."""
        least, most = (self.exact, self.exact) if self.exact else (self.least, self.most)
        return min(least, n_windows), min(most, n_windows)


def cluster(embeddings: Embeddings, spans: Spans, count: SpeakerCount, settings: DiarizationSettings) -> Labels:
    """Groups windows by speaker.

    A graph, which joins each window to the windows that are most like it, is divided into 2, 3, 4, ... parts. While
    each part is one speaker, even the two most similar parts differ. If a speaker is divided, the two most similar
    parts are about as alike as the windows within them. So the number of speakers is the number of parts after which
    the likeness of the two most similar parts rises most. A long recording is divided block by block, and the parts of
    all blocks are merged by the same measure, so that memory grows linearly with the length of the recording.

    Args:
      embeddings: one embedding for each window, in order of time.
      spans: first frame, and frame after the last, of each window. Cosines of overlapping windows are not used.
      count: the number of speakers, or its bounds.
      settings: thresholds.

    Returns:
      The speaker of each window; speakers are numbered from 0 in order of appearance.
    """
    if len(embeddings) == 0:
        return np.zeros(0, np.int64)
    x = unit(embeddings)
    least, most = count.limits(len(x))
    n_blocks = -(-len(x) // settings.block_windows)
    if n_blocks == 1:
        return renumber(_split_loosest(_divide(x, spans, least, most, settings), x, least))
    parts: list[np.ndarray] = []
    offset = 0
    for rows in np.array_split(np.arange(len(x)), n_blocks):
        parts.append(_divide(x[rows], spans[rows], 1, most, settings) + offset)
        offset = int(parts[-1].max()) + 1
    labels = merge_clusters(np.concatenate(parts), x, spans, least, most, settings)
    labels = drop_small_clusters(labels, x, settings.fewest_windows, least)
    return renumber(_split_loosest(reassign_windows(labels, x, least), x, least))


def _divide(x: Embeddings, spans: Spans, least: int, most: int, settings: DiarizationSettings) -> Labels:
    """Divides one block into parts: at least `least`, if there are enough windows."""
    if most == 1 or (len(x) < _FEWEST_DIVIDED and least == 1):
        return np.zeros(len(x), np.int64)
    if len(x) < _FEWEST_DIVIDED:
        return _ward(x, least)
    _, vectors = _graph_vectors(x, most, _P_VALUE, _NEIGHBOURS)
    divisions, likenesses = [np.zeros(len(x), np.int64)], [settings.undivided]
    for number in range(max(least, 2), min(most + 1, max(len(x) // 3, least)) + 1):
        labels = renumber(_kmeans(vectors[:, :number], number))
        if number > least and np.bincount(labels).min() < settings.fewest_windows:
            continue
        divisions.append(labels)
        likenesses.append(float(_likeness(*_cluster_sums(labels, x, spans), settings).max()))
    allowed = [index for index, labels in enumerate(divisions) if least <= labels.max() + 1 <= most]
    rises = _rises(np.array(likenesses), settings)
    return divisions[max(allowed, key=lambda index: rises[index])] if allowed else _ward(x, least)


def _rises(
    likenesses: Float[np.ndarray, " divisions"], settings: DiarizationSettings
) -> Float[np.ndarray, " divisions"]:
    """Returns how much the highest likeness rises from each division to the next, after the logistic function."""
    highest = np.append(np.maximum.accumulate(likenesses), max(1.0, likenesses.max()))
    return np.diff(1 / (1 + np.exp((settings.same_speaker - highest) / settings.likeness_width)))


def merge_clusters(
    labels: Labels, x: Embeddings, spans: Spans, least: int, most: int, settings: DiarizationSettings
) -> Labels:
    """Merges clusters until no two are as alike as the windows of one speaker.

    Args:
      labels: cluster of each window.
      x: embedding of each window, of length 1.
      spans: first frame, and frame after the last, of each window.
      least, most: smallest and largest number of clusters to leave.
      settings: thresholds.
    """
    labels = renumber(labels)
    sums, pairs = _cluster_sums(labels, x, spans)
    groups = [[index] for index in range(len(sums))]
    while len(groups) > least:
        likeness = _likeness(sums, pairs, settings)
        a, b = sorted(np.unravel_index(int(likeness.argmax()), likeness.shape))
        if likeness[a, b] < settings.same_speaker and len(groups) <= most:
            break
        for table in (sums, pairs):
            table[a] += table[b]
            table[:, a] += table[:, b]
        sums, pairs = (np.delete(np.delete(table, b, 0), b, 1) for table in (sums, pairs))
        groups[a] += groups.pop(b)
    new = np.empty(sum(map(len, groups)), np.int64)
    for number, members in enumerate(groups):
        new[members] = number
    return new[labels]


def _likeness(
    sums: Float[np.ndarray, "clusters clusters"],
    pairs: Float[np.ndarray, "clusters clusters"],
    settings: DiarizationSettings,
) -> Float[np.ndarray, "clusters clusters"]:
    """Returns the likeness of clusters: about 1 for two halves of one speaker, even if windows are short or noisy.

    The likeness of two clusters is the mean cosine between their windows, divided by the geometric mean of the mean
    cosines within each cluster. If a cluster has few pairs of windows, its mean is drawn towards the mean of all pairs.
    """
    overall = np.trace(sums) / np.trace(pairs) if np.trace(pairs) > 0 else 1.0
    within = (np.diag(sums) + settings.prior_pairs * overall) / (np.diag(pairs) + settings.prior_pairs)
    scale = np.sqrt(np.maximum(within[:, None], 1e-3) * np.maximum(within[None, :], 1e-3))
    likeness = np.where(pairs > 0, sums / np.maximum(pairs, 1e-9) / scale, -1.0)
    np.fill_diagonal(likeness, -np.inf)
    return likeness


def _cluster_sums(
    labels: Labels, x: Embeddings, spans: Spans
) -> tuple[Float[np.ndarray, "clusters clusters"], Float[np.ndarray, "clusters clusters"]]:
    """Returns sums of cosines and numbers of pairs between clusters; pairs of overlapping windows are left out."""
    members = np.zeros((len(x), int(labels.max()) + 1))
    members[np.arange(len(x)), labels] = 1
    totals = members.T @ x
    sums = (totals @ totals.T).astype(np.float64)
    sizes = members.sum(axis=0)
    pairs = sizes[:, None] * sizes[None, :]
    order = np.argsort(spans[:, 0], kind="stable")
    starts, ends = spans[order, 0], spans[order, 1]
    for step in range(len(x)):
        first, second = order[: len(x) - step], order[step:]
        overlap = starts[step:] < ends[: len(x) - step]
        if not overlap.any():
            break
        i, j = first[overlap], second[overlap]
        cosines = np.einsum("nd,nd->n", x[i], x[j])
        for u, v in ((i, j), (j, i))[: 1 if step == 0 else 2]:
            np.subtract.at(sums, (labels[u], labels[v]), cosines)
            np.subtract.at(pairs, (labels[u], labels[v]), 1.0)
    return sums, pairs


def spectral_clustering(
    embeddings: Embeddings, count: SpeakerCount, *, p_value: float = 0.012, neighbours: int = 6
) -> Labels:
    """Clusters a graph that joins each window to the windows that are most like it.

    Args:
      embeddings: one embedding for each window.
      count: the number of speakers; if only its bounds are known, the largest gap between eigenvalues decides.
      p_value, neighbours: share of all windows to which each window is joined, and the smallest number of them.

    Reference: von Luxburg 2007, "A Tutorial on Spectral Clustering"; 3D-Speaker, `speakerlab.process.cluster`.
    """
    x = unit(embeddings)
    least, most = count.limits(len(x))
    if len(x) <= neighbours:
        return renumber(_ward(x, least))
    values, vectors = _graph_vectors(x, most, p_value, neighbours)
    number = least if least == most else int(np.argmax(np.diff(values)[least - 1 :])) + least
    return renumber(_kmeans(vectors[:, :number], number))


def _graph_vectors(
    x: Embeddings, most: int, p_value: float, neighbours: int
) -> tuple[Float[np.ndarray, " vectors"], Float[np.ndarray, "windows vectors"]]:
    """Returns the first `most` + 1 eigenvalues and eigenvectors of the Laplacian of the graph of windows."""
    cosines = x @ x.T
    n_nearest = min(max(int(np.ceil(p_value * len(x))), neighbours), len(x))
    nearest = np.argpartition(cosines, len(x) - n_nearest, axis=1)[:, len(x) - n_nearest :]
    graph = np.zeros_like(cosines)
    np.put_along_axis(graph, nearest, np.take_along_axis(cosines, nearest, axis=1), axis=1)
    graph = (graph + graph.T) / 2
    np.fill_diagonal(graph, 0)
    laplacian = np.diag(np.abs(graph).sum(axis=1)) - graph
    return eigh(laplacian, subset_by_index=[0, min(most, len(x) - 1)])


def merge_by_cosine(labels: Labels, embeddings: Embeddings, threshold: float) -> Labels:
    """Merges clusters until no two centroids have a cosine of `threshold` or more, as the recipe of 3D-Speaker does."""
    x, labels = unit(embeddings), renumber(labels)
    while labels.max() > 0:
        centroids = centroids_of(labels, x)
        cosines = np.triu(centroids @ centroids.T, 1)
        a, b = np.unravel_index(int(cosines.argmax()), cosines.shape)
        if cosines[a, b] < threshold:
            break
        labels = renumber(np.where(labels == b, a, labels))
    return labels


def drop_small_clusters(labels: Labels, x: Embeddings, fewest: int, least: int) -> Labels:
    """Gives the windows of clusters with fewer than `fewest` windows to others; keeps at least `least` clusters."""
    labels = renumber(labels)
    sizes = np.bincount(labels)
    order = np.argsort(-sizes, kind="stable")
    kept = [cluster for rank, cluster in enumerate(order) if rank < max(least, 1) or sizes[cluster] >= fewest]
    centroids = centroids_of(labels, x)[kept]
    moved = ~np.isin(labels, kept)
    result = labels.copy()
    result[moved] = np.array(kept)[(x[moved] @ centroids.T).argmax(axis=1)]
    return renumber(result)


def reassign_windows(labels: Labels, x: Embeddings, least: int) -> Labels:
    """Moves each window to the nearest centroid, a few times; stops before fewer than `least` clusters are left."""
    labels = renumber(labels)
    for _ in range(_ROUNDS):
        moved = (x @ centroids_of(labels, x).T).argmax(axis=1)
        if (moved == labels).all() or len(np.unique(moved)) < min(least, labels.max() + 1):
            break
        labels = renumber(moved)
    return labels


def centroids_of(labels: Labels, x: Embeddings) -> Float[np.ndarray, "clusters embedding"]:
    """Returns the mean embedding of each cluster, scaled to length 1."""
    members = np.zeros((int(labels.max()) + 1, len(x)), x.dtype)
    members[labels, np.arange(len(x))] = 1
    return unit(members @ x)


def unit(rows: Float[np.ndarray, "*rows embedding"]) -> Float32[np.ndarray, "*rows embedding"]:
    """Scales rows to length 1; leaves zero rows as they are."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def renumber(labels: Labels) -> Labels:
    """Numbers the clusters from 0 in order of their first window."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _split_loosest(labels: Labels, x: Embeddings, least: int) -> Labels:
    """Splits the loosest clusters until there are `least`."""
    labels = renumber(labels)
    while labels.max() + 1 < least:
        spread = 1 - np.einsum("nd,nd->n", x, centroids_of(labels, x)[labels])
        sizes = np.bincount(labels)
        total = np.where(sizes > 1, np.bincount(labels, weights=spread), -np.inf)
        rows = np.flatnonzero(labels == int(total.argmax()))
        halves = _ward(x[rows], 2)
        if halves.max() == 0:  # the windows are equal, for example silent
            halves = (np.arange(len(rows)) >= len(rows) // 2).astype(np.int64)
        labels[rows[halves == 1]] = labels.max() + 1
    return labels


def _ward(x: Embeddings, clusters: int) -> Labels:
    if len(x) <= 1 or clusters <= 1:
        return np.zeros(len(x), np.int64)
    return renumber(fcluster(linkage(x, "ward"), clusters, "maxclust").astype(np.int64))


def _kmeans(rows: Float[np.ndarray, "n features"], clusters: int) -> Int64[np.ndarray, " n"]:
    """Runs Lloyd's algorithm from several k-means++ starts; equal inputs give equal results."""
    rng = np.random.default_rng(0)
    best: tuple[float, np.ndarray] | None = None
    for _ in range(_RESTARTS):
        centres = _draw_centres(rows, clusters, rng)
        for _ in range(100):
            distances = ((rows[:, None] - centres[None]) ** 2).sum(axis=2)
            labels = distances.argmin(axis=1)
            chosen: Bool[np.ndarray, "clusters n"] = labels[None] == np.arange(clusters)[:, None]
            filled = chosen.any(axis=1, keepdims=True)
            moved = np.where(filled, chosen @ rows / np.maximum(chosen.sum(axis=1, keepdims=True), 1), centres)
            if np.allclose(moved, centres):
                break
            centres = moved
        cost = float(distances[np.arange(len(rows)), labels].sum())
        if best is None or cost < best[0]:
            best = cost, labels
    assert best is not None
    return best[1].astype(np.int64)


def _draw_centres(rows: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    centres = [rows[rng.integers(len(rows))]]
    while len(centres) < clusters:
        distances = np.min([((rows - centre) ** 2).sum(axis=1) for centre in centres], axis=0)
        total = distances.sum()
        share = distances / total if total > 0 else None
        centres.append(rows[rng.choice(len(rows), p=share)])
    return np.array(centres)
