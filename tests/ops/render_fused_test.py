"""render_fused: the three ops in one, on every back end; which samples it keeps, edges, refusals."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from benchmarks.ops import inputs
from tests.ops import programs
from tests.ops.rays import CASES as RAYS_CASES
from tests.ops.rays import COMMON, EACH_CASE, ISAS, VARIANTS, occupancy, rays, spoiled, variant
from tkjax.ops import GridSpec, ProgramBuilder, composite, cpu, field, march, render_fused

SMALL = GridSpec(2, 4, 1, 8, 40, 8)
HEAD = programs.er_nerf_head(SMALL, audio=8, geometry=16).select("sigma", "rgb")
RAD = programs.rad_nerf_head(width=16).select("sigma", "rgb")
# Off the faces of the grid: beyond them features are zero, so there rounding of a position could change everything.
INNER = COMMON | {"box": (-0.95, -0.45, -0.95, 0.95, 0.45, 0.95)}
CASES = {**RAYS_CASES, "constant": INNER}
FIELDS = {"er_nerf": HEAD, "rad_nerf": RAD}
N = 65  # rays of most tests: one size, since the reference is compiled for each, which takes ten seconds


def constant(sigma: float):
    """The same density everywhere, and the position as colour."""
    p = ProgramBuilder(f"constant_{sigma}")
    return p.build(sigma=p.affine(p.points[:1], 0.0, sigma), position=p.points)


def scene(program, n: int, seed: int = 0, share: float = 0.5, case: str = "constant", scale: float = 1.5):
    """(arguments, keywords) of render_fused; `sh` has a row per ray."""
    rng = np.random.default_rng(seed)
    (o, d), how = rays(rng, n, CASES[case].get("bound", 1.0)), CASES[case]
    _, rows, params = programs.make(program, 8, seed, per_ray=(), scale=scale)
    values = {name: v for name, (v, _) in rows.items()}
    if "sh" in values:
        values["sh"] = rng.normal(size=(n, values["sh"].shape[1])).astype(np.float32)
    return jax.tree.map(jnp.asarray, (o, d, occupancy(rng, how, share), values, params)), how


@functools.cache
def renderer(program, backend: str, case: str = "constant", **more):
    return jax.jit(functools.partial(render_fused, program, backend=backend, **CASES[case], **more))


def unfused(program, args, how, stop=1e-4):
    """march, field and composite of the reference, dense."""
    o, d, bits, values, params = args
    n, s = len(o), how["samples"]
    kept = march(o, d, bits, jnp.zeros(n), backend="reference", **how)
    points = o[:, None] + kept.t[..., None] * d[:, None]
    index = jnp.repeat(jnp.arange(n, dtype=jnp.int32), s)
    rows = {name: (v, index if len(v) == n else None) for name, v in values.items()}
    out = field(program, points.reshape(-1, 3), rows, params, backend="reference").reshape(n, s, -1)
    empty = jnp.zeros((n, s, 0))
    return composite(
        out[..., 0], kept.valid, kept.t, out[..., 1:], empty, dt=kept.dt, stop=stop, backend="reference"
    )  # fmt: skip


@functools.cache
def three_ops(program):
    """`unfused` of the case `constant`, compiled as one program: op by op it takes several times as long."""
    return jax.jit(lambda args: unfused(program, args, CASES["constant"]))


def close(got, want, atol=2e-4):
    for name in ("weighted", "weight_sum", "depth"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-3, atol=atol, err_msg=name)
    assert got.plain.shape == (len(got.depth), 0)


@pytest.mark.heavy
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("which", sorted(FIELDS))
@settings(max_examples=8)
@given(seed=st.integers(0, 2**20), share=st.sampled_from([0.05, 0.5, 1.0]))
def test_it_is_the_three_ops(name, which, seed, share):
    program = FIELDS[which]
    args, _ = scene(program, N, seed, share)
    with variant(name) as backend:
        got = jax.block_until_ready(renderer(program, backend)(*args))
    close(got, three_ops(program)(args))


@pytest.mark.heavy
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("case", EACH_CASE)
def test_exactly_the_samples_of_march_are_kept(name, case):
    """In a thin fog depth and weights tell every sample apart."""
    program = constant(1e-3)
    args, how = scene(program, 300, 1, 0.3, case)
    with variant(name) as backend:
        got = jax.block_until_ready(renderer(program, backend, case)(*args))
        kept = jax.block_until_ready(march(*args[:3], jnp.zeros(300), backend=backend, **how))
    dt, t = np.asarray(kept.dt, np.float64), np.asarray(kept.t, np.float64)
    optical = 1e-3 * dt
    weights = -np.expm1(-optical) * np.exp(-(np.cumsum(optical, 1) - optical))
    np.testing.assert_allclose(got.weight_sum, weights.sum(1), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(got.depth, (weights * t).sum(1), rtol=2e-5, atol=1e-9)
    where = np.asarray(args[0])[:, None] + t[..., None] * np.asarray(args[1])[:, None]
    np.testing.assert_allclose(got.weighted, (weights[..., None] * where).sum(1), rtol=1e-4, atol=1e-7)
    assert 20 < np.sum(kept.count > 0)


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS)
def test_more_rays_than_a_tile_holds(isa):
    args, _ = scene(HEAD, 700)
    with cpu.isa(isa):
        got = jax.block_until_ready(renderer(HEAD, "cpu")(*args))
    close(got, three_ops(HEAD)(args))


@pytest.mark.heavy
@pytest.mark.parametrize("name", VARIANTS)
def test_a_wall_is_opaque_at_its_first_sample(name):
    program = constant(np.inf)
    args, how = scene(program, 100, share=1.0)
    with variant(name) as backend:
        got = jax.block_until_ready(renderer(program, backend)(*args))
    hit = np.asarray(march(*args[:3], jnp.zeros(100), backend="reference", **how).count) > 0
    np.testing.assert_array_equal(got.weight_sum, hit.astype(np.float32))


@pytest.mark.heavy
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bits", [0, 255])
def test_an_empty_grid_draws_nothing_and_a_full_one_everything(name, bits):
    args, _ = scene(HEAD, N)
    args = (*args[:2], jnp.full_like(args[2], bits), *args[3:])
    with variant(name) as backend:
        got = jax.block_until_ready(renderer(HEAD, backend)(*args))
    if bits:
        close(got, three_ops(HEAD)(args))
    else:
        assert not any(np.any(v) for v in got)


@pytest.mark.heavy
@pytest.mark.parametrize("name", VARIANTS)
@given(seed=st.integers(0, 2**20))
@settings(max_examples=8)
def test_rays_that_are_not_numbers_draw_nothing_and_disturb_no_other(name, seed):
    args, _ = scene(HEAD, N)
    rng = np.random.default_rng(seed)
    o, d = (jnp.asarray(spoiled(rng, np.asarray(v))) for v in args[:2])
    with variant(name) as backend:
        clean = jax.block_until_ready(renderer(HEAD, backend)(*args))
        got = jax.block_until_ready(renderer(HEAD, backend)(o, d, *args[2:]))
    same = np.all((o == args[0]) & (d == args[1]), -1)
    np.testing.assert_allclose(got.weighted[same], clean.weighted[same], atol=1e-5)
    broken = ~np.isfinite(o).all(-1) | ~np.isfinite(d).all(-1)
    assert not np.any(got.weight_sum[broken])


@pytest.mark.parametrize("name", VARIANTS)
def test_not_a_number_in_a_ray_s_row_stays_in_that_ray(name):
    args, _ = scene(HEAD, N)
    rows = args[3] | {"sh": args[3]["sh"].at[5].set(np.nan)}
    with variant(name) as backend:
        clean = jax.block_until_ready(renderer(HEAD, backend)(*args))
        got = jax.block_until_ready(renderer(HEAD, backend)(*args[:3], rows, args[4]))
    others = np.arange(N) != 5
    np.testing.assert_allclose(got.weighted[others], clean.weighted[others], atol=1e-5)


REAL_RAD = programs.rad_nerf_head(inputs.RAD_SPACE, inputs.RAD_AMBIENT)


def trained(params):
    """Tables of a trained head's size: white noise of size 1 in 2048 cells would amplify rounding."""
    return {name: {k: 0.2 * v if k == "tables" else v for k, v in group.items()} for name, group in params.items()}


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**20), n=st.sampled_from([1, 65]))
def test_rad_nerf_of_real_size_is_the_three_ops(isa, seed, n):
    """16 levels of both tiled grids: 903,480 and 555,520 entries, seven levels without a third coordinate."""
    program = REAL_RAD.select("sigma", "rgb")
    (*args, params), _ = scene(program, n, seed, scale=1.0)
    args = (*args, trained(params))
    with cpu.isa(isa):
        got = jax.block_until_ready(renderer(program, "cpu")(*args))
    close(got, three_ops(program)(args))


