"""Small multi-layer perceptrons over many samples.

  y_0 = x, y_{i+1} = a_i(y_i W_i + b_i), with a_i = `hidden` for all layers but the last, which has `output`.
Activations (of the systems' dossiers): none; relu; leaky_relu (0.02 x below 0); sigmoid; tanh; exp; softplus
log(1 + exp(x)); trunc_exp, which is exp with the derivative exp(x clipped to ±15).

float32 throughout. Differentiable with respect to x, kernels and biases; relu has derivative 0 at 0. NaN and
infinity pass as in plain arithmetic, sample by sample.

Fields reach these kernels through `field`, AD-NeRF's networks of 8 layers of 256 among them. By itself the op is for
what is no field of samples: DynTet's networks, evaluated at the vertices of a mesh.
"""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from tkjax.ops import dispatch

LEAK = 0.02
TRUNC_EXP = 15.0
ACTIVATIONS = ("none", "relu", "leaky_relu", "sigmoid", "tanh", "exp", "trunc_exp", "softplus")
MAX_WIDTH = 256


def check_widths(what: str, widths: tuple[int, ...]) -> None:
    if len(widths) < 2 or not all(1 <= w <= MAX_WIDTH for w in widths[1:]) or not 1 <= widths[0] <= 2 * MAX_WIDTH:
        raise ValueError(
            f"{what}: widths {widths} must be two or more, of 1 to {MAX_WIDTH} (the input up to {2 * MAX_WIDTH})"
        )


def check_activation(what: str, kind: str) -> None:
    if kind not in ACTIVATIONS:
        raise ValueError(f"{what}: activation {kind!r} is unknown; choose {', '.join(ACTIVATIONS)}")


def field_mlp(
    x: Float[Array, "N K"],
    kernels: Sequence[Float[Array, "_ _"]],
    biases: Sequence[Float[Array, " _"]] | None = None,
    *,
    hidden: str = "relu",
    output: str = "none",
    backend: str | None = None,
) -> Float[Array, "N M"]:
    """The MLP of each row of x; kernels are [in, out], widths 1 to 256 (16 to 256 are what kernels are tuned for)."""
    kernels, biases = tuple(kernels), None if biases is None else tuple(biases)
    check_activation("field_mlp", hidden)
    check_activation("field_mlp", output)
    if not kernels:
        raise ValueError("field_mlp: at least one kernel is needed")
    widths = (kernels[0].shape[0], *(k.shape[1] for k in kernels))
    check_widths("field_mlp", widths)
    fits = x.shape[1] == widths[0] and all(k.shape[0] == w for k, w in zip(kernels, widths))
    if biases is not None:
        fits = fits and len(biases) == len(kernels) and all(b.shape == (w,) for b, w in zip(biases, widths[1:]))
    if not fits:
        shapes = [k.shape for k in kernels], None if biases is None else [b.shape for b in biases]
        raise ValueError(f"field_mlp: x {x.shape}, kernels {shapes[0]} and biases {shapes[1]} do not fit together")
    if any(v.dtype != "float32" for v in (x, *kernels, *(biases or ()))):
        raise ValueError("field_mlp: x, kernels and biases must be float32")
    module = dispatch.resolve("field_mlp", backend)
    with jax.named_scope(f"field_mlp.{module.__name__.split('.')[-2]}"):
        return module.forward(x, kernels, biases, hidden=hidden, output=output)
