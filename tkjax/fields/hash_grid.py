"""A trainable grid of any dimension (`tkjax.ops.grid_encode`)."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from tkjax.ops import GridSpec, grid_encode

TABLE_INIT = 1e-4  # tables start in U(-1e-4, 1e-4)


def table_init(key, shape):
    return jax.random.uniform(key, shape, minval=-TABLE_INIT, maxval=TABLE_INIT)


class HashGrid(nn.Module):
    """Points in [-bound, bound]^D -> features [N, L*F]; zero outside."""

    spec: GridSpec
    bound: float = 1.0

    @nn.compact
    def __call__(self, points: Float[Array, "N D"]) -> Float[Array, "N LF"]:
        tables = self.param("tables", table_init, (1, self.spec.entries, self.spec.features))
        unit = (points + self.bound) / (2 * self.bound)
        return grid_encode(unit[:, None], tables, self.spec)[:, 0]
