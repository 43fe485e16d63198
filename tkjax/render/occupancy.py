"""The occupancy grid of the RAD-NeRF family: a cube of densities over [-1,1]^3 in Morton order, and its bits.

State: {"density": [side^3] float32, -1 where no training camera looks; "bits": [side^3 / 8] uint8}.

`init_vertices` and `refresh_vertices` keep NeRFBlendShape's instead (its dossier §4.1): densities at the (side + 1)^3
vertices in row-major order, and bits as `ops.march` takes them for cells "vertex".
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tkjax.ops import dilate_morton, morton_decode, packbits
from tkjax.ops.packing import pack

MAX_THRESHOLD = 10.0  # a cell is occupied above min(mean density, this)
VERTEX_INIT = 1e-3  # nerfblendshape dossier §4.1


def init(side: int) -> dict:
    """Nothing known yet: every density 0, every bit set, so that rays are sampled before the first refresh."""
    return {"density": jnp.zeros(side**3, jnp.float32), "bits": jnp.full(side**3 // 8, 255, jnp.uint8)}


def side_of(state: dict) -> int:
    return round(state["density"].shape[0] ** (1 / 3))


def cell_centres(code, side: int):
    """Positions [n,3] of cells: (2 c / (side-1) - 1) (1 - 1/side)."""
    return (2.0 * morton_decode(code).astype(jnp.float32) / (side - 1) - 1.0) * (1.0 - 1.0 / side)


def mark_unseen(
    state: dict,
    cam_to_grid: Float[np.ndarray, "n 4 4"],
    intrinsics: Float[np.ndarray, "n 4"],
    height: int,
    width: int,
    keep: Float[np.ndarray, "6"] | None = None,
    share: float = 0.0,
) -> dict:
    """Densities of cells that no camera sees, or fewer than `share` of them, become -1: never occupied again.

    A camera (OpenCV axes, looks along +z) sees a cell whose centre is in front of it and projects into the
    picture widened by two half cells, as in the originals. With `keep` (x0,y0,z0,x1,y1,z1) the cells
    that do not touch this box become -1 as well.
    """
    side = side_of(state)
    centres = cell_centres(jnp.arange(side**3), side)
    half = 1.0 / side

    def step(seen, camera):
        pose, (fx, fy, cx, cy) = camera
        x, y, z = ((centres - pose[:3, 3]) @ pose[:3, :3]).T
        inside = (z > 0) & (x > -cx / fx * z - 2 * half) & (x < (width - cx) / fx * z + 2 * half)
        inside &= (y > -cy / fy * z - 2 * half) & (y < (height - cy) / fy * z + 2 * half)
        return seen + inside, None

    cameras = (jnp.asarray(cam_to_grid, jnp.float32), jnp.asarray(intrinsics, jnp.float32))
    seen, _ = jax.jit(lambda c: jax.lax.scan(step, jnp.zeros(side**3, jnp.int32), c))(cameras)
    seen = seen >= max(1, math.ceil(share * len(cam_to_grid)))
    if keep is not None:
        low, high = np.asarray(keep[:3], np.float32) - half, np.asarray(keep[3:], np.float32) + half
        seen &= jnp.all((centres > low) & (centres < high), -1)
    density = jnp.where(seen, state["density"], -1.0)
    bits = state["bits"] & packbits(density, -0.5)
    return {"density": density, "bits": bits}


def refresh(state: dict, sigma: Callable, key: jax.Array, decay: float = 0.95) -> dict:
    """One update: sigma(xyz [N,3], total) -> [N], for the first `total` rows, at a random point of every cell;
    6-neighbour maximum, running maximum with `decay`, new bits at threshold min(mean of max(density, 0), 10).

    Cells that are -1 stay so; they are evaluated only where they touch a cell that is not, for its maximum.
    """
    density = state["density"]
    side, cells = side_of(state), density.shape[0]
    wanted = dilate_morton((density >= 0).astype(jnp.float32)) > 0
    packing = pack(wanted, 1)
    noise = jax.random.uniform(key, (cells, 3), minval=-1.0, maxval=1.0)
    xyz = cell_centres(packing.ray, side) + noise / side
    values = sigma(xyz, packing.total)
    fresh = dilate_morton(jnp.where(wanted, values[packing.start], 0.0))
    density = jnp.where((density >= 0) & (fresh >= 0), jnp.maximum(decay * density, fresh), density)
    threshold = jnp.minimum(jnp.mean(jnp.maximum(density, 0.0)), MAX_THRESHOLD)
    return {"density": density, "bits": packbits(density, threshold)}


def init_vertices(side: int) -> dict:
    """Every density VERTEX_INIT, every bit set."""
    density = jnp.full((side + 1) ** 3, VERTEX_INIT, jnp.float32)
    return {"density": density, "bits": vertex_bits(density, 0.0)}


def vertex_bits(density: Float[Array, " vertices"], threshold: float | Float[Array, ""]) -> Array:
    """Bits of the densities above a threshold, the last byte filled up with zeros."""
    return packbits(jnp.pad(density, (0, -density.shape[0] % 8), constant_values=-jnp.inf), threshold)


def refresh_vertices(state: dict, sigma: Callable, key: jax.Array, decay: float = 0.9) -> dict:
    """One update: sigma at p + U(-1,1)/side of every vertex, p = (1 - 1/side) linspace(-1, 1, side + 1) per axis;
    maximum over the 2^3 window towards higher coordinates, running maximum with `decay`, new bits at threshold
    min(mean density, 10)."""
    density = state["density"]
    n = round(density.shape[0] ** (1 / 3))
    side = n - 1
    axis = jnp.linspace(-1.0, 1.0, n) * (1.0 - 1.0 / side)
    points = jnp.stack(jnp.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    noise = jax.random.uniform(key, points.shape, minval=-1.0, maxval=1.0)
    fresh = sigma(points + noise / side, jnp.int32(n**3)).reshape(n, n, n)
    pads = ((0, 1),) * 3
    fresh = jax.lax.reduce_window(fresh, 0.0, jax.lax.max, (2, 2, 2), (1, 1, 1), pads).reshape(-1)
    density = jnp.maximum(decay * density, fresh)
    return {"density": density, "bits": vertex_bits(density, jnp.minimum(jnp.mean(density), MAX_THRESHOLD))}


def occupied_share(bits: Array) -> Array:
    """Share of the cells whose bit is set."""
    return jnp.mean(jax.lax.population_count(bits).astype(jnp.float32)) / 8.0
