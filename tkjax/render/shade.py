"""Colour of a surface under light from all around, by the split sum (dossier dyntet §3, Shading).

  spec = 0.04 (1 - m) + kd m,   diffuse = kd (1 - m),   r = reflection of the eye's direction,
  colour = [diffuse + S (spec A + B)] (1 - o),   S = light(r, level(roughness)),   (A, B) = table(n·v, roughness).
The diffuse part is not lit (the original's `lighting` is off). No tone mapping and no sRGB: colours are those of the
pictures, 0…1 for light 0…1.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tkjax.render.cubemap import MIDDLE, ROUGHEST, SMOOTHEST, SeamedLight, sample
from tkjax.types import Array

DIELECTRIC = 0.04  # reflectance of what is no metal
SMALLEST_COSINE = 1e-4
TINY = 1e-20  # square below which a vector has no direction
TABLE_SIDE = 256
POLAR, AROUND = 24, 10  # nodes of the table's integral: of each half of the tilt of half vectors, and around


def light_level(roughness: Float[Array, "*N"], levels: int) -> Float[Array, "*N"]:
    """Where among n levels the light for a roughness lies: with n = 6, r < 0.5: 4 (max(r, 0.08) - 0.08) / 0.42, above
    that 4 + (min(r, 1) - 0.5) / 0.5; 4 is n - 2. Differentiable within 0.08…1."""
    last_but_one = levels - 2
    low = last_but_one * (jnp.clip(roughness, SMOOTHEST, MIDDLE) - SMOOTHEST) / (MIDDLE - SMOOTHEST)
    high = last_but_one + (jnp.clip(roughness, MIDDLE, ROUGHEST) - MIDDLE) / (ROUGHEST - MIDDLE)
    return jnp.where(roughness < MIDDLE, low, high)


def split_sum(roughness: Float[np.ndarray, " R"], n_dot_v: Float[np.ndarray, " N"]) -> Float[np.ndarray, "R N 2"]:
    """A = mean of (1 - Fc) G, B = mean of Fc G over half vectors h drawn by GGX, in float64 by quadrature:

      alpha = roughness^2, Fc = (1 - v·h)^5, G = G2 (v·h) / ((n·h) (n·v)), G2 height-correlated Smith.
    roughness in (0,1], n_dot_v in (0,1]; agrees with the original's table to 1e-3 (dossier dyntet §2.7).
    """
    a2 = np.asarray(roughness, np.float64)[:, None, None, None] ** 4
    nv = np.asarray(n_dot_v, np.float64)[:, None, None]
    # u in 0…1 is the share of half vectors that tilt less: tan^2 = alpha^2 u / (1 - u). Up to a tilt of
    # pi/4 - angle(v)/2 all light is above the horizon, beyond pi/4 + angle(v)/2 none: an integral for each part, whose
    # nodes gather at its ends.
    tilt = np.tan(math.pi / 4 + np.arccos(nv) / 2 * np.array([-1, 1]).reshape(2, 1, 1, 1, 1)) ** 2
    first, last = tilt / (a2 + tilt)
    nodes, share = np.polynomial.legendre.leggauss(POLAR)
    gathered = ((1 - np.cos(math.pi * (nodes + 1) / 2)) / 2)[:, None]
    density = (math.pi / 4 * np.sin(math.pi * (nodes + 1) / 2) * share)[:, None]
    u = np.concatenate([first * gathered, first + (last - first) * gathered], 2)
    weight = np.concatenate([first * density, (last - first) * density], 2)
    nh = np.sqrt((1 - u) / (1 + (a2 - 1) * u))
    sh = np.sqrt(a2 * u / (1 + (a2 - 1) * u))
    # The light lies above the horizon for phi below `most`; both sides of the plane of n and v are alike.
    sv = np.sqrt(1 - nv**2)
    most = np.arccos(np.clip(-nv * (2 * nh**2 - 1) / np.maximum(2 * sv * sh * nh, TINY), -1, 1))
    nodes, share = np.polynomial.legendre.leggauss(AROUND)
    vh = sv * sh * np.cos(most * (nodes + 1) / 2) + nv * nh
    nl = np.maximum(2 * vh * nh - nv, 0)  # rounding at the horizon
    g2 = 2 * nl / (nl * np.sqrt(a2 + (1 - a2) * nv**2) + nv * np.sqrt(a2 + (1 - a2) * nl**2))
    g = g2 * vh / nh * weight * share / 2 * (most / math.pi)
    fc = (1 - vh) ** 5
    return np.stack([np.sum((1 - fc) * g, (2, 3)), np.sum(fc * g, (2, 3))], -1)


@functools.lru_cache(maxsize=2)
def split_sum_table(side: int = TABLE_SIDE) -> Float[np.ndarray, "S S 2"]:
    """(A, B), row = roughness, column = n·v, texel centres (i + 1/2) / side; float32. Found in numpy, then kept."""
    centres = (np.arange(side) + 0.5) / side
    return np.concatenate([split_sum(centres[k : k + 1], centres) for k in range(side)]).astype(np.float32)


def lookup(
    table: Float[Array, "S S 2"], n_dot_v: Float[Array, "*N"], roughness: Float[Array, "*N"]
) -> Float[Array, "*N 2"]:
    """Bilinear, clamped to the outermost texels' centres. Differentiable in all three."""
    side = table.shape[0]
    at = [jnp.clip(x * side - 0.5, 0.0, side - 1.0) for x in (roughness, n_dot_v)]
    cell = [jnp.clip(jnp.floor(x).astype(jnp.int32), 0, side - 2) for x in at]
    v, u = ((x - c)[..., None] for x, c in zip(at, cell))
    (row, column) = cell
    near = table[row, column] * (1 - u) + table[row, column + 1] * u
    far = table[row + 1, column] * (1 - u) + table[row + 1, column + 1] * u
    return near * (1 - v) + far * v


