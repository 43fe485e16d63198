"""NeRFBlendShape: hash tables, one per expression coefficient, blended per frame; the head alone (arXiv 2210.06108).

Maths and constants: nerfblendshape dossier §3 (tables, networks), §4 (density grid, marching), §5 (training), all of
them the released code's. There is no torso; what stands behind the head is given.

Decided (code = the released code is followed, neither = ours):
- coefficients are clamped to their range over the training frames, in pictures as in training (code); the range keeps
  its digits (neither: the original rounds it to half precision);
- a coefficient of 0 outside its range becomes the nearer end of it, also in the density grid (code);
- the density grid tries each coefficient at the end of its range that is farther from 0 (neither: the original tries
  the largest value, so that it misses the shapes of strongly negative coefficients);
- without model.add_mean the first coefficient weighs the first table and there is no neutral (code);
- coordinates, tables and sums are float32 (neither: half precision moves points of the original by half a voxel);
- the grid is the other systems' cube of bits, with one shift of the lattice per ray (neither); model.occupancy =
  "vertices" and model.jitter = "step" are the original's 129^3 densities and its jitter of every step;
- what a ray that ended lets through goes to the background (neither: the original leaves it out in training; 1e-4);
- patches lie where the rectangle is (neither: the released code adds the fraction of a row times the width to the
  column), moved into the picture where they leave it (neither: the original draws them anywhere then);
- patches and plain pixels alternate (neither: the original adds both losses in every step);
- weight decay is decoupled from the gradient (neither; 1e-6 either way);
- depth is the mean distance of the samples, and NaN where nothing is (neither).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real
from ml_collections import ConfigDict

from tkjax import perceptual, samplers
from tkjax.cameras import ADNERF_UNITS, pixel_rays, to_ngp_axes, to_ngp_pose
from tkjax.fields.program import table_init
from tkjax.interface import Ema, Rate, Stage
from tkjax.interface import Model as BaseModel
from tkjax.ops import GridSpec, Program, ProgramBuilder, blend_tables, composite, field, march, sh_encode
from tkjax.render import occupancy, volume
from tkjax.render.image import picture
from tkjax.render.volume import SH_DEGREE, STOP
from tkjax.signals import Use
from tkjax.types import Batch, ClipFacts, Clock, PyTree, Render, SubjectInfo, Variables

DRIVE = "expression"
PATCH_WEIGHT = 0.1  # of both terms in a step of patches
B1, B2, EPS = 0.9, 0.99, 1e-15  # of Adam
DECAY = 1e-6  # of the networks' weights
JITTERS = ("ray", "step")
GRIDS = ("bits", "vertices")
FACE_RADIUS = 1.2  # of half the diagonal of the landmarks' box, and so much above its middle
FACE_BELOW = 0.8


def head_program(spec: GridSpec, bound: float, hidden: int = 64, layers: int = 4, geometry: int = 64) -> Program:
    """The field at one sample x in ±bound, along d (dossier §3.3):

      h = MLP(table(x)), sigma = softplus(h_0), rgb = sigmoid(MLP([SH4(d), h_1…])), all without biases.

    x is clamped to the cube (§4.2): a ray's first sample lies on its face, and outside of it features are 0.
    Row: `sh` of the ray. Parameters: `encoder` (the frame's blended table), `sigma`, `colour`.
    """
    sh = SH_DEGREE**2
    p = ProgramBuilder("blended_head")
    x = p.grid("encoder", spec, p.clip(p.points, -bound, bound), bound=bound)
    h = p.mlp("sigma", [x], (x.channels, *[hidden] * layers, 1 + geometry))
    rgb = p.mlp("colour", [p.row("sh", sh), h[1:]], (sh + geometry, hidden, 3), output="sigmoid")
    return p.build(sigma=p.act(h[:1], "softplus"), rgb=rgb)


class Model(BaseModel):
    """The system. `tables` [T, n, F] holds the neutral's first, then one for each coefficient."""

    def __init__(self, config: ConfigDict, info: SubjectInfo):
        super().__init__(config, info)
        m = config.model
        _check(m)
        channels = info.signal(DRIVE).channels
        self.used = m.basis_num or channels
        if not 1 <= self.used <= channels:
            raise ValueError(f"model.basis_num is {m.basis_num}, expected 0 (all) or 1..{channels}, which {DRIVE} has")
        self.n_tables = self.used + int(m.add_mean)
        self.spec = GridSpec(3, m.grid_levels, m.grid_features, m.grid_base, m.grid_finest, m.grid_log2_entries, pad=1)
        self.program = head_program(self.spec, m.bound, m.hidden, m.layers, m.geometry)
        self.unit = m.scale / ADNERF_UNITS  # marched units per contract unit

    def init(self, key: jax.Array) -> Variables:
        m = self.config.model
        tables = table_init(jax.random.fold_in(key, 0), (self.n_tables, self.spec.entries, self.spec.features))
        params: dict[str, Any] = {"tables": tables}
        shapes = {name: leaves for name, leaves in self.program.params.items() if name != "encoder"}
        for i, (name, leaf) in enumerate((n, leaf) for n, leaves in shapes.items() for leaf in leaves):
            xavier = jax.nn.initializers.xavier_uniform()
            params.setdefault(name, {})[leaf] = xavier(jax.random.fold_in(key, 1 + i), shapes[name][leaf], jnp.float32)
        make = occupancy.init_vertices if m.occupancy == "vertices" else occupancy.init
        ends = {"low": jnp.zeros(self.n_tables), "high": jnp.ones(self.n_tables)}
        return Variables(params, {**make(m.occupancy_side), **ends})

    def prepare(self, variables: Variables, facts: ClipFacts) -> Variables:
        """The range of the coefficients; cells of the bit grid that no training camera sees are never occupied."""
        m, known = self.config.model, facts.signals[DRIVE]
        ends = {}
        for name, usual in (("low", 0.0), ("high", 1.0)):
            values = np.asarray(getattr(known, name) or [usual] * known.channels, np.float32)[: self.used]
            ends[name] = jnp.asarray(np.concatenate([[1.0], values]) if m.add_mean else values, jnp.float32)
        state = {**variables.state, **ends}
        if m.occupancy == "bits":
            poses = to_ngp_pose(np.asarray(facts.cam_to_world, np.float32), self.unit / m.bound)
            grid = {name: state[name] for name in ("density", "bits")}
            intrinsics = np.asarray(facts.intrinsics, np.float32)
            size = self.info.height, self.info.width
            state |= occupancy.mark_unseen(grid, poses, intrinsics, *size, share=m.occupancy_seen)
        return variables.replace(state=state)

    # ------------------------------------------------ what a frame gives

    def signals(self) -> tuple[Use, ...]:
        return (Use(DRIVE),)

    def weights(self, state: PyTree, values: Float[Array, "B C"]) -> Float[Array, "B T"]:
        """What the tables are weighed by: 1 and the coefficients, clamped to their range, over max(size, least_range)
        of it with model.normalise; those below model.smallest of their range are 0."""
        m = self.config.model
        e = values[:, : self.used]
        e = jnp.concatenate([jnp.ones_like(e[:, :1]), e], 1) if m.add_mean else e
        return self._clamped(state, e)

    def _clamped(self, state: PyTree, e: Float[Array, "B T"]) -> Float[Array, "B T"]:
        m, low, high = self.config.model, state["low"], state["high"]
        e = jnp.maximum(jnp.minimum(e, high), low)
        size = jnp.maximum(jnp.abs(low), jnp.abs(high))
        if m.smallest:
            e = jnp.where(jnp.abs(e) < m.smallest * size, 0.0, e)
        return e / jnp.maximum(size, m.least_range) if m.normalise else e

    def extremes(self, state: PyTree) -> Float[Array, "K T"]:
        """The weights that the density grid tries: the neutral, then each coefficient at its extreme beside it."""
        low, high = state["low"], state["high"]
        far = jnp.where(jnp.abs(low) > jnp.abs(high), low, high)
        rows = jnp.diag(far)
        if self.config.model.add_mean:
            rows = rows.at[:, 0].set(1.0)
        return self._clamped(state, rows)

    def _params(self, params: PyTree, table: Float[Array, "n F"]) -> PyTree:
        """Those of the program, with a frame's blended table."""
        return {"encoder": {"tables": table[None]}, "sigma": params["sigma"], "colour": params["colour"]}

    def _rays(self, batch: Batch):
        """Origins and directions [B,R,3] in the original's axes and units, and directions in the contract's."""
        o, d = pixel_rays(batch.cam_to_world, batch.intrinsics, batch.pixels_px)
        return to_ngp_axes(o) * self.unit, to_ngp_axes(d), d

    def _marching(self) -> dict[str, Any]:
        m = self.config.model
        b = m.bound
        return {
            "side": m.occupancy_side, "box": (-b, -b, -b, b, b, b), "bound": b, "dt": m.dt_min * b,
            "dt_max": m.dt_max * b, "dt_gamma": m.dt_gamma, "t_min": m.t_min, "samples": m.samples,
            "cell": "vertex" if m.occupancy == "vertices" else "trunc",
        }  # fmt: skip

    # ------------------------------------------------ drawing

    def render(self, variables: Variables, batch: Batch, key: jax.Array | None, clock: Clock, train: bool) -> Render:
        return self._render_head(variables, batch, key) if train else self._draw(variables, batch)

    def _render_head(self, variables: Variables, batch: Batch, key: jax.Array | None) -> Render:
        """With everything that losses need, differentiable. key None: no jitter."""
        m, params, state = self.config.model, variables.params, variables.state
        b, r = batch.pixels_px.shape[:2]
        rays_o, rays_d, d = self._rays(batch)
        noise = volume.jitter(batch, key, m.samples if m.jitter == "step" and key is not None else 0)
        marched = march(
            rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), state["bits"], noise.reshape(b * r, *noise.shape[2:]),
            **self._marching(),
        )  # fmt: skip
        tables = blend_tables(params["tables"], self.weights(state, batch.now(DRIVE)))

        def frame(table, rays_o, rays_d, t, dt, count):
            sh = sh_encode(rays_d, SH_DEGREE)
            own = self._params(params, table)

            def at(packing, xyz):
                rows = {"sh": (sh, packing.ray)}
                return field(self.program, xyz, rows, own, total=packing.total, chunk=m.chunk)

            return volume.in_waves(at, rays_o, rays_d, t, count, dt, m.waves)

        t, dt, count = (x.reshape(b, r, *x.shape[1:]) for x in (marched.t, marched.dt, marched.count))
        dense, evaluated = jax.vmap(frame)(tables, rays_o, rays_d, t, dt, count)
        dense, evaluated = dense.reshape(b * r, m.samples, -1), evaluated.reshape(-1)
        valid = jnp.arange(m.samples) < evaluated[:, None]
        colour, plain = dense[..., 1:4], dense[..., 4:]
        sums = composite(dense[..., 0], valid, marched.t, colour, plain, dt=marched.dt, stop=STOP)
        metrics = {
            "samples_per_ray": jnp.mean(evaluated.astype(jnp.float32)),
            "occupied": occupancy.occupied_share(state["bits"]),
        }
        return volume.as_render(batch, d, sums, {"metrics": metrics}, 1 / self.unit)

    def _draw(self, variables: Variables, batch: Batch) -> Render:
        """Pictures only: a frame's table is blended once and handed to the kernel that draws."""
        m, params, state = self.config.model, variables.params, variables.state
        rays_o, rays_d, d = self._rays(batch)
        tables = blend_tables(params["tables"], self.weights(state, batch.now(DRIVE)))
        how = {**self._marching(), "stop": m.picture_stop, "chunk": m.chunk, "precision": m.picture_precision}
        rays = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
        sums = volume.draw(
            self.program, batch, rays, state["bits"], {}, lambda i: self._params(params, tables[i]), **how
        )
        return volume.as_render(batch, d, sums, {}, 1 / self.unit)

    def refresh(self, variables: Variables, batch: Batch, key: jax.Array, clock: Clock) -> Variables:
        """The density grid over all expressions, from model.occupancy_first steps of the first stage on."""
        del batch
        m, params, state = self.config.model, variables.params, variables.state
        program, rows = self.program.select("sigma"), self.extremes(state)

        def sigma(xyz, total):
            def expression(most, weights):
                tables = blend_tables(params["tables"], weights[None])
                own = self._params(params, tables[0])
                found = field(program, m.bound * xyz, {}, own, total=total, chunk=m.chunk)[:, 0]
                return jnp.maximum(most, found), None

            # a coefficient that never moves is the neutral again, which comes first
            differs = jnp.any(rows != rows[:1], -1).at[0].set(True)
            return jax.lax.scan(
                lambda most, row: jax.lax.cond(row[0], expression, lambda most, _: (most, None), most, row[1]),
                jnp.zeros(xyz.shape[0]), (differs, rows),
            )[0]  # fmt: skip

        def update(grid):
            if m.occupancy == "vertices":
                return occupancy.refresh_vertices(grid, sigma, key, m.occupancy_decay)
            return occupancy.refresh(grid, sigma, key, m.occupancy_decay)

        grid = {name: state[name] for name in ("density", "bits")}
        early = (clock.step < m.occupancy_first) if clock.stage == "head" else jnp.bool_(False)
        return variables.replace(state={**state, **jax.lax.cond(early, lambda grid: grid, update, grid)})

    def maps(self, variables: Variables, batch: Batch, clock: Clock) -> dict[str, Float[Array, "B R"]]:
        """Camera depth, units, NaN where alpha < 0.5."""
        del clock
        return {"depth": self._render_head(variables, batch, None).depth[..., 0]}

    # ------------------------------------------------ losses and stages

    @functools.cached_property
    def perceptual(self) -> perceptual.Perceptual:
        return perceptual.choose(self.config.train.lips.perceptual)

    def loss_terms(
        self, variables: Variables, render: Render, batch: Batch, key: jax.Array, clock: Clock
    ) -> dict[str, jax.Array]:
        """l1 of the colours; mask, l1 of alpha and the head's label; bases, mean |h_k| without the neutral's; and in
        steps of patches the perceptual distance (dossier §5)."""
        prediction = picture(render, batch.background)
        bases = variables.params["tables"][int(self.config.model.add_mean) :]
        terms = {"l1": jnp.mean(jnp.abs(prediction - batch.target)), "bases": jnp.mean(jnp.abs(bases))}
        if batch.patches is not None:
            patch = self.config.train.lips.patch
            distance = perceptual.of_patches(self.perceptual, prediction, batch.target, patch)
            return terms | {"l1": PATCH_WEIGHT * terms["l1"], "perceptual": PATCH_WEIGHT * distance}
        if clock.stage == "head":
            head = (batch.label == 1)[..., None].astype(jnp.float32)
            terms["mask"] = jnp.mean(jnp.abs(render.alpha - head))
        return terms

    def labels(self, params: PyTree) -> PyTree:
        """`tables`, and `net` for the networks."""
        return {name: jax.tree.map(lambda _, n=name: "tables" if n == "tables" else "net", p)
                for name, p in params.items()}  # fmt: skip

    def parts(self, params: PyTree) -> dict[str, PyTree]:
        return {"head": params}

    def stages(self) -> tuple[Stage, ...]:
        h, lips = self.config.train.head, self.config.train.lips

        def rates(start: int, factor: float) -> dict[str, Rate]:
            drops = tuple((max(step - start, 0), h.drop_factor) for step in h.drop_steps)
            sizes = {"tables": (h.lr_tables, 0.0), "net": (h.lr_net, DECAY)}
            return {
                name: Rate(factor * lr, h.final_factor if not start else lips.last_rate / lips.first_rate, decay,
                           B1, B2, EPS, drops=drops)
                for name, (lr, decay) in sizes.items()
            }  # fmt: skip

        def masked(progress):
            return jnp.where(progress * h.steps < h.mask_steps, h.lambda_mask, h.lambda_mask_after)

        weights = {"l1": 1.0, "bases": h.lambda_bases}
        common = {"background": "plate", "target": "head", "rare": h.rare, "refresh_every": h.refresh_every}
        ema = Ema(h.ema_decay, h.ema_every) if h.ema_decay else None
        return (
            Stage(
                "head", h.steps, h.rays, rates(0, 1.0), weights | {"mask": masked}, samplers=(h.sampler,),
                frames=h.frames, ema=ema, seed=h.seed, **common,
            ),
            Stage(
                "lips", lips.steps, lips.rays, rates(h.steps, lips.first_rate), weights | {"perceptual": 1.0},
                samplers=tuple(lips.samplers), patch=lips.patch, frames=lips.frames, ema=ema, seed=lips.seed,
                optional=True, **common,
            ),
        )  # fmt: skip


