"""The processes of a run that is spread over several: which they are, and where the first of them listens."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import re
from collections.abc import Mapping

from ecapa_jax.errors import ConfigError

LAUNCHED = "ECAPA_JAX_LAUNCHED"
"""Set for the processes that `--processes` starts on one machine: their coordinator may be a loopback address."""

LOOPBACK = re.compile(r"(localhost|ip6-localhost|127\.\d+\.\d+\.\d+|\[?::1\]?|0\.0\.0\.0)(:\d+)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How a process finds the others of its run.

    Attributes:
      source: where this was read: flags, Slurm, GKE, TPU-VM or JAX's own variables.
      coordinator: `host:port` of process 0; None leaves all three to JAX, which asks the TPU-VM's metadata server.
      n_processes, process: how many, and which this is.
      n_hosts: machines, as far as is known.
      device: the one device of this process, where several processes share a machine's GPUs; None takes all.
    """

    source: str
    coordinator: str | None = None
    n_processes: int = 1
    process: int = 0
    n_hosts: int = 1
    device: int | None = None


def find_cluster(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    n_processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """The processes that this one belongs to, from flags, else from the environment; None where it is alone.

    Args:
      environment: variables of this process.
      coordinator, n_processes, process: flags, all or none.

    Raises:
      ConfigError: some flags are missing or out of range, or the address is one that other machines can't reach.
    """
    flags = {"--coordinator": coordinator, "--process-count": n_processes, "--process-index": process}
    if all(value is None for value in flags.values()):
        found = _from_environment(environment)
        if found is not None and found.coordinator is not None:
            _check_reachable(found, found.n_hosts > 1)
        return found
    if missing := [name for name, value in flags.items() if value is None]:
        raise ConfigError(f"{', '.join(missing)} must be given too: all three of {', '.join(flags)}, or none")
    assert coordinator is not None
    assert n_processes is not None
    assert process is not None
    launched = bool(environment.get(LAUNCHED))
    found = Cluster("flags", coordinator, n_processes, process, 1 if launched else n_processes)
    found = dataclasses.replace(found, device=process if launched else None)
    if not 0 <= process < n_processes or ":" not in coordinator:
        raise ConfigError(
            f"--coordinator {coordinator} --process-count {n_processes} --process-index {process}: the first is "
            "HOST:PORT, and the index runs from 0 to the count less one"
        )
    _check_reachable(found, n_processes > 1 and not launched)
    return found


def _from_environment(environment: Mapping[str, str]) -> Cluster | None:
    try:
        return _slurm(environment) or _gke(environment) or _variables(environment) or _tpu_vm(environment)
    except ValueError as error:
        raise ConfigError(
            f"a variable of the environment that should say which process this is holds no whole number ({error}): "
            "correct it, or give --coordinator, --process-count and --process-index"
        ) from error


def _check_reachable(cluster: Cluster, others: bool) -> None:
    if others and LOOPBACK.fullmatch(cluster.coordinator or ""):
        raise ConfigError(
            f"the coordinator {cluster.coordinator} ({cluster.source}) is this machine for whoever asks, and other "
            "machines can't reach it: give process 0's name or address in the network; for several processes on one "
            "machine use --processes"
        )


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A step that `srun` started; a shell of `salloc` or `sbatch` is alone."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(environment.get(name) for name in names):
        return None
    job, nodes, n_tasks, task = (environment[name] for name in names)
    if int(n_tasks) < 2:
        return None
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).split(",")[0]
    n_hosts = int(environment.get("SLURM_STEP_NUM_NODES", n_tasks))
    shared = int(n_tasks) > n_hosts and "SLURM_LOCALID" in environment
    device = int(environment["SLURM_LOCALID"]) if shared else None
    return Cluster("Slurm", f"{first}:{61440 + int(job) % 4096}", int(n_tasks), int(task), n_hosts, device)


def _gke(environment: Mapping[str, str]) -> Cluster | None:
    """TPU hosts of a GKE job; several slices have a coordinator of their own."""
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    n_slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    if len(hosts) * n_slices < 2 or not environment.get("TPU_WORKER_ID"):
        return None
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).split(":")[0]
    place = int(environment["TPU_WORKER_ID"]) + len(hosts) * int(environment.get("MEGASCALE_SLICE_ID") or 0)
    return Cluster("GKE", f"{first}:8482", len(hosts) * n_slices, place, len(hosts) * n_slices)


def _variables(environment: Mapping[str, str]) -> Cluster | None:
    """JAX's own variables; in an indexed Kubernetes job the process is the pod's index."""
    process = environment.get("JAX_PROCESS_ID") or environment.get("JOB_COMPLETION_INDEX")
    number, coordinator = environment.get("JAX_NUM_PROCESSES"), environment.get("JAX_COORDINATOR_ADDRESS")
    if not (number and coordinator and process) or int(number) < 2:
        return None
    return Cluster("JAX_COORDINATOR_ADDRESS", coordinator, int(number), int(process), int(number))


def _tpu_vm(environment: Mapping[str, str]) -> Cluster | None:
    """A TPU-VM: its chips are here, and the metadata server knows the other machines."""
    wanted = environment.get("JAX_PLATFORMS", "tpu")
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    told = environment.get("TPU_SKIP_MDS_QUERY") or environment.get("TPU_WORKER_HOSTNAMES")  # it is GKE, or nothing
    if "tpu" not in wanted or told or not chips:
        return None
    return Cluster("TPU-VM") if importlib.util.find_spec("libtpu") else None
