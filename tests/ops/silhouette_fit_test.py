"""The standing check of a rasteriser that learns: an outline moves a sphere, by the gradients of antialias alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.ops import raster_oracle as oracle
from tests.ops.grid_cases import running
from tests.ops.rays import needs_kernels
from tkjax.ops import antialias, opposite_vertices, rasterize

SIZE, STEPS, OFFSET = 48, 300, np.float32([0.1, -0.06])
POINTS, FACES = oracle.sphere(8, 12, 0.5)


def clip_of(points):
    """Seen from a distance of 3 along z, with a focal length of 3."""
    w = 3 - points[:, 2:]
    return jnp.concatenate([3 * points[:, :2], 0.5 * (w - 3), w], 1)


@functools.cache
def fitted(backend, cut):
    """The offset in the picture's plane that Adam finds; cut: without the gradients of antialias to the vertices."""
    faces = jnp.asarray(FACES)
    opposite = opposite_vertices(faces)

    def outline(offset):
        clip = clip_of(jnp.asarray(POINTS) + jnp.pad(offset, (0, 1)))
        raster = rasterize(clip, faces, SIZE, SIZE, backend=backend)
        mask = (raster.face > 0).astype(jnp.float32)[..., None]
        return antialias(
            mask, raster, jax.lax.stop_gradient(clip) if cut else clip, faces, opposite, backend=backend
        )  # fmt: skip

    target = outline(jnp.asarray(OFFSET))
    rule = optax.adam(2e-3)

    def step(carry, _):
        offset, state = carry
        slope = jax.grad(lambda o: jnp.mean((outline(o) - target) ** 2))(offset)
        change, state = rule.update(slope, state)
        return (optax.apply_updates(offset, change), state), None

    start = jnp.zeros(2)
    return np.asarray(jax.jit(lambda s: jax.lax.scan(step, s, length=STEPS)[0][0])((start, rule.init(start))))


@pytest.mark.parametrize(
    "name", [pytest.param("cpu", marks=needs_kernels), pytest.param("reference", marks=pytest.mark.heavy)]
)
def test_an_outline_moves_a_sphere_to_its_target(name):
    with running(name) as backend:
        left = np.linalg.norm(fitted(backend, False) - OFFSET)
        unmoved = fitted(backend, True)
    assert left < 0.2 * np.linalg.norm(OFFSET)
    np.testing.assert_array_equal(unmoved, 0)
