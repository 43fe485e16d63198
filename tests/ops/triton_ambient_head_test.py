"""The fused head with ambient coordinates on the Triton back end, and `field` of a torso, whose points are computed.

In the interpreter against the reference, compiled ahead of time, lowered. The march and what surrounds a field are
tested in triton_render_fused_test.py.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ops.inputs import RAD_AMBIENT, RAD_SPACE
from tests.ops import programs
from tests.ops import triton_harness as harness
from tests.ops.triton_render_fused_test import BOX, KINDS, MARCH, SIZES, ball, check_picture, compare, rays, varied
from tkjax.ops import GridSpec, Program, ProgramBuilder, dispatch, field, fused, render_fused

fused.register("triton", "tkjax.fields.triton.ambient_head")

REAL = RAD_SPACE, RAD_AMBIENT  # 903,480 and 555,520 entries (rad-nerf dossier §3.2)
SMALL = (
    GridSpec(3, 9, 2, 4, 60, 9, "tiled"),  # a tile of features and one level more; the last leave a coordinate out
    GridSpec(2, 4, 2, 4, 40, 8, "tiled"),
)
GRIDS = {
    "real": REAL,
    "small": SMALL,
    "hash": (GridSpec(3, 3, 2, 4, 40, 9), GridSpec(2, 2, 2, 4, 40, 7)),
    "smoothstep": tuple(dataclasses.replace(spec, interpolation="smoothstep") for spec in SMALL),
    "modulo": (GridSpec(3, 4, 2, 4, 16, 8, "tiled", pad=12), GridSpec(2, 1, 2, 8, 8, 5, "tiled", pad=1)),
}


def head(space, around, width=64, audio=64, eye=True, apart=False, highest=None):
    """The head as it may be written: with or without the eye area, a limit of the density, activations apart."""
    p = ProgramBuilder("rad_nerf_head")

    def mlp(name, parts, widths, output):
        return p.act(p.mlp(name, parts, widths), output) if apart else p.mlp(name, parts, widths, output=output)

    x = p.grid("grid", space, p.points)
    m = mlp("ambient_net", [x, p.row("audio", audio)], (x.channels + audio, width, width, 2), "tanh")
    w = p.grid("ambient_grid", around, m)
    parts = [x, w, p.row("eye", 1)] if eye else [x, w]
    h = p.mlp("sigma_net", parts, (sum(v.channels for v in parts), width, width, 1 + width))
    rgb = mlp("colour_net", [p.row("sh", 16), h[1:], p.row("code", 4)], (20 + width, width, 3), "sigmoid")
    log_sigma = h[:1] if highest is None else p.clip_max(h[:1], highest)
    return p.build(sigma=p.act(log_sigma, "trunc_exp"), rgb=rgb)


def real_head() -> Program:
    return programs.rad_nerf_head(*REAL).select("sigma", "rgb")


def case(program, height=16, width=16, seed=0, tables=0.2, density=1.5):
    """Arguments of `draw`: a ball before a camera, and a field whose rays end within it."""
    o, d = rays(height, width)
    _, rows, params = programs.make(program, 1, seed, per_ray=())
    rows = {name: value for name, (value, _) in rows.items()}
    rows["sh"] = np.random.default_rng(seed).normal(size=(len(o), rows["sh"].shape[1])).astype(np.float32)
    params = {k: {leaf: tables * v if leaf == "tables" else v for leaf, v in group.items()}
              for k, group in params.items()}  # fmt: skip
    sigma = next(i.name for i in program.instructions if i.op == "mlp" and i.channels > 3)
    params[sigma]["kernel_2"][:, 0] = density * np.abs(params[sigma]["kernel_2"][:, 0])
    return o, d, ball(), rows, params, dict(MARCH)


def draw(program, o, d, occupancy, rows, params, settings, backend="reference"):
    args = jax.tree.map(jnp.asarray, (o, d, occupancy, rows, params))
    return tuple(render_fused(program, *args, **settings, backend=backend))


@functools.cache
def _jitted(program, settings):
    return jax.jit(lambda *a: draw(program, *a, dict(settings)))


def expected(program, o, d, occupancy, rows, params, kw, most=65):
    """The reference, with rays that miss added up to one size, so that it compiles once."""
    n = len(o)
    more = lambda v, fill: np.concatenate([v, np.full((max(most - n, 0), v.shape[1]), fill, np.float32)])  # noqa: E731
    rows = {k: v if v.shape[0] == 1 and k != "sh" else more(v, 0.0) for k, v in rows.items()}
    out = _jitted(program, tuple(kw.items()))(more(o, 50.0), more(d, 1.0), occupancy, rows, params)
    return tuple(v[:n] for v in out)


# -- run in the child process, where the kernel is interpreted


def in_triton(program, *args):
    from tests.ops.triton_field_mlp_test import _multiply_bfloat16

    _multiply_bfloat16()
    *args, precision, tile = args
    importlib.import_module("tkjax.ops.triton.render_fused").RAYS = tile
    with jax.default_matmul_precision(precision):
        out = draw(program, *args, backend="triton")
    assert dispatch.ran()["render_fused"] == {"triton"}
    return out


def of_grid(name, points):
    """[N,16 tiles] features that the head's kernel reads in its grid in space, and those of the op."""
    from tests.ops import triton_ambient_head_kernel as kernel

    spec = GRIDS[name][0]
    return kernel.encoded(spec, points, _numbers(spec))


