"""The losses of training: margin softmax over speakers, and losses between the embeddings of student and teacher.

Letters: B batch, D embedding, K speakers (classes), S sub-centres.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ecapa_jax.train.config import LossConfig, TeacherConfig

Logits = Float[Array, "batch speakers"]
Rows = Float[Array, " batch"]


def cosines(
    embeddings: Float[Array, "batch embedding"], centres: Float[Array, "speakers sub_centres embedding"]
) -> Logits:
    """Returns the cosine of each embedding with the nearest sub-centre of each speaker.

    Reference: Deng et al. 2020, "Sub-center ArcFace", equation 3; with one sub-centre `torch.nn.functional.linear` of
      normalised vectors, as in 3D-Speaker's `CosineClassifier`.
    """
    all_cosines = jnp.einsum(
        "bd,ksd->bks", _normalise(embeddings), _normalise(centres), precision=lax.Precision.HIGHEST
    )
    return jnp.max(all_cosines, axis=-1)


def margin_logits(
    config: LossConfig,
    cosine: Logits,
    labels: Int[Array, " batch"],
    margin: Float[Array, ""],
    nearest: Int[Array, "batch top_k"] | None = None,
) -> Logits:
    """Returns scaled cosines after applying the margin to the cosine of the target speaker.

    Args:
      config: kind of margin, scale, fallback, inter-top-K.
      cosine: [B, K].
      labels: [B], class of each row; outside [0, K) if the columns are only a part of the speakers.
      margin: an angle in radians for `aam`, a difference of cosines for `am`.
      nearest: [B, top_k], the other speakers that inter-top-K pulls nearer; may lie outside [0, K) too. None finds them
        among the columns.

    Reference: Deng et al. 2019 (ArcFace) equation 3, Wang et al. 2018 (AM-softmax) equation 6, Zhao et al. 2021
      (inter-top-K) equation 6; `speakerlab.loss.margin_loss`, `speechbrain.nnet.losses`.
    """
    target = labels[:, None] == jnp.arange(cosine.shape[1])
    if config.kind == "softmax":
        return config.scale * cosine
    # AM-softmax subtracts the margin from the cosine, AAM-softmax adds it to the angle.
    moved = cosine - margin if config.kind == "am" else _add_angular_margin(config, cosine, margin)
    if not config.top_k:
        return config.scale * jnp.where(target, moved, cosine)
    nearest = nearest_others(cosine, target, min(config.top_k, cosine.shape[1] - 1))[1] if nearest is None else nearest
    return config.scale * jnp.where(target, moved, _pull_nearest(config, cosine, nearest))


def nearest_others(
    cosine: Logits, left_out: Bool[Array, "batch speakers"], number: int
) -> tuple[Float[Array, "batch top_k"], Int[Array, "batch top_k"]]:
    """Returns cosine and column of the nearest speakers of each row; those left out come last, with -inf."""
    others = lax.stop_gradient(jnp.where(left_out, -jnp.inf, cosine))
    values, columns = lax.top_k(others, min(number, cosine.shape[1]))
    return values, columns


def cross_entropy(logits: Logits, labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Returns the negative log probability of the class of each row."""
    target = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - target


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The examples whose student and teacher embeddings are compared with each other.

    Attributes:
      embeddings: [N, D], embeddings by the student.
      targets: [N, E], embeddings by the teacher.
      rows: [N], position of each example in the whole batch.
    """

    embeddings: Float[Array, "examples embedding"]
    targets: Float[Array, "examples target"]
    rows: Int[Array, " examples"]


def teacher_loss(config: TeacherConfig, local: Pairs, whole: Pairs) -> tuple[Rows, Rows]:
    """Returns the loss of each example against the teacher.

    Args:
      config: weights of the parts of the loss.
      local: the examples whose losses are returned.
      whole: all examples that `local` is compared with, including `local`; equal to `local` on one device.

    Returns:
      [B], the weighted sum of `cosine`, `relations` and `contrast`; and [B], the cosine between student and teacher,
      which is zero if neither `cosine` nor `contrast` is used.

    Reference: relations as in Park et al. 2019 (Relational Knowledge Distillation), with cosines in place of distances;
      contrast as in Fang et al. 2021 (SEED) equation 3, over the batch in place of a queue.
    """
    student, teacher = _normalise(local.embeddings), _normalise(local.targets)
    all_student, all_teacher = _normalise(whole.embeddings), _normalise(whole.targets)
    loss = jnp.zeros(student.shape[0])
    agreement = jnp.zeros(student.shape[0])
    if config.cosine or config.contrast:
        agreement = jnp.einsum("bd,bd->b", student, teacher, precision=lax.Precision.HIGHEST)
        loss += config.cosine * (1 - agreement)
    known = _dot_all(teacher, all_teacher)
    if config.relations:
        others = local.rows[:, None] != whole.rows
        difference = jnp.where(others, jnp.square(_dot_all(student, all_student) - known), 0)
        loss += config.relations * jnp.sum(difference, axis=1) / max(whole.rows.shape[0] - 1, 1)
    if config.contrast:
        teacher_shares = jax.nn.softmax(config.contrast_scale * known, axis=1)
        student_log_shares = jax.nn.log_softmax(config.contrast_scale * _dot_all(student, all_teacher), axis=1)
        loss -= config.contrast * jnp.sum(teacher_shares * student_log_shares, axis=1)
    return loss, lax.stop_gradient(agreement)


def _dot_all(a: Float[Array, "a embedding"], b: Float[Array, "b embedding"]) -> Float[Array, "a b"]:
    return jnp.einsum("ad,bd->ab", a, b, precision=lax.Precision.HIGHEST)


def _add_angular_margin(config: LossConfig, cosine: Logits, margin: Float[Array, ""]) -> Logits:
    """Returns cos(angle + margin), or the fallback for angles at which it would rise again."""
    moved = cosine * jnp.cos(margin) - _sine(cosine) * jnp.sin(margin)
    turn = jnp.cos(jnp.pi - margin)
    penalty = 1 + turn if config.fallback == "continuous" else margin * jnp.sin(jnp.pi - margin)
    return jnp.where(cosine > turn, moved, cosine - penalty)


def _pull_nearest(config: LossConfig, cosine: Logits, nearest: Int[Array, "batch top_k"]) -> Logits:
    """Raises the cosines of the top-K other speakers, as if their angle were smaller by the margin."""
    chosen = jnp.any(nearest[:, :, None] == jnp.arange(cosine.shape[1]), axis=1)
    nearer = cosine * jnp.cos(config.top_k_margin) + _sine(cosine) * jnp.sin(config.top_k_margin)
    return jnp.where(chosen, nearer, cosine)


def _sine(cosine: Logits) -> Logits:
    # The gradient of the root is infinite if the cosine is 1, which rounding can cause.
    return jnp.sqrt(jnp.maximum(1 - jnp.square(cosine), 1e-12))


def _normalise(x: Float[Array, "*rows embedding"]) -> Float[Array, "*rows embedding"]:
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
