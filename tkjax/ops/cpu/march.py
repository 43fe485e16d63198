"""March through the C++ kernel; lattice, cells and rounding are those of the reference."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops import cpu
from tkjax.ops.march import Marched, MarchedPacked, MarchSpec


def whole_words(occupancy):
    """The kernel reads 32 bits at a time."""
    return jnp.pad(occupancy, (0, -occupancy.shape[0] % 4))


def attributes(spec: MarchSpec) -> dict[str, np.generic | np.ndarray]:
    """The settings as the handlers take them."""
    return {
        **{k: np.int32(getattr(spec, k)) for k in ("side", "cascades", "samples")},
        **{k: np.float32(getattr(spec, k)) for k in ("dt", "t_min", "bound", "dt_gamma", "dt_max")},
        "vertex": np.int32(spec.cell == "vertex"),
        "box": np.asarray(spec.box, np.float32),
    }


def _call(target: str, rays: tuple, spec: MarchSpec, out):
    o, d, occupancy, noise = rays
    return cpu.call(target, out, o, d, whole_words(occupancy), noise, **attributes(spec))


def _floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def forward(rays_o, rays_d, occupancy, noise, spec: MarchSpec) -> Marched:
    r, s = rays_o.shape[0], spec.samples
    out = (_floats(r, s), _floats(r, s), _ints(r), _floats(r), _floats(r))
    return Marched(*_call("tkjax_march_dense", (rays_o, rays_d, occupancy, noise), spec, out))


def packed(rays_o, rays_d, occupancy, noise, spec: MarchSpec, capacity: int) -> MarchedPacked:
    r, m = rays_o.shape[0], capacity
    out = (_floats(m), _floats(m), _ints(m), _ints(r), _ints(r), _floats(r), _floats(r), _ints())
    return MarchedPacked(*_call("tkjax_march_packed", (rays_o, rays_d, occupancy, noise), spec, out))
