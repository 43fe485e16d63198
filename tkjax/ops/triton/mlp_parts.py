"""What kernels of MLPs share: activations with their derivatives, and products at a precision."""

import math
from typing import no_type_check

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from tkjax.ops.field_mlp import LEAK, TRUNC_EXP

_LEAK = tl.constexpr(LEAK)
_EXP_HIGH, _EXP_LOW = tl.constexpr(math.exp(TRUNC_EXP)), tl.constexpr(math.exp(-TRUNC_EXP))


@triton.jit
@no_type_check
def activate(z, KIND: tl.constexpr):
    """The activation of z."""
    if KIND == "relu":
        y = tl.where(z <= 0, 0.0, z)  # NaN stays NaN
    elif KIND == "leaky_relu":
        y = tl.where(z >= 0, z, z * _LEAK)
    elif KIND == "sigmoid":
        y = 1.0 / (1.0 + tl.exp(-z))
    elif KIND == "tanh":
        e = tl.exp(-2.0 * tl.abs(z))
        y = (1.0 - e) / (1.0 + e)
        y = tl.where(z < 0, -y, y)
    elif KIND == "exp" or KIND == "trunc_exp":
        y = tl.exp(z)
    elif KIND == "softplus":
        e = tl.exp(-tl.abs(z))
        u = 1.0 + e
        tail = tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))  # log(1 + e), also for tiny e
        y = tl.where(z <= 0, 0.0, z) + tail
    else:
        tl.static_assert(KIND == "none")
        y = z
    return y


@triton.jit
@no_type_check
def derivative(y, KIND: tl.constexpr):
    """Its derivative, from its value: then the value before it need not be kept."""
    if KIND == "leaky_relu":
        d = tl.where(y >= 0, 1.0, _LEAK)
    elif KIND == "sigmoid":
        d = y * (1.0 - y)
    elif KIND == "tanh":
        d = 1.0 - y * y
    elif KIND == "exp":
        d = y
    elif KIND == "trunc_exp":
        d = tl.where(y > _EXP_HIGH, _EXP_HIGH, tl.where(y < _EXP_LOW, _EXP_LOW, y))
    elif KIND == "softplus":
        d = 1.0 - tl.exp(-y)
    else:
        tl.static_assert(KIND == "none")
        d = tl.full(y.shape, 1.0, tl.float32)
    return d


@triton.jit
@no_type_check
def round_tf32(v):
    """Nearest tf32: the hardware would cut the bits off, and the error of three layers of that shows in pictures."""
    bits = (v.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(v == v, bits.to(tl.float32, bitcast=True), v)


@triton.jit
@no_type_check
def operand(v, PRECISION: tl.constexpr):
    """v as an operand of `product`."""
    if PRECISION == "tf32":
        v = round_tf32(v)
    elif PRECISION == "bf16":
        v = v.to(tl.bfloat16)
    return v


@triton.jit
@no_type_check
def product(a, b, total, PRECISION: tl.constexpr):
    """total + a b; both are operands of that precision."""
    if PRECISION == "bf16":
        total = tl.dot(a, b, total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


def as_operand(v, precision: str):
    """`operand` in jnp: weights are rounded once, here."""
    if precision == "bf16":
        return v.astype(jnp.bfloat16)
    if precision != "tf32":
        return v
    bits = (jax.lax.bitcast_convert_type(v, jnp.int32) + 0x1000) & -0x2000
    return jnp.where(v == v, jax.lax.bitcast_convert_type(bits, jnp.float32), v)