interpreted = functools.partial(harness.interpreted, __name__)


def _numbers(spec):
    """A table that holds the number of each entry within its level, and that number over 1024."""
    own = np.concatenate([np.arange(level.entries) for level in spec.table])
    return np.stack([own, own / 1024], -1).astype(np.float32)


@harness.needs_interpreter
@pytest.mark.parametrize("precision", ["highest", "default", "bfloat16"])
def test_a_picture_is_that_of_the_reference(precision):
    """The bars: 99.9 % of the values within 1/255, none beyond 4/255 (bfloat16, which is no default: 8/255)."""
    program = real_head()
    args = case(program)
    got, want = interpreted("in_triton", program, *args, precision, 256), expected(program, *args, most=0)
    opacity = np.asarray(want[2])
    assert np.mean(opacity > 0.5) > 0.2 and np.mean(opacity < 0.01) > 0.1  # a ball on nothing
    assert np.std(want[0][opacity > 0.5]) > 0.05  # with a pattern
    picture, truth = (np.asarray(v[0]) + 0.5 * (1 - np.asarray(v[2]))[:, None] for v in (got, want))
    check_picture(np.abs(picture - truth) * 255, precision, got, want)


def case_of(program, kind, n, seed):
    return varied(case(program, 8, 9, seed % 3, tables=1.0, density=0.5), kind, n, seed)


@harness.needs_interpreter
@given(kind=st.sampled_from(KINDS), n=st.sampled_from(SIZES), seed=st.integers(0, 2**31))
@settings(max_examples=8)
def test_rays_of_all_kinds_equal_the_reference(kind, n, seed):
    program = head(*SMALL, width=17)
    args = case_of(program, kind, n, seed)
    got = interpreted("in_triton", program, *args, "highest", 64)
    compare(got, expected(program, *args))
    if kind in ("missing", "empty"):
        assert not any(np.any(v) for v in got)


VARIANTS = {
    "hash": head(*GRIDS["hash"]),
    "smoothstep": head(*GRIDS["smoothstep"]),
    "modulo": head(*GRIDS["modulo"]),
    "no eye": head(*SMALL, eye=False),
    "apart": head(*SMALL, apart=True, highest=1.0, audio=3),
    "narrow": head(*SMALL, width=5, audio=128),
}


