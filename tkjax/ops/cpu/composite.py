"""Compositing through the C++ kernel, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tkjax.ops import cpu, dispatch
from tkjax.ops.composite import Composited


def _like(v):
    return jax.ShapeDtypeStruct(v.shape, jnp.float32)


def _floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _sums(target: str, rays: int, args, stop: float) -> Composited:
    weighted, plain = args[-2:]
    out = (_floats(rays, weighted.shape[-1]), _floats(rays, plain.shape[-1]), _floats(rays), _floats(rays))
    return Composited(*cpu.call(target, out, *args, stop=np.float32(stop)))


def _gradients(op: str, target: str, args, sums: Composited, out, stop: float):
    """Gradients to sigma, t, weighted and plain, which `out` describes."""

    @dispatch.once_differentiable(op)
    def gradients(args, sums):
        return cpu.call(target, out, *args, *sums, stop=np.float32(stop))

    return gradients(args, sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _dense(sigma, valid, t, dt, weighted, plain, stop):
    args = (sigma, valid, t, dt, weighted, plain)
    return _sums("tkjax_composite_forward", sigma.shape[0], args, stop)


def _dense_fwd(sigma, valid, t, dt, weighted, plain, stop):
    args = (sigma, valid, t, dt, weighted, plain)
    return _dense(*args, stop), args


def _dense_bwd(stop, args, sums):
    sigma, _, t, _, weighted, plain = args
    out = tuple(_like(v) for v in (sigma, t, weighted, plain))
    d_sigma, d_t, d_weighted, d_plain = _gradients("composite", "tkjax_composite_backward", args, sums, out, stop)
    return d_sigma, None, d_t, None, d_weighted, d_plain


_dense.defvjp(_dense_fwd, _dense_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _packed(sigma, t, dt, offset, count, weighted, plain, stop):
    args = (sigma, t, dt, offset, count, weighted, plain)
    return _sums("tkjax_composite_packed_forward", count.shape[0], args, stop)


def _packed_fwd(*args_and_stop):
    return _packed(*args_and_stop), args_and_stop[:-1]


def _packed_bwd(stop, args, sums):
    sigma, t, _, _, _, weighted, plain = args
    out = tuple(_like(v) for v in (sigma, t, weighted, plain))
    target = "tkjax_composite_packed_backward"
    d_sigma, d_t, d_weighted, d_plain = _gradients("composite_packed", target, args, sums, out, stop)
    return d_sigma, d_t, None, None, None, d_weighted, d_plain


_packed.defvjp(_packed_fwd, _packed_bwd)


def forward(sigma, valid, t, dt, weighted, plain, *, stop) -> Composited:
    return _dense(sigma, valid, t, dt, weighted, plain, stop)


def packed(sigma, t, dt, offset, count, weighted, plain, *, stop) -> Composited:
    return _packed(sigma, t, dt, offset, count, weighted, plain, stop)
