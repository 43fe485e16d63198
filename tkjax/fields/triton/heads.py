"""What the fused heads of this folder share: the end of the field, from the hidden layer of density to sigma and
rgb, and how weights and inputs are laid out for it.

With hidden layer h [B,H], D2 the last matrix of density, C0 and C1 those of colour and c = [sh | frame code] of a ray:
  sigma = exp(min(D2_0 h, highest));  rgb = sigmoid(C1 relu(C0_c c + (C0_g D2_1..) h))
There is no activation between D2 and C0, so their product is formed once a call. c is read again for every sample: its
product with C0, held over the march, would cost more registers than the multiplications cost time; c is read late and
its product taken after that of h for the same reason. Widths are padded with zeros to powers of two from 16.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from tkjax.ops.triton.mlp_parts import activate, as_operand, operand, product
from tkjax.ops.triton.render_fused import COLUMNS

SIDE_ROWS = 32  # sh and frame code, padded


@triton.jit
@no_type_check
def matrix(ptr, K: tl.constexpr, M: tl.constexpr):
    return tl.load(ptr + tl.arange(0, K)[:, None] * M + tl.arange(0, M)[None, :])


@triton.jit
@no_type_check
def relu(v):
    return activate(v, "relu")


@triton.jit
@no_type_check
def of_tiles(f, ptr, total, PRECISION: tl.constexpr):
    """total + f W of the tiles f, 16 columns each."""
    for i in tl.static_range(len(f)):
        w = matrix(ptr + 16 * total.shape[1] * i, 16, total.shape[1])
        total = product(f[i], w, total, PRECISION)
    return total


@triton.jit
@no_type_check
def dot_row(h, ptr):
    """[B,1] product with one column of weights, in float32."""
    return tl.sum(h * tl.load(ptr + tl.arange(0, h.shape[1]))[None, :], 1, keep_dims=True)


@triton.jit
@no_type_check
def side_inputs(at, live):
    """[B,32] sh and frame code of rays whose inputs begin at `at` [B,1]."""
    return tl.load(at + tl.arange(0, 32)[None, :], mask=live, other=0.0)


@triton.jit
@no_type_check
def sigma_and_rgb(
    h, side, log_sigma_ptr, side_ptr, folded_ptr, last_ptr, HC: tl.constexpr, HIGHEST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """(sigma [B,1], sigmoid colours [B,16], three columns of which mean something) of hidden layers h [B,H]."""
    B: tl.constexpr = h.shape[0]
    log_sigma = dot_row(h, log_sigma_ptr)
    sigma = tl.exp(tl.where(log_sigma > HIGHEST, HIGHEST, log_sigma))
    c = tl.zeros((B, HC), tl.float32)
    c = product(operand(h, PRECISION), matrix(folded_ptr, h.shape[1], HC), c, PRECISION)
    c = relu(product(operand(side, PRECISION), matrix(side_ptr, 32, HC), c, PRECISION))
    c = product(operand(c, PRECISION), matrix(last_ptr, HC, 16), tl.zeros((B, 16), tl.float32), PRECISION)
    return sigma, activate(c, "sigmoid")


# -- packing


def power(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def precise(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def end_matrices(density, c0, c1, sh: int) -> list:
    """(matrix, rows, columns) for side_ptr, folded_ptr and last_ptr, with the sizes to pad them to. density: the last
    matrix of it, log sigma first; c0 takes sh, the other outputs of density, and the frame code."""
    geometry, hidden, colour = density.shape[1] - 1, power(density.shape[0]), power(c0.shape[1])
    side = jnp.concatenate([c0[:sh], c0[sh + geometry :]])
    folded = precise(density[:, 1:], c0[sh : sh + geometry])
    return [(side, SIDE_ROWS, colour), (folded, hidden, colour), (c1, colour, COLUMNS)]


def pack_matrices(matrices, precision: str):
    """(operands one after the other, where each begins) of (matrix, rows, columns)."""
    padded = [jnp.pad(m, [(0, rows - m.shape[0]), (0, columns - m.shape[1])]) for m, rows, columns in matrices]
    return jnp.concatenate([as_operand(m, precision).reshape(-1) for m in padded]), starts(padded)


def pack_vectors(vectors):
    """(vectors one after the other, each padded to a multiple of 16, where each begins)."""
    padded = [jnp.pad(v, (0, -v.size % 16)) for v in vectors]
    return jnp.concatenate(padded), starts(padded)


def starts(arrays) -> tuple[int, ...]:
    return tuple(sum(a.size for a in arrays[:i]) for i in range(len(arrays)))


def wide(rows, columns: int):
    """[K,C] padded to that many columns."""
    return jnp.pad(rows, ((0, 0), (0, columns - rows.shape[1])))


def side_rows(parts, count: int):
    """[count,32] of sh and frame code: what `side_inputs` reads."""
    return wide(jnp.concatenate([per_ray(part, count) for part in parts], 1), SIDE_ROWS)


def per_ray(value, count: int):
    return jnp.broadcast_to(value, (count, value.shape[1]))
