"""Reference render_fused: the three ops, one after the other."""

import jax.numpy as jnp

from tkjax.ops.composite import Composited
from tkjax.ops.reference import composite, field, march


def forward(program, spec, rays_o, rays_d, occupancy, values, params, *, stop, chunk, precision):
    del precision  # float32 throughout
    rays = rays_o.shape[0]
    if not rays:
        empty = jnp.zeros((0, program.channels - 1), jnp.float32)
        return Composited(empty, empty[:, :0], *[jnp.zeros(0, jnp.float32)] * 2)
    kept = march.packed(rays_o, rays_d, occupancy, jnp.zeros(rays, jnp.float32), spec, rays * spec.samples)
    points = rays_o[kept.ray] + kept.t[:, None] * rays_d[kept.ray]
    indices = {name: kept.ray for name, v in values.items() if v.shape[0] != 1}
    out = field.forward(program, points, values, indices, params, kept.total, chunk)
    return composite.packed(
        out[:, 0], kept.t, kept.dt, kept.offset, kept.count, out[:, 1:], out[:, :0], stop=stop
    )  # fmt: skip
