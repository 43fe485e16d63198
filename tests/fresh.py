"""Initial variables without the time that compiling a whole `init` takes (ten seconds and more for a real system)."""

import jax
import jax.numpy as jnp

from tkjax.interface import Model
from tkjax.types import PyTree, Variables


def whole_of(model: Model, seed: int = 0) -> Variables:
    """All of them, without the optimiser that `interface.initialise` asks of the compiler, in half of the time."""
    return jax.jit(model.init)(jax.random.key(seed))


def part_of(model: Model, seed: int, *starts: str) -> PyTree:
    """The initial parameters whose names begin with one of these; the compiler drops the others."""

    def part(key):
        return {name: p for name, p in model.init(key).params.items() if name.startswith(starts)}

    return jax.jit(part)(jax.random.key(seed))


def adapted(variables: Variables, model: Model) -> Variables:
    """Variables of one model for another with slightly different settings: leaves are cut to size, new ones are 0."""
    have = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}

    def fit(path, like):
        leaf = have.get(jax.tree_util.keystr(path))
        return jnp.zeros(like.shape, like.dtype) if leaf is None else leaf[tuple(map(slice, like.shape))]

    return jax.tree_util.tree_map_with_path(fit, jax.eval_shape(model.init, jax.random.key(0)))