# ---------------------------------------------------------------- where patches lie (dossier §2.8, §5)


def face_rect(box: Real[np.ndarray, "4"], hw: tuple[int, int]) -> Int[np.ndarray, "4"]:
    """The rectangle around the face: of the landmarks' box its middle c and r = 1.2 · half the diagonal, from
    (c - r, c - 1.2 r) to (c + r, c + 0.8 r), whole pixels within [1, size - 1]."""
    x0, y0, x1, y1 = (float(v) for v in box)
    cx, cy, r = (x0 + x1) / 2, (y0 + y1) / 2, FACE_RADIUS * np.hypot(x1 - x0, y1 - y0) / 2
    rect = np.array([cx - r, cy - FACE_RADIUS * r, cx + r, cy + FACE_BELOW * r]).astype(int)
    h, w = hw
    return np.clip(rect, 1, [w - 1, h - 1, w - 1, h - 1])


def patch_corners(
    rect: Int[np.ndarray, "4"], patch: int, hw: tuple[int, int], random: Float[np.ndarray, "n 2"]
) -> Int[np.ndarray, "n 2"]:
    """(row, column) of the upper left pixels of patches that begin in a rectangle (x0, y0, x1, y1): the floor of
    corner + random · (size - patch - 1), moved into the picture."""
    x0, y0, x1, y1 = rect
    room = np.maximum([y1 - y0 - patch - 1, x1 - x0 - patch - 1], 0)
    corner = np.floor(np.array([y0, x0]) + random * room).astype(int)
    return np.clip(corner, 0, np.array(hw) - patch)


