"""Bias-free ReLU MLPs, and the initialisers that PyTorch uses by default."""

import itertools
import math

import flax.linen as nn
import jax
from jaxtyping import Array, Float


def uniform_init(fan_in: int):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): Kaiming-uniform with a = sqrt(5), PyTorch's default for weight and bias."""
    limit = 1.0 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jax.numpy.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


class MLP(nn.Module):
    """x -> W_n relu(… relu(W_1 x)); `widths` = (input, hidden…, output), kernels are [in, out]."""

    widths: tuple[int, ...]

    def setup(self):
        pairs = itertools.pairwise(self.widths)
        self.kernels = [self.param(f"kernel_{i}", uniform_init(a), (a, b)) for i, (a, b) in enumerate(pairs)]

    def __call__(self, *parts: Float[Array, "#N _"]) -> Float[Array, "N _"]:
        """The input is the concatenation of `parts`; the first product is taken part by part, so that a part which
        is one row for all samples costs one row."""
        y, start = 0.0, 0
        for part in parts:
            rows = self.kernels[0][start : start + part.shape[-1]]
            y = y + (part * rows if part.shape[-1] == 1 else part @ rows)
            start += part.shape[-1]
        if start != self.widths[0]:
            raise ValueError(f"MLP takes {self.widths[0]} inputs, got {start}")
        for kernel in self.kernels[1:]:
            y = nn.relu(y) @ kernel
        return y
