"""Occupancy march: the first S samples of each ray that lie in occupied cells (er-nerf dossier §4).

A ray o + t d meets the box in [near, far] (slab test), near = max(near, t_min). Candidates are the lattice
t_k = near + dt * (k + noise), k = 0, 1, …, while t_k < far; a candidate is kept if the bit of the cell of
o + t_k d (clamped to ±bound) is set, until S are kept. The originals leap over an empty cell to the next
lattice point outside of it; as the leap stays on the lattice and only passes points of one empty cell,
the kept points are the same.
Cell: trunc(clamp(0.5 (x / bound + 1) side, 0, side - 1)); its bit is bit (m mod 8) of byte m // 8, m its Morton code.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Int, UInt8

from tkjax.ops import dispatch


class Marched(NamedTuple):
    """t: distance of each kept sample, zero in slots at and beyond `count`; near, far: the box (both 0 on a miss)."""

    t: Float[Array, "R S"]
    count: Int[Array, " R"]
    near: Float[Array, " R"]
    far: Float[Array, " R"]


def march(
    rays_o: Float[Array, "R 3"],
    rays_d: Float[Array, "R 3"],
    occupancy: UInt8[Array, " bytes"],
    noise: Float[Array, " R"],
    *,
    side: int,
    box: tuple[float, float, float, float, float, float],
    dt: float,
    t_min: float,
    samples: int,
    bound: float = 1.0,
    backend: str | None = None,
) -> Marched:
    """March R rays; `noise` in [0,1) jitters a ray's lattice by that share of a step. Not differentiable.

    box is (x0,y0,z0,x1,y1,z1), within ±bound. A ray that is not finite or misses the box keeps nothing.
    """
    if occupancy.shape[0] * 8 != side**3 or side & (side - 1):
        raise ValueError(
            f"march: {occupancy.shape[0]} occupancy bytes do not hold {side}^3 cells, or {side} is no power of two"
        )
    if not (dt > 0 and samples > 0):
        raise ValueError(f"march: dt and samples must be positive, got {dt} and {samples}")
    if not all(-bound <= lo < hi <= bound for lo, hi in zip(box[:3], box[3:])):
        raise ValueError(f"march: box {box} must have low < high within ±{bound}")
    return dispatch.resolve("march", backend).forward(
        rays_o, rays_d, occupancy, noise, side=side, box=box, dt=dt, t_min=t_min, samples=samples, bound=bound
    )