@functools.cache
def _value_and_gradients(backend):
    """(value, gradients to params, rows and points) of the real field."""

    def run(params, rows, points, index, g):
        def value(params, rows, points):
            return field(REAL_RAD, points, {k: (v, index.get(k)) for k, v in rows.items()}, params, backend=backend)

        y, vjp = jax.vjp(value, params, rows, points)
        return y, *vjp(g)

    return jax.jit(run)


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS)
def test_rad_nerf_of_real_size_has_the_gradients_of_the_reference(isa, n=65):
    """The gradient to the audio goes through tanh and the ambient grid's coordinates."""
    points, rows, params = jax.tree.map(jnp.asarray, programs.make(REAL_RAD, n, n, scale=0.5))
    index = {k: i for k, (_, i) in rows.items() if i is not None}
    args = trained(params), {k: v for k, (v, _) in rows.items()}, points, index, jnp.ones((n, REAL_RAD.channels)) / n
    with cpu.isa(isa):
        got = jax.block_until_ready(_value_and_gradients("cpu")(*args))
    want = _value_and_gradients("reference")(*args)
    assert float(jnp.max(jnp.abs(want[2]["audio"]))) > 1e-4  # there is something to compare
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        size = 1e-5 + float(np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("which", sorted(FIELDS))
def test_bfloat16_moves_no_pixel_by_a_step(isa, which):
    """On a field as smooth as a trained one; where the processor has no such products nothing changes at all."""
    program = FIELDS[which]
    (*args, params), _ = scene(program, 4000, 3, 0.7, scale=1.0)
    params = {name: {k: 0.3 * v if k == "tables" else v for k, v in group.items()} for name, group in params.items()}
    with cpu.isa(isa):
        got = jax.block_until_ready(renderer(program, "cpu", precision="bfloat16")(*args, params))
        want = jax.block_until_ready(renderer(program, "cpu")(*args, params))
    steps = 255 * np.abs(got.weighted - want.weighted).max(-1)
    assert np.mean(want.weight_sum > 0.1) > 0.2
    assert np.mean(steps <= 1) >= 0.999 and steps.max() <= 4
    if isa != "avx512":
        assert steps.max() == 0


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=ISAS[0].marks), "reference"])
def test_eight_devices_draw_what_one_draws(backend):
    if len(jax.devices()) < 8:
        pytest.skip("this process has one device; the next test starts one with eight")
    args, _ = scene(HEAD, 64)
    mesh, ray = Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data")
    rows = {name: ray if name == "sh" else PartitionSpec() for name in args[3]}
    params = jax.tree.map(lambda _: PartitionSpec(), args[4])
    split = jax.shard_map(
        functools.partial(render_fused, HEAD, backend=backend, **INNER),
        mesh=mesh, in_specs=(ray, ray, PartitionSpec(), rows, params), out_specs=ray, check_vma=False,
    )  # fmt: skip
    close(jax.jit(split)(*args), renderer(HEAD, backend)(*args), 1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("isa", ISAS[:1])
def test_eight_devices(isa):
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", __file__, "-k", "eight_devices_draw"]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def test_it_is_not_differentiable_and_says_what_is():
    args, how = scene(HEAD, 4)

    def loss(params):
        return jnp.sum(render_fused(HEAD, *args[:4], params, **how).weighted)

    with pytest.raises(NotImplementedError, match="differentiate march, field and composite instead"):
        jax.grad(loss)(args[4])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sh": np.zeros((3, 16), np.float32)}, "row 'sh' of er_nerf_head must be"),
        ({"sh": np.zeros((4, 15), np.float32)}, "row 'sh' of er_nerf_head must be"),
        ({"audio": np.zeros((1, 8), np.float16)}, "audio must be float32, got float16"),
    ],
)
def test_wrong_rows_are_refused(change, message):
    args, how = scene(HEAD, 4)
    with pytest.raises(ValueError, match=message):
        render_fused(HEAD, *args[:3], args[3] | jax.tree.map(jnp.asarray, change), args[4], **how)


