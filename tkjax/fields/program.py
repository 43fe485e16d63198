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
