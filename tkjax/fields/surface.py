"""Networks of a surface that deforms: what a window of coefficients says, signed distance, displacement.

For DynTet (dossier dyntet §3). Positions are in the unit box: x = (p - low) / (high - low), see `unit_box`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tkjax.fields.program import uniform_init
from tkjax.ops import freq_encode

SLOPE = 0.1  # of every LeakyReLU
BEFORE = AFTER = 13  # frames around the one that is drawn, in its window
WINDOW = BEFORE + 1 + AFTER
TAPS, BLOCK_TAPS, BLOCK_DILATION, BLOCKS = 7, 3, 3, 3
OCTAVES = 6  # of the positions' encoding, without pi
LARGEST_ELASTICITY = 0.5


class Conv(nn.Module):
    """1-D convolution without padding, [N,T,A] -> [N, T - dilation (taps - 1), features]; the taps side by side in one
    product. Parameters: kernel [taps, A, features] and bias, PyTorch's default start."""

    features: int
    inputs: int
    taps: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N T A"]) -> Float[Array, "N U C"]:
        init = uniform_init(self.taps * self.inputs)
        kernel = self.param("kernel", init, (self.taps, self.inputs, self.features))
        bias = self.param("bias", init, (self.features,))
        length = x.shape[1] - self.dilation * (self.taps - 1)
        taps = [x[:, k * self.dilation : k * self.dilation + length] for k in range(self.taps)]
        return jnp.concatenate(taps, -1) @ kernel.reshape(-1, self.features) + bias


class WindowEncoder(nn.Module):
    """Windows of coefficients [N,27,C] -> codes [N,features]: 27 steps become 21, 15, 9, 3, and their mean one.

    A convolution of 7 taps, then three times y = x[3:-3] + conv(leaky_relu(x)) with 3 taps, 3 apart (dossier dyntet §3,
    "Conv3DMM"; 716 288 parameters for 70 channels). Differentiable. ValueError for windows of other lengths.
    """

    channels: int  # C: any; the original has 70 (64 of expression, 3 angles, 3 of translation)
    features: int = 256

    def setup(self):
        self.first = Conv(self.features, self.channels, TAPS)
        self.blocks = [Conv(self.features, self.features, BLOCK_TAPS, BLOCK_DILATION) for _ in range(BLOCKS)]

    def __call__(self, windows: Float[Array, "N T C"]) -> Float[Array, "N F"]:
        if windows.shape[1:] != (WINDOW, self.channels):
            raise ValueError(f"WindowEncoder takes windows [N,{WINDOW},{self.channels}], got {windows.shape}")
        x, crop = self.first(windows), BLOCK_DILATION * (BLOCK_TAPS - 1) // 2
        for block in self.blocks:
            x = x[:, crop:-crop] + block(nn.leaky_relu(x, SLOPE))
        return jnp.mean(x, 1)


def unit_box(points: Float[Array, "*N 3"], low: Float[Array, "3"], high: Float[Array, "3"]) -> Float[Array, "*N 3"]:
    """(p - low) / (high - low): the box of the grid becomes [0,1]^3. Not clamped; differentiable."""
    return (points - low) / (high - low)


class Mlp(nn.Module):
    """Linear layers without biases, ReLU between them, PyTorch's default start U(±1/sqrt(inputs))."""

    widths: tuple[int, ...]  # inputs first

    @nn.compact
    def __call__(self, x: Float[Array, "*N A"]) -> Float[Array, "*N C"]:
        for k, (a, b) in enumerate(zip(self.widths, self.widths[1:])):
            layer = nn.Dense(b, use_bias=False, kernel_init=uniform_init(a), name=f"layer_{k}")
            x = layer(nn.relu(x) if k else x)
        return x


class Surface(nn.Module):
    """Signed distance, elasticity and displacement of points (108 928 parameters; dossier dyntet §3).

    With the encoding g(x) = [x, sin(2^k x), cos(2^k x), k = 0…5] (no pi, 39 numbers):
      o = MLP(g(x)), sdf = o_0 (units of the space; negative inside), elasticity = sigmoid(o_1) / 2 in 0…0.5;
      displacement(x, c) = tanh(MLP(W_x g(x) + W_c c)), per axis in -1…1 units of the space.
    scale_by_elasticity: the displacement is multiplied by the elasticity of its point. False is the original's shipped
    configuration, where that product is commented out although its flag `use_elastic` is true; the original with
    `use_elastic` false is True here.
    """

    condition: int = 256
    hidden: int = 128
    scale_by_elasticity: bool = False

    def setup(self):
        encoded, h = 3 * (1 + 2 * OCTAVES), self.hidden
        self.to_sdf = Mlp((encoded, h, h, 2))
        self.of_point = Mlp((encoded, h))
        self.of_condition = Mlp((self.condition, h))
        self.to_displacement = Mlp((h, h, h, h, 3))

    def distance(self, x_unit: Float[Array, "N 3"]) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """(sdf, elasticity) of points in the unit box. Differentiable."""
        out = self.to_sdf(freq_encode(x_unit, OCTAVES))
        return out[:, 0], LARGEST_ELASTICITY * jax.nn.sigmoid(out[:, 1])

    def displacement(
        self, x_unit: Float[Array, "N 3"], codes: Float[Array, "B C"], elasticity: Float[Array, " N"]
    ) -> Float[Array, "B N 3"]:
        """Displacements of N points under B codes; a code of zeros gives the canonical shape. `elasticity` is read only
        with scale_by_elasticity. Differentiable in all."""
        points = self.of_point(freq_encode(x_unit, OCTAVES))
        moved = jnp.tanh(self.to_displacement(points + self.of_condition(codes)[:, None]))
        return moved * elasticity[:, None] if self.scale_by_elasticity else moved

    def __call__(self, x_unit: Float[Array, "N 3"], codes: Float[Array, "B C"]):
        """(sdf [N], elasticity [N], displacement [B,N,3]); for initialisation and small sets of points."""
        sdf, elasticity = self.distance(x_unit)
        return sdf, elasticity, self.displacement(x_unit, codes, elasticity)
