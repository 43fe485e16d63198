"""From windows of sound features to one code per frame (er-nerf dossier §3 "Audio"; the AD-NeRF line shares it)."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tkjax.fields.program import uniform_init

SLOPE = 0.02  # of every LeakyReLU


class Conv(nn.Module):
    """1-D convolution of three taps with one zero at each end, [N,T,A] -> [N,ceil(T/stride),features].

    The taps are laid side by side and multiplied at once: XLA's convolution of such small channels is many times
    slower than that product on a CPU. Parameters are those of `nn.Conv`.
    """

    features: int
    inputs: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "N T A"]) -> Float[Array, "N U C"]:
        init = uniform_init(3 * self.inputs)
        kernel = self.param("kernel", init, (3, self.inputs, self.features))
        bias = self.param("bias", init, (self.features,))
        length = -(-x.shape[1] // self.stride)
        padded = jnp.pad(x, ((0, 0), (1, 1 + self.stride), (0, 0)))
        taps = [padded[:, k : k + length * self.stride : self.stride][:, :length] for k in range(3)]
        return jnp.concatenate(taps, -1) @ kernel.reshape(3 * self.inputs, self.features) + bias


def _dense(features: int, inputs: int) -> nn.Dense:
    init = uniform_init(inputs)
    return nn.Dense(features, kernel_init=init, bias_init=init)


class AudioNet(nn.Module):
    """Windows [N,T,A] -> codes [N,dim]: four convolutions of stride 2 (so T up to 16 ends at 1), two dense layers."""

    channels: int  # A
    dim: int = 32

    def setup(self):
        widths = (self.channels, 32, 32, 64, 64)
        self.convs = [Conv(b, a, 2) for a, b in itertools.pairwise(widths)]
        self.fc1 = _dense(64, 64)
        self.fc2 = _dense(self.dim, 64)

    def __call__(self, windows: Float[Array, "N T A"]) -> Float[Array, "N C"]:
        if not 1 <= windows.shape[1] <= 16:
            raise ValueError(f"AudioNet takes windows of 1 to 16 steps, got {windows.shape[1]}")
        x = windows
        for conv in self.convs:
            x = nn.leaky_relu(conv(x), SLOPE)
        return self.fc2(nn.leaky_relu(self.fc1(x[:, 0]), SLOPE))


class AudioAttention(nn.Module):
    """Codes of W neighbouring frames [B,W,C] -> their weighted mean [B,C], weights softmax over W.

    scored: the weights look at so many of the C channels, the first ones; 0 for all `dim` of them.
    """

    windows: int = 8
    dim: int = 32
    scored: int = 0

    def setup(self):
        widths = (self.scored or self.dim, 16, 8, 4, 2, 1)
        self.convs = [Conv(b, a, 1) for a, b in itertools.pairwise(widths)]
        self.fc = _dense(self.windows, self.windows)

    def __call__(self, codes: Float[Array, "B W C"]) -> Float[Array, "B C"]:
        x = codes[..., : self.scored or self.dim]
        for conv in self.convs:
            x = nn.leaky_relu(conv(x), SLOPE)
        weights = jax.nn.softmax(self.fc(x[..., 0]), -1)
        return jnp.einsum("bw,bwc->bc", weights, codes)
