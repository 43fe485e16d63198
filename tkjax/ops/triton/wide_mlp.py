"""Wide Triton MLPs, layer by layer: for those whose values of a sample do not fit into one program's registers.

AD-NeRF's networks have 8 layers of 256, so 2,300 values a sample and 600,000 weights. The kernels of `field_mlp` hold
all values of a sample and unroll all layers; here a program computes a tile of samples times outputs of one layer, and
streams the layer's inputs and weights. Hidden layers go through memory, written and read, 2 KB a sample and layer; they
are kept for the backward pass, which has two kernels a layer: the gradient of its inputs, times the derivative of the
activation below, and the gradient of its weights, summed by a fixed number of programs, so that the same inputs give
the same bits. Rows are padded with zeros to a multiple of STEP channels. Precisions as in `field_mlp`; sums and what is
kept are float32.
"""

import functools
from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax.custom_derivatives import SymbolicZero

from tkjax.ops import dispatch
from tkjax.ops.triton import launch
from tkjax.ops.triton.mlp_parts import activate, as_operand, derivative, operand, product

STEP = 32  # inputs, or samples, of one product
TILE = 128  # samples of a tile, and outputs at most
PROGRAMS = 256  # of the kernel for weights; fixed, so that the order of the sums does not depend on the device
WARPS = 8


@triton.jit
@no_type_check
def slope(g, y, KIND: tl.constexpr):
    """The gradient before an activation that gave y."""
    if KIND == "none":
        d = g
    elif KIND == "relu":
        d = tl.where(y > 0, g, 0.0)  # also for an infinite gradient
    else:
        d = g * derivative(y, KIND)
    return d


