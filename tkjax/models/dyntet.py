"""DynTet: a mesh out of a tetrahedral grid, moved and coloured by windows of coefficients (arXiv 2402.17364).

Maths and constants: dyntet dossier §3 (networks, material, light, shading), §4 (marching, compositing), §5 (losses).
The head alone is drawn; what stands behind it is given. A frame goes this way:

  code = encoder(27 frames of coefficients)
  sdf on the grid -> where it is 0: vertices, faces (the same for all frames) -> moved by displacement(x, code)
  -> clip coordinates by the frame's camera -> rasterize -> material(where displacement(x, 0) takes x, code) -> light
  -> antialias of premultiplied rgb and alpha.

Space: the contract's axes in decimetres (`cameras.DECIMETRES`). Negative sdf is inside.

Decided (code = the released code is followed, neither = ours). The traps of §10.6 stand where their constants do:
- the driving signal is `expression`, all channels of it, without the head's pose, which the camera has (neither: the
  original appends six numbers of the pose, so that its shape hangs on where the head is);
- coefficients over their range in training, -1…1 (neither, model.normalise): blendshapes 0…1 have a tenth of the spread
  of what the original is fed;
- windows repeat the ends of the clip (neither: the original's stop at the split as well);
- displacement is not scaled by elasticity (code, model.elastic): the flag of the original reads the other way round;
- the eye is where the camera is (neither, model.eye): the original takes -t for -R^T t;
- the region term sees whole boxes of eyes and lips, resampled (neither, train.head.regions): the original sees the
  upper left quarter of each;
- the material's grid hashes all three coordinates (neither, model.material_grid): the original's forgets z, then y;
- gradients of the material are as they are (neither, model.gradient_scale): the original's are times 128;
- six channels of material (neither, model.material_normals): the original computes a normal that nothing reads; its
  diffuse map of the light, which nothing reads either, is not built;
- pictures of any shape (neither: the original's are square);
- the surface starts as two ellipsoids (the original: the face of the BFM, which may not be shipped), and its terms that
  compare with the 3DMM (near, moved, elasticity, depth) are left out: a dataset holds no mesh;
- alpha is 0 or 1 inside, and on silhouettes what `antialias` leaves; the original blends with the background of the
  pixel next to it instead of the pixel's own (neither);
- in the last stage the topology stays and is kept in `state`, so that pictures do not search it (neither: the original
  searches it once before it draws).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from tkjax import perceptual
from tkjax.cameras import DECIMETRES, camera_to_clip, eye_position, to_clip, world_to_camera
from tkjax.fields import material as fields
from tkjax.fields.material import Material
from tkjax.fields.surface import AFTER, BEFORE, Surface, WindowEncoder, unit_box
from tkjax.interface import Ema, Rate, Stage
from tkjax.interface import Model as BaseModel
from tkjax.mesh import losses, marching
from tkjax.mesh.marching import Budget, Topology
from tkjax.mesh.normals import vertex_normals
from tkjax.mesh.targets import ellipsoid
from tkjax.mesh.tets import KINDS, TetGrid, make_grid
from tkjax.ops import GridSpec, antialias, interpolate, opposite_vertices, rasterize
from tkjax.render import cubemap
from tkjax.render.cubemap import LightSpec
from tkjax.render.image import picture
from tkjax.render.shade import shade, split_sum_table
from tkjax.signals import Use
from tkjax.types import Batch, ClipFacts, Clock, PyTree, Render, SubjectInfo, Variables

DRIVE = "expression"
SHAPE, FIXED = "head", "fixed"  # the stages: the surface is searched in every step; its topology stays
REGIONS = ("eye_left", "eye_right", "lips")  # boxes of the region term
REGION_KINDS = ("boxes", "quarters")
EYES = ("centre", "original")
GRIDS = {"hash": "hash", "tiled": "base_tiled", "tiled_2025": "base_tiled_2025"}  # model.material_grid -> GridSpec.kind
B1, B2, EPS = 0.9, 0.999, 1e-8  # of Adam, PyTorch's default
ONCE = 2**30  # steps between calls of `refresh`: at the start of the stage alone
LARGEST = 2**22  # of any size in the settings


class Shape(NamedTuple):
    """What does not hang on the frame.

    weights: of each mesh vertex between its two grid vertices; sdf: at the end points; elasticity: likewise.
    opposite: of `antialias`."""

    topology: Topology
    opposite: Int[Array, "F 3"]
    weights: Float[Array, " M"]
    sdf: Float[Array, " P"]
    elasticity: Float[Array, " P"]


class Drawn(NamedTuple):
    """Frames in pixels, before they are flattened. occlusion: the material's, 0 where nothing is."""

    rgb: Float[Array, "B H W 3"]
    alpha: Float[Array, "B H W 1"]
    occlusion: Float[Array, "B H W 1"]
    z: Float[Array, "B H W"]
    metrics: dict[str, Array]