@harness.needs_interpreter
@pytest.mark.slow  # six kernels in the interpreter, each for half a minute
@pytest.mark.parametrize("name", VARIANTS)
def test_heads_of_all_kinds_equal_the_reference(name):
    program = VARIANTS[name]
    args = case(program, 5, 5, 1, tables=1.0, density=0.5)
    compare(interpreted("in_triton", program, *args, "highest", 64), expected(program, *args))


@harness.needs_interpreter
@pytest.mark.slow  # three more
@pytest.mark.parametrize("which", [("audio",), ("eye",), ("audio", "eye", "code")])
def test_inputs_per_ray_and_infinite_density(which):
    program = head(*SMALL)
    o, d, occupancy, rows, params, kw = case(program, 5, 5, 1, tables=1.0, density=0.5)
    rng = np.random.default_rng(6)
    for name in which:
        rows[name] = rng.normal(size=(len(o), rows[name].shape[1])).astype(np.float32)
    params["sigma_net"]["kernel_2"][:8, 0] = 1e30  # infinite density: a wall
    args = o, d, occupancy, rows, params, kw
    got = interpreted("in_triton", program, *args, "highest", 64)
    assert np.max(got[2]) == 1.0
    compare(got, expected(program, *args))


@harness.needs_interpreter
def test_not_a_number_stays_in_its_ray_and_outside_of_other_values():
    program = head(*SMALL)
    o, d, occupancy, rows, params, kw = case(program, 5, 5, 2, tables=1.0, density=0.5)
    rows["audio"] = np.tile(rows["audio"], (len(o), 1))
    clean = interpreted("in_triton", program, o, d, occupancy, rows, params, kw, "highest", 64)
    bad = {**rows, "audio": rows["audio"].copy(), "sh": rows["sh"].copy()}
    bad["audio"][12, 3], bad["sh"][13, 1] = np.nan, np.inf
    got = interpreted("in_triton", program, o, d, occupancy, bad, params, kw, "highest", 64)
    others = ~np.isin(np.arange(len(o)), (12, 13))
    for a, b in zip(got, clean):
        np.testing.assert_array_equal(a[others], b[others])
    want = expected(program, o, d, occupancy, bad, params, kw)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))


# -- the grid's indices (rad-nerf dossier §11)


@harness.needs_interpreter
def test_entries_of_the_tiled_grid_are_those_of_the_dossier():
    """§11.4: level 0 at (1/4, 1/2, 3/4). §11.3: levels 8 and 9 wrap, level 9 without the third coordinate (there for
    cell 300, which no point within the grid has: its scale is 293)."""
    table = REAL[0].table
    at = lambda level, cell: (np.float64(cell) - 0.5) / np.float64(table[level].scale)  # noqa: E731, up to rounding
    unit = np.array([[0.25, 0.5, 0.75], at(8, [100, 50, 20]), at(9, [290, 200, 100]), at(9, [290, 200, 7])])
    points = np.concatenate([2 * unit - 1, [[-1.1, 0, 0], [0, np.nan, 0]]]).astype(np.float32)
    got, want = interpreted("of_grid", "real", points)
    np.testing.assert_allclose(got[:, :32], want, rtol=1e-5, atol=1e-3)
    assert not np.any(got[4:])
    rows, weights = (3319, 3320, 3608, 3609), (0.1875, 0.0625, 0.5625, 0.1875)
    np.testing.assert_allclose(got[0, 0], np.dot(rows, weights), rtol=1e-6)
    np.testing.assert_allclose(got[1, 16], 9216, atol=1.0)
    np.testing.assert_allclose(got[2:4, 18], (290 + 200 * 296) % 65536, atol=1.0)


@harness.needs_interpreter
@pytest.mark.parametrize("name", ["small", "hash", "smoothstep", "modulo"])
def test_features_equal_those_of_the_op(name):
    points = np.random.default_rng(3).uniform(-1.2, 1.2, (33, 3)).astype(np.float32)
    got, want = interpreted("of_grid", name, points)
    np.testing.assert_allclose(got[:, : want.shape[1]], want, rtol=1e-5, atol=2e-3)
    assert not np.any(got[:, want.shape[1] :])


