"""Light from all around as a cube of texels: mips, GGX prefilter, and lookup across faces and levels.

A cubemap is [6, S, S, C]: face, row y, column x. With f = 2 (i + 1/2) / S - 1 of column and row, its texels look along
  (1, -fy, -fx), (-1, -fy, fx), (fx, 1, fy), (fx, -1, -fy), (fx, -fy, 1), (-fx, -fy, -1)      (dossier dyntet §3, Light)
Level k of n holds the light prefiltered for roughness 0.08 + 0.42 k / (n - 2), the last one for roughness 1.

The filter's weights are fixed and found once, in numpy (`prefilter_weights`), so that a level is one product. In
training `prefilter` and `seamed` run in every step; for pictures the result of `seamed` is a constant.
"""

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from tkjax.types import Array, Leaf

START = 0.5  # of every texel, in all channels
SMOOTHEST, MIDDLE, ROUGHEST = 0.08, 0.5, 1.0  # roughness of the first level, the last but one and the last
KEPT = 0.99  # of the lobe's summed density lies within the cut-off
ANGLES = 1_000_000  # at which that is summed
BLOCK = 8  # texels, of the squares that the search for neighbours begins with
EXACT = jax.lax.Precision.HIGHEST  # a constant light stays, also on a GPU
DENSE = 2048  # texels of a level, up to which its weights are a full matrix


