"""Triton MLPs: one kernel forward, one backward, with every activation on chip.

Widths are cut into pieces (powers of two from 16 to 64; 84 is 64 + 32), so that neither 65 nor 84 pays for 128;
weights are padded with zeros to whole pieces, once per call, and read through L2 by every program. The backward
kernel computes the forward pass again for its block of samples; each program adds the weight gradients of its blocks
to a partial sum of its own (in L2), and the partial sums are added in a fixed order, so that the same inputs give the
same bits on one machine. Only x, y and their gradients are in memory per sample.
MLPs of more than MOST_CHANNELS go through `wide_mlp`, layer by layer.

Precision of the products (sums are always float32), `precision` or, where it is None, what
`jax.config.jax_default_matmul_precision` says:
  tf32    operands rounded to 11 significant bits (to nearest, ties away from zero), the default, as XLA's own
  tf32x3  three products per product, nearly float32 ("high")
  ieee    float32 without tensor cores ("highest", "float32")
  bf16    operands rounded to 8 significant bits ("bfloat16")
"""

# ruff: noqa: RUF005 (Triton has no starred tuples)

import functools
from itertools import pairwise
from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax.custom_derivatives import SymbolicZero

from tkjax.ops import dispatch
from tkjax.ops.triton import launch, wide_mlp
from tkjax.ops.triton.mlp_parts import activate, as_operand, derivative, operand, product

PRECISIONS = ("tf32", "tf32x3", "ieee", "bf16")
BY_CONFIG = {
    "None": "tf32", "default": "tf32", "fastest": "tf32", "tensorfloat32": "tf32", "TF32_TF32_F32": "tf32",
    "high": "tf32x3", "bfloat16_3x": "tf32x3", "TF32_TF32_F32_X3": "tf32x3", "highest": "ieee", "float32": "ieee",
    "F32_F32_F32": "ieee", "bfloat16": "bf16", "BF16_BF16_F32": "bf16",
}  # fmt: skip
PIECE = 64  # widest operand of one tl.dot: a 64 x 64 float32 weight tile is 16 KB of shared memory
PROGRAMS = 256  # of the backward kernel at most; fixed, so that the order of the sums does not depend on the device
WARPS = 8
MOST_CHANNELS = 512  # values of a sample in all layers; those of more go layer by layer (wide_mlp)


def pieces(width: int) -> tuple[int, ...]:
    """Powers of two that cover a width: as many 64 as it holds, then the rest, padded to a power of two from 16."""
    whole, rest = divmod(width, PIECE)
    tail = max(16, 1 << (rest - 1).bit_length()) if rest else 0
    return (PIECE,) * whole + ((tail,) if tail else ())


@triton.constexpr_function
@no_type_check
def _at(values, index):
    """values[index] as a constexpr argument: Triton 3.7 takes an element of a tuple for a plain int."""
    return values[index]


@triton.constexpr_function
@no_type_check
def _start(pieces, index):
    """First column of a piece."""
    return sum(pieces[:index])


@triton.constexpr_function
@no_type_check
def _tile(inner, outer, a, b):
    """Where piece (a, b) of a layer's weights begins: pieces are stored one after another, each row by row, so that
    pieces of one size are read with the same offsets."""
    return sum(inner[:a]) * sum(outer) + (inner[a] * sum(outer[:b]) if b else 0)


@triton.constexpr_function
@no_type_check
def _weight(shape, layer):
    """Where a layer's weights begin in the packed buffer; shape holds the pieces of every width."""
    return sum(sum(a) * sum(b) for a, b in pairwise(shape[: layer + 1]))


@triton.constexpr_function
@no_type_check
def _bias(shape, layer):
    """Where its biases begin in theirs."""
    return sum(sum(b) for b in shape[1 : layer + 1])


@triton.constexpr_function
@no_type_check
def _share(shape, layer, biased):
    """Where its gradients begin in a program's share: weights and, where there are any, biases."""
    return sum((sum(a) + biased) * sum(b) for a, b in pairwise(shape[: layer + 1]))