# -- what it takes, and what not


def _read(program):
    pytest.importorskip("triton")
    module = importlib.import_module("tkjax.fields.triton.ambient_head")
    module.fused(program)
    return module.read(program)


def test_the_head_is_recognised_by_what_it_computes():
    found = _read(real_head())
    assert (found.space.spec, found.around.spec) == REAL and found.end.highest == np.inf
    assert _read(VARIANTS["apart"]).end.highest == 1.0 and _read(VARIANTS["no eye"]).eye is None
    *most, last = real_head().instructions
    other = dataclasses.replace(real_head(), instructions=(*most, dataclasses.replace(last, output="tanh")))
    p = ProgramBuilder("rad_nerf_head")
    little = p.build(sigma=p.points[:1], rgb=p.points)
    for program, why in [
        (other, "not this program"),
        (little, "not this program"),
        (programs.rad_nerf_head(*REAL), "outputs sigma and rgb"),
        (programs.rad_nerf_head(*REAL).select("rgb", "sigma"), "not this program"),
        (head(*SMALL, width=80), "widths up to 64"),
        (head(dataclasses.replace(SMALL[0], features=1), SMALL[1]), "two features"),
    ]:
        with pytest.raises(NotImplementedError, match=why):
            _read(program)


def test_the_models_program_is_this_one():
    """What the system renders with is what the kernel that it registers computes, whatever the names."""
    model = importlib.import_module("tkjax.models.rad_nerf")
    _read(model.head_program(*REAL, 64, 4).select("sigma", "rgb"))
    assert "tkjax.fields.triton.ambient_head" in fused.registered("triton")


# -- compiled and lowered without a GPU, at the size of a picture


