"""Multi-resolution grid encoding (instant-ngp; er-nerf dossier §3 "Grid formula").

For level l with scale s_l = base * per_level_scale**l - 1 and resolution res_l = ceil(s_l) + 1:
  pos = x * s_l + 0.5, cell = floor(pos), frac = pos - cell,
  out = sum over the 2**D corners c of prod_d (frac_d if c_d else 1 - frac_d) * table[index(cell + c)].
Index of a cell: sum_d cell_d * (res_l + 1)**d while that stride is within the level's entries; a `hash` level
whose full grid does not fit uses (xor_d cell_d * prime_d) mod 2**32 instead, a `tiled` level keeps the sum
and, like the originals, leaves out the dimensions whose stride exceeds the entries; both are taken modulo
the entries. The kinds `base_tiled` and `base_tiled_2025` are tiny-cuda-nn's "TiledGrid", for parity with DynTet
(dossier dyntet §3): no level has more than base**D entries, strides are powers of res_l, and a dimension is left out
where its stride exceeds the entries; the rule since f46b652 (2025-06-24) keeps all dimensions instead, and all points
of a level with res_l**D > 2**32 share entry 0.

Differentiable with respect to the tables and the points. Points outside [0,1] in any coordinate, NaN
included, give zero output and zero gradient.

Fields reach these kernels through `field`. By itself the op is for many planes that each have points of their own, and
for bfloat16 output, which a field does not have.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing
from jaxtyping import Array, Float

from tkjax.ops import dispatch

KINDS = ("hash", "tiled", "base_tiled", "base_tiled_2025")
PRIMES = (1, 2654435761, 805459861, 3674653429, 2097192037, 1434869437, 2165219737)


@dataclasses.dataclass(frozen=True)
class Level:
    """One level: float32 `scale`, `resolution` in cells, `entries`, `offset` of its first entry, index `strides`."""

    scale: float
    resolution: int
    entries: int
    offset: int
    hashed: bool
    strides: tuple[int, ...]  # 0 where the originals leave a dimension out


@dataclasses.dataclass(frozen=True)
class GridSpec:
    """Shape of a grid; `finest` is the resolution of the last level: per_level_scale = (finest/base)**(1/(levels-1)).

    kind: one of `KINDS`. interpolation: `linear` or `smoothstep` (frac**2 * (3 - 2 frac)).
    pad: entries per level are rounded up to a multiple of it (8 in the RAD-NeRF family, 1 in older torch-ngp).
    """

    dims: int = 2
    levels: int = 12
    features: int = 1
    base: int = 64
    finest: int = 512
    log2_entries: int = 14
    kind: str = "hash"
    interpolation: str = "linear"
    pad: int = 8

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"grid kind {self.kind!r} is unknown; choose {', '.join(KINDS)}")
        if self.interpolation not in ("linear", "smoothstep"):
            raise ValueError(f"grid interpolation {self.interpolation!r} is unknown; choose linear or smoothstep")
        if not 1 <= self.dims <= len(PRIMES):
            raise ValueError(f"grid dims must be 1 to {len(PRIMES)}, got {self.dims}")
        if self.levels < 1 or self.features < 1 or self.base < 1 or self.finest < self.base:
            raise ValueError(f"grid needs levels, features, base >= 1 and finest >= base, got {self}")

    @property
    def per_level_scale(self) -> float:
        return math.exp(math.log(self.finest / self.base) / (self.levels - 1)) if self.levels > 1 else 1.0

    @functools.cached_property
    def table(self) -> tuple[Level, ...]:
        """The levels, derived. Scales are computed in float64 and rounded once, so the finest is exact."""
        levels, offset = [], 0
        for i in range(self.levels):
            exact = self.base * (self.finest / self.base) ** (i / (self.levels - 1) if self.levels > 1 else 0.0)
            scale = float(np.float32(exact - 1.0))
            resolution = math.ceil(scale) + 1
            tiled = self.kind.startswith("base_tiled")
            side = resolution if tiled else resolution + 1
            entries = min(2**self.log2_entries, side**self.dims, self.base**self.dims if tiled else math.inf)
            entries = -(-entries // self.pad) * self.pad
            strides, stride = [], 1
            for _ in range(self.dims):
                strides.append(stride if stride <= entries else 0)
                stride *= side if stride <= entries else 1
            if self.kind == "base_tiled_2025":  # whole multiples of the entries are entry 0
                strides = [side**d if side**self.dims <= 2**32 else entries for d in range(self.dims)]
            hashed = self.kind == "hash" and stride > entries
            levels.append(Level(scale, resolution, entries, offset, hashed, tuple(strides)))
            offset += entries
        return tuple(levels)

    @property
    def entries(self) -> int:
        """Table entries of all levels together."""
        return self.table[-1].offset + self.table[-1].entries

    @property
    def channels(self) -> int:
        """Output channels of one plane, ordered level by level."""
        return self.levels * self.features


def grid_encode(
    points_unit: Float[Array, "N P D"],
    tables: Float[Array, "P T F"],
    spec: GridSpec,
    *,
    out_dtype: np.typing.DTypeLike | None = None,
    backend: str | None = None,
) -> Float[Array, "N P LF"]:
    """Features of N points in each of P planes (or volumes); plane p reads `points_unit[:, p]` and `tables[p]`.

    out_dtype: float32 or bfloat16, that of the tables if None. Positions, weights and sums are float32 (sums are of
    the tables' dtype where that is not float32: reference only). Where a kernel runs, gradients cannot be
    differentiated again; the reference can.
    """
    _, planes, dims = points_unit.shape
    if dims != spec.dims or tables.shape != (planes, spec.entries, spec.features):
        raise ValueError(
            f"grid_encode: points {points_unit.shape} and tables {tables.shape} do not fit the grid; expected points "
            f"[N,P,{spec.dims}] and tables [P,{spec.entries},{spec.features}] with the same P"
        )
    dtype = jnp.dtype(tables.dtype if out_dtype is None else out_dtype)
    if out_dtype is not None and dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"grid_encode: out_dtype must be float32 or bfloat16, got {dtype}")
    module = dispatch.resolve("grid_encode", backend, spec, tables.dtype)
    with jax.named_scope(f"grid_encode.{module.__name__.split('.')[-2]}"):
        return module.forward(points_unit, tables, spec, dtype)