@triton.jit
@no_type_check
def load_pieces(ptr, rows, N, WIDTH: tl.constexpr, PIECES: tl.constexpr):
    """[N,WIDTH] rows as a tuple of pieces; zero where there is nothing."""
    out = ()
    for a in tl.static_range(len(PIECES)):
        columns = _start(PIECES, a) + tl.arange(0, PIECES[a])
        at = ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        out = out + (tl.load(at, mask=(rows < N)[:, None] & (columns < WIDTH)[None, :], other=0.0),)
    return out


@triton.jit
@no_type_check
def store_pieces(ptr, rows, N, values, WIDTH: tl.constexpr, PIECES: tl.constexpr):
    for a in tl.static_range(len(PIECES)):
        columns = _start(PIECES, a) + tl.arange(0, PIECES[a])
        at = ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        tl.store(at, values[a], mask=(rows < N)[:, None] & (columns < WIDTH)[None, :])


@triton.jit
@no_type_check
def layer(h, w_ptr, b_ptr, INNER: tl.constexpr, OUTER: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr):
    """h W + b in pieces; w_ptr, b_ptr point at this layer's packed weights."""
    out = ()
    for b in tl.static_range(len(OUTER)):
        z = tl.zeros((h[0].shape[0], _at(OUTER, b)), tl.float32)
        if BIASED:
            z += tl.load(b_ptr + _start(OUTER, b) + tl.arange(0, OUTER[b]))[None, :]
        for a in tl.static_range(len(INNER)):
            k = tl.arange(0, INNER[a])
            w = tl.load(w_ptr + _tile(INNER, OUTER, a, b) + k[:, None] * OUTER[b] + tl.arange(0, OUTER[b])[None, :])
            z = product(operand(h[a], PRECISION), w, z, PRECISION)
        out = out + (z,)
    return out


@triton.jit
@no_type_check
def activate_pieces(z, rows_valid, WIDTH: tl.constexpr, PIECES: tl.constexpr, KIND: tl.constexpr):
    """Activations with zero in the padding, so that infinity times a padded zero cannot make NaN."""
    out = ()
    for a in tl.static_range(len(PIECES)):
        y = activate(z[a], KIND)
        columns = _start(PIECES, a) + tl.arange(0, PIECES[a])
        out = out + (tl.where(rows_valid[:, None] & (columns < WIDTH)[None, :], y, 0.0),)
    return out