@triton.jit
@no_type_check
def layer_kernel(
    x_ptr, w_ptr, other_ptr, total, N, y_ptr,
    INNER: tl.constexpr, OUTER: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr, KIND: tl.constexpr,
    BACK: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A tile of y = a(x w + b), or with BACK of (x w) a'(h), where a gave h; b [OUTER] or h [N,STRIDE] is `other`.

    x [N,INNER], w [INNER,OUTER], y [N,STRIDE] of which WIDTH columns are there and the rest zero. Nothing is done where
    the block of samples lies behind the number of them that stands at `total`.
    """
    first = tl.program_id(0) * BLOCK
    if first >= tl.load(total):
        return
    rows = first + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = rows.to(tl.int64)[:, None]
    z = tl.zeros((BLOCK, COLUMNS), tl.float32)
    if not BACK:
        z += tl.load(other_ptr + columns, mask=columns < OUTER, other=0.0)[None, :]
    for start in tl.range(0, INNER, STEP, num_stages=2):
        k = start + tl.arange(0, STEP)
        x = tl.load(x_ptr + wide * INNER + k[None, :], mask=(rows < N)[:, None], other=0.0)
        w = tl.load(w_ptr + k[:, None] * OUTER + columns[None, :], mask=(columns < OUTER)[None, :], other=0.0)
        z = product(operand(x, PRECISION), w, z, PRECISION)
    at, there = wide * STRIDE + columns[None, :], (rows < N)[:, None] & (columns < STRIDE)[None, :]
    if not BACK:
        z = activate(z, KIND)
    elif KIND != "none":
        z = slope(z, tl.load(other_ptr + at, mask=there, other=0.0), KIND)
    # Zero in the padding, so that infinity times a padded zero cannot make NaN.
    tl.store(y_ptr + at, tl.where((columns < WIDTH)[None, :], z, 0.0), mask=there)


@triton.jit
@no_type_check
def slope_kernel(
    g_ptr, y_ptr, total, N, out_ptr,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """g a'(y) [N,STRIDE] of g and y [N,WIDTH], zero in the padding."""
    first = tl.program_id(0) * BLOCK
    if first >= tl.load(total):
        return
    rows, columns = first + tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    wide, there = rows.to(tl.int64)[:, None], (rows < N)[:, None] & (columns < WIDTH)[None, :]
    at = wide * WIDTH + columns[None, :]
    g = slope(tl.load(g_ptr + at, mask=there, other=0.0), tl.load(y_ptr + at, mask=there, other=0.0), KIND)
    inside = (rows < N)[:, None] & (columns < STRIDE)[None, :]
    tl.store(out_ptr + wide * STRIDE + columns[None, :], tl.where(there, g, 0.0), mask=inside)


@triton.jit
@no_type_check
def weights_kernel(
    x_ptr, g_ptr, total, N, share_ptr,
    INNER: tl.constexpr, OUTER: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of x' g [INNER,OUTER] over blocks p, p + programs, …, into this program's share [INNER + 1,OUTER], whose
    last row has the column sums of g."""
    k = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    weights, biases = tl.zeros((ROWS, COLUMNS), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    blocks = tl.cdiv(tl.load(total), BLOCK)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=2):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        wide, valid = rows.to(tl.int64)[:, None], (rows < N)[:, None]
        x = tl.load(x_ptr + wide * INNER + k[None, :], mask=valid & (k < INNER)[None, :], other=0.0)
        g = tl.load(g_ptr + wide * OUTER + m[None, :], mask=valid & (m < OUTER)[None, :], other=0.0)
        weights = product(operand(tl.trans(x), PRECISION), operand(g, PRECISION), weights, PRECISION)
        biases += tl.sum(g, 0)
    mine = share_ptr + tl.program_id(0).to(tl.int64) * ((INNER + 1) * OUTER)
    tl.store(mine + k[:, None] * OUTER + m[None, :], weights, mask=(k < INNER)[:, None] & (m < OUTER)[None, :])
    if tl.program_id(1) == 0:
        tl.store(mine + INNER * OUTER + m, biases, mask=m < OUTER)


# -- launches


def _padded(width: int) -> int:
    return -(-width // STEP) * STEP


def _tile(width: int) -> int:
    """Columns of a tile of a layer that wide."""
    return min(TILE, triton.next_power_of_2(width))


def _pad(v, *sizes: int):
    """v with zeros behind it up to these sizes of its last dimensions."""
    missing = [size - have for size, have in zip(sizes, v.shape[v.ndim - len(sizes) :])]
    return jnp.pad(v, [(0, 0)] * (v.ndim - len(sizes)) + [(0, k) for k in missing]) if any(missing) else v


def _floats(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def _zeroed(total) -> tuple[int, ...]:
    return () if total is None else (0,)


def _layer(x, w, other, total, width: int, stride: int, kind: str, back: bool, precision: str):
    n, columns = x.shape[0], _tile(w.shape[1])
    (y,) = launch.call(
        layer_kernel, x, as_operand(w, precision), other, launch.count(total, n), n, num_warps=WARPS,
        grid=(triton.cdiv(n, TILE), triton.cdiv(w.shape[1], columns)), out_shape=[_floats(n, stride)],
        zeroed=_zeroed(total), INNER=w.shape[0], OUTER=w.shape[1], WIDTH=width, STRIDE=stride, KIND=kind, BACK=back,
        PRECISION=precision, BLOCK=TILE, COLUMNS=columns, STEP=STEP,
    )  # fmt: skip
    return y


def _weights(x, g, total, precision: str):
    """(x' g [INNER,OUTER], column sums of g)."""
    (n, inner), outer = x.shape, g.shape[1]
    rows, columns = _tile(inner), _tile(outer)
    tiles = triton.cdiv(inner, rows), triton.cdiv(outer, columns)
    programs = min(max(1, PROGRAMS // (tiles[0] * tiles[1])), triton.cdiv(n, STEP))
    (shares,) = launch.call(
        weights_kernel, x, g, launch.count(total, n), n, num_warps=WARPS, grid=(programs, *tiles),
        out_shape=[_floats(programs, inner + 1, outer)], INNER=inner, OUTER=outer, PRECISION=precision, BLOCK=STEP,
        ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    total = jnp.sum(shares, 0)
    return total[:-1], total[-1]


def _forward(x, kernels, biases, total, hidden: str, output: str, precision: str):
    """(y, the padded inputs of all layers)."""
    inputs, last = [_pad(x, _padded(x.shape[1]))], len(kernels) - 1
    for i, kernel in enumerate(kernels):
        width = kernel.shape[1]
        w = _pad(kernel, *map(_padded, kernel.shape))
        bias = jnp.zeros(w.shape[1], jnp.float32) if biases is None else _pad(biases[i], w.shape[1])
        stride, kind = (width, output) if i == last else (w.shape[1], hidden)
        inputs.append(_layer(inputs[-1], w, bias, total, width, stride, kind, False, precision))
    return inputs.pop(), inputs


def _backward(want_dx, inputs, y, kernels, biases, total, dy, hidden: str, output: str, precision: str):
    """(dx or None, gradients of kernels, of biases or None)."""
    (n, width), stride = y.shape, _padded(y.shape[1])
    (g,) = launch.call(
        slope_kernel, dy, y, launch.count(total, n), n, grid=(triton.cdiv(n, STEP),), out_shape=[_floats(n, stride)],
        zeroed=_zeroed(total), WIDTH=width, STRIDE=stride, KIND=output, BLOCK=STEP,
        COLUMNS=triton.next_power_of_2(stride),
    )  # fmt: skip
    dk, db = [], []
    for i in reversed(range(len(kernels))):
        k, m = kernels[i].shape
        weights, sums = _weights(inputs[i], g, total, precision)
        dk.insert(0, weights[:k, :m])
        db.insert(0, sums[:m])
        if i > 0 or want_dx:
            w = _pad(kernels[i], _padded(k), _padded(m)).T
            kind, out = (hidden, w.shape[1]) if i else ("none", k)
            g = _layer(g, w, inputs[i], total, k, out, kind, True, precision)
    return g if want_dx else None, tuple(dk), None if biases is None else tuple(db)


@functools.cache
def op(hidden: str, output: str, precision: str):
    """The differentiable function of (x, kernels, biases, total) for these settings."""
    kinds = hidden, output, precision

    def gradients(want_dx, *args):
        return dispatch.once_differentiable("field_mlp")(lambda *a: _backward(want_dx, *a, *kinds))(*args)

    @jax.custom_vjp
    def mlp(x, kernels, biases, total):
        return _forward(x, kernels, biases, total, *kinds)[0]

    def forward(x, kernels, biases, total):
        arrays = jax.tree.map(lambda p: p.value, (x, kernels, biases, total), is_leaf=lambda p: hasattr(p, "perturbed"))
        run = dispatch.once_differentiable("field_mlp")(lambda *a: _forward(*a, *kinds))
        y, inputs = run(*arrays)
        # Whether x asks for a gradient is told by the structure of the residuals, which is static.
        return y, (inputs, y, *arrays[1:], () if x.perturbed else None)

    def backward(residuals, g):
        if isinstance(g, SymbolicZero):
            return None, None, None, None
        *arrays, perturbed = residuals
        return *gradients(perturbed is not None, *arrays, g), None

    mlp.defvjp(forward, backward, symbolic_zeros=True)
    return mlp