class Model(BaseModel):
    """The system. Parameters: `encoder`, `surface` (to_sdf, of_point, of_condition, to_displacement), `material`,
    `light` [6,S,S,3]. State: the topology of the stage `fixed` and the sdf that it was found with, and `low`, `high`,
    the coefficients' range."""

    def __init__(self, config: ConfigDict, info: SubjectInfo):
        super().__init__(config, info)
        m = config.model
        _check(m, config.train)
        self.channels = info.signal(DRIVE).channels
        self.budget = Budget(m.vertices, m.faces, m.end_points)
        self.encoder = WindowEncoder(self.channels, m.features)
        self.surface = Surface(m.features, m.hidden, m.elastic)
        spec = GridSpec(
            3, m.material_levels, m.material_features, m.material_base, m.material_finest, m.material_log2_entries,
            kind=GRIDS[m.material_grid],
        )  # fmt: skip
        self.material = Material(
            spec=spec, channels=fields.ORIGINAL_CHANNELS if m.material_normals else fields.CHANNELS,
            condition=m.features, hidden=m.material_hidden, layers=m.material_layers, gradient_scale=m.gradient_scale,
            chunk=m.chunk,
        )  # fmt: skip
        self.light = LightSpec(m.light_base, m.light_smallest, m.light_original_area)

    @functools.cached_property
    def grid(self) -> TetGrid:
        """In decimetres, numpy."""
        m = self.config.model
        grid = _grid(m.grid, m.cells).scaled(m.box)
        return grid.replace(vertices=grid.vertices + np.asarray(m.box_centre, np.float32))

    def _unit(self, points: Float[Array, "*N 3"]) -> Float[Array, "*N 3"]:
        m = self.config.model
        centre, half = jnp.asarray(m.box_centre, jnp.float32), m.box / 2
        return unit_box(points, centre - half, centre + half)

    def init(self, key: jax.Array) -> Variables:
        keys = jax.random.split(key, 3)
        points, codes = jnp.zeros((1, 3)), jnp.zeros((1, self.config.model.features))
        windows = jnp.zeros((1, BEFORE + 1 + AFTER, self.channels))
        params = {
            "encoder": self.encoder.init(keys[0], windows)["params"],
            "surface": self.surface.init(keys[1], points, codes)["params"],
            "material": self.material.init(keys[2]),
            "light": cubemap.initial_light(self.light),
        }
        b = self.budget
        state = {
            "edges": jnp.zeros((b.vertices, 2), jnp.int32),
            "ends": jnp.zeros((b.vertices, 2), jnp.int32),
            "used": jnp.zeros(b.vertices, bool),
            "faces": jnp.full((b.faces, 3), b.vertices - 1, jnp.int32),
            "opposite": jnp.full((b.faces, 3), -1, jnp.int32),
            "end_points": jnp.zeros(b.end_points, jnp.int32),
            "counts": {name: jnp.int32(0) for name in ("vertices", "faces", "end_points")},
            "overflow": {name: jnp.int32(0) for name in ("vertices", "faces", "end_points")},
            "sdf": jnp.zeros(b.end_points),
            "low": jnp.zeros(self.channels),
            "high": jnp.ones(self.channels),
        }
        return Variables(params, state)

    def prepare(self, variables: Variables, facts: ClipFacts) -> Variables:
        """The range of the coefficients, and the sdf fitted to a head of ellipsoids: Adam, mean squared error at the
        grid's vertices (dossier §5)."""
        known = facts.signals[DRIVE]
        ends = {
            name: jnp.asarray(getattr(known, name) or [usual] * known.channels, jnp.float32)
            for name, usual in (("low", 0.0), ("high", 1.0))
        }
        fitted = self._start(variables.params["surface"], jnp.asarray(self.grid.vertices))
        params = {**variables.params, "surface": {**variables.params["surface"], "to_sdf": fitted}}
        return variables.replace(params=params, state={**self._found(params), **ends})

    def start(self, points: Float[Array, "N 3"]) -> Float[Array, " N"]:
        """The sdf that the surface starts from: the least of those of the ellipsoids, in units of their radii."""
        shapes = [np.asarray(shape, np.float32) for shape in self.config.model.start]
        return functools.reduce(jnp.minimum, [ellipsoid(points - s[:3], jnp.asarray(s[3:])) for s in shapes])

    @functools.partial(jax.jit, static_argnums=0)
    def _start(self, surface: PyTree, vertices: Float[Array, "V 3"]) -> PyTree:
        m = self.config.model
        x, wanted = self._unit(vertices), self.start(vertices)
        tx = optax.adam(m.start_rate, B1, B2, EPS)

        def error(own, at):
            sdf, _ = self._distance({**surface, "to_sdf": own}, x[at])
            return jnp.mean(jnp.square(sdf - wanted[at]))

        def step(carry, key):
            own, opt = carry
            at = jnp.arange(len(x))
            if m.start_points:
                at = jax.random.randint(key, (m.start_points,), 0, len(x))
            updates, opt = tx.update(jax.grad(error)(own, at), opt, own)
            return (optax.apply_updates(own, updates), opt), None

        start = (surface["to_sdf"], tx.init(surface["to_sdf"]))
        (fitted, _), _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), m.start_steps))
        return fitted

    # ------------------------------------------------ the surface

    def signals(self) -> tuple[Use, ...]:
        return (Use(DRIVE, BEFORE, AFTER, "repeat"),)

    def codes(self, variables: Variables, batch: Batch) -> Float[Array, "B C"]:
        """What the window of each frame says; with model.normalise coefficients become -1…1 over their range, of which
        model.least_range is the smallest."""
        m, e = self.config.model, batch.signals[DRIVE][:, :, 0]
        if m.normalise:
            low, high = variables.state["low"], variables.state["high"]
            e = (2 * e - (low + high)) / jnp.maximum(high - low, m.least_range)
        return self.encoder.apply({"params": variables.params["encoder"]}, e)

    def _distance(self, surface: PyTree, x_unit: Float[Array, "N 3"]):
        return self.surface.apply({"params": surface}, x_unit, method="distance")

    def _search(self, params: PyTree) -> tuple[Topology, Float[Array, " P"]]:
        """Where the sdf on the whole grid is 0, and its values at the end points; no gradient."""
        sdf, _ = self._distance(jax.lax.stop_gradient(params["surface"]), self._unit(jnp.asarray(self.grid.vertices)))
        topology = marching.extract(sdf, self.grid, self.budget)
        return topology, sdf[topology.end_points]

    @functools.partial(jax.jit, static_argnums=0)
    def _found(self, params: PyTree) -> dict[str, Any]:
        """The topology of these parameters, as `state` has it."""
        t, sdf = self._search(params)
        return {
            "edges": t.edges, "ends": t.ends, "used": t.used, "faces": t.faces, "end_points": t.end_points,
            "counts": t.counts, "overflow": t.overflow, "opposite": opposite_vertices(t.faces), "sdf": sdf,
        }  # fmt: skip

    def shape(self, variables: Variables, clock: Clock) -> Shape:
        """The surface of the stage: kept in `state` in the stage `fixed`, else of the parameters.

        The sdf of the whole grid is needed for its signs alone; its gradient goes through the end points, a twentieth
        of the grid, which are computed once more. Their values are those of the first pass, to the last bit, since
        another sign would put a vertex anywhere.
        """
        surface, s = variables.params["surface"], variables.state
        if clock.stage == FIXED:
            names = ("edges", "ends", "used", "faces", "end_points", "counts", "overflow")
            topology, sdf, opposite = Topology(**{name: s[name] for name in names}), s["sdf"], s["opposite"]
        else:
            topology, sdf = self._search(variables.params)
            opposite = opposite_vertices(topology.faces)
        x = self._unit(jnp.asarray(self.grid.vertices)[topology.end_points])
        again, elasticity = self._distance(surface, x)
        if clock.stage != FIXED:
            sdf = sdf + (again - jax.lax.stop_gradient(again))
        weights = marching.edge_weights(sdf, topology.replace(edges=topology.ends))
        return Shape(topology, opposite, weights, sdf, elasticity)

    def vertices(self, params: PyTree, shape: Shape, codes: Float[Array, "B C"]) -> Float[Array, "D M 3"]:
        """Positions of the mesh's vertices, dm, under B codes; the last are the canonical ones, of a code of zeros
        (which coefficients of zero do not give)."""
        points = jnp.asarray(self.grid.vertices)[shape.topology.end_points]
        codes = jnp.concatenate([codes, jnp.zeros_like(codes[:1])])
        moved = self.surface.apply(
            {"params": params["surface"]}, self._unit(points), codes, shape.elasticity, method="displacement"
        )
        return marching.interpolate(points + moved, shape.topology.ends, shape.weights)

    # ------------------------------------------------ drawing

    def render(self, variables: Variables, batch: Batch, key: jax.Array | None, clock: Clock, train: bool) -> Render:
        del key  # nothing is drawn at random
        shape = self.shape(variables, clock)
        drawn = self._draw(variables, batch, shape, self.config.model.pixels if train else 1.0)
        flat = lambda x: x.reshape(*batch.pixels_px.shape[:2], -1)  # noqa: E731
        alpha, z = flat(drawn.alpha), flat(drawn.z)
        aux = {"metrics": drawn.metrics, "occlusion": drawn.occlusion, "sdf": shape.sdf, "topology": shape.topology}
        depth = jax.lax.stop_gradient(jnp.where((alpha < 0.5) | (z <= 0), jnp.nan, z / DECIMETRES))
        return Render(flat(drawn.rgb), alpha, depth, aux=aux)

    def _draw(self, variables: Variables, batch: Batch, shape: Shape, share: float) -> Drawn:
        """share: of all pixels, that are shaded at most; those beyond it stay empty and are counted."""
        if batch.image_hw is None:
            raise ValueError("a mesh is drawn whole: the batch needs image_hw")
        params, (height, width) = variables.params, batch.image_hw
        t, b = shape.topology, batch.frame.shape[0]
        codes = self.codes(variables, batch)
        placed = self.vertices(params, shape, codes)
        positions, canonical = placed[:-1], placed[-1:]
        view = world_to_camera(batch.cam_to_world, DECIMETRES)
        clip = to_clip(positions, camera_to_clip(batch.intrinsics, width, height) @ view)
        clip = marching.hide_unused(clip, t.used)
        raster = rasterize(clip, t.faces, height, width)
        normals = vertex_normals(positions, t.faces)
        attributes = jnp.concatenate([positions, normals, jnp.broadcast_to(canonical, positions.shape)], -1)
        values = interpolate(attributes, raster, t.faces)

        pixels = _compact(raster.face > 0, max(1, math.ceil(share * b * height * width)))
        seen = values.reshape(-1, 9)[pixels.index]
        material, rgb = self._colours(params, view, seen, codes, pixels, height * width)
        colour = jnp.zeros((b * height * width, 4)).at[pixels.target].set(
            jnp.concatenate([rgb, material[:, 3:4]], -1), mode="drop", unique_indices=True
        ).reshape(b, height, width, 4)  # fmt: skip
        alpha = pixels.shaded.reshape(b, height, width, 1).astype(jnp.float32)
        out = antialias(jnp.concatenate([colour[..., :3], alpha], -1), raster, clip, t.faces, shape.opposite)
        z = -(jnp.einsum("bi,bhwi->bhw", view[:, 2, :3], values[..., :3]) + view[:, 2, 3, None, None])
        metrics = {f"overflow_{name}": n for name, n in t.overflow.items()}
        metrics |= {"overflow_pixels": jnp.maximum(pixels.count - len(pixels.index), 0), "faces": t.counts["faces"]}
        metrics["covered"] = pixels.count / (b * height * width)
        z = jnp.where(alpha[..., 0] > 0, z, 0.0)
        return Drawn(out[..., :3], out[..., 3:], colour[..., 3:], z, metrics)

    def _colours(self, params: PyTree, view: Float[Array, "B 4 4"], seen: Float[Array, "N 9"],
                 codes: Float[Array, "B C"], pixels: "Pixels", size: int):  # fmt: skip
        """(material [N,6…], rgb [N,3]) of pixels with [position, normal, canonical position]."""
        frame = pixels.index // size
        material = self.material.evaluate(
            params["material"], self._unit(seen[:, 6:9]), codes, frame, total=jnp.minimum(pixels.count, len(frame))
        )
        eyes = eye_position(view, self.config.model.eye == "original")
        filters = jax.tree.map(jnp.asarray, cubemap.prefilter_weights(self.light))
        light = cubemap.seamed(cubemap.prefilter(params["light"], filters))
        table = jnp.asarray(split_sum_table())
        return material, shade(material, seen[:, 3:6], eyes[frame] - seen[:, :3], light, table)

    def refresh(self, variables: Variables, batch: Batch, key: jax.Array, clock: Clock) -> Variables:
        """The topology of the parameters."""
        del batch, key, clock
        return variables.replace(state={**variables.state, **self._found(variables.params)})

    def project(self, params: PyTree, clock: Clock) -> PyTree:
        """Light is not negative."""
        del clock
        return {**params, "light": jnp.maximum(params["light"], 0.0)}

    def maps(self, variables: Variables, batch: Batch, clock: Clock) -> dict[str, Float[Array, "B R"]]:
        """Camera depth, units, NaN where alpha < 0.5."""
        return {"depth": self.render(variables, batch, None, clock, False).depth[..., 0]}

    # ------------------------------------------------ losses and stages

    @functools.cached_property
    def perceptual(self) -> perceptual.Perceptual:
        return perceptual.choose(self.config.train.head.perceptual)

    def loss_terms(
        self, variables: Variables, render: Render, batch: Batch, key: jax.Array, clock: Clock
    ) -> dict[str, jax.Array]:
        """Those of dossier §5 that need no 3DMM: image, silhouette, region, sign, occlusion, light; perceptual where it
        weighs anything. Colours are compared before they are clipped, so that what is too bright has a gradient."""
        del key
        h, aux = self.config.train.head, render.aux
        hw = batch.image_hw

        def frames(x):
            return x.reshape(x.shape[0], *hw, -1)

        drawn = frames(render.rgb + (1 - render.alpha) * batch.background)
        target, head = frames(batch.target), frames((batch.label == 1).astype(jnp.float32))
        alpha = frames(render.alpha)
        terms = {
            "image": losses.image_term(drawn, target, losses.dilate(head, h.dilation)),
            "silhouette": losses.silhouette_term(alpha, head),
            "region": self._region(drawn, target, batch),
            "occlusion": losses.occlusion_term(aux["occlusion"], alpha),
            "light": losses.light_term(variables.params["light"]),
        }
        if clock.stage != FIXED:
            ends, used = aux["topology"].ends, aux["topology"].used
            # pairs of one point have no two signs, and count nothing
            a, b = (jnp.where(used, aux["sdf"][ends[:, k]], 1.0) for k in (0, 1))
            terms["sign"] = losses.sign_term(a, b)
        if h.lambda_perceptual:
            shown = frames(picture(render, batch.background))
            terms["perceptual"] = jnp.mean(self.perceptual(shown, target))
        return terms

    def _region(self, drawn, target, batch: Batch) -> Float[Array, ""]:
        """Squared error of eyes and lips, and a tenth of their perceptual distance."""
        h = self.config.train.head
        boxes = jnp.stack([box_of(batch.masks[name].reshape(-1, *batch.image_hw)) for name in REGIONS], 1)
        if h.regions == "boxes":
            a, b = (losses.box_crops(x, boxes, h.region_size) for x in (drawn, target))
            distant = a, b
        else:
            a, b = (losses.quarter_crops(x, boxes.astype(jnp.int32), tuple(h.quarter_size)) for x in (drawn, target))
            distant = losses.padded(a), losses.padded(b)
        out = losses.region_term(a, b)
        if h.region_perceptual:
            n = a.shape[0]
            crops = [jnp.clip(x, 0.0, 1.0).reshape(-1, *x.shape[2:]) for x in distant]
            out += h.region_perceptual * jnp.sum(self.perceptual(*crops)) / n
        return out

    def labels(self, params: PyTree) -> PyTree:
        """`distance` (the sdf), `movement` (encoder and displacement), `material`, `light`."""

        def named(tree, name):
            return jax.tree.map(lambda _: name, tree)

        surface = {k: named(v, "distance" if k == "to_sdf" else "movement") for k, v in params["surface"].items()}
        return {
            "encoder": named(params["encoder"], "movement"), "surface": surface,
            "material": named(params["material"], "material"), "light": "light",
        }  # fmt: skip

    def parts(self, params: PyTree) -> dict[str, PyTree]:
        return {"head": params}

    def stages(self) -> tuple[Stage, ...]:
        """`head`, and `fixed`, which goes on with its schedules while the topology stays."""
        h, last = self.config.train.head, self.config.train.fixed
        steps = h.steps + last.steps
        factor = lambda step: max(losses.LR_END, 10.0 ** (-step / h.decade_steps))  # noqa: E731

        def rates(start: int, length: int, names: tuple[str, ...]) -> dict[str, Rate]:
            first = factor(start)
            lr = {"distance": h.lr_distance, "movement": h.lr_movement, "material": h.lr_material, "light": h.lr_light}
            final = 10.0 ** (-length / h.decade_steps)
            floor = min(1.0, losses.LR_END / first)
            return {n: Rate(first * lr[n], final, 0.0, B1, B2, EPS, floor=floor) for n in names if lr[n]}

        def weights(start: int, length: int) -> dict[str, Any]:
            w = losses.WEIGHTS
            out = {
                "image": w["image"], "silhouette": w["silhouette"], "region": h.lambda_region, "light": w["light"],
                "occlusion": lambda progress: losses.occlusion_weight(start + progress * length),
                "sign": lambda progress: losses.sign_weight(start + progress * length, steps),
            }  # fmt: skip
            if start:
                del out["sign"]
            return out | ({"perceptual": h.lambda_perceptual} if h.lambda_perceptual else {})

        ema = Ema(h.ema_decay, h.ema_every) if h.ema_decay else None
        common = {
            "samplers": ("frame",), "frames": h.frames, "rare": h.rare, "masks": REGIONS, "ema": ema, "seed": h.seed,
        }  # fmt: skip
        names = ("distance", "movement", "material", "light")
        return (
            Stage(SHAPE, h.steps, 0, rates(0, h.steps, names), weights(0, h.steps), **common),
            Stage(
                FIXED, last.steps, 0, rates(h.steps, last.steps, names[1:]), weights(h.steps, last.steps),
                refresh_every=ONCE, optional=True, **common,
            ),
        )  # fmt: skip


