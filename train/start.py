"""Where a run begins: its own checkpoint, another run, a bundle, or random weights - in this order."""

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
from ecapa_jax.train.scale.mesh import EVERYWHERE, padded, replicated, state_shardings
from ecapa_jax.train.settings import build_config, config_document
from ecapa_jax.train.state import State, drawn_centres, init_state

RUN_FILE, CHECKPOINTS = "run.json", "checkpoints"

FREE = {("data", "threads"), ("data", "prefetch"), ("data", "cache_gigabytes"), ("run", "keep"), ("data", "manifest")}
FREE |= {("run", "dev_root"), ("augment", "musan"), ("augment", "rirs"), ("mesh", "data"), ("mesh", "model")}
FREE |= {("teacher", "embeddings"), ("teacher", "bundle")}
"""What may change between an interrupted run and its continuation: how fast, on what, and where the same files are."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The state to go on from.

    Attributes:
      state: on the devices of the run.
      step: steps done.
      best: the checkpoint document's record of the best dev result so far; None before the first.
      notes: what happened, one line each, for the log.
    """

    state: State
    step: int
    best: dict[str, Any] | None
    notes: tuple[str, ...]


def count_classes(config: TrainConfig, manifest: TrainingManifest) -> int:
    """Rows of the classifier: speakers times speeds that make speakers; one where a teacher alone is learned from."""
    if config.teacher.is_used and not config.teacher.labels:
        return 1
    return len(manifest.speakers) * len(config.data.class_speeds)


def claim(directory: Path, config: TrainConfig, manifest: TrainingManifest, teacher: str = "") -> None:
    """Writes down what the run in this directory is, or checks that it is still the same.

    Args:
      directory: of the run.
      config: the run.
      manifest: its data.
      teacher: digest of its teacher; empty without one.

    Raises:
      TrainingError: the directory holds a run of another configuration or other data, or something else.
    """
    path = directory / RUN_FILE
    document = {"config": config_document(config), "data": manifest.fingerprint, "speakers": list(manifest.speakers)}
    document |= {"teacher": teacher}
    if not path.exists():
        foreign = sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
        if foreign:
            raise TrainingError(f"{directory} holds {foreign[0]} and is no run directory: choose another")
        temporary = path.with_suffix(".partial")
        temporary.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        temporary.replace(path)
        return
    before = _document(directory)
    # Read and written again: what a later version can set besides has the value that it had.
    if differs := _difference(config_document(build_config(before["config"])), document["config"]):
        raise TrainingError(
            f"{directory} is a run with another {differs}: go on with that one, or choose another place"
        )
    if before["data"] != document["data"]:
        raise TrainingError(f"{directory} is a run on other data than {config.data.manifest}: choose another place")
    if before.get("teacher", "") != document["teacher"]:
        named = config.teacher.embeddings or config.teacher.bundle
        raise TrainingError(f"{directory} is a run with another teacher than {named}: choose another place")


def _document(directory: Path) -> dict[str, Any]:
    path = directory / RUN_FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{directory} is no run directory that can be read ({path.name}: {error})") from error


def _difference(before: Any, after: Any, where: tuple[str, ...] = ()) -> str:
    """The first value that is another and may not be, as `section.key`."""
    if where in FREE or before == after:
        return ""
    if not isinstance(before, dict) or not isinstance(after, dict):
        same = isinstance(before, list | tuple) and list(before) == list(after or ())
        return "" if same else f"{'.'.join(where)} ({before!r}, now {after!r})"
    keys = sorted(before.keys() | after.keys())
    return next(filter(None, (_difference(before.get(key), after.get(key), (*where, key)) for key in keys)), "")


