"""The ops as a table: how to make inputs of n rows, how to call, what has to hold for which back end and what not.

`measured(op, backend, n)` gives values and gradients as numpy arrays; for Triton, `triton_harness.interpreted` calls
the same functions in the process where kernels go through the interpreter.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.ops import grid_cases, programs, raster_oracle, rays
from tkjax import ops
from tkjax.ops import GridSpec, ProgramBuilder, dispatch, fused

fused.register("triton", "tkjax.fields.triton.plane_head")
BLOCK = 64  # rows that every kernel's block divides, or is divided by
PLANES = GridSpec(2, 4, 1, 8, 40, 8)
HEAD = programs.er_nerf_head(PLANES, audio=16, geometry=16)
WIDE = programs.ad_nerf()  # 8 layers of 256, as they are
MARCH = rays.COMMON | dict(samples=3, dt=0.1, box=(-0.95, -0.45, -0.95, 0.95, 0.45, 0.95))


class Op(NamedTuple):
    """make(n, seed) -> (differentiated, constant), tuples of arrays; call(backend, differentiated, constant)."""

    module: str  # by which dispatch knows it
    make: Callable
    call: Callable
    tolerance: float = 0.0  # 0: bit by bit
    scope: str = ""  # in a lowered program, where it is not the op's name


def plain_field():
    """A program that no fused field knows."""
    p = ProgramBuilder("plain")
    h = p.mlp("mlp", [p.grid("space", programs.TINY_3D, p.points), p.row("sh", 16)], (18, 17, 4))
    return p.build(sigma=p.act(h[:1], "softplus"), rgb=p.act(h[1:], "sigmoid"))


def _floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def _grid(n, seed):
    return grid_cases.inputs("planes", seed, max(n, 2))[:2] if n > 1 else _cut(grid_cases.inputs("planes", seed, 2), n)


def _cut(made, n):
    return made[0][:n], made[1]


def _mlp(n, seed):
    rng = np.random.default_rng(seed)
    widths = ((36, 17), (17, 3))
    return _floats(rng, n, 36), tuple(_floats(rng, *w) / 6 for w in widths), tuple(_floats(rng, w[1]) for w in widths)


def _field(program, per_ray, n, seed):
    points, rows, params = programs.make(program, n, seed)
    return (points, {name: v for name, (v, _) in rows.items()}, params), (rows[per_ray][1],)


def _run_field(program, per_ray, backend, diff, const):
    points, values, params = diff
    return ops.field(
        program, points, {k: (v, const[0] if k == per_ray else None) for k, v in values.items()}, params,
        backend=backend,
    )  # fmt: skip


def _field_op(program, per_ray, tolerance):
    make, run = functools.partial(_field, program, per_ray), functools.partial(_run_field, program, per_ray)
    return Op("field", make, run, tolerance, "field")


def _samples(n, seed, samples=5):
    rng = np.random.default_rng(seed)
    sigma = rng.exponential(3.0, (n, samples)).astype(np.float32)
    t = (3.0 + 0.1 * np.arange(samples) + rng.random((n, 1))).astype(np.float32)
    count = rng.integers(0, samples + 1, n)
    valid = np.arange(samples) < count[:, None]
    dt = rng.choice([0.0, 0.1, 0.2], (n, samples)).astype(np.float32)
    diff = sigma, t, rng.random((n, samples, 3)).astype(np.float32), _floats(rng, n, samples, 2)
    return diff, valid, dt, count


def _dense(n, seed):
    diff, valid, dt, _ = _samples(n, seed)
    return diff, (valid, dt)


def _packed(n, seed):
    """Packed, with as many unused slots behind them as there are slots in all."""
    diff, valid, dt, count = _samples(n, seed)
    pad = lambda v: np.concatenate([v[valid], np.zeros((v[~valid].shape), np.float32)])  # noqa: E731
    count = count.astype(np.int32)
    return tuple(map(pad, diff)), (pad(dt), np.cumsum(count).astype(np.int32) - count, count)


def _rays(n, seed):
    rng = np.random.default_rng(seed)
    o, d = rays.rays(rng, max(n, 16))
    return (), (o[:n], d[:n], rays.occupancy(rng, MARCH, 0.5), rng.random(n).astype(np.float32))


def _render(program, n, seed):
    rng = np.random.default_rng(seed)
    _, (o, d, bits, _) = _rays(n, seed)
    _, rows, params = programs.make(program, 8, seed, per_ray=())
    values = {name: v for name, (v, _) in rows.items()}
    values["sh"] = _floats(rng, n, 16)
    return (), (o, d, bits, values, params)


def _draw(program, backend, diff, const):
    return ops.render_fused(program, *const, backend=backend, **MARCH)


def _tables(n, seed):
    """Five tables of n entries for three frames; a third of the coefficients are 0."""
    rng = np.random.default_rng(seed)
    return (_floats(rng, 5, n, 4), np.where(rng.random((3, 5)) < 0.3, 0, _floats(rng, 3, 5))), ()


def _mesh(n, seed):
    return raster_oracle.soup(seed, "plain", n, n + 2 if n else 0)


_picture = jax.jit(functools.partial(ops.rasterize, height=12, width=10, backend="reference"))


def _raster(n, seed):
    """A mesh of n faces and its picture by the reference."""
    clip, faces = _mesh(n, seed)
    return clip, faces, jax.tree.map(np.asarray, _picture(clip, faces))


def _attributes(n, seed):
    clip, faces, raster = _raster(n, seed)
    return (_floats(np.random.default_rng(seed), clip.shape[0], 5), raster.uv), (raster.face, faces)


def _silhouettes(n, seed):
    clip, faces, raster = _raster(n, seed)
    return (_floats(np.random.default_rng(seed), 12, 10, 3), clip), (raster, faces)


def _cells(n, seed):
    return (), (_floats(np.random.default_rng(seed), 8 * n), np.float32(0.2))


DRAWN = HEAD.select("sigma", "rgb")
OPS = {
    "grid_encode": Op(
        "grid_encode",
        lambda n, seed: (_grid(n, seed), ()),
        lambda backend, diff, const: ops.grid_encode(*diff, grid_cases.SPECS["planes"], backend=backend),
        3e-5,
    ),
    "field_mlp": Op(
        "field_mlp",
        lambda n, seed: (_mlp(n, seed), ()),
        lambda backend, diff, const: ops.field_mlp(*diff, output="tanh", backend=backend),
        3e-5,
    ),
    "field": _field_op(HEAD, "sh", 1e-3),
    "field, wide": _field_op(WIDE, "direction", 1e-4),
    "composite": Op(
        "composite",
        _dense,
        lambda backend, diff, const: ops.composite(diff[0], const[0], *diff[1:], dt=const[1], backend=backend),
        3e-5,
    ),
    "composite_packed": Op(
        "composite",
        _packed,
        lambda backend, diff, const: ops.composite_packed(diff[0], diff[1], *const, *diff[2:], backend=backend),
        3e-5,
    ),
    "march": Op("march", _rays, lambda backend, diff, const: ops.march(*const, backend=backend, **MARCH)),
    "march_packed": Op(
        "march",
        _rays,
        lambda backend, diff, const: ops.march_packed(*const, capacity=2 * len(const[0]), backend=backend, **MARCH),
    ),
    "packbits": Op("packbits", _cells, lambda backend, diff, const: ops.packbits(*const, backend=backend)),
    "dilate_morton": Op(
        "packbits",
        lambda n, seed: ((), (_floats(np.random.default_rng(seed), n),)),
        lambda backend, diff, const: ops.dilate_morton(*const, backend=backend),
    ),
    "render_fused": Op("render_fused", functools.partial(_render, DRAWN), functools.partial(_draw, DRAWN), 2e-4),
    "render_fused, parts": Op(
        "render_fused",
        functools.partial(_render, plain_field()),
        functools.partial(_draw, plain_field()),
        2e-4,
        "render_fused",
    ),
    "blend_tables": Op(
        "blend_tables", _tables, lambda backend, diff, const: ops.blend_tables(*diff, backend=backend), 3e-5
    ),
    "rasterize": Op(
        "rasterize",
        lambda n, seed: (_mesh(n, seed)[:1], _mesh(n, seed)[1:]),
        lambda backend, diff, const: ops.rasterize(*diff, *const, 12, 10, backend=backend),
        3e-5,
    ),
    "interpolate": Op(
        "interpolate",
        _attributes,
        lambda backend, diff, const: ops.interpolate(
            diff[0], ops.Raster(const[0], diff[1], diff[1][..., 0]), const[1], backend=backend
        ),
        3e-5,
    ),
    "antialias": Op(
        "antialias",
        _silhouettes,
        lambda backend, diff, const: ops.antialias(diff[0], const[0], diff[1], const[1], backend=backend),
        3e-5,
    ),
    "opposite_vertices": Op(
        "opposite_vertices",
        lambda n, seed: ((), (np.random.default_rng(seed).integers(0, n + 1, (n, 3)).astype(np.int32),)),
        lambda backend, diff, const: ops.opposite_vertices(*const, backend=backend),
    ),
    "freq_encode": Op(
        "freq_encode",
        lambda n, seed: ((_floats(np.random.default_rng(seed), n, 3),), ()),
        lambda backend, diff, const: ops.freq_encode(*diff, 4, backend=backend),
    ),
    "sh_encode": Op(
        "sh_encode",
        lambda n, seed: ((_floats(np.random.default_rng(seed), n, 3),), ()),
        lambda backend, diff, const: ops.sh_encode(*diff, 4, backend=backend),
    ),
    "morton_decode": Op(
        "morton",
        lambda n, seed: ((), (np.random.default_rng(seed).integers(0, 2**30, n).astype(np.int32),)),
        lambda backend, diff, const: ops.morton_decode(*const, backend=backend),
    ),
}
PROPERTIES = ("values", "gradients", "empty", "one", "uneven", "vmap", "repeat", "second")
SPECIFICATION = "the specification: the op's own test compares it with loops in float64"
NO_GRADIENT = "nothing to differentiate: gradients are zero, which the op's own test shows"
# (op, back end, property) -> why it does not apply; * stands for all.
WHY_NOT = {
    **{("*", "reference", p): SPECIFICATION for p in ("values", "gradients", "one", "uneven")},
    ("*", "reference", "second"): "it has second derivatives",
    **{(op, "*", p): NO_GRADIENT for p in ("gradients", "second")
       for op in ("march", "march_packed", "packbits", "dilate_morton", "morton_decode",
                  "opposite_vertices")},
    **{(op, "*", p): "for inference: a gradient is refused with a sentence (render_fused_test.py)"
       for p in ("gradients", "second") for op in ("render_fused", "render_fused, parts")},
    ("dilate_morton", "*", "empty"): "a cube has a cell",
    ("antialias", "*", "empty"): "a mesh of nothing leaves the colours as they are, which the op's own test shows",
    ("dilate_morton", "*", "uneven"): "sides are powers of two",
    **{(op, "triton", "repeat"): "tables' gradients are atomic sums; triton_grid_encode_test.py has the sorted ones"
       for op in ("grid_encode", "field")},
    **{(op, "triton", "repeat"): "gradients to vertices are atomic sums"
       for op in ("rasterize", "interpolate", "antialias")},
}  # fmt: skip


def why_not(op: str, backend: str, prop: str) -> str | None:
    """Why a cell of the table is empty, or None."""
    kind = backend.partition("-")[0]
    keys = [(o, b, prop) for o in (op, "*") for b in (kind, "*")]
    return next((WHY_NOT[key] for key in keys if key in WHY_NOT), None)


# -- what is measured


@functools.cache
def jitted(op: str, backend: str) -> Callable:
    return jax.jit(functools.partial(OPS[op].call, backend))


def _pulled(op: str, backend: str, diff, const, g):
    """(values, gradients of <g, values>) as lists of arrays."""
    out, vjp = jax.vjp(lambda *d: jitted(op, backend)(d, const), *diff)

    def fitting(v, w):
        """w as a cotangent of v; integers have none."""
        is_float = jnp.issubdtype(v.dtype, jnp.floating)
        return w.astype(v.dtype) if is_float else np.zeros(v.shape, jax.dtypes.float0)

    grads = vjp(jax.tree.map(fitting, out, g)) if diff else ()
    return jax.tree.leaves(out), jax.tree.leaves(grads)


def _cotangents(op: str, diff, const):
    out, rng = jax.eval_shape(lambda d, c: OPS[op].call("reference", d, c), diff, const), np.random.default_rng(3)
    return jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), out)


def measured(op: str, backend: str, n: int, seed: int = 1):
    """(values, gradients) of n rows."""
    diff, const = jax.tree.map(jnp.asarray, OPS[op].make(n, seed))
    with jax.default_matmul_precision("highest"):
        out = _pulled(op, backend, diff, const, _cotangents(op, diff, const))
    _check_ran(op, backend)
    return jax.tree.map(np.asarray, out)


def mapped(op: str, backend: str, n: int, seeds=(1, 2)):
    """The same under vmap, for as many inputs as there are seeds."""
    made = [OPS[op].make(n, seed) for seed in seeds]
    diff, const = jax.tree.map(lambda *v: jnp.stack(v), *made)
    g = _cotangents(op, *made[0])
    with jax.default_matmul_precision("highest"):
        run = jax.vmap(lambda d, c: _pulled(op, backend, d, c, g))
        return jax.tree.map(np.asarray, run(diff, const))


def twice(op: str, backend: str) -> str:
    """What a second derivative says, or ''."""
    diff, const = jax.tree.map(jnp.asarray, OPS[op].make(3, 1))

    def slope(diff):
        return jax.grad(lambda d: sum(jnp.sum(v**2) for v in jax.tree.leaves(jitted(op, backend)(d, const))))(diff)

    try:
        jax.grad(lambda d: sum(jnp.sum(v) for v in jax.tree.leaves(slope(d))))(diff)
    except NotImplementedError as error:
        return str(error)
    return ""


def _check_ran(op: str, backend: str) -> None:
    wanted = {backend, "parts"} if op == "render_fused, parts" else {backend}
    if op.startswith("render_fused") and backend == "reference":
        wanted = {"parts"}
    assert dispatch.ran()[OPS[op].module] & wanted, f"{op} did not run on {backend}"


def text_of(op: str, backend: str) -> str:
    diff, const = jax.tree.map(jnp.asarray, OPS[op].make(8, 1))
    return jitted(op, backend).lower(diff, const).as_text(debug_info=True)


# -- run in the child process of triton_harness


def in_triton(what: str, *args):
    if args[0].startswith("render_fused"):
        from tkjax.ops.triton import render_fused

        render_fused.RAYS = 64  # a smaller tile than a GPU's, for the interpreter's sake
    return {"measured": measured, "mapped": mapped, "twice": twice}[what](*args)
