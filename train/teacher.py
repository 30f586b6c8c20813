"""The teacher of a distillation: a table of embeddings, or a bundle that embeds within the step."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int64

from ecapa_jax import functional
from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.config import ModelConfig
from ecapa_jax.errors import ConfigError, TrainingError
from ecapa_jax.functional import Variables
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import TrainingManifest
from ecapa_jax.train.data.order import Order
from ecapa_jax.train.data.pipeline import Batches, Loader, Rows

CENTRE_EXAMPLES = 512
"""Number of examples over which the centre of a teacher bundle is averaged."""

NAMED = 3
"""Most rows of a faulty table that an error message names."""


@dataclasses.dataclass(frozen=True)
class TeacherTable:
    """The embeddings of a table, one for each utterance of the manifest at each speed.

    Attributes:
      embeddings: [n, D], with their mean subtracted if the configuration says so.
      rows: [utterances, speeds], rows of `embeddings`.
      digest: sha256 of the embeddings in the order of the manifest.
    """

    embeddings: Float32[np.ndarray, "rows embedding"]
    rows: Int64[np.ndarray, "utterances speeds"]
    digest: str

    def target(self, utterance: int, speed: int) -> Float32[np.ndarray, " embedding"]:
        """Returns the embedding of an utterance at a speed."""
        return self.embeddings[self.rows[utterance, speed]]


def speed_variant(variant: str, speed: float) -> str:
    """Returns the name of a variant at a speed in the table of a teacher: `0.9x`, or `00000012 0.9x`."""
    return variant if speed == 1.0 else f"{variant} {speed:g}x".strip()


def read_teacher(config: TrainConfig, manifest: TrainingManifest) -> TeacherTable | TeacherBundle | None:
    """Reads the teacher that a configuration names; returns None if it names no teacher.

    Raises:
      ConfigError, BundleError, TrainingError: as `read_table` and `read_bundle`.
    """
    if config.teacher.embeddings:
        return read_table(config, manifest)
    return read_bundle(config, manifest) if config.teacher.bundle else None


def read_table(config: TrainConfig, manifest: TrainingManifest) -> TeacherTable:
    """Reads and checks `teacher.embeddings`.

    The row of an utterance is found by id and variant; at a speed other than 1, the variant is `speed_variant`.

    Raises:
      ConfigError: the table can't be read, or a row is missing, duplicate, of another length or not finite.
    """
    path = Path(config.teacher.embeddings)
    keys, embeddings = _read_parquet(path)
    index: dict[tuple[str, str], int] = {}
    duplicates = [key for row, key in enumerate(keys) if index.setdefault(key, row) != row]
    wanted = [
        (name, speed_variant(variant, speed))
        for name, variant in zip(manifest.ids, manifest.variants, strict=True)
        for speed in config.data.speeds
    ]
    _refuse(path, "has no row for", [key for key in wanted if key not in index])
    _refuse(path, "has more than one row for", duplicates)
    rows = np.array([index[key] for key in wanted], np.int64)
    found = embeddings[rows]
    _refuse(path, "has values that are not finite for", [wanted[row] for row in _find_not_finite(found)])
    digest = hashlib.sha256(np.ascontiguousarray(found).tobytes()).hexdigest()
    if config.teacher.centre:
        embeddings = (embeddings - found.mean(axis=0, dtype=np.float64)).astype(np.float32)
    _check_dimension(config, embeddings.shape[1])
    return TeacherTable(embeddings, rows.reshape(len(manifest), -1), digest)


def _read_parquet(path: Path) -> tuple[list[tuple[str, str]], Float32[np.ndarray, "rows embedding"]]:
    """Reads the keys (id, variant) and embeddings of a Parquet file, or of a folder of Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise ConfigError(f"teacher.embeddings: {path}: no such file or folder")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"teacher.embeddings: {path} can't be read as Parquet ({error})") from error
    if missing := {"id", "embedding"} - set(table.column_names):
        raise ConfigError(f"teacher.embeddings: {path} has no column {sorted(missing)[0]!r}; it needs id and embedding")
    # `embed --manifest` writes rows without an embedding for recordings that it can't read.
    table = table.filter(table["embedding"].is_valid())
    ids = [str(value) for value in table["id"].to_pylist()]
    variants = table["variant"].to_pylist() if "variant" in table.column_names else [""] * len(ids)
    keys = [(name, str(variant or "")) for name, variant in zip(ids, variants, strict=True)]
    lists = table["embedding"].to_pylist()
    lengths = [len(values) for values in lists]
    if not lengths or not max(lengths):
        raise ConfigError(f"teacher.embeddings: {path} holds no embedding")
    common_length = max(set(lengths), key=lengths.count)
    wrong = [key for key, length in zip(keys, lengths, strict=True) if length != common_length]
    _refuse(path, f"has embeddings of another length than {common_length} for", wrong)
    values = np.array([[np.nan if value is None else value for value in row] for row in lists], np.float32)
    return keys, values