def start(
    config: TrainConfig, manifest: TrainingManifest, checkpoints: RunCheckpoints, mesh: Mesh | None = None
) -> Start:
    """Finds where to begin.

    Args:
      config: the run.
      manifest: its data.
      checkpoints: of its directory; what was saved on any number of devices is taken.
      mesh: the devices; None is one.

    Raises:
      TrainingError: another run or a bundle is named that does not fit this one.
      BundleError: the bundle can't be read.
    """
    n_classes = count_classes(config, manifest)
    found, problems = checkpoints.newest(abstract_state(config, n_classes, mesh))
    notes = [f"{problem}: going back to the one before" for problem in problems]
    if found is not None:
        step, state, document = found
        return Start(state, step, document.get("best"), (*notes, f"resumed at step {step}"))
    if config.start.run:
        variables, centres = _from_run(config, manifest, n_classes, mesh)
        note = f"weights and classifier of {config.start.run}"
    elif config.start.bundle:
        variables, centres = _bundle_variables(config.start.bundle, config.model), None
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
    """The state before the first step, on its devices; drawn where it is to be, so that no device has all speakers."""
    if mesh is None:
        return replicated(None, init_state(config, n_classes, variables, centres))

    def make(variables: Variables | None, centres: np.ndarray | None) -> State:
        return padded(mesh, init_state(config, n_classes, variables, centres))

    host = jax.tree.map(np.asarray, (variables, centres))
    shardings = state_shardings(mesh, jax.eval_shape(make, *host))
    return jax.jit(make, out_shardings=shardings)(*host)


def abstract_state(config: TrainConfig, n_classes: int, mesh: Mesh | None) -> State:
    """Shapes, dtypes and places of a run's state; nothing is computed."""
    abstract = jax.eval_shape(lambda: padded(mesh, init_state(config, n_classes)))
    return _placed(abstract, state_shardings(mesh, abstract))


def _placed(abstract: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )


def _bundle_variables(name: str, model: ModelConfig) -> Variables:
    bundle = load_bundle(name)
    if bundle.config != model:
        raise TrainingError(f"start.bundle: {name} is another model than [model] says; give its configuration there")
    return bundle.variables


def _from_run(
    config: TrainConfig, manifest: TrainingManifest, n_classes: int, mesh: Mesh | None
) -> tuple[Variables, np.ndarray]:
    """Network of another run's newest checkpoint, and the classifier rows of the speakers that are still there."""
    directory = Path(config.start.run)
    before = _document(directory)
    other = build_config(before["config"])
    if other.model != config.model:
        raise TrainingError(f"start.run: {directory} trains another model than [model] says")
    old_speakers, old_speeds = before["speakers"], other.data.class_speeds
    n_old = 1 if other.teacher.is_used and not other.teacher.labels else len(old_speakers) * len(old_speeds)
    abstract = jax.eval_shape(lambda: init_state(other, n_old))
    everywhere = state_shardings(mesh, abstract)
    if mesh is not None:  # its number of speakers need not suit this mesh
        everywhere = jax.tree.map(lambda _: NamedSharding(mesh, EVERYWHERE), abstract)
    with RunCheckpoints(directory / CHECKPOINTS, other.run.keep) as checkpoints:
        found, problems = checkpoints.newest(_placed(abstract, everywhere), remove=False)
    if found is None:
        raise TrainingError(f"start.run: {directory} holds no whole checkpoint {'; '.join(problems)}".rstrip())
    state = jax.tree.map(np.asarray, {name: found[1][name] for name in ("params", "batch_stats", "constants")})
    variables = {"params": state["params"]["network"], **{k: state[k] for k in ("batch_stats", "constants")}}
    old = state["params"]["centres"]
    if n_old == 1:  # it learned from a teacher alone
        return variables, np.array(drawn_centres(config, n_classes))
    rows = {
        (speaker, speed): old[place * len(old_speakers) + index]
        for place, speed in enumerate(old_speeds)
        for index, speaker in enumerate(old_speakers)
    }
    return variables, _kept(config, manifest, rows, drawn_centres(config, n_classes))


def _kept(
    config: TrainConfig, manifest: TrainingManifest, rows: dict[tuple[str, float], np.ndarray], drawn: jax.Array
) -> Float32[np.ndarray, "speakers sub_centres embedding"]:
    """The new classifier: a row of the same speaker and speed where there was one, else the drawn one."""
    centres = np.array(drawn)
    for place, speed in enumerate(config.data.class_speeds):
        for index, speaker in enumerate(manifest.speakers):
            row = rows.get((speaker, speed))
            if row is not None and row.shape == centres.shape[1:]:
                centres[place * len(manifest.speakers) + index] = row
    return centres
