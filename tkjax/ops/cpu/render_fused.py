"""Rays to pixels through the C++ kernel: one march code, one field code, nothing per sample in memory."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops import cpu
from tkjax.ops.composite import Composited
from tkjax.ops.cpu import field, march
from tkjax.ops.folding import fold
from tkjax.ops.march import MarchSpec
from tkjax.ops.program import Program


def supports(program: Program, spec: MarchSpec) -> None:
    field.supports(program)


def forward(
    program, spec: MarchSpec, rays_o, rays_d, occupancy, values, params, *, stop, chunk, precision
) -> Composited:
    del chunk
    program, params = fold(program, params)
    rays = rays_o.shape[0]
    per_ray = np.array([values[name].shape[0] == rays for name in program.rows], np.int32)
    arrays = [params[name][leaf] for name, leaf in field.leaves(program)] + [values[name] for name in program.rows]
    shapes = ((rays, program.channels - 1), (rays,), (rays,))
    weighted, weight_sum, depth = cpu.call(
        "tkjax_render_fused", tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
        rays_o, rays_d, march.whole_words(occupancy), *arrays, words=field.words(program), per_ray=per_ray,
        precision=np.int32(precision == "bfloat16"), stop=np.float32(stop), **march.attributes(spec),
    )  # fmt: skip
    return Composited(weighted, jnp.zeros((rays, 0), jnp.float32), weight_sum, depth)