@triton.jit
@no_type_check
def forward_kernel(
    x_ptr, w_ptr, b_ptr, total, N, y_ptr,
    WIDTHS: tl.constexpr, SHAPE: tl.constexpr, HIDDEN: tl.constexpr, OUTPUT: tl.constexpr, BIASED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of samples, unless it lies behind the number of them that stands at `total`."""
    if tl.program_id(0) * BLOCK >= tl.load(total):
        return
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h = load_pieces(x_ptr, rows, N, _at(WIDTHS, 0), _at(SHAPE, 0))
    for i in tl.static_range(len(SHAPE) - 1):
        w, b = w_ptr + _weight(SHAPE, i), b_ptr + _bias(SHAPE, i)
        z = layer(h, w, b, _at(SHAPE, i), _at(SHAPE, i + 1), BIASED, PRECISION)
        if i + 1 < len(SHAPE) - 1:
            h = activate_pieces(z, rows < N, _at(WIDTHS, i + 1), _at(SHAPE, i + 1), HIDDEN)
        else:
            h = activate_pieces(z, rows < N, _at(WIDTHS, i + 1), _at(SHAPE, i + 1), OUTPUT)
    store_pieces(y_ptr, rows, N, h, _at(WIDTHS, len(WIDTHS) - 1), _at(SHAPE, len(SHAPE) - 1))


@triton.jit
@no_type_check
def times_derivative(g, y, rows_valid, WIDTH: tl.constexpr, PIECES: tl.constexpr, KIND: tl.constexpr):
    """Gradients before an activation that gave y; zero in the padding."""
    out = ()
    for a in tl.static_range(len(PIECES)):
        columns = _start(PIECES, a) + tl.arange(0, PIECES[a])
        valid = rows_valid[:, None] & (columns < WIDTH)[None, :]
        if KIND == "relu":
            d = tl.where(y[a] > 0, g[a], 0.0)  # also for an infinite gradient
        else:
            d = g[a] * derivative(y[a], KIND)
        out = out + (tl.where(valid, d, 0.0),)
    return out


@triton.jit
@no_type_check
def layer_transposed(g, w_ptr, INNER: tl.constexpr, OUTER: tl.constexpr, PRECISION: tl.constexpr):
    """g W' in pieces."""
    out = ()
    for a in tl.static_range(len(INNER)):
        k = tl.arange(0, INNER[a])
        d = tl.zeros((g[0].shape[0], _at(INNER, a)), tl.float32)
        for b in tl.static_range(len(OUTER)):
            w = tl.load(w_ptr + _tile(INNER, OUTER, a, b) + k[None, :] * OUTER[b] + tl.arange(0, OUTER[b])[:, None])
            d = product(operand(g[b], PRECISION), w, d, PRECISION)
        out = out + (d,)
    return out


@triton.jit
@no_type_check
def add_outer(
    ptr, fresh, h, g, INNER: tl.constexpr, OUTER: tl.constexpr, BIASED: tl.constexpr, PRECISION: tl.constexpr
):
    """Add h' g [sum INNER, sum OUTER], and with BIASED the column sums of g after it, to what is at ptr.

    fresh: nothing is there yet.
    """
    for b in tl.static_range(len(OUTER)):
        m = tl.arange(0, OUTER[b])
        for a in tl.static_range(len(INNER)):
            k = tl.arange(0, INNER[a])
            at = ptr + _tile(INNER, OUTER, a, b) + k[:, None] * OUTER[b] + m[None, :]
            total = tl.load(at, mask=(k[:, None] >= 0) & (not fresh), other=0.0)
            tl.store(at, product(operand(tl.trans(h[a]), PRECISION), operand(g[b], PRECISION), total, PRECISION))
        if BIASED:
            at = ptr + _tile(INNER, OUTER, len(INNER), 0) + _start(OUTER, b) + m
            tl.store(at, tl.load(at, mask=(m >= 0) & (not fresh), other=0.0) + tl.sum(g[b], 0))


@triton.jit
@no_type_check
def backward_kernel(
    x_ptr, g_ptr, w_ptr, b_ptr, total, N, dx_ptr, dw_ptr,
    WIDTHS: tl.constexpr, SHAPE: tl.constexpr, HIDDEN: tl.constexpr, OUTPUT: tl.constexpr, BIASED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, DX: tl.constexpr,
):  # fmt: skip
    """Blocks p, p + programs, …: dx (with DX) and this program's share dw [programs, entries] of the gradients.

    A share holds, layer by layer, the padded weights, then with BIASED the padded biases.
    """
    LAYERS: tl.constexpr = len(SHAPE) - 1
    blocks = tl.cdiv(tl.load(total), BLOCK)
    mine = dw_ptr + tl.program_id(0).to(tl.int64) * _share(SHAPE, LAYERS, BIASED)
    # Without disable_licm and num_stages the weights would be held in shared memory over the loop, more than there is.
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=1, disable_licm=True):
        rows = block * BLOCK + tl.arange(0, BLOCK)
        h = (load_pieces(x_ptr, rows, N, _at(WIDTHS, 0), _at(SHAPE, 0)),)
        for i in tl.static_range(LAYERS):
            w, b = w_ptr + _weight(SHAPE, i), b_ptr + _bias(SHAPE, i)
            z = layer(h[i], w, b, _at(SHAPE, i), _at(SHAPE, i + 1), BIASED, PRECISION)
            if i + 1 < LAYERS:
                z = activate_pieces(z, rows < N, _at(WIDTHS, i + 1), _at(SHAPE, i + 1), HIDDEN)
            else:
                z = activate_pieces(z, rows < N, _at(WIDTHS, i + 1), _at(SHAPE, i + 1), OUTPUT)
            h = h + (z,)
        g = load_pieces(g_ptr, rows, N, _at(WIDTHS, LAYERS), _at(SHAPE, LAYERS))
        g = times_derivative(g, h[LAYERS], rows < N, _at(WIDTHS, LAYERS), _at(SHAPE, LAYERS), OUTPUT)
        for i in tl.static_range(LAYERS - 1, -1, -1):
            to = mine + _share(SHAPE, i, BIASED)
            add_outer(to, block == tl.program_id(0), h[i], g, _at(SHAPE, i), _at(SHAPE, i + 1), BIASED, PRECISION)
            if i > 0:
                g = layer_transposed(g, w_ptr + _weight(SHAPE, i), _at(SHAPE, i), _at(SHAPE, i + 1), PRECISION)
                g = times_derivative(g, h[i], rows < N, _at(WIDTHS, i), _at(SHAPE, i), HIDDEN)
            elif DX:
                g = layer_transposed(g, w_ptr, _at(SHAPE, 0), _at(SHAPE, 1), PRECISION)
                store_pieces(dx_ptr, rows, N, g, _at(WIDTHS, 0), _at(SHAPE, 0))
        tl.debug_barrier()  # what one thread has written another may read in the next round