def shapes(n=512 * 512):
    program = real_head()
    params = {k: {leaf: harness.shape("float32", *s) for leaf, s in v.items()} for k, v in program.params.items()}
    rows = {k: harness.shape("float32", n if k == "sh" else 1, c) for k, c in program.rows.items()}
    ray = harness.shape("float32", n, 3)
    return ray, ray, harness.shape("uint8", 128**3 // 8), rows, params


def draw_real(*args):
    kw = dict(side=128, box=BOX, dt=0.0270632939, t_min=0.05, samples=16)
    return draw(real_head(), *args, kw, "triton")


@pytest.mark.slow  # 24 s: the largest kernel, compiled for two GPUs
@harness.needs_triton
def test_the_kernel_compiles_for_the_gpu():
    """One launch. What spills is printed (72 and 0 bytes with Triton 3.9), and may not grow."""
    launches = harness.recorded(draw_real, *shapes())
    assert [launch.name for launch in launches] == ["render_kernel"] and not launches[0].fp_fusion
    harness.check_resources("ambient_head", launches, spilled=96)
    for capability in harness.CAPABILITIES:
        ptx = harness.compiled(launches[0], capability).ptx
        assert "mma" in ptx and "ld.global.b64" in ptx.replace("ld.global.L1::evict_last", "ld.global")
        # The only fused products and sums are those asked for: two features of eight and four corners, four lanes of
        # a thread, two tiles each.
        fused = harness.contractions(ptx)
        assert len(fused) <= 2 * (8 + 4) * 4 * 2 and all("fma.rn.f32" in line for line in fused)


@harness.needs_lowering
def test_the_public_op_lowers_for_cuda_in_one_kernel():
    assert harness.kernel_calls(harness.lowered(draw_real, *shapes(1000))) == 1


@pytest.mark.gpu
def test_on_the_gpu_against_the_reference():
    harness.require_gpu()
    program = real_head()
    args = case(program, 64, 64)
    with jax.default_matmul_precision("highest"):
        want = draw(program, *args)
    got = draw(program, *args, backend="triton")
    for a, b in ((got[0], want[0]), (got[2][:, None], want[2][:, None])):
        error = np.abs(np.asarray(a) - np.asarray(b)) * 255
        assert np.mean(error <= 1) >= 0.999 and np.max(error) <= 4


# -- the torso: a field of two dimensions whose grid is read at computed points (rad-nerf dossier §3.4)


def torso(spec=None, hidden=32) -> Program:
    p = ProgramBuilder("torso", dims=2)
    x = p.affine(p.points, 0.8, 0.0)
    near = [p.freq(x, 10), p.freq(p.row("pose", 6), 4), p.row("code", 8)]
    inputs = sum(v.channels for v in near)
    y = p.clip(p.add(x, p.mlp("deform", near, (inputs, hidden, hidden, 2))), -1.0, 1.0)
    g = p.grid("grid", SMALL[1] if spec is None else spec, y)
    h = p.mlp("torso", [g, *near], (g.channels + inputs, 32, 32, 4))
    return p.build(alpha=p.act(h[:1], "sigmoid"), rgb=p.act(h[1:], "sigmoid"), y=y)


def run_torso(points, rows, params, total, g, backend):
    """(value, gradients to points, rows and params)."""

    def evaluate(points, values, params):
        rows = {k: (v, None) for k, v in values.items()}
        return field(torso(), points, rows, params, total=total, backend=backend)

    with jax.default_matmul_precision("highest"):
        y, vjp = jax.vjp(jax.jit(evaluate), *jax.tree.map(jnp.asarray, (points, rows, params)))
        out = y, *vjp(jnp.asarray(g))
    assert backend in dispatch.ran()["field"]
    return out


@harness.needs_interpreter
@pytest.mark.parametrize("n, total", [(0, None), (1, None), (65, None), (65, 40)])
def test_a_torso_and_its_gradients_equal_the_reference(n, total):
    program = torso()
    rng = np.random.default_rng(n)
    _, rows, params = programs.make(program, n, 4, per_ray=(), scale=0.7)
    points = rng.uniform(-1.3, 1.3, (n, 2)).astype(np.float32)  # some end beyond the border, and are clipped
    rows = {k: v for k, (v, _) in rows.items()}
    g = rng.normal(size=(n, program.channels)).astype(np.float32)
    if total is not None:
        points[total:] = np.nan
    case = points, rows, params, total, g
    got, want = interpreted("run_torso", *case, "triton"), run_torso(*case, "reference")
    if n == 65:
        y = np.asarray(want[0])[:total, 4:]
        assert 0.02 < np.mean(np.abs(y) == 1.0) < 0.9
    assert np.all(np.isfinite(got[0])) and np.any(got[3]["deform"]["kernel_0"]) == (n > 0)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4 * max(1.0, float(np.max(np.abs(b), initial=0))))


@harness.needs_triton
def test_kernels_of_the_torso_and_of_its_gradient_compile():
    """The gradient to the grid's points is computed, since the deformation asks for it, and nothing spills."""
    program = torso(REAL[1], 64)
    params = {k: {leaf: harness.shape("float32", *s) for leaf, s in v.items()} for k, v in program.params.items()}
    rows = {k: harness.shape("float32", 1, c) for k, c in program.rows.items()}

    def evaluate(params, points, rows):
        return field(program, points, {k: (v, None) for k, v in rows.items()}, params, backend="triton").sum()

    launches = harness.recorded(jax.grad(evaluate), params, harness.shape("float32", 4096, 2), rows)
    names = [launch.name for launch in launches]
    assert names.count("point_gradient_kernel") == names.count("table_gradient_kernel") == 1
    assert names.count("backward_kernel") == 2
    mlps = [launch for launch in launches if "WIDTHS" in dict(launch.meta)]
    harness.check_resources("torso field", mlps)
