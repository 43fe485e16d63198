"""The learned parameters of a `tkjax.ops.Program`, as Flax modules with PyTorch's default initialisation."""

import math

import flax.linen as nn
import jax

from tkjax.ops import Program

TABLE_INIT = 1e-4  # tables start in U(-1e-4, 1e-4)


def uniform_init(fan_in: int):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): Kaiming-uniform with a = sqrt(5), PyTorch's default for weight and bias."""
    limit = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jax.numpy.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def uniform_params(key: jax.Array, shapes) -> dict:
    """A tree of new parameters, as PyTorch starts them, from nested dicts of what has a shape: kernels [..., out] with
    as many inputs as their other axes hold, and biases, named like their kernel with `bias` in its place.

    One draw for all of them: compiling one for each of a hundred takes half a minute.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    given = {tuple(p.key for p in path): math.prod(leaf.shape[:-1]) for path, leaf in leaves}
    drawn = jax.random.uniform(key, (sum(leaf.size for _, leaf in leaves),), minval=-1.0, maxval=1.0)
    out, start = [], 0
    for path, leaf in leaves:
        *group, name = (p.key for p in path)
        inputs = given[*group, name.replace("bias", "kernel")]
        out.append(drawn[start : start + leaf.size].reshape(leaf.shape) / math.sqrt(inputs))
        start += leaf.size
    return jax.tree.unflatten(tree, out)


def table_init(key, shape):
    return jax.random.uniform(key, shape, minval=-TABLE_INIT, maxval=TABLE_INIT)


class Group(nn.Module):
    """One grid (`tables`) or MLP (`kernel_0`, … [in, out], perhaps `bias_0`, …) of a program."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        shapes = dict(self.shapes)

        def init(name: str):
            if name == "tables":
                return table_init
            return uniform_init(shapes[name.replace("bias", "kernel")][0])

        return {name: self.param(name, init(name), shape) for name, shape in self.shapes}


def groups(program: Program) -> dict[str, Group]:
    """A module for each grid and MLP that the program reads, by name."""
    return {name: Group(tuple(shapes.items())) for name, shapes in program.params.items()}
