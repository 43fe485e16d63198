"""Rays to pixels in one call, for inference: march, field and compositing, nothing per sample in memory where fused.

The same as `march_packed` without jitter, `field` at o + t d of every kept sample, and `composite_packed` of its
outputs: the first is sigma (one channel), the others are weighted sums, rgb first. Where no kernel does the whole for a
program, these three are called, each on the best back end that it has. What is fused keeps exactly the samples that
`march` of the same back end keeps; colours differ by rounding.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from tkjax.ops import dispatch
from tkjax.ops.composite import Composited, composite_packed
from tkjax.ops.field import check_params, field
from tkjax.ops.march import MarchSpec, march_packed, march_spec
from tkjax.ops.program import Program

PRECISIONS = ("float32", "bfloat16")


def render_fused(
    program: Program,
    rays_o: Float[Array, "R 3"],
    rays_d: Float[Array, "R 3"],
    occupancy: UInt8[Array, " bytes"],
    rows: Mapping[str, Float[Array, "_ _"]],
    params: Mapping,
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
    stop: float = 1e-4,
    chunk: int = 2048,
    precision: str = "float32",
    backend: str | None = None,
) -> Composited:
    """`Composited` sums of R rays; `weighted` [R, channels - 1] holds rgb first, `plain` is empty.

    rows: name -> [R,C], one row per ray, or [1,C], one for all. What the other arguments mean: `march`, `field`,
    `composite`. precision: `float32`, or `bfloat16`, which allows operands of the MLPs' products to be rounded to
    bfloat16 where that is faster (sums stay float32). Not differentiable (use the three ops); memory of the three
    ops grows with R x samples.
    """
    first = program.outputs[0][0]
    if program.slices[first].stop != 1 or program.channels < 2:
        raise ValueError(
            f"render_fused: the first output of {program.name} must be sigma, one channel, and others follow"
        )
    if program.dims != 3:
        raise ValueError(f"render_fused: {program.name} takes points of {program.dims} dimensions, rays give 3")
    if precision not in PRECISIONS:
        raise ValueError(f"render_fused: precision {precision!r} is unknown; choose {' or '.join(PRECISIONS)}")
    if not 0 <= stop < 1:
        raise ValueError(f"render_fused: needs 0 <= stop < 1, got {stop}")
    spec = march_spec(
        rays_o, rays_d, occupancy, rays_o[:, 0], side=side, box=box, dt=dt, t_min=t_min, samples=samples, bound=bound,
        dt_gamma=dt_gamma, dt_max=dt_max, cascades=cascades, cell=cell,
    )  # fmt: skip
    values = {name: rows[name] for name in program.rows if name in rows}
    for name, channels in program.rows.items():
        if name not in values or values[name].shape not in ((1, channels), (rays_o.shape[0], channels)):
            found = values[name].shape if name in values else "none"
            raise ValueError(
                f"render_fused: row {name!r} of {program.name} must be [1 or {rays_o.shape[0]}, {channels}], "
                f"got {found}"
            )
    floats = {"rays_o": rays_o, "rays_d": rays_d, **values}
    for name, array in floats.items():
        if array.dtype != "float32":
            raise ValueError(f"render_fused: {name} must be float32, got {array.dtype}")
    params = check_params(program, params)

    module = dispatch.resolve_whole("render_fused", backend, program, spec)

    @jax.custom_jvp
    def run(*arrays):
        if module is None:
            with jax.named_scope(f"render_fused.{backend or 'parts'}"):
                return _parts(program, spec, *arrays, stop=float(stop), chunk=chunk, backend=backend)
        with jax.named_scope(f"render_fused.{module.__name__.split('.')[-2]}"):
            return module.forward(program, spec, *arrays, stop=float(stop), chunk=chunk, precision=precision)

    @run.defjvp
    def refuse(primals, tangents):
        raise NotImplementedError("render_fused is for inference; differentiate march, field and composite instead")

    return run(rays_o, rays_d, occupancy, values, params)


def _parts(
    program: Program, spec: MarchSpec, rays_o, rays_d, occupancy, values, params, *, stop, chunk, backend
) -> Composited:
    """The three ops, one after the other."""
    rays = rays_o.shape[0]
    if not rays:
        sums = jnp.zeros((0, program.channels - 1), jnp.float32)
        return Composited(sums, sums[:, :0], sums[:, 0], sums[:, 0])
    noise, settings = jnp.zeros(rays, jnp.float32), spec._asdict()
    kept = march_packed(
        rays_o, rays_d, occupancy, noise, capacity=rays * spec.samples, backend=backend, **settings
    )  # fmt: skip
    points = rays_o[kept.ray] + kept.t[:, None] * rays_d[kept.ray]
    rows = {name: (v, None if v.shape[0] == 1 else kept.ray) for name, v in values.items()}
    out = field(program, points, rows, params, total=kept.total, chunk=chunk, backend=backend)
    return composite_packed(
        out[:, 0], kept.t, kept.dt, kept.offset, kept.count, out[:, 1:], out[:, :0], stop=stop, backend=backend
    )  # fmt: skip
