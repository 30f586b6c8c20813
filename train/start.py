"""Finds where a run begins: at its own checkpoint, another run, a bundle, or random weights, in this order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float32

from ecapa_jax.bundle.bundle import load_bundle
from ecapa_jax.bundle.run_checkpoints import RunCheckpoints
from ecapa_jax.config import ModelConfig
from ecapa_jax.errors import TrainingError
from ecapa_jax.functional import Variables
from ecapa_jax.train.config import TrainConfig
from ecapa_jax.train.data.manifest import TrainingManifest
from ecapa_jax.train.scale.mesh import EVERYWHERE, pad_speakers, replicate, state_shardings
from ecapa_jax.train.settings import build_config, config_document
from ecapa_jax.train.state import State, draw_centres, init_state

RUN_FILE, CHECKPOINTS = "run.json", "checkpoints"

CHANGEABLE = {
    ("data", "threads"),
    ("data", "prefetch"),
    ("data", "cache_gigabytes"),
    ("run", "keep"),
    ("data", "manifest"),
}
CHANGEABLE |= {("run", "dev_root"), ("augment", "musan"), ("augment", "rirs"), ("mesh", "data"), ("mesh", "model")}
CHANGEABLE |= {("teacher", "embeddings"), ("teacher", "bundle")}
"""Settings that may change between an interrupted run and its continuation: speed, devices, and paths of files."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The state from which a run goes on.

    Attributes:
      state: the state, on the devices of the run.
      step: number of steps done.
      best: record of the best dev result so far; None before the first.
      notes: lines for the log that say what happened.
    """

    state: State
    step: int
    best: dict[str, Any] | None
    notes: tuple[str, ...]


def count_classes(config: TrainConfig, manifest: TrainingManifest) -> int:
    """Returns the number of classes: speakers times speeds that make speakers; 1 if only a teacher is learned from."""
    if config.teacher.is_used and not config.teacher.labels:
        return 1
    return len(manifest.speakers) * len(config.data.class_speeds)


def claim(directory: Path, config: TrainConfig, manifest: TrainingManifest, teacher: str = "") -> None:
    """Records configuration, data and teacher of the run in a directory, or checks that they have not changed.

    Args:
      directory: directory of the run.
      config: configuration of the run.
      manifest: data of the run.
      teacher: digest of the teacher; empty without a teacher.

    Raises:
      TrainingError: the directory holds a run of another configuration or other data, or something else.
    """
    path = directory / RUN_FILE
    document = {"config": config_document(config), "data": manifest.fingerprint, "speakers": list(manifest.speakers)}
    document |= {"teacher": teacher}
    if not path.exists():
        foreign = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        if foreign:
            raise TrainingError(f"{directory} holds {foreign[0]} and is not a run directory: choose another directory")
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        temporary.replace(path)
        return
    before = _read_run_file(directory)
    # Parse the old configuration again, so that settings of later versions get the values that they had implicitly.
    if differs := _find_difference(config_document(build_config(before["config"])), document["config"]):
        raise TrainingError(
            f"{directory} is a run with another {differs}: continue with that value, or choose another directory"
        )
    if before["data"] != document["data"]:
        raise TrainingError(f"{directory} is a run on other data than {config.data.manifest}: choose another directory")
    if before.get("teacher", "") != document["teacher"]:
        teacher_name = config.teacher.embeddings or config.teacher.bundle
        raise TrainingError(f"{directory} is a run with another teacher than {teacher_name}: choose another directory")


def _read_run_file(directory: Path) -> dict[str, Any]:
    path = directory / RUN_FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{directory} can't be read as a run directory ({path.name}: {error})") from error


def _find_difference(before: Any, after: Any, where: tuple[str, ...] = ()) -> str:
    """Describes the first setting that differs although it may not, as `section.key`; "" if there is none."""
    if where in CHANGEABLE or before == after:
        return ""
    if not isinstance(before, dict) or not isinstance(after, dict):
        same = isinstance(before, list | tuple) and list(before) == list(after or ())
        return "" if same else f"{'.'.join(where)} ({before!r}, now {after!r})"
    keys = sorted(before.keys() | after.keys())
    return next(filter(None, (_find_difference(before.get(key), after.get(key), (*where, key)) for key in keys)), "")


def start(
    config: TrainConfig, manifest: TrainingManifest, checkpoints: RunCheckpoints, mesh: Mesh | None = None
) -> Start:
    """Finds where to begin.

    Args:
      config: configuration of the run.
      manifest: data of the run.
      checkpoints: checkpoints of the run, saved on any number of devices.
      mesh: the devices; None is one device.

    Raises:
      TrainingError: the run or bundle to start from does not fit this run.
      BundleError: the bundle can't be read.
    """
    n_classes = count_classes(config, manifest)
    found, problems = checkpoints.newest(abstract_state(config, n_classes, mesh))
    notes = [f"{problem}: going back to the previous checkpoint" for problem in problems]
    if found is not None:
        step, state, document = found
        return Start(state, step, document.get("best"), (*notes, f"resumed at step {step}"))
    if config.start.run:
        variables, centres = _load_run(config, manifest, n_classes, mesh)
        note = f"weights and classifier of {config.start.run}"
    elif config.start.bundle:
        variables, centres = _load_bundle_variables(config.start.bundle, config.model), None
        note = f"weights of {config.start.bundle}"
    else:
        variables, centres, note = None, None, "random weights"
    return Start(fresh_state(config, n_classes, mesh, variables, centres), 0, None, (*notes, note))


def fresh_state(
    config: TrainConfig,
    n_classes: int,
    mesh: Mesh | None,
    variables: Variables | None = None,
    centres: np.ndarray | None = None,
) -> State:
    """Makes the state before the first step. Each device draws its own part, so that no device holds all speakers."""
    if mesh is None:
        return replicate(None, init_state(config, n_classes, variables, centres))

    def make(variables: Variables | None, centres: np.ndarray | None) -> State:
        return pad_speakers(mesh, init_state(config, n_classes, variables, centres))

    host = jax.tree.map(np.asarray, (variables, centres))
    shardings = state_shardings(mesh, jax.eval_shape(make, *host))
    return jax.jit(make, out_shardings=shardings)(*host)


def abstract_state(config: TrainConfig, n_classes: int, mesh: Mesh | None) -> State:
    """Returns shapes, dtypes and shardings of the state of a run, without computing anything."""
    abstract = jax.eval_shape(lambda: pad_speakers(mesh, init_state(config, n_classes)))
    return _add_shardings(abstract, state_shardings(mesh, abstract))


def _add_shardings(abstract: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )


def _load_bundle_variables(name: str, model: ModelConfig) -> Variables:
    bundle = load_bundle(name)
    if bundle.config != model:
        raise TrainingError(
            f"start.bundle: {name} is not the model of section [model]; give the configuration of the bundle there"
        )
    return bundle.variables


def _load_run(
    config: TrainConfig, manifest: TrainingManifest, n_classes: int, mesh: Mesh | None
) -> tuple[Variables, np.ndarray]:
    """Loads network and classifier of the newest checkpoint of another run; rows of remaining speakers are kept."""
    directory = Path(config.start.run)
    before = _read_run_file(directory)
    other = build_config(before["config"])
    if other.model != config.model:
        raise TrainingError(f"start.run: {directory} trains another model than section [model]")
    old_speakers, old_speeds = before["speakers"], other.data.class_speeds
    n_old = 1 if other.teacher.is_used and not other.teacher.labels else len(old_speakers) * len(old_speeds)
    abstract = jax.eval_shape(lambda: init_state(other, n_old))
    everywhere = state_shardings(mesh, abstract)
    if mesh is not None:  # the number of speakers of the other run may not be divisible on this mesh
        everywhere = jax.tree.map(lambda _: NamedSharding(mesh, EVERYWHERE), abstract)
    with RunCheckpoints(directory / CHECKPOINTS, other.run.keep) as checkpoints:
        found, problems = checkpoints.newest(_add_shardings(abstract, everywhere), remove=False)
    if found is None:
        raise TrainingError(f"start.run: {directory} holds no whole checkpoint {'; '.join(problems)}".rstrip())
    state = jax.tree.map(np.asarray, {name: found[1][name] for name in ("params", "batch_stats", "constants")})
    variables = {"params": state["params"]["network"], **{k: state[k] for k in ("batch_stats", "constants")}}
    old = state["params"]["centres"]
    if n_old == 1:  # the other run learned from a teacher alone
        return variables, np.array(draw_centres(config, n_classes))
    rows = {
        (speaker, speed): old[place * len(old_speakers) + index]
        for place, speed in enumerate(old_speeds)
        for index, speaker in enumerate(old_speakers)
    }
    return variables, _keep_centres(config, manifest, rows, draw_centres(config, n_classes))


def _keep_centres(
    config: TrainConfig, manifest: TrainingManifest, rows: dict[tuple[str, float], np.ndarray], drawn: jax.Array
) -> Float32[np.ndarray, "speakers sub_centres embedding"]:
    """Makes the new classifier: the old row for the same speaker and speed if there is one, else the drawn row."""
    centres = np.array(drawn)
    for place, speed in enumerate(config.data.class_speeds):
        for index, speaker in enumerate(manifest.speakers):
            row = rows.get((speaker, speed))
            if row is not None and row.shape == centres.shape[1:]:
                centres[place * len(manifest.speakers) + index] = row
    return centres
