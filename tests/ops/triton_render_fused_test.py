"""The fused renderer's Triton kernel: in the interpreter against the reference, compiled ahead of time, lowered."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import programs
from tests.ops import triton_harness as harness
from tkjax.ops import GridSpec, dispatch, fused, march, render_fused, sh_encode

fused.register("triton", "tkjax.fields.triton.plane_head")

SPEC = GridSpec(2, 12, 1, 8, 64, 8)  # a small one: some levels hash
SIDE, BOX = 16, (-1.0, -0.5, -1.0, 1.0, 0.5, 1.0)
MARCH = dict(side=SIDE, box=BOX, dt=0.0270632939, t_min=0.05, samples=16)
SIZES = [0, 1, 15, 63, 65]


def head(spec=SPEC):
    return programs.er_nerf_head(spec).select("sigma", "rgb")


def ball(radius=0.45, side=SIDE):
    """Occupancy bytes of the cells whose centre is in a ball."""
    x, y, z = (2 * (a + 0.5) / side - 1 for a in np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    inside = x * x + y * y + z * z < radius * radius
    codes = [
        sum(((v >> b) & 1) << (3 * b + a) for a, v in enumerate(c) for b in range(10)) for c in np.argwhere(inside)
    ]
    bits = np.zeros(side**3, bool)
    bits[codes] = True
    return np.packbits(bits, bitorder="little")


def rays(height, width):
    """A camera at z = 3.3 that sees the ball."""
    v, u = np.meshgrid(np.linspace(-0.2, 0.2, height), np.linspace(-0.2, 0.2, width), indexing="ij")
    d = np.stack([u, v, -np.ones_like(u)], -1).reshape(-1, 3)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    return np.broadcast_to([0.0, 0.0, 3.3], d.shape).astype(np.float32), d.astype(np.float32)


def field_of(program, seed=0, density=1.0):
    """(rows but sh, params): density kernels scaled so that rays end within the ball."""
    rng = np.random.default_rng(seed)
    _, rows, params = programs.make(program, 1, seed, per_ray=())
    params["density"]["kernel_2"][:, 0] *= 2.0 * density
    rows = {name: value for name, (value, _) in rows.items()}
    rows["eye"] = rng.uniform(0, 1, (1, 1)).astype(np.float32)
    return rows, params


def case(height=16, width=16, seed=0, occupancy=None, **changes):
    """Arguments of `draw` and `in_triton`."""
    o, d = rays(height, width)
    rows, params = field_of(head(), seed)
    rows["sh"] = np.asarray(sh_encode(jnp.asarray(d)))
    return o, d, ball() if occupancy is None else occupancy, rows, params, MARCH | changes


def draw(o, d, occupancy, rows, params, settings, backend="reference", spec=SPEC):
    args = jax.tree.map(jnp.asarray, (o, d, occupancy, rows, params))
    return tuple(render_fused(head(spec), *args, **settings, backend=backend))


@functools.cache
def _jitted(settings):
    return jax.jit(lambda *a: draw(*a, dict(settings)))


# -- run in the child process, where the kernel is interpreted


def in_triton(*args):
    from tests.ops.triton_field_mlp_test import _multiply_bfloat16

    _multiply_bfloat16()
    *args, precision, tile = args
    importlib.import_module("tkjax.ops.triton.render_fused").RAYS = tile
    with jax.default_matmul_precision(precision):
        out = draw(*args, backend="triton")
    assert dispatch.ran()["render_fused"] == {"triton"}
    return out


interpreted = functools.partial(harness.interpreted, __name__)


def compare(got, want, tolerance=2e-4):
    for name, a, b in zip(("weighted", "plain", "weight_sum", "depth"), got, want, strict=True):
        assert a.shape == b.shape, name
        scale = 4.0 if name == "depth" else 1.0
        np.testing.assert_allclose(a, b, atol=scale * tolerance, rtol=0, err_msg=name)


def check_picture(error, precision, got, want):
    """error: levels of 255. 99.9 % within 1, none beyond 4 (bfloat16, which is no default: 8)."""
    print(f"{precision}: largest error {error.max():.4f}/255, {np.mean(error <= 1):.4%} within 1/255")
    if precision == "bfloat16":
        assert np.max(error) < 8
    else:
        assert np.mean(error <= 1) >= 0.999 and np.max(error) <= 4
    if precision == "highest":
        compare(got, want)


@harness.needs_interpreter
@pytest.mark.parametrize("precision", ["highest", "default", "bfloat16"])
def test_a_picture_is_that_of_the_reference(precision):
    """The bars: 99.9 % of the pixels within 1/255, none beyond 4/255 (bfloat16, which is no default: 8/255)."""
    args = case()
    got, want = interpreted("in_triton", *args, precision, 256), _jitted(tuple(args[-1].items()))(*args[:-1])
    opacity = np.asarray(want[2])
    assert np.mean(opacity > 0.5) > 0.2 and np.mean(opacity < 0.01) > 0.1  # a ball on nothing
    picture, truth = (np.asarray(v[0]) + 0.5 * (1 - np.asarray(v[2]))[:, None] for v in (got, want))
    check_picture(np.max(np.abs(picture - truth), -1) * 255, precision, got, want)


def case_of(kind: str, n: int, seed: int):
    return varied(case(8, 9, seed % 3), kind, n, seed)


def varied(made, kind: str, n: int, seed: int):
    """n rays of a kind at the ball of a case, or at other occupancies."""
    rng = np.random.default_rng(seed)
    o, d, occupancy, rows, params, kw = made
    pick = rng.integers(0, len(o), n)
    o, d = o[pick] + rng.normal(size=(n, 3)).astype(np.float32) * 0.05, d[pick]
    if kind == "axis":
        d = np.eye(3, dtype=np.float32)[rng.integers(0, 3, n)] * rng.choice([-1, 1], (n, 1)).astype(np.float32)
    if kind == "inside":
        o = rng.uniform(-0.4, 0.4, (n, 3)).astype(np.float32)
    if kind == "missing":
        o = o + np.float32(50)
    if kind == "not finite":
        o, d = o.copy(), d.copy()
        o[::3, 1], d[1::3, 2] = np.nan, np.inf
    if kind in ("empty", "full"):
        occupancy = np.full_like(occupancy, 0 if kind == "empty" else 255)
    rows["sh"] = rng.normal(size=(n, 16)).astype(np.float32)
    return o, d, occupancy, rows, params, kw


KINDS = ["camera", "axis", "inside", "missing", "not finite", "empty", "full"]


def expected(o, d, occupancy, rows, params, kw, most=65):
    """The reference, with rays that miss added up to one size, so that it compiles once."""
    n = len(o)
    more = lambda v, fill: np.concatenate([v, np.full((most - n, v.shape[1]), fill, np.float32)])  # noqa: E731
    rows = {k: v if v.shape[0] == 1 and k != "sh" else more(v, 0.0) for k, v in rows.items()}
    out = _jitted(tuple(kw.items()))(more(o, 50.0), more(d, 1.0), occupancy, rows, params)
    return tuple(v[:n] for v in out)


@harness.needs_interpreter
@given(kind=st.sampled_from(KINDS), n=st.sampled_from(SIZES), seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_rays_of_all_kinds_equal_the_reference(kind, n, seed):
    args = case_of(kind, n, seed)
    got = interpreted("in_triton", *args, "highest", 64)
    compare(got, expected(*args))
    if kind in ("missing", "empty"):
        assert not any(np.any(v) for v in got)


@harness.needs_interpreter
@pytest.mark.parametrize(
    "changes",
    [
        dict(samples=3),
        dict(dt_gamma=0.02, dt_max=0.1),
        dict(bound=2.0, cascades=2, side=8, dt_gamma=0.01, box=(-2.0, -2.0, -2.0, 2.0, 2.0, 2.0)),
        dict(cell="vertex", side=7),
        dict(stop=0.5),
    ],
    ids=["few", "cone", "cascades", "vertex", "stop"],
)
def test_every_march_is_the_marchs(changes):
    """Each sample has its own distance, so equal depths mean equal cells."""
    size = {"cascades": 2 * 64, "cell": 64}.get(next((k for k in ("cascades", "cell") if k in changes), ""), 512)
    bits = np.random.default_rng(5).integers(0, 256, size).astype(np.uint8)
    args = case(5, 5, occupancy=bits, **changes)
    compare(interpreted("in_triton", *args, "highest", 64), expected(*args))


@harness.needs_interpreter
def test_exactly_the_samples_of_march_are_taken():
    """With density zero but for a trace, the sum of t over the samples is the depth by the trace: cells bit by bit."""
    args = case(5, 5)
    o, d, occupancy, _, params, kw = args
    for kernel in params["density"].values():
        kernel[:] = 0.0  # sigma is 1 everywhere
    got = interpreted("in_triton", *args, "highest", 64)
    kept = march(*map(jnp.asarray, (o, d, occupancy, np.zeros(len(o), np.float32))), **kw, backend="reference")
    optical = np.asarray(kept.count, np.float64) * np.float32(kw["dt"])
    np.testing.assert_allclose(got[2], 1 - np.exp(-optical), atol=1e-6)
    before = np.exp(-np.arange(16) * np.float64(np.float32(kw["dt"])))
    weight = before * (1 - np.exp(-np.float64(np.float32(kw["dt"])))) * np.asarray(kept.valid)
    np.testing.assert_allclose(got[3], np.sum(weight * np.asarray(kept.t), 1), atol=1e-5)


@harness.needs_interpreter
def test_inputs_per_ray_and_infinite_density():
    o, d, occupancy, rows, params, kw = case(5, 5, 1)
    rng = np.random.default_rng(6)
    rows = {k: rng.normal(size=(len(o), v.shape[1])).astype(np.float32) for k, v in rows.items()}
    params["density"]["kernel_2"][:8, 0] = 1e30  # log sigma is cut at 40: a wall
    args = o, d, occupancy, rows, params, kw
    got = interpreted("in_triton", *args, "highest", 64)
    assert np.max(got[2]) == 1.0
    compare(got, expected(*args))


# -- what it takes, and what not


def _supports(program):
    pytest.importorskip("triton")
    from tkjax.ops.triton import render_fused as module

    module.supports(program, None)


def test_the_head_is_recognised_by_what_it_computes():
    _supports(head())
    _supports(head(programs.HEAD))
    changed = [dataclasses.replace(i, output="tanh") if i.output == "sigmoid" else i for i in head().instructions]
    other = dataclasses.replace(head(), instructions=tuple(changed))
    for program, why in [
        (other, "not this program"),
        (programs.er_nerf_head(SPEC), "outputs sigma and rgb"),
        (programs.ad_nerf(width=16).select("sigma", "rgb"), "no fused field draws ad_nerf"),
        (head(dataclasses.replace(SPEC, features=2, levels=8)), "one channel"),
    ]:
        with pytest.raises(NotImplementedError, match=why):
            _supports(program)


def test_the_models_program_is_this_one():
    """What the system renders with is what the kernel that it registers computes, whatever the names."""
    from tkjax.models.er_nerf import head_program

    program = head_program(programs.HEAD, 32, 4).select("sigma", "rgb")
    renamed = tuple(dataclasses.replace(i, name=i.name and f"other_{i.name}") for i in program.instructions)
    _supports(program)
    _supports(dataclasses.replace(program, name="another", instructions=renamed))
    assert "tkjax.fields.triton.plane_head" in fused.registered("triton")


# -- compiled and lowered without a GPU, at the size of a picture

REAL = dict(side=128, box=BOX, dt=0.0270632939, t_min=0.05, samples=16)


def real(n=512 * 512):
    program = head(programs.HEAD)
    params = {k: {leaf: harness.shape("float32", *s) for leaf, s in v.items()} for k, v in program.params.items()}
    rows = {k: harness.shape("float32", n if k == "sh" else 1, c) for k, c in program.rows.items()}
    ray = harness.shape("float32", n, 3)
    return ray, ray, harness.shape("uint8", 128**3 // 8), rows, params


def draw_real(*args):
    return draw(*args, REAL, "triton", programs.HEAD)


@pytest.mark.slow  # 13 s: a large kernel, compiled for two GPUs
@harness.needs_triton
def test_the_kernel_compiles_for_the_gpu():
    """One launch. Some bytes a thread spill (0 and 40 with Triton 3.9); how many is printed, and may not grow."""
    launches = harness.recorded(draw_real, *real())
    assert [launch.name for launch in launches] == ["render_kernel"] and not launches[0].fp_fusion
    for capability in harness.CAPABILITIES:
        r = harness.compiled(launches[0], capability)
        print(f"\nrender_fused sm_{capability}: {r.registers} registers, {r.stack} bytes spilled, {r.shared} shared")
        assert r.stack <= 96 and r.shared <= 100_000
        assert "mma" in r.ptx
        # The only fused products and sums are those asked for: four corners of three tiles of features, 8 a thread.
        fused = harness.contractions(r.ptx)
        assert len(fused) <= 4 * 3 * 8 and all("fma.rn.f32" in line for line in fused)


@harness.needs_triton
def test_a_program_that_no_fused_head_draws_is_three_ops_on_the_gpu_and_that_is_said(monkeypatch):
    from tests.ops.conformance_cases import MARCH as march_settings
    from tests.ops.conformance_cases import plain_field

    monkeypatch.setattr(dispatch, "_said", [])
    monkeypatch.setitem(dispatch.PLATFORMS, "cpu", ("other",))  # as on a GPU
    program = plain_field()
    params = {k: {leaf: harness.shape("float32", *s) for leaf, s in v.items()} for k, v in program.params.items()}
    ray, bits = harness.shape("float32", 100, 3), harness.shape("uint8", march_settings["side"] ** 3 // 8)

    def draw_plain(o, d, bits, sh, params):
        return render_fused(program, o, d, bits, {"sh": sh}, params, **march_settings)

    launches = harness.recorded(draw_plain, ray, ray, bits, harness.shape("float32", 100, 16), params)
    modules = [launch.kernel.fn.__module__.rpartition(".")[2] for launch in launches]
    assert modules == ["march", "march", "grid_encode", "field_mlp", "composite"]
    (line,) = [line for line in dispatch.said() if line.startswith("render_fused")]
    assert line.startswith("render_fused -> march, field, composite; triton does not: no fused field draws plain")
    assert {"march -> triton", "field -> triton", "composite -> triton"} <= set(dispatch.said())


@harness.needs_lowering
def test_the_public_op_lowers_for_cuda_in_one_kernel():
    assert harness.kernel_calls(harness.lowered(draw_real, *real(1000))) == 1


@pytest.mark.gpu
def test_on_the_gpu_against_the_reference():
    harness.require_gpu()
    args = case(64, 64)
    with jax.default_matmul_precision("highest"):
        want = draw(*args)
    got = draw(*args, backend="triton")
    for a, b in ((got[0], want[0]), (got[2][:, None], want[2][:, None])):
        error = np.max(np.abs(np.asarray(a) - np.asarray(b)), -1) * 255
        assert np.mean(error <= 1) >= 0.999 and np.max(error) <= 4
