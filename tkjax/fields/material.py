"""Colour and reflectance of a surface at its canonical position under an expression (dossier dyntet §3, "Material").

  f = grid(x),  h = (V f + v) + cond(c),  cond(c) = W2 leaky_relu(W1 c + b1, 0.2) + b2,
  out = sigmoid(MLP(h)) (high - low) + low:  kd [0,1]^3, occlusion 0…1, roughness 0.1…1, metalness 0…1.
x is in the unit box and clamped to it; the MLP has five hidden layers of 256 with ReLU and no biases.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tkjax.fields.program import groups, uniform_init
from tkjax.ops import GridSpec, Program, ProgramBuilder, field

# The coordinates are hashed, so that no level forgets one; the original's grid is ORIGINAL_GRID or its rule of 2025.
GRID = GridSpec(dims=3, levels=16, features=2, base=16, finest=4096, log2_entries=16)
ORIGINAL_GRID = dataclasses.replace(GRID, log2_entries=19, kind="base_tiled")
ORIGINAL_GRID_2025 = dataclasses.replace(ORIGINAL_GRID, kind="base_tiled_2025")
CHANNELS = 6  # kd, occlusion, roughness, metalness
ORIGINAL_CHANNELS = 9  # and a normal, which is never used
# (low, high) of each output (dossier dyntet §8: kd, ks_min / ks_max of the shipped configuration, nrm)
RANGES = ((0, 1), (0, 1), (0, 1), (0, 1), (0.1, 1), (0, 1), (-1, 1), (-1, 1), (0, 1))
SLOPE = 0.2
ORIGINAL_GRADIENT_SCALE = 128.0
TABLE_DIVISOR = 8.0  # of the table's gradient in the original, behind that scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: Float[Array, "*N"], factor: float) -> Float[Array, "*N"]:
    """x itself; its gradient is multiplied by `factor`."""
    del factor
    return x


scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, g: (factor * g,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
    """The field. Parameters: `grid` tables, `point` (V, v), `condition` (W1, b1, W2, b2), `net`; with ORIGINAL_GRID and
    ORIGINAL_CHANNELS 601 088 numbers.

    channels: 6, or the original's 9. gradient_scale: 1, or the original's 128, which multiplies the gradient at h and
    so those of `point`, `condition` and the codes, and an eighth of it that of the tables; `net` and the points' are
    as they are. Adam hides it except in what the codes come from.
    """

    spec: GridSpec = GRID
    channels: int = CHANNELS
    condition: int = 256
    hidden: int = 256
    layers: int = 5
    gradient_scale: float = 1.0
    chunk: int = 2048

    def __post_init__(self):
        if self.channels not in (CHANNELS, ORIGINAL_CHANNELS):
            raise ValueError(f"a material has {CHANNELS} or {ORIGINAL_CHANNELS} channels, got {self.channels}")
        if not self.gradient_scale > 0:
            raise ValueError(f"a material's gradient_scale must be positive, got {self.gradient_scale}")

    @functools.cached_property
    def program(self) -> Program:
        """The field at points in [0,1]^3 with the row "condition" = cond(c); output `raw`, before the sigmoid."""
        p = ProgramBuilder("material")
        features = p.grid("grid", self.spec, p.affine(p.clip(p.points, 0.0, 1.0), 2.0, -1.0))
        point = p.mlp("point", [features], (self.spec.channels, self.hidden), bias=True)
        h = p.add(point, p.row("condition", self.hidden))
        return p.build(raw=p.mlp("net", [h], (*[self.hidden] * (self.layers + 1), self.channels)))

    def init(self, key: jax.Array) -> dict:
        """Fresh parameters: tables U(±1e-4), `net` Kaiming-uniform for ReLU, the others PyTorch's default."""
        keys = dict(zip(["grid", "point", "net", "condition"], jax.random.split(key, 4)))
        params = {name: module.init(keys[name])["params"] for name, module in groups(self.program).items()}
        # U(±sqrt(6 / inputs)) instead of U(±1 / sqrt(inputs))
        params["net"] = {name: kernel * math.sqrt(6.0) for name, kernel in params["net"].items()}
        shapes = {"0": (self.condition, self.hidden), "1": (self.hidden, self.hidden)}
        for k, (name, shape) in enumerate(shapes.items()):
            init, own = uniform_init(shape[0]), jax.random.split(jax.random.fold_in(keys["condition"], k))
            params.setdefault("condition", {})[f"kernel_{name}"] = init(own[0], shape)
            params["condition"][f"bias_{name}"] = init(own[1], shape[1:])
        return params

    def condition_row(self, params: dict, codes: Float[Array, "B C"]) -> Float[Array, "B H"]:
        """cond(c), once for each frame."""
        c = params["condition"]
        hidden = jax.nn.leaky_relu(codes @ c["kernel_0"] + c["bias_0"], SLOPE)
        return hidden @ c["kernel_1"] + c["bias_1"]

    def evaluate(
        self,
        params: dict,
        x_unit: Float[Array, "N 3"],
        codes: Float[Array, "B C"],
        frame: Int[Array, " N"] | None,
        total: Int[Array, ""] | None = None,
    ) -> Float[Array, "N K"]:
        """[kd 3, occlusion, roughness, metalness, …] of N points, each under codes[frame]; frame None: B = 1.

        total: the first so many count, what the others get is not defined, only finite; None: all.
        Differentiable in parameters, points and codes; the derivative to points is 0 outside the box.
        """
        row, own = self.condition_row(params, codes), {name: params[name] for name in ("grid", "point", "net")}
        if self.gradient_scale != 1.0:
            row = scale_gradient(row, self.gradient_scale)
            for name, factor in (("point", self.gradient_scale), ("grid", self.gradient_scale / TABLE_DIVISOR)):
                own[name] = {leaf: scale_gradient(value, factor) for leaf, value in own[name].items()}
        raw = field(self.program, x_unit, {"condition": (row, frame)}, own, total=total, chunk=self.chunk)
        low, high = (jnp.array([r[k] for r in RANGES[: self.channels]], jnp.float32) for k in (0, 1))
        return jax.nn.sigmoid(raw) * (high - low) + low
