"""The losses of training: margin softmax over speakers, and what a student learns from a teacher's embeddings.

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
    """Cosine of each embedding with each speaker's nearest sub-centre.

    Reference: Deng et al. 2020, "Sub-center ArcFace", equation 3; with one sub-centre `torch.nn.functional.linear` of
      normalised vectors, as in 3D-Speaker's `CosineClassifier`.
    """
    every = jnp.einsum("bd,ksd->bks", _unit(embeddings), _unit(centres), precision=lax.Precision.HIGHEST)
    return jnp.max(every, axis=-1)


def margin_logits(
    config: LossConfig,
    cosine: Logits,
    labels: Int[Array, " batch"],
    margin: Float[Array, ""],
    nearest: Int[Array, "batch top_k"] | None = None,
) -> Logits:
    """Scaled cosines, the target's with the margin taken off.

    Args:
      config: kind of margin, scale, fallback, inter-top-K.
      cosine: [B, K].
      labels: [B] class of each row; one outside [0, K) where the columns are a part of the speakers.
      margin: in radians for `aam`, of the cosine for `am`.
      nearest: [B, top_k] the other speakers that inter-top-K pulls, outside [0, K) likewise; None finds them here.

    Reference: Deng et al. 2019 (ArcFace) equation 3, Wang et al. 2018 (AM-softmax) equation 6, Zhao et al. 2021
      (inter-top-K) equation 6; `speakerlab.loss.margin_loss`, `speechbrain.nnet.losses`.
    """
    target = labels[:, None] == jnp.arange(cosine.shape[1])
    if config.kind == "softmax":
        return config.scale * cosine
    moved = cosine - margin if config.kind == "am" else _angle_added(config, cosine, margin)
    if not config.top_k:
        return config.scale * jnp.where(target, moved, cosine)
    nearest = nearest_others(cosine, target, min(config.top_k, cosine.shape[1] - 1))[1] if nearest is None else nearest
    return config.scale * jnp.where(target, moved, _pulled(config, cosine, nearest))


def nearest_others(
    cosine: Logits, left_out: Bool[Array, "batch speakers"], number: int
) -> tuple[Float[Array, "batch top_k"], Int[Array, "batch top_k"]]:
    """Cosine and column of each row's nearest speakers; those that are left out come last, at -inf."""
    others = lax.stop_gradient(jnp.where(left_out, -jnp.inf, cosine))
    values, columns = lax.top_k(others, min(number, cosine.shape[1]))
    return values, columns


def cross_entropy(logits: Logits, labels: Int[Array, " batch"]) -> Float[Array, " batch"]:
    """Negative log probability of each row's class."""
    target = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - target


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The examples whose student and teacher embeddings are compared with each other.

    Attributes:
      embeddings: [N, D] of the student.
      targets: [N, E] of the teacher.
      rows: [N] the place of each example in the whole batch.
    """

    embeddings: Float[Array, "examples embedding"]
    targets: Float[Array, "examples target"]
    rows: Int[Array, " examples"]


def teacher_loss(config: TeacherConfig, own: Pairs, every: Pairs) -> tuple[Rows, Rows]:
    """The loss of each example against its teacher.

    Args:
      config: weights of the parts.
      own: the examples whose losses are wanted.
      every: all examples that `own` is compared with, `own` among them; on one device the same.

    Returns:
      [B] the weighted sum of `cosine`, `relations` and `contrast`, and [B] the cosine between student and teacher,
      zero where neither `cosine` nor `contrast` is used.

    Reference: relations as in Park et al. 2019 (Relational Knowledge Distillation), with cosines in place of distances;
      contrast as in Fang et al. 2021 (SEED) equation 3, over the batch in place of a queue.
    """
    student, teacher = _unit(own.embeddings), _unit(own.targets)
    all_student, all_teacher = _unit(every.embeddings), _unit(every.targets)
    loss = jnp.zeros(student.shape[0])
    agreement = jnp.zeros(student.shape[0])
    if config.cosine or config.contrast:
        agreement = jnp.einsum("bd,bd->b", student, teacher, precision=lax.Precision.HIGHEST)
        loss += config.cosine * (1 - agreement)
    known = _products(teacher, all_teacher)
    if config.relations:
        others = own.rows[:, None] != every.rows
        difference = jnp.where(others, jnp.square(_products(student, all_student) - known), 0)
        loss += config.relations * jnp.sum(difference, axis=1) / max(every.rows.shape[0] - 1, 1)
    if config.contrast:
        wanted = jax.nn.softmax(config.contrast_scale * known, axis=1)
        given = jax.nn.log_softmax(config.contrast_scale * _products(student, all_teacher), axis=1)
        loss -= config.contrast * jnp.sum(wanted * given, axis=1)
    return loss, lax.stop_gradient(agreement)


def _products(a: Float[Array, "a embedding"], b: Float[Array, "b embedding"]) -> Float[Array, "a b"]:
    return jnp.einsum("ad,bd->ab", a, b, precision=lax.Precision.HIGHEST)


def _angle_added(config: LossConfig, cosine: Logits, margin: Float[Array, ""]) -> Logits:
    """cos(angle + margin), and below the angle where it would rise again the fallback."""
    moved = cosine * jnp.cos(margin) - _sine(cosine) * jnp.sin(margin)
    turn = jnp.cos(jnp.pi - margin)
    taken = 1 + turn if config.fallback == "continuous" else margin * jnp.sin(jnp.pi - margin)
    return jnp.where(cosine > turn, moved, cosine - taken)


def _pulled(config: LossConfig, cosine: Logits, nearest: Int[Array, "batch top_k"]) -> Logits:
    """The top-K other speakers' cosines, as if nearer by the margin."""
    chosen = jnp.any(nearest[:, :, None] == jnp.arange(cosine.shape[1]), axis=1)
    nearer = cosine * jnp.cos(config.top_k_margin) + _sine(cosine) * jnp.sin(config.top_k_margin)
    return jnp.where(chosen, nearer, cosine)


def _sine(cosine: Logits) -> Logits:
    # The root's slope is infinite where the cosine is 1, which rounding can reach.
    return jnp.sqrt(jnp.maximum(1 - jnp.square(cosine), 1e-12))


def _unit(x: Float[Array, "*rows embedding"]) -> Float[Array, "*rows embedding"]:
    return x * lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))
