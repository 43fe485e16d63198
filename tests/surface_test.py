"""Networks of a deforming surface and its material against float64 formulas, the dossier's counts and gradients."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle
from tkjax import signals
from tkjax.fields.material import (
    CHANNELS,
    GRID,
    ORIGINAL_CHANNELS,
    ORIGINAL_GRID,
    ORIGINAL_GRID_2025,
    RANGES,
    Material,
    scale_gradient,
)
from tkjax.fields.surface import AFTER, BEFORE, WINDOW, Surface, WindowEncoder, unit_box
from tkjax.ops import GridSpec, freq_encode

RNG = np.random.default_rng(0)
POINTS = jnp.asarray(RNG.uniform(0, 1, (7, 3)), jnp.float32)
CODES = jnp.asarray(RNG.normal(size=(2, 256)), jnp.float32)
SMALL = Material(spec=GridSpec(3, 3, 2, 4, 12, 9), condition=5, hidden=16, layers=2)


def count(tree):
    return sum(math.prod(v.shape) for v in jax.tree.leaves(tree))


def to64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def leaky(x, slope):
    return np.where(x > 0, x, slope * x)


def encode64(x):
    waves = [f(2.0**k * x) for k in range(6) for f in (np.sin, np.cos)]
    return np.concatenate([x, *waves], -1)


def mlp64(params, x):
    for k in range(len(params)):
        x = (np.maximum(x, 0) if k else x) @ params[f"layer_{k}"]["kernel"]
    return x


# Windows


def test_a_window_repeats_the_ends_of_its_split():
    """Dossier dyntet §11, check 8: the window of frame 3 of 100 is eleven times frame 0, then 1…16."""
    whole = signals.of_frames("expression", np.arange(150.0), 25.0)
    split = dataclasses.replace(whole, values=whole.values[20:120])
    use = signals.Use("expression", BEFORE, AFTER, "repeat")
    cut = signals.windows(split, np.array([3, 99]), use).reshape(2, WINDOW) - 20
    np.testing.assert_array_equal(cut[0], [0] * 11 + list(range(1, 17)))
    np.testing.assert_array_equal(cut[1], [*range(86, 100)] + [99] * 13)


@pytest.mark.parametrize("channels, parameters", [(70, 716_288), (13, 716_288 - 57 * 7 * 256)])
def test_the_window_encoder_has_the_dossiers_parameters(channels, parameters):
    shapes = jax.eval_shape(WindowEncoder(channels).init, jax.random.key(0), np.zeros((1, 27, channels), np.float32))
    assert count(shapes) == parameters


def test_the_window_encoder_equals_a_literal_convolution():
    model, x = WindowEncoder(4, features=6), jnp.asarray(RNG.normal(size=(2, 27, 4)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(1), x)
    p, y, lengths = to64(params)["params"], np.asarray(x, np.float64), [27]

    def conv(x, layer, dilation):
        taps = len(layer["kernel"])
        out = [
            layer["bias"] + sum(x[:, t + k * dilation] @ layer["kernel"][k] for k in range(taps))
            for t in range(x.shape[1] - dilation * (taps - 1))
        ]
        return np.stack(out, 1)

    y = conv(y, p["first"], 1)
    for k in range(3):
        lengths.append(y.shape[1])
        y = y[:, 3:-3] + conv(leaky(y, 0.1), p[f"blocks_{k}"], 3)
    assert [*lengths, y.shape[1]] == [27, 21, 15, 9, 3]
    np.testing.assert_allclose(jax.jit(model.apply)(params, x), y.mean(1), atol=1e-5)


def test_windows_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"windows \[N,27,4\], got \(1, 26, 4\)"):
        WindowEncoder(4).init(jax.random.key(0), jnp.zeros((1, 26, 4)))


# Distance and displacement


def test_the_encoding_of_positions_is_the_dossiers():
    """Dossier dyntet §11, check 10."""
    got = np.asarray(freq_encode(jnp.array([[0.25, 0.5, 0.75]]), 6))[0]
    assert len(got) == 39
    np.testing.assert_allclose(got[3:9], [0.247404, 0.479426, 0.681639, 0.968912, 0.877583, 0.731689], atol=1e-6)
    np.testing.assert_allclose(got[-6:], [0.989358, -0.287903, -0.905578, -0.145500, -0.957659, 0.424179], atol=2e-6)


def test_the_unit_box_maps_corner_to_corner():
    low, high = jnp.array([-1.25, -1, -2]), jnp.array([1.25, 3, 2])
    got = unit_box(jnp.stack([low, high, (low + high) / 2]), low, high)
    np.testing.assert_array_equal(got, np.repeat([[0.0], [1.0], [0.5]], 3, 1))


@pytest.fixture(scope="module")
def surface_params():
    return jax.jit(Surface().init)(jax.random.key(2), POINTS, CODES)


def test_the_surface_has_the_dossiers_parameters(surface_params):
    sizes = {name: count(part) for name, part in surface_params["params"].items()}
    known = {"to_sdf": 21_632, "of_point": 4_992, "of_condition": 32_768, "to_displacement": 49_536}
    assert sizes == known and sum(sizes.values()) == 108_928


def test_kernels_start_as_pytorchs(surface_params):
    for group in surface_params["params"].values():
        for layer in group.values():
            limit = 1 / math.sqrt(layer["kernel"].shape[0])
            assert 0.97 * limit < float(jnp.abs(layer["kernel"]).max()) <= limit


@pytest.mark.parametrize("scaled", [False, True])
def test_the_surface_equals_the_formula(scaled, surface_params):
    sdf, elasticity, moved = Surface(scale_by_elasticity=scaled).apply(surface_params, POINTS, CODES)
    p, g = to64(surface_params)["params"], encode64(np.asarray(POINTS, np.float64))
    out = mlp64(p["to_sdf"], g)
    np.testing.assert_allclose(sdf, out[:, 0], atol=1e-5)
    np.testing.assert_allclose(elasticity, 0.5 / (1 + np.exp(-out[:, 1])), atol=1e-6)
    h = mlp64(p["of_point"], g) + mlp64(p["of_condition"], np.asarray(CODES, np.float64))[:, None]
    expected = np.tanh(mlp64(p["to_displacement"], h))
    np.testing.assert_allclose(moved, expected * (elasticity[:, None] if scaled else 1.0), atol=2e-5)


def test_a_code_of_zeros_is_the_canonical_shape(surface_params):
    _, _, moved = Surface().apply(surface_params, POINTS, jnp.zeros((1, 256)))
    p, g = to64(surface_params)["params"], encode64(np.asarray(POINTS, np.float64))
    np.testing.assert_allclose(moved[0], np.tanh(mlp64(p["to_displacement"], mlp64(p["of_point"], g))), atol=2e-5)


# Material


def test_the_material_in_the_originals_form_has_its_parameters():
    """Dossier dyntet §11, check 12."""
    for spec in (ORIGINAL_GRID, ORIGINAL_GRID_2025):
        shapes = jax.eval_shape(Material(spec=spec, channels=ORIGINAL_CHANNELS).init, jax.random.key(0))
        sizes = {name: count(part) for name, part in shapes.items()}
        assert sizes == {"grid": 131_072, "point": 8_448, "net": 329_984, "condition": 131_584}
        assert sum(sizes.values()) == 601_088
    assert Material().spec.kind == "hash" and Material().channels == CHANNELS
    assert all(level.hashed or all(level.strides) for level in GRID.table)  # no level forgets a coordinate


def test_the_networks_start_as_the_originals():
    params = jax.jit(Material(spec=SMALL.spec).init)(jax.random.key(0))
    for kernel in params["net"].values():
        assert 0.97 < float(jnp.abs(kernel).max()) / math.sqrt(6 / 256) <= 1
    assert float(jnp.abs(params["grid"]["tables"]).max()) <= 1e-4
    for name in ("kernel_0", "bias_0", "kernel_1", "bias_1"):
        assert 0.9 < float(jnp.abs(params["condition"][name]).max()) * 16 <= 1
    assert not np.array_equal(params["condition"]["kernel_0"], params["condition"]["kernel_1"])


def material64(material, params, x, codes, frame):
    p, s = to64(params), material.spec
    c = p["condition"]
    row = leaky(codes @ c["kernel_0"] + c["bias_0"], 0.2) @ c["kernel_1"] + c["bias_1"]
    f = oracle.grid_encode(
        np.clip(x, 0, 1)[:, None], p["grid"]["tables"], levels=s.levels, base=s.base, finest=s.finest,
        log2_entries=s.log2_entries, kind=s.kind,
    )  # fmt: skip
    h = f[:, 0] @ p["point"]["kernel_0"] + p["point"]["bias_0"] + row[frame]
    for k in range(len(p["net"])):
        h = (np.maximum(h, 0) if k else h) @ p["net"][f"kernel_{k}"]
    low, high = np.array(RANGES[: material.channels]).T
    return low + (high - low) / (1 + np.exp(-h))


@pytest.mark.parametrize("kind", ["hash", "base_tiled", pytest.param("base_tiled_2025", marks=pytest.mark.heavy)])
def test_the_material_equals_the_formula(kind):
    spec = dataclasses.replace(SMALL.spec, kind=kind)
    material = dataclasses.replace(SMALL, spec=spec, channels=9 if kind != "hash" else 6)
    params = jax.jit(material.init)(jax.random.key(3))
    params["grid"]["tables"] = params["grid"]["tables"] * 1e4
    x = np.array([[0.1, 0.2, 0.3], [0.9, 0.5, 0.7], [-0.4, 0.5, 1.3], [0.6, 0.6, 0.1]], np.float32)
    codes, frame = RNG.normal(size=(2, 5)).astype(np.float32), np.array([0, 1, 1, 0], np.int32)
    got = np.asarray(material.evaluate(params, *map(jnp.asarray, (x, codes, frame))))
    expected = material64(material, params, x.astype(np.float64), codes, frame)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert np.ptp(got[:, 4]) > 0 and (got[:, 4] >= 0.1).all()


def test_gradients_are_scaled_where_the_original_scales_them():
    x, codes = POINTS, jnp.asarray(RNG.normal(size=(1, 5)), jnp.float32)
    params = jax.jit(SMALL.init)(jax.random.key(4))
    params["grid"]["tables"] = params["grid"]["tables"] * 1e4
    found = {}
    for factor in (1.0, 128.0):
        material = dataclasses.replace(SMALL, gradient_scale=factor)

        def loss(params, x, codes, material=material):
            return jnp.sum(material.evaluate(params, x, codes, None) ** 2)

        found[factor] = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(params, x, codes)
    (value, plain), (same, scaled) = found.values()
    assert float(value) == float(same)
    factors = {"grid": 16.0, "point": 128.0, "condition": 128.0, "net": 1.0}
    for name, factor in factors.items():
        for leaf, g in plain[0][name].items():
            assert float(jnp.abs(g).max()) > 0
            np.testing.assert_allclose(scaled[0][name][leaf], factor * g, rtol=1e-4, atol=1e-6 * factor)
    np.testing.assert_allclose(scaled[1], plain[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scaled[2], 128 * plain[2], rtol=1e-4, atol=1e-4)


def test_scale_gradient_leaves_the_value():
    value, vjp = jax.vjp(lambda x: scale_gradient(x, 3.0), jnp.float32(0.1))
    assert value == np.float32(0.1) and vjp(jnp.float32(1.0))[0] == 3.0


@pytest.mark.parametrize("bad", [{"channels": 7}, {"gradient_scale": 0.0}])
def test_a_material_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="a material"):
        Material(**bad)