@dataclasses.dataclass(frozen=True)
class LightSpec:
    """Sides of a light: `base` of the first level, halved down to `smallest`, both powers of two, three levels at
    least. The original has 512 and 16 (6 levels, 4 718 592 numbers), whose filter has 0.9e9 weights: 7 GB here,
    padding left out.

    original_area: texels count by the original's area, which is one texel off between a face's halves, in place of
    their solid angle.
    """

    base: int = 64
    smallest: int = 8
    original_area: bool = False

    def __post_init__(self):
        if any(s < 2 or s & (s - 1) for s in (self.base, self.smallest)) or self.base < 4 * self.smallest:
            raise ValueError(f"{self}: expected powers of two, smallest >= 2 and base at least 4 times smallest")

    @functools.cached_property
    def sides(self) -> tuple[int, ...]:
        levels = (self.base // self.smallest).bit_length()
        return tuple(self.base >> k for k in range(levels))

    @functools.cached_property
    def roughness(self) -> tuple[float, ...]:
        """That each level is filtered for."""
        n = len(self.sides)
        return (*(SMOOTHEST + (MIDDLE - SMOOTHEST) * k / (n - 2) for k in range(n - 1)), ROUGHEST)


def initial_light(spec: LightSpec) -> Float[Array, "6 S S 3"]:
    """The trained cubemap before training: 0.5 everywhere, S = base. It must stay >= 0, which the model sees to."""
    return jnp.full((6, spec.base, spec.base, 3), START)


@flax.struct.dataclass
class Filter:
    """Of one level with T = 6 S^2 texels: out_t = sum_k weights[t,k] texel[index[t,k]]; index None: of all T texels."""

    weights: Leaf[Float[Array, "T K"]]
    index: Leaf[Int[Array, "T K"]] | None


def texel_directions(side: int, border: int = 0) -> Float[np.ndarray, "6 S S 3"]:
    """Unit vectors of the texels of a cubemap, float64; with `border` texels more beyond each edge of the faces."""
    f = (2 * np.arange(-border, side + border) + 1) / side - 1
    fy, fx = np.meshgrid(f, f, indexing="ij")
    one = np.ones_like(fx)
    faces = (
        (one, -fy, -fx), (-one, -fy, fx), (fx, one, fy), (fx, -one, -fy), (fx, -fy, one), (-fx, -fy, -one),
    )  # fmt: skip
    out = np.array([np.stack(face, -1) for face in faces])
    return out / np.linalg.norm(out, axis=-1, keepdims=True)


def texel_areas(side: int, original: bool = False) -> Float[np.ndarray, "S S"]:
    """Solid angle of each texel of a face, 4 pi over the cube; `original`: what stands for it there (13.594 over a cube
    of side 16), the product of angles (atan((a + 1) / h) - atan(a / h)), a = |i - h|, h = side / 2."""
    if original:
        h = side / 2
        a = np.abs(np.arange(side) - h)
        angle = np.arctan((a + 1) / h) - np.arctan(a / h)
        return angle[:, None] * angle
    edge = 2 * np.arange(side + 1) / side - 1
    corner = np.arctan2(edge[:, None] * edge, np.sqrt(edge[:, None] ** 2 + edge**2 + 1))
    return corner[1:, 1:] - corner[1:, :-1] - corner[:-1, 1:] + corner[:-1, :-1]


def ggx(cosine: Float[np.ndarray, "*N"], roughness: float) -> Float[np.ndarray, "*N"]:
    """D = r^4 / (pi (c^2 (r^4 - 1) + 1)^2), alpha = r^2."""
    r4 = roughness**4
    return r4 / (math.pi * (np.square(cosine) * (r4 - 1) + 1) ** 2)


def cutoff(roughness: float) -> float:
    """The cosine at which the summed D over even angles passes 99 % (0.999767 for 0.08, 0.015706 for 1)."""
    cosines = np.cos(np.linspace(0, math.pi / 2, ANGLES))
    summed = np.cumsum(ggx(cosines, roughness))
    return float(cosines[np.searchsorted(summed, KEPT * summed[-1])])


@functools.lru_cache(maxsize=4)
def prefilter_weights(spec: LightSpec) -> tuple[Filter, ...]:
    """The filter of each level, numpy, rows summing to 1: for texel V and each texel L with L·V >= the cut-off,

      w = max(L·V, 0) D(V·H) area_L / 4,  H = normalise(L + V).

    A pytree: give it to the compiled step as an argument.
    """
    return tuple(_filter(side, r, spec.original_area) for side, r in zip(spec.sides, spec.roughness))


def _filter(side: int, roughness: float, original_area: bool) -> Filter:
    directions = texel_directions(side).reshape(-1, 3)
    areas = np.tile(texel_areas(side, original_area).ravel(), 6)
    limit, n = cutoff(roughness), len(directions)
    rows = [None] * n  # (index, weight) of what counts for each texel
    # Squares of texels stand for their members: a square whose cone misses the lobe is not looked at.
    block = min(side, BLOCK)
    squares = np.arange(n).reshape(6, side // block, block, side // block, block).swapaxes(2, 3)
    squares = squares.reshape(-1, block * block)
    middles = directions[squares].mean(1)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    radii = np.arccos(np.einsum("bc,bkc->bk", middles, directions[squares]).min(1))
    for square, middle, radius in zip(squares, middles, radii):
        reach = np.arccos(limit) + radius + radii
        seen = np.sort(squares[np.arccos(np.clip(middles @ middle, -1, 1)) <= reach + 1e-9].ravel())
        for t, cosine in zip(square, directions[square] @ directions[seen].T):
            near = cosine >= limit
            c = np.clip(cosine[near], 0.0, 1.0)
            weight = c * ggx(np.sqrt((1 + c) / 2), roughness) * areas[seen[near]] / 4
            rows[t] = seen[near], weight / weight.sum()
    width = n if n <= DENSE else max(len(index) for index, _ in rows)
    weights, indices = np.zeros((n, width), np.float32), np.zeros((n, width), np.int32)
    for t, (index, weight) in enumerate(rows):
        at = index if n <= DENSE else slice(len(index))
        weights[t, at], indices[t, at] = weight, index
    return Filter(weights, None if n <= DENSE else indices)


def prefilter(cubemap: Float[Array, "6 S S C"], filters: tuple[Filter, ...]) -> tuple[Float[Array, "6 _S _S C"], ...]:
    """The levels: means of 2x2 texels, each filtered. Linear, differentiable in the cubemap; a constant stays."""
    channels, out, mip = cubemap.shape[-1], [], cubemap
    for k, level in enumerate(filters):
        if k:
            half = mip.shape[1] // 2
            mip = jnp.mean(mip.reshape(6, half, 2, half, 2, channels), (2, 4))
        texels = mip.reshape(-1, channels)
        if texels.shape[0] != level.weights.shape[0]:
            raise ValueError(f"level {k} has {texels.shape[0]} texels, its filter {level.weights.shape[0]}")
        if level.index is None:
            filtered = jnp.matmul(level.weights, texels, precision=EXACT)
        else:
            filtered = jnp.einsum("tk,tkc->tc", level.weights, texels[level.index], precision=EXACT)
        out.append(filtered.reshape(mip.shape))
    return tuple(out)


# ------------------------------------------------ lookup


@flax.struct.dataclass
class SeamedLight:
    """Levels as `sample` reads them: each face with a border of the neighbouring faces' texels, all in one list."""

    texels: Leaf[Float[Array, "N C"]]
    sides: tuple[int, ...] = flax.struct.field(pytree_node=False)


def face_of(
    directions: Float[Array, "*N 3"],
) -> tuple[Int[Array, "*N"], Float[Array, "*N"], Float[Array, "*N"]]:
    """(face, fx, fy) that a direction meets, f in ±1; the face of the largest component, x before y before z at equals.

    Differentiable through fx and fy within a face. Directions need not be unit vectors; not all components may be 0.
    """
    x, y, z = (directions[..., k] for k in range(3))
    ax, ay, az = (jnp.abs(v) for v in (x, y, z))
    on_x, on_y = (ax >= ay) & (ax >= az), ay >= az
    longest = jnp.where(on_x, x, jnp.where(on_y, y, z))
    size, positive = jnp.abs(longest), longest > 0
    axis = jnp.where(on_x, 0, jnp.where(on_y, 1, 2))
    sign = jnp.where(positive, 1.0, -1.0)
    fx = jnp.where(on_x, -sign * z, jnp.where(on_y, x, sign * x)) / size
    fy = jnp.where(on_x | ~on_y, -y, sign * z) / size
    return 2 * axis + jnp.where(positive, 0, 1), fx, fy


@functools.lru_cache(maxsize=16)
def _border(side: int) -> np.ndarray:
    """Texel numbers [6,S+2,S+2] of the faces with their border: beyond an edge lies the nearest texel of the next face.
    The corners, where there is none, hold any texel."""
    known = texel_directions(side).reshape(-1, 3)
    out = np.argmax(texel_directions(side, 1) @ known.T, -1)
    out[:, 1:-1, 1:-1] = np.arange(6 * side * side).reshape(6, side, side)
    return out


def seamed(levels: tuple[Float[Array, "6 _S _S C"], ...]) -> SeamedLight:
    """Levels with borders, so that bilinear weights reach over the cube's edges; at its corners, where three faces
    meet, the missing fourth texel is the mean of the three. Linear, differentiable."""
    parts = []
    for level in levels:
        channels = level.shape[-1]
        faces = level.reshape(-1, channels)[_border(level.shape[1])]
        for row, inner_row in ((0, 1), (-1, -2)):
            for column, inner in ((0, 1), (-1, -2)):
                three = faces[:, inner_row, inner] + faces[:, row, inner] + faces[:, inner_row, column]
                faces = faces.at[:, row, column].set(three / 3)
        parts.append(faces.reshape(-1, channels))
    return SeamedLight(jnp.concatenate(parts), tuple(level.shape[1] for level in levels))


def sample(light: SeamedLight, directions: Float[Array, "*N 3"], level: Float[Array, "*N"]) -> Float[Array, "*N C"]:
    """Light from `directions`: bilinear in the two nearest levels, linear between them; `level` is clamped to 0…n-1.

    Differentiable in the light, the level and, within a face, the directions.
    """
    face, fx, fy = face_of(directions)
    sides = np.array(light.sides, np.int32)
    rows = 6 * (sides + 2) ** 2
    starts = jnp.asarray(np.cumsum(rows) - rows)
    level = jnp.clip(level, 0.0, len(sides) - 1)
    lower = jnp.clip(jnp.floor(level).astype(jnp.int32), 0, len(sides) - 2)
    t = (level - lower)[..., None]

    def bilinear(k):
        side = jnp.asarray(sides)[k]
        base = starts[k] + face * (side + 2) ** 2
        at = [0.5 * (f + 1.0) * side + 0.5 for f in (fx, fy)]  # the border is column 0
        cell = [jnp.clip(jnp.floor(x).astype(jnp.int32), 0, side) for x in at]
        u, v = ((x - c)[..., None] for x, c in zip(at, cell))
        first = base + cell[1] * (side + 2) + cell[0]
        near = light.texels[first] * (1 - u) + light.texels[first + 1] * u
        far = light.texels[first + side + 2] * (1 - u) + light.texels[first + side + 3] * u
        return near * (1 - v) + far * v

    return bilinear(lower) * (1 - t) + bilinear(lower + 1) * t