def unit(v: Float[Array, "*N 3"]) -> Float[Array, "*N 3"]:
    """v / |v|; what has no length stays, with gradient 0."""
    square = jnp.sum(v * v, -1, keepdims=True)
    none = square < TINY
    return jnp.where(none, 0.0, v / jnp.sqrt(jnp.where(none, 1.0, square)))


def combine(
    kd: Float[Array, "*N 3"],
    occlusion: Float[Array, "*N 1"],
    metalness: Float[Array, "*N 1"],
    reflected: Float[Array, "*N 3"],
    ab: Float[Array, "*N 2"],
) -> Float[Array, "*N 3"]:
    """[kd (1 - m) + S ((0.04 (1 - m) + kd m) A + B)] (1 - o)."""
    spec = DIELECTRIC * (1 - metalness) + kd * metalness
    return (kd * (1 - metalness) + reflected * (spec * ab[..., :1] + ab[..., 1:])) * (1 - occlusion)


def shade(
    material: Float[Array, "*N K"],
    normals: Float[Array, "*N 3"],
    to_eye: Float[Array, "*N 3"],
    light: SeamedLight,
    table: Float[Array, "S S 2"],
) -> Float[Array, "*N 3"]:
    """Colours of points with material [kd 3, occlusion, roughness, metalness, …], the rest of which is not read.

    normals: interpolated, normalised here, not turned towards the eye. to_eye: from the point to the camera's centre,
    any length > 0. Differentiable in all but the table's integers; not clipped.
    """
    kd, occlusion, roughness, metalness = material[..., :3], material[..., 3:4], material[..., 4], material[..., 5:6]
    n, v = unit(normals), unit(to_eye)
    cosine = jnp.sum(n * v, -1)
    reflected = unit(2 * cosine[..., None] * n - v)
    ab = lookup(table, jnp.maximum(cosine, SMALLEST_COSINE), roughness)
    return combine(kd, occlusion, metalness, sample(light, reflected, light_level(roughness, len(light.sides))), ab)
