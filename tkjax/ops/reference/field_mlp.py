"""Reference activations and small MLPs."""

import jax
import jax.numpy as jnp

from tkjax.ops.field_mlp import LEAK, TRUNC_EXP


@jax.custom_jvp
def trunc_exp(x):
    """exp(x) whose derivative is exp(x clipped to ±15)."""
    return jnp.exp(x)


@trunc_exp.defjvp
def _trunc_exp_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return trunc_exp(x), dx * jnp.exp(jnp.clip(x, -TRUNC_EXP, TRUNC_EXP))


FUNCTIONS = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, LEAK),
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "trunc_exp": trunc_exp,
    "softplus": jax.nn.softplus,
}


def activate(kind: str, x):
    return FUNCTIONS[kind](x)


def forward_parts(parts, kernels, biases, *, hidden: str, output: str):
    """The MLP of the concatenation of `parts` [N or 1, K_i]; a part that is one row for all costs one row."""
    y, start = 0.0, 0
    for part in parts:
        rows = kernels[0][start : start + part.shape[-1]]
        y = y + (part * rows if part.shape[-1] == 1 else part @ rows)
        start += part.shape[-1]
    y = y if biases is None else y + biases[0]
    for i, kernel in enumerate(kernels[1:], 1):
        y = activate(hidden, y) @ kernel
        y = y if biases is None else y + biases[i]
    return activate(output, y)


def forward(x, kernels, biases, *, hidden: str, output: str):
    return forward_parts([x], kernels, biases, hidden=hidden, output=output)
