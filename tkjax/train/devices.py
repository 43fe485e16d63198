"""The processes and devices of a run: how they meet, and how arrays get onto them and off again."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tkjax.errors import LONGEST_SENTENCE, UserError, of_files
from tkjax.train import checkpoint
from tkjax.types import Batch, PyTree

AXIS = "data"  # of the mesh: the frames of a global batch are split along it
WORK_S = 7 * 24 * 3600  # how long the others wait for what one process does alone, such as preprocessing a long clip


def initialise_distributed(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the processes of a run that spans several; before the first use of JAX.

    With explicit arguments all three are needed. Without, a SLURM step, an MPI launcher or an indexed
    Kubernetes job is recognised by its environment and JAX finds the rest; otherwise nothing happens.

    Raises:
      UserError: only some of the arguments are given.
    """
    given = (coordinator_address, num_processes, process_id)
    if any(x is not None for x in given):
        if any(x is None for x in given):
            raise UserError(
                f"coordinator_address={coordinator_address}, num_processes={num_processes} and process_id={process_id} "
                "belong together; give all three or none"
            )
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
        return
    sizes = [os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    kubernetes = "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ
    if kubernetes or any(size.isdigit() and int(size) > 1 for size in sizes):
        jax.distributed.initialize()


def by_the_first(work: Callable[[], object], what: str) -> None:
    """Let the first process of the run do something that is done once, while the others wait for its end.

    work: the same in all processes, called in the first alone; a run of one process just does it. what: a name for the
    place where they wait.

    Raises:
      whatever `work` raised, in the first process; in the others the same sentence (`end_together`).
    """
    if jax.process_count() == 1:
        work()
        return
    error = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as failure:  # raised again below, once the others know
            error = failure
    checkpoint.meet(what, WORK_S)
    end_together(error)


def end_together(error: Exception | None) -> None:
    """Let what stopped the first process stop all of them, at a place that all reach.

    error: of the first process, None where all is well; not looked at in the others.

    Raises:
      `error` itself in the first process.
      UserError: in the others, with its sentence where the user can mend it.
      RuntimeError: in the others, where it is a bug.
    """
    first, told = jax.process_index() == 0, np.zeros(1 + LONGEST_SENTENCE, np.uint8)
    if first and error is not None:
        mendable = str(error) if isinstance(error, UserError) else None
        mendable = of_files(error) if isinstance(error, OSError) else mendable
        text = (mendable or f"the first process failed: {type(error).__name__}").encode(errors="replace")
        text = np.frombuffer(text[:LONGEST_SENTENCE], np.uint8)
        told[0], told[1 : 1 + len(text)] = 1 if mendable else 2, text
    told = np.asarray(multihost_utils.broadcast_one_to_all(told))
    if first and error is not None:
        raise error
    if told[0]:
        text = told[1:].tobytes().rstrip(b"\0").decode(errors="replace")
        raise UserError(text) if told[0] == 1 else RuntimeError(text)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user set a place (JAX_COMPILATION_CACHE_DIR) or none."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tkjax" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def connect(mesh: Mesh) -> None:
    """Open the connections between all devices while all processes are here: later waits have no short limit."""
    checkpoint.meet("start")
    count = jax.shard_map(lambda: jax.lax.psum(jnp.int32(1), AXIS), mesh=mesh, in_specs=(), out_specs=PartitionSpec())
    jax.block_until_ready(jax.jit(count)())


def shard(batch: Batch, sharding: NamedSharding, n_frames: int) -> Batch:
    """Local frames of every process -> one global array on the devices. What a lone process already holds on a
    device does not pass through the host."""

    def place(x):
        if isinstance(x, jax.Array) and jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(x), (n_frames, *x.shape[1:]))

    return jax.tree.map(place, batch)


def replicate(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host values, equal in all processes, on every device; in buffers of their own, since they get donated."""
    return jax.tree.map(lambda x: jnp.copy(jax.make_array_from_process_local_data(sharding, np.asarray(x))), tree)


def local(tree: PyTree) -> PyTree:
    """This process's first copy of replicated arrays."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)