def test_wrong_programs_parameters_and_settings_are_refused():
    args, how = scene(HEAD, 4)
    with pytest.raises(ValueError, match="row 'eye' of er_nerf_head must be"):
        render_fused(HEAD, *args[:3], {k: v for k, v in args[3].items() if k != "eye"}, args[4], **how)
    with pytest.raises(ValueError, match="must be sigma, one channel"):
        render_fused(HEAD.select("rgb", "sigma"), *args, **how)
    with pytest.raises(ValueError, match="stop < 1"):
        render_fused(HEAD, *args, **how, stop=1.0)
    with pytest.raises(ValueError, match="precision 'half' is unknown; choose float32 or bfloat16"):
        render_fused(HEAD, *args, **how, precision="half")
    with pytest.raises(ValueError, match="kernel_0"):
        render_fused(HEAD, *args[:4], {**args[4], "colour": {"kernel_0": jnp.zeros((2, 2))}}, **how)
    with pytest.raises(ValueError, match="occupancy"):
        render_fused(HEAD, *args[:2], args[2][:-1], *args[3:], **how)


@pytest.mark.parametrize("isa", ISAS[:1])
def test_a_call_past_the_checks_is_an_error_and_no_crash(isa):
    out = (jax.ShapeDtypeStruct((4, 3), jnp.float32), *[jax.ShapeDtypeStruct((4,), jnp.float32)] * 2)
    from tkjax.ops.cpu import march as kernel
    from tkjax.ops.march import march_spec

    args, how = scene(HEAD, 4)
    more = {"bound": 1.0, "dt_gamma": 0.0, "dt_max": None, "cascades": 1, "cell": "trunc"}
    spec = march_spec(*args[:3], np.zeros(4, np.float32), **how, **more)
    for words in ([], [3, 1, 0, 0, 1], [3, 1000000, 0, 0, 1, 5, 5]):
        with pytest.raises(Exception, match="tkjax: render_fused"):
            attributes = {"words": np.array(words, np.int32), "per_ray": np.zeros(0, np.int32), "stop": np.float32(0)}
            attributes |= {"precision": np.int32(0), **kernel.attributes(spec)}
            jax.block_until_ready(cpu.call("tkjax_render_fused", out, *args[:3], **attributes))
