"""Occupancy march: the first S samples of each ray that lie in occupied cells (er-nerf dossier §4).

A ray o + t d meets the box in [near, far] (slab test), near = max(near, t_min). Its lattice starts at
t_0 = near + noise dt(near) and goes on with t_{k+1} = t_k + dt(t_k), dt(t) = clamp(t dt_gamma, dt, dt_max),
while t_k < far. A lattice point is kept if the bit of its cell is set, until S are kept. The originals leap over
an empty cell to the next lattice point outside of it; as the leap stays on the lattice and only passes points of
one empty cell, the kept points are the same. (With several cascades a leap of theirs can also pass points that
belong to another cascade, and with "vertex" cells it can end half a cell too late; here no point is passed unseen.)

Jitter. noise [R] in [0,1] shifts the lattice of a ray, as above. noise [R,J] draws the step behind every kept sample
anew (nerfblendshape dossier §4.2): t_0 = near, behind the sample in slot j follows t + 2 dt(t) noise[j mod J], and that
step is its dt; points that are not kept are left by whole steps. Noise that is not finite counts as 0.

Cells. Cascade c spans ±2^c, the last one ±bound; a point belongs to the smallest cascade with max |x_i| < 2^c and
dt(t) side / 2 < 2^c, or to the last. In a cube of ±b
  "trunc":  trunc(clamp(side (x / b + 1) / 2, 0, side - 1)), side a power of two. Bit 8 n + i of the cascade, byte n,
            bit i from the lowest, is the cell with Morton code 8 n + i; cascades follow each other.
  "vertex": floor(side (x / b + 1) / 2 + 1/2), the nearest of (side + 1)^3 vertices, one cascade only. Bit number
            (x (side + 1) + y) (side + 1) + z, the last byte filled up with zeros.

Rounding. All in float32, every product and sum rounded by itself (no fused multiply-add), in every back end, so
that all keep the same cells: t_k = near + dt (k + noise) where the step is constant, else the recurrence;
x = o + t d, clamped to ±bound. A lattice ends after 2^24 points.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from tkjax.ops import dispatch

CELL_RULES = ("trunc", "vertex")
MAX_SIDE = 1024  # Morton codes of 10 bits an axis


class MarchSpec(NamedTuple):
    """The static arguments of a march, checked, all of them float32 numbers or integers."""

    side: int
    box: tuple[float, float, float, float, float, float]
    dt: float
    t_min: float
    samples: int
    bound: float
    dt_gamma: float
    dt_max: float
    cascades: int
    cell: str

    @property
    def constant_step(self) -> bool:
        return self.dt_gamma == 0 or self.dt_max == self.dt

    @property
    def spans(self) -> tuple[float, ...]:
        """Half the edge of each cascade's cube."""
        return (*(2.0**c for c in range(self.cascades - 1)), self.bound)

    @property
    def bytes(self) -> int:
        if self.cell == "vertex":
            return ((self.side + 1) ** 3 + 7) // 8
        return self.cascades * self.side**3 // 8


class Marched(NamedTuple):
    """t, dt: distance and length of step of each kept sample, zero in slots at and beyond `count`.
    near, far: where the ray meets the box (both 0 on a miss)."""

    t: Float[Array, "R S"]
    dt: Float[Array, "R S"]
    count: Int[Array, " R"]
    near: Float[Array, " R"]
    far: Float[Array, " R"]

    @property
    def valid(self) -> Bool[Array, "R S"]:
        return jnp.arange(self.t.shape[1], dtype=jnp.int32) < self.count[:, None]


class MarchedPacked(NamedTuple):
    """Samples ray by ray: ray r has offset[r] … offset[r] + count[r] - 1; t, dt and ray are 0 behind the last.
    `overflow` samples did not fit: they are missing at the end, `count` is what is there."""

    t: Float[Array, " M"]
    dt: Float[Array, " M"]
    ray: Int[Array, " M"]
    offset: Int[Array, " R"]
    count: Int[Array, " R"]
    near: Float[Array, " R"]
    far: Float[Array, " R"]
    overflow: Int[Array, ""]

    @property
    def total(self) -> Int[Array, ""]:
        """How many samples there are."""
        return jnp.sum(self.count)