def _refuse(path: Path, what: str, keys: list[tuple[str, str]]) -> None:
    """Raises an error that names the first of the rows, if there are any."""
    if keys:
        names = ", ".join(f"{name!r}" + (f" variant {variant!r}" if variant else "") for name, variant in keys[:NAMED])
        more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
        raise ConfigError(f"teacher.embeddings: {path} {what} {names}{more}")


def _find_not_finite(embeddings: Float32[np.ndarray, "rows embedding"]) -> Int64[np.ndarray, " faulty"]:
    return np.flatnonzero(~np.isfinite(embeddings).all(axis=1))


def _check_dimension(config: TrainConfig, dimension: int) -> None:
    """Checks that both embeddings have the same length if `cosine` or `contrast` compares them directly."""
    model_dimension = config.model.ecapa.embedding_dim
    if model_dimension != dimension and (config.teacher.cosine or config.teacher.contrast):
        raise ConfigError(
            f"the embeddings of the teacher have {dimension} values, those of the model {model_dimension}: set "
            f"model.ecapa.embedding_dim = {dimension}, or learn by teacher.relations alone"
        )


@dataclasses.dataclass(frozen=True)
class TeacherBundle:
    """A bundle that embeds the examples of each step.

    Attributes:
      config: configuration of the model; static in the step.
      arrays: folded `variables`, and `centre` [D], which is subtracted from the embeddings.
      digest: sha256 of the variables.
    """

    config: ModelConfig
    arrays: dict[str, Any]
    digest: str


def read_bundle(config: TrainConfig, manifest: TrainingManifest) -> TeacherBundle:
    """Reads `teacher.bundle` and computes the mean of its embeddings over the first examples of the run.

    Raises:
      BundleError: the bundle can't be read.
      TrainingError: the sample rate of the bundle is not that of the model.
      ConfigError: the embeddings of the bundle have another length than the loss needs.
    """
    bundle = load_bundle(config.teacher.bundle)
    rate = bundle.config.fbank.sample_rate
    if rate != config.model.fbank.sample_rate:
        raise TrainingError(
            f"teacher.bundle: {config.teacher.bundle} takes {rate} Hz, the model {config.model.fbank.sample_rate} Hz: "
            "a teacher must have the sample rate of the model"
        )
    _check_dimension(config, bundle.config.ecapa.embedding_dim)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(bundle.variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    variables = functional.fold(bundle.config, bundle.variables, config.step.dtype)
    centre = np.zeros(bundle.config.ecapa.embedding_dim, np.float32)
    if config.teacher.centre:
        centre = _compute_mean_embedding(config, manifest, bundle.config, variables)
    return TeacherBundle(bundle.config, {"variables": variables, "centre": centre}, digest.hexdigest())


def _compute_mean_embedding(
    config: TrainConfig, manifest: TrainingManifest, model: ModelConfig, variables: Variables
) -> Float32[np.ndarray, " embedding"]:
    """Averages the embeddings of a bundle over the first examples of the run, without augmentation."""
    order, rows = Order(config.data, manifest, config.run.seed), Rows.span(0, config.data.batch_size)
    batches = Batches(Loader(config.data, config.augment, manifest, order, rows), rows, config.data, 0)
    n_steps = min(-(-CENTRE_EXAMPLES // config.data.batch_size), order.steps_per_epoch)
    embed = jax.jit(functional.embed, static_argnums=0)
    sums = np.zeros(model.ecapa.embedding_dim)
    for _ in range(n_steps):
        batch = next(batches)
        waveforms = batch["waveforms"].astype(np.float32) / 32768
        sums += np.asarray(embed(model, variables, waveforms, batch["lengths"]), np.float64).sum(axis=0)
    return (sums / (n_steps * config.data.batch_size)).astype(np.float32)


def compute_targets(
    model: ModelConfig, arrays: dict[str, Any], waveforms: Float[Array, "batch samples"], lengths: Array
) -> Float[Array, "batch embedding"]:
    """Embeds a batch with a teacher bundle and subtracts the centre; gradients don't pass through."""
    embeddings = functional.embed(model, arrays["variables"], waveforms, lengths)
    return jax.lax.stop_gradient(embeddings - arrays["centre"])
