"""Three plane grids on the coordinate pairs (er-nerf dossier §3, "tri-plane hash")."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from tkjax.fields.hash_grid import table_init
from tkjax.ops import GridSpec, grid_encode

PAIRS = ((0, 1), (1, 2), (0, 2))  # xy, yz, xz


class TriPlane(nn.Module):
    """x in [-bound, bound]^3 -> features of the planes xy | yz | xz, each level by level: [N, 3*L*F]."""

    spec: GridSpec
    bound: float = 1.0

    def setup(self):
        self.tables = self.param("tables", table_init, (len(PAIRS), self.spec.entries, self.spec.features))

    @property
    def channels(self) -> int:
        return len(PAIRS) * self.spec.channels

    def __call__(self, xyz: Float[Array, "N 3"]) -> Float[Array, "N C"]:
        unit = (xyz + self.bound) / (2 * self.bound)
        planes = jnp.stack([unit[:, list(pair)] for pair in PAIRS], 1)
        return grid_encode(planes, self.tables, self.spec).reshape(xyz.shape[0], -1)