class Pixels(NamedTuple):
    """Pixels that a mesh covers, one after another: their numbers, where their colours go (beyond the last pixel in
    free slots), which pixels have a slot, and how many are covered."""

    index: Int[Array, " N"]
    target: Int[Array, " N"]
    shaded: Bool[Array, "B H W"]
    count: Int[Array, ""]


def _compact(covered: Bool[Array, "B H W"], size: int) -> Pixels:
    """The first `size` of the pixels that are covered."""
    flat = covered.ravel()
    upto = jnp.cumsum(flat.astype(jnp.int32))
    shaded = flat & (upto <= size)
    slot = jnp.where(shaded, upto - 1, size)
    numbers = jnp.arange(len(flat), dtype=jnp.int32)
    index = jnp.zeros(size, jnp.int32).at[slot].set(numbers, mode="drop")
    # free slots aim at different places beyond the end: the scatter may count on that
    target = jnp.where(jnp.arange(size) < upto[-1], index, len(flat) + jnp.arange(size))
    return Pixels(index, target, shaded.reshape(covered.shape), upto[-1])


def box_of(mask: Bool[Array, "B H W"]) -> Float[Array, "B 4"]:
    """(x0, y0, x1, y1), half open, around the pixels of a mask; the whole picture where there are none."""
    out = []
    for axis in (1, 2):
        some = jnp.any(mask, axis)
        n = some.shape[1]
        first, last = jnp.argmax(some, 1), n - jnp.argmax(some[:, ::-1], 1)
        out.append((first, last))
    (x0, x1), (y0, y1) = out
    return jnp.stack([x0, y0, x1, y1], -1).astype(jnp.float32)