# -- launches


def precision_of(name: str | None) -> str:
    """A precision by name, or what JAX's configuration says."""
    name = BY_CONFIG.get(str(jax.config.jax_default_matmul_precision), "tf32") if name is None else name
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r} is unknown; choose {', '.join(PRECISIONS)}")
    return name


def pack_matrix(matrix, inner: tuple[int, ...], outer: tuple[int, ...]):
    """[K,M] padded with zeros to whole pieces, piece after piece, each row by row."""
    padded = jnp.pad(matrix, [(0, sum(p) - size) for p, size in zip((inner, outer), matrix.shape)])
    rows = jnp.split(padded, _ends(inner))
    return jnp.concatenate([piece.reshape(-1) for row in rows for piece in jnp.split(row, _ends(outer), axis=1)])


def _ends(pieces: tuple[int, ...]) -> list[int]:
    return [sum(pieces[:i]) for i in range(1, len(pieces))]


def _unpack_matrix(flat, inner, outer, shape):
    """The inverse of `pack_matrix`."""
    rows, start = [], 0
    for a in inner:
        row = []
        for b in outer:
            row.append(flat[start : start + a * b].reshape(a, b))
            start += a * b
        rows.append(jnp.concatenate(row, 1))
    return jnp.concatenate(rows)[: shape[0], : shape[1]]


def _pack(kernels, biases, shape, precision):
    """Weights and biases as one buffer each; a bias buffer of one zero where there are none."""
    weights = jnp.concatenate([pack_matrix(k, a, b) for k, a, b in zip(kernels, shape, shape[1:])])
    bias = jnp.zeros(1, jnp.float32)
    if biases is not None:
        bias = jnp.concatenate([jnp.pad(b, (0, sum(p) - b.shape[0])) for b, p in zip(biases, shape[1:])])
    return as_operand(weights, precision), bias


def _settings(kernels, biases, hidden, output, precision) -> dict:
    widths = (kernels[0].shape[0], *(k.shape[1] for k in kernels))
    return dict(
        WIDTHS=widths, SHAPE=tuple(pieces(w) for w in widths), HIDDEN=hidden, OUTPUT=output,
        BIASED=biases is not None, PRECISION=precision,
    )  # fmt: skip


def _block(channels: int) -> int:
    """Samples of a program whose threads hold `channels` values of each: 128 a thread, 16 to 128 samples."""
    fitting = 128 * 32 * WARPS // channels
    return max(16, min(128, 1 << (fitting.bit_length() - 1)))