def _patches(view: samplers.View, rect: Int[np.ndarray, "4"]) -> Int[np.ndarray, " R"]:
    samplers.check_patch(view.patch, view.hw)
    random = view.rng.random((max(1, view.rays // view.patch**2), 2))
    row, column = patch_corners(rect, view.patch, view.hw, random).T
    return samplers.patch_pixels(row, column, view.patch, view.hw[1])


@samplers.register("mouth_patches", patches=True)
def _mouth_patches(view: samplers.View) -> Int[np.ndarray, " R"]:
    """rays // patch² patches in the lips box."""
    return _patches(view, view.boxes["lips"])


@samplers.register("face_patches", patches=True)
def _face_patches(view: samplers.View) -> Int[np.ndarray, " R"]:
    """rays // patch² patches in the rectangle around the face."""
    return _patches(view, face_rect(view.boxes["face"], view.hw))


def _check(m: Any) -> None:
    """ValueError names a setting that no picture can be drawn with."""
    numbers = {"dt_min": 2.0, "dt_max": 2.0, "dt_gamma": 1.0, "t_min": 100.0, "picture_stop": 1.0, "bound": 100.0,
               "scale": 100.0, "smallest": 1.0, "least_range": 100.0}  # fmt: skip
    volume.check_settings(m, numbers)
    for name in ("bound", "scale"):
        if not m[name]:
            raise ValueError(f"model.{name} is 0, expected a number above 0")
    for name, choices in (("occupancy", GRIDS), ("jitter", JITTERS)):
        if m[name] not in choices:
            raise ValueError(f"model.{name} is {m[name]!r}, expected {' or '.join(choices)}")