def march_spec(rays_o, rays_d, occupancy, noise, **settings) -> MarchSpec:
    """Arguments as a MarchSpec with its numbers rounded to float32, or a ValueError that says what is wrong."""
    dt, dt_max = settings["dt"], settings["dt_max"]
    settings["dt_max"] = max(dt, 2 * math.sqrt(3) * settings["bound"] / settings["side"]) if dt_max is None else dt_max
    settings["box"] = tuple(float(np.float32(v)) for v in settings["box"])
    for name in ("dt", "t_min", "bound", "dt_gamma", "dt_max"):
        settings[name] = float(np.float32(settings[name]))
    spec = MarchSpec(**settings)
    if spec.cell not in CELL_RULES:
        raise ValueError(f"march: cell rule {spec.cell!r} is unknown; choose {' or '.join(CELL_RULES)}")
    if spec.cell == "trunc" and spec.side & (spec.side - 1):
        raise ValueError(f"march: side {spec.side} is no power of two")
    if not 1 <= spec.side <= MAX_SIDE or spec.bytes > 2**28:
        raise ValueError(f"march: side {spec.side} with {spec.cascades} cascades is beyond {MAX_SIDE}^3 or 2^31 bits")
    if occupancy.shape != (spec.bytes,):
        raise ValueError(f"march: {occupancy.shape[0]} occupancy bytes do not hold {spec.side}^3 cells ({spec.bytes})")
    if not (spec.dt > 0 and spec.samples > 0):
        raise ValueError(f"march: dt and samples must be positive, got {spec.dt} and {spec.samples}")
    if not (0 <= spec.dt_gamma < math.inf and spec.dt <= spec.dt_max < math.inf and 0 <= spec.t_min < math.inf):
        raise ValueError(
            f"march: needs dt_gamma >= 0, dt <= dt_max and t_min >= 0, all finite, got {spec.dt_gamma}, "
            f"{spec.dt} <= {spec.dt_max}, {spec.t_min}"
        )
    if not all(-spec.bound <= lo < hi <= spec.bound for lo, hi in zip(spec.box[:3], spec.box[3:])):
        raise ValueError(f"march: box {spec.box} must have low < high within ±{spec.bound}")
    if spec.cascades < 1 or (spec.cascades > 1 and (spec.cell == "vertex" or 2.0 ** (spec.cascades - 2) >= spec.bound)):
        raise ValueError(
            f"march: {spec.cascades} cascades do not go with bound {spec.bound} and the cell rule {spec.cell}; "
            f"at most 1 + ceil(log2 bound), and 1 for vertices"
        )
    if rays_d.shape != rays_o.shape or noise.shape[:1] != rays_o.shape[:1] or 0 in noise.shape[1:] or noise.ndim > 2:
        raise ValueError(f"march: origins {rays_o.shape}, directions {rays_d.shape}, noise {noise.shape} do not agree")
    if rays_o.shape[0] * spec.samples >= 2**31:
        raise ValueError(
            f"march: {rays_o.shape[0]} rays of {spec.samples} samples are 2^31 or more; march fewer at once"
        )
    return spec


def _fixed(*arrays):
    return tuple(jax.lax.stop_gradient(jnp.asarray(v, jnp.float32)) for v in arrays)


def march(
    rays_o: Float[Array, "R 3"],
    rays_d: Float[Array, "R 3"],
    occupancy: UInt8[Array, " bytes"],
    noise: Float[Array, " R"] | Float[Array, "R J"],
    *,
    side: int,
    box: tuple[float, float, float, float, float, float],
    dt: float,
    t_min: float,
    samples: int,
    bound: float = 1.0,
    dt_gamma: float = 0.0,
    dt_max: float | None = None,
    cascades: int = 1,
    cell: str = "trunc",
    backend: str | None = None,
) -> Marched:
    """March R rays; `noise` in [0,1] jitters the lattice, or every step. Not differentiable.

    box is (x0,y0,z0,x1,y1,z1), within ±bound. dt is the shortest step, dt_max the longest (2 √3 bound / side if
    None). A ray that is not finite or misses the box keeps nothing.
    """
    spec = march_spec(
        rays_o, rays_d, occupancy, noise, side=side, box=box, dt=dt, t_min=t_min, samples=samples, bound=bound,
        dt_gamma=dt_gamma, dt_max=dt_max, cascades=cascades, cell=cell,
    )  # fmt: skip
    o, d, shift = _fixed(rays_o, rays_d, noise)
    module = dispatch.resolve("march", backend, spec, noise)
    with jax.named_scope(f"march.{module.__name__.split('.')[-2]}"):
        return module.forward(o, d, jnp.asarray(occupancy), shift, spec)


def march_packed(
    rays_o: Float[Array, "R 3"],
    rays_d: Float[Array, "R 3"],
    occupancy: UInt8[Array, " bytes"],
    noise: Float[Array, " R"] | Float[Array, "R J"],
    *,
    side: int,
    box: tuple[float, float, float, float, float, float],
    dt: float,
    t_min: float,
    samples: int,
    capacity: int,
    bound: float = 1.0,
    dt_gamma: float = 0.0,
    dt_max: float | None = None,
    cascades: int = 1,
    cell: str = "trunc",
    backend: str | None = None,
) -> MarchedPacked:
    """The samples of `march`, numbered ray by ray in M = `capacity` slots; always in the same order.

    Samples with a number at or beyond capacity are dropped and counted in `overflow`: the first rays are whole, one ray
    may lose its last samples, the rays after it have none.
    """
    spec = march_spec(
        rays_o, rays_d, occupancy, noise, side=side, box=box, dt=dt, t_min=t_min, samples=samples, bound=bound,
        dt_gamma=dt_gamma, dt_max=dt_max, cascades=cascades, cell=cell,
    )  # fmt: skip
    if capacity < 0 or capacity >= 2**31:
        raise ValueError(f"march_packed: capacity must be 0 … 2^31 - 1, got {capacity}")
    o, d, shift = _fixed(rays_o, rays_d, noise)
    module = dispatch.resolve("march", backend, spec, noise)
    with jax.named_scope(f"march_packed.{module.__name__.split('.')[-2]}"):
        return module.packed(o, d, jnp.asarray(occupancy), shift, spec, capacity)