@functools.lru_cache(maxsize=4)
def _grid(kind: str, cells: int) -> TetGrid:
    return make_grid(kind, cells)


def _check(m: Any, train: Any) -> None:
    """ValueError names a setting that no picture can be drawn with: settings may be an avatar's of somebody else."""
    choices = {"grid": KINDS, "eye": EYES, "material_grid": tuple(GRIDS)}
    for name, known in choices.items():
        if m[name] not in known:
            raise ValueError(f"model.{name} is {m[name]!r}, expected one of {', '.join(known)}")
    if train.head.regions not in REGION_KINDS:
        raise ValueError(f"train.head.regions is {train.head.regions!r}, expected one of {', '.join(REGION_KINDS)}")
    sizes = ("vertices", "faces", "end_points", "features", "hidden", "material_hidden", "material_layers", "chunk")
    for name in sizes:
        if not 1 <= m[name] <= LARGEST:
            raise ValueError(f"model.{name} is {m[name]}, expected a whole number in 1..{LARGEST}")
    if not 2 <= m.cells <= 128:
        raise ValueError(f"model.cells is {m.cells}, expected 2..128 cells a side")
    for name in ("box", "pixels", "start_rate"):
        if not 0 < m[name] <= 100:
            raise ValueError(f"model.{name} is {m[name]}, expected a number above 0, at most 100")
    if m.pixels > 1:
        raise ValueError(f"model.pixels is {m.pixels}, expected a share of the picture, at most 1")
    if len(m.box_centre) != 3 or not all(math.isfinite(v) for v in m.box_centre):
        raise ValueError(f"model.box_centre is {tuple(m.box_centre)}, expected three numbers")
    if not m.start or any(len(s) != 6 or not all(map(math.isfinite, s)) or min(s[3:]) <= 0 for s in m.start):
        raise ValueError(f"model.start is {m.start}, expected ellipsoids: centres and radii above 0, six numbers each")
