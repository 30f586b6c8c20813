"""The mesh of devices: which part of the batch and of the state each device holds.

The batch is split over all devices and the classifier over the model axis; every device holds the whole network.
Letters: B batch, N devices, P micro-batches, K speakers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from ecapa_jax.errors import TrainingError
from ecapa_jax.train.config import TrainConfig

DATA, MODEL = "data", "model"
EVERYWHERE, BATCH, SPEAKERS = PartitionSpec(), PartitionSpec((DATA, MODEL)), PartitionSpec(MODEL)


def make_mesh(config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """Makes the mesh of a run; None if the run has one device.

    Args:
      config: configuration of the run; `mesh.data` 0 takes all devices.
      devices: devices to use; None takes those of all processes.

    Raises:
      TrainingError: there are too few devices, a process would be idle, or the batch can't be split.
    """
    devices = jax.devices() if devices is None else devices
    data, model = config.mesh.data, config.mesh.model
    data = data or max(len(devices) // model, 1)
    needed, n_processes = data * model, len({device.process_index for device in devices})
    if needed > len(devices):
        raise TrainingError(
            f"mesh.data {data} times mesh.model {model} are {needed} devices, but there are {len(devices)}: "
            "change them, or run `ecapa-jax doctor` to see the devices that JAX finds"
        )
    if n_processes > 1 and needed != len(devices):
        raise TrainingError(
            f"{n_processes} processes have {len(devices)} devices, mesh.data {data} times mesh.model {model} use "
            f"{needed}: no process may be idle; with mesh.data=0 all are used"
        )
    _check_batch(config, needed)
    if needed == 1:
        return None
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, model), (DATA, MODEL), kinds, devices=devices[:needed])


def _check_batch(config: TrainConfig, n_devices: int) -> None:
    n_parts, size = config.step.micro_batches, config.data.batch_size
    if size % (n_devices * n_parts):
        raise TrainingError(
            f"data.batch_size {size} can't be split over {n_devices} devices and {n_parts} micro-batches: "
            f"choose a multiple of {n_devices * n_parts}"
        )
    if n_devices > 1 and size == n_devices and config.augment.probability and config.augment.babble:
        raise TrainingError("augment.babble needs at least two examples on each device: raise data.batch_size")


def mesh_size(mesh: Mesh | None) -> int:
    """Returns the number of devices."""
    return 1 if mesh is None else mesh.size


def count_padded_speakers(mesh: Mesh | None, n_speakers: int) -> int:
    """Returns the rows of the classifier, including rows of zeros that make it divisible by the model axis."""
    parts = 1 if mesh is None else mesh.shape[MODEL]
    return -(-n_speakers // parts) * parts


def state_shardings(mesh: Mesh | None, state: Any) -> Any:
    """Returns the sharding of each array of a state: arrays with a row per speaker are split, others replicated."""
    if mesh is None:
        alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda _: alone, state)

    def place(path: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, SPEAKERS if _per_speaker(path) and leaf.ndim else EVERYWHERE)

    return jax.tree_util.tree_map_with_path(place, state)


def _per_speaker(path: Any) -> bool:
    return any(getattr(key, "key", None) == "centres" for key in path)


def pad_speakers(mesh: Mesh | None, state: Any) -> Any:
    """A state whose classifier has rows of zeros at its end, until the model axis divides it."""

    def pad(path: Any, leaf: Array) -> Array:
        if not (_per_speaker(path) and leaf.ndim):
            return leaf
        more = count_padded_speakers(mesh, leaf.shape[0]) - leaf.shape[0]
        return jnp.pad(leaf, ((0, more), *((0, 0),) * (leaf.ndim - 1)))

    return state if mesh is None else jax.tree_util.tree_map_with_path(pad, state)


def batch_rows(size: int, n_devices: int, n_parts: int) -> Int[np.ndarray, " batch"]:
    """Returns which row of the batch is at each position of the array that is split over the devices.

    Each device has consecutive positions, which contain a share of each micro-batch, so that micro-batches are the same
    on any number of devices.
    """
    rows = np.arange(size).reshape(n_parts, n_devices, -1)
    return rows.transpose(1, 0, 2).reshape(-1)


def local_rows(mesh: Mesh, size: int, n_parts: int) -> Int[Array, " local"]:
    """Returns the rows of the batch that this device holds; call it inside `jax.shard_map`."""
    here = size // mesh.size
    device = lax.axis_index((DATA, MODEL))
    each = here // n_parts
    place = jnp.arange(here)
    return place // each * (size // n_parts) + device * each + place % each


def process_places(mesh: Mesh, size: int) -> tuple[int, ...]:
    """Returns the positions of the batch array that are on devices of this process, in order."""
    pieces = NamedSharding(mesh, BATCH).addressable_devices_indices_map((size,)).values()
    held = {(piece[0].start or 0, size if piece[0].stop is None else piece[0].stop) for piece in pieces if piece}
    return tuple(itertools.chain.from_iterable(range(*piece) for piece in sorted(held)))


def process_rows(mesh: Mesh | None, size: int, n_parts: int) -> tuple[int, ...]:
    """Returns the rows of the batch that this process reads, in the order that `global_batch` needs."""
    if mesh is None:
        return tuple(range(size))
    order = batch_rows(size, mesh.size, n_parts)
    return tuple(int(order[place]) for place in process_places(mesh, size))


def global_batch(mesh: Mesh | None, local: dict[str, np.ndarray], size: int) -> dict[str, Array]:
    """Puts the batch on the devices of all processes, from the rows of this process in the order of `process_rows`."""
    if mesh is None:
        return jax.device_put(local)
    sharding, places = NamedSharding(mesh, BATCH), process_places(mesh, size)
    position = {place: index for index, place in enumerate(places)}

    def whole(array: np.ndarray) -> Array:
        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(size)
            return array[position[start] : position[start] + stop - start]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, piece)

    return {name: whole(array) for name, array in local.items()}


def replicate(mesh: Mesh | None, tree: Any) -> Any:
    """Puts arrays of the host on every device of the mesh; all processes must pass the same arrays."""
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0])
    sharding = NamedSharding(mesh, EVERYWHERE)

    def place(leaf: Any) -> Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)
