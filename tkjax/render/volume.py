"""What marching systems share: jitter, samples from front to back in waves, pictures frame by frame, sums as a Render.

Everything here is in the axes and units that a system marches in.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tkjax.cameras import camera_z
from tkjax.interface import frame_keys
from tkjax.ops import Composited, Program, render_fused, sh_encode
from tkjax.ops.packing import Packing, pack, unpack
from tkjax.types import Batch, Render

SH_DEGREE = 4  # of the directions that colours see
STOP = 1e-4  # a ray ends with the sample that brings its transmittance below this, in training as in the originals


def jitter(batch: Batch, key: jax.Array | None, steps: int = 0) -> Float[Array, "B R"] | Float[Array, "B R J"]:
    """Noise in 0…1 of each ray, or of `steps` steps of each; 0 without a key."""
    b, r = batch.pixels_px.shape[:2]
    shape = (r, steps) if steps else (r,)
    if key is None:
        return jnp.zeros((b, *shape))
    return jax.vmap(lambda k: jax.random.uniform(k, shape))(frame_keys(key, batch, 0))


def in_waves(
    at: Callable[[Packing, Float[Array, "N 3"]], Float[Array, "N C"]],
    rays_o: Float[Array, "R 3"],
    rays_d: Float[Array, "R 3"],
    t: Float[Array, "R S"],
    count: Int[Array, " R"],
    dt: float | Float[Array, "R S"],
    waves: int,
) -> tuple[Float[Array, "R S C"], Int[Array, " R"]]:
    """A field at the marched samples, its sigma first, and how many samples of each ray were evaluated.

    at(packing, points) evaluates packed samples. They are taken in waves from front to back; rays whose transmittance
    has fallen below the compositor's stop are not continued (half of it here, so that rounding cannot leave out a
    sample that counts).
    """
    rays, samples = t.shape
    size = samples // waves

    def wave(carry, part):
        (optical, left), (t, steps) = carry, part
        count = jnp.where(jnp.exp(-optical) >= 0.5 * STOP, jnp.clip(left, 0, size), 0)
        packing = pack(count, size)
        along = t[packing.ray, packing.slot][:, None]
        packed = at(packing, rays_o[packing.ray] + along * rays_d[packing.ray])
        dense = unpack(packed, packing, jnp.arange(size) < count[:, None])
        thick = jnp.sum(dense[..., 0], -1) * dt if steps is None else jnp.sum(dense[..., 0] * steps, -1)
        optical = optical + jax.lax.stop_gradient(thick)
        return (optical, left - size), (dense, count)

    def split(x):
        return x.reshape(rays, waves, size).transpose(1, 0, 2)

    start, parts = (jnp.zeros(rays), count), (split(t), None if isinstance(dt, float) else split(dt))
    if waves == 1:
        _, (dense, count) = wave(start, jax.tree.map(lambda x: x[0], parts))
        return dense, count
    _, (dense, count) = jax.lax.scan(wave, start, parts)
    return dense.transpose(1, 0, 2, 3).reshape(rays, samples, -1), jnp.sum(count, 0)


def draw(
    program: Program,
    batch: Batch,
    rays: tuple[Float[Array, "BR 3"], Float[Array, "BR 3"]],
    bits: Array,
    values: Mapping[str, Float[Array, "B _"]],
    params: Callable[[int], Mapping],
    **how: Any,
) -> Composited:
    """Pictures only: marched, evaluated and composited in one call, frame by frame.

    values: rows of the frames; the row `sh` of the rays is made here. params(i): those of frame i. how: of
    `ops.render_fused`.
    """
    r, parts = batch.pixels_px.shape[1], []
    for i in range(batch.frame.shape[0]):
        o, d = (v[i * r : (i + 1) * r] for v in rays)
        rows = {"sh": sh_encode(d, SH_DEGREE), **{name: v[i : i + 1] for name, v in values.items()}}
        parts.append(render_fused(program, o, d, bits, rows, params(i), **how))
    return jax.tree.map(lambda *v: jnp.concatenate(v), *parts)


def as_render(batch: Batch, d: Float[Array, "B R 3"], sums: Composited, aux: dict, unit: float = 1.0) -> Render:
    """Sums over the B*R rays as a Render. d: directions in the contract's axes; unit: of the marched distances in the
    contract's units."""
    b, r = batch.pixels_px.shape[:2]
    alpha = sums.weight_sum.reshape(b, r, 1)
    t_mean = (sums.depth / jnp.maximum(sums.weight_sum, 1e-6)).reshape(b, r)
    z = camera_z(batch.cam_to_world, d, t_mean if unit == 1.0 else unit * t_mean)[..., None]
    depth = jax.lax.stop_gradient(jnp.where(alpha < 0.5, jnp.nan, z))
    return Render(rgb=sums.weighted[:, :3].reshape(b, r, 3), alpha=alpha, depth=depth, aux=aux)


def check_settings(m: Any, numbers: Mapping[str, float]) -> None:
    """ValueError names a setting that no picture can be drawn with: settings may be an avatar's of somebody else.
    numbers: names of settings and their largest values; those whose name starts with dt are not 0."""
    for name in ("samples", "waves", "chunk", "occupancy_side"):
        if not 1 <= m[name] <= 2**20:
            raise ValueError(f"model.{name} is {m[name]}, expected a whole number in 1..{2**20}")
    for name, most in numbers.items():
        if not 0 <= m[name] <= most or (name.startswith("dt") and not m[name]):
            raise ValueError(f"model.{name} is {m[name]}, expected a number above 0, at most {most}")
    if m.samples % m.waves:
        raise ValueError(f"model.samples {m.samples} is not a multiple of model.waves {m.waves}")
    if m.picture_precision not in ("float32", "bfloat16"):
        raise ValueError(f"model.picture_precision is {m.picture_precision!r}, expected float32 or bfloat16")