def _forward(x, kernels, biases, total, settings):
    shape, n = settings["SHAPE"], x.shape[0]
    weights, bias = _pack(kernels, biases, shape, settings["PRECISION"])
    block = _block(max(sum(a) + sum(b) for a, b in pairwise(shape)))
    (y,) = launch.call(
        forward_kernel, x, weights, bias, launch.count(total, n), n, num_warps=WARPS, grid=(triton.cdiv(n, block),),
        out_shape=[jax.ShapeDtypeStruct((n, settings["WIDTHS"][-1]), jnp.float32)], BLOCK=block,
        zeroed=() if total is None else (0,), **settings,
    )  # fmt: skip
    return y


def _backward(x, kernels, biases, total, g, want_dx: bool, settings):
    shape, n = settings["SHAPE"], x.shape[0]
    weights, bias = _pack(kernels, biases, shape, settings["PRECISION"])
    block = 32 if sum(map(sum, shape)) <= 256 else 16  # larger blocks spill registers
    programs, share = min(PROGRAMS, triton.cdiv(n, block)), _share.fn(shape, len(kernels), biases is not None)
    dx, partial = launch.call(
        backward_kernel, x, g, weights, bias, launch.count(total, n), n, num_warps=WARPS, grid=(programs,), BLOCK=block,
        DX=want_dx, zeroed=() if total is None else (0, 1),
        out_shape=[
            jax.ShapeDtypeStruct(x.shape if want_dx else (1,), jnp.float32),
            jax.ShapeDtypeStruct((programs, share), jnp.float32),
        ],
        **settings,
    )  # fmt: skip
    total, start, dk, db = jnp.sum(partial, 0), 0, [], []
    for kernel, inner, outer in zip(kernels, shape, shape[1:]):
        dk.append(_unpack_matrix(total[start:], inner, outer, kernel.shape))
        start += sum(inner) * sum(outer)
        if biases is not None:
            db.append(total[start : start + kernel.shape[1]])
            start += sum(outer)
    return dx if want_dx else None, tuple(dk), None if biases is None else tuple(db)


@functools.cache
def _op(hidden: str, output: str, precision: str):
    """The differentiable function of (x, kernels, biases, total) for these settings."""

    def gradients(want_dx, x, kernels, biases, total, g):
        run = dispatch.once_differentiable("field_mlp")(
            lambda x, kernels, biases, total, g: _backward(
                x, kernels, biases, total, g, want_dx, _settings(kernels, biases, hidden, output, precision)
            )
        )
        return run(x, kernels, biases, total, g)

    @jax.custom_vjp
    def mlp(x, kernels, biases, total):
        return _forward(x, kernels, biases, total, _settings(kernels, biases, hidden, output, precision))

    def forward(x, kernels, biases, total):
        values = jax.tree.map(lambda p: p.value, (kernels, biases, total), is_leaf=lambda p: hasattr(p, "perturbed"))
        # Whether x asks for a gradient is told by the structure of the residuals, which is static.
        return mlp(x.value, *values), (x.value, *values, () if x.perturbed else None)

    def backward(residuals, g):
        if isinstance(g, SymbolicZero):
            return None, None, None, None
        *values, perturbed = residuals
        return *gradients(perturbed is not None, *values, g), None

    mlp.defvjp(forward, backward, symbolic_zeros=True)
    return mlp


def forward(x, kernels, biases, *, hidden: str, output: str, precision: str | None = None, total=None):
    """The MLP of each row of x; `precision` as in this module's docstring.

    total: how many rows count. Those behind hold anything finite and have a cotangent of zero; blocks of rows that lie
    behind it altogether are not read, and give zeros.
    """
    biases = None if biases is None else tuple(biases)
    channels = sum(sum(pieces(w)) for w in (kernels[0].shape[0], *(k.shape[1] for k in kernels)))
    make = _op if channels <= MOST_CHANNELS else wide_mlp.op
    return make(hidden, output, precision_of(precision))(x, tuple(kernels), biases, total)
