"""The parts together: a network of distances learns an ellipsoid, whose surface is then one closed piece."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.mesh.surfaces import directed_edges, surface
from tkjax.fields.surface import Surface, unit_box
from tkjax.mesh.targets import ellipsoid
from tkjax.mesh.tets import make_grid


@pytest.mark.heavy
def test_distances_learn_an_ellipsoid_in_a_thousand_steps():
    """Dossier dyntet §10.7 a: a squared error below 1e-4 and Euler characteristic 2."""
    grid = make_grid("kuhn", 10).scaled(2.5)
    vertices = jnp.asarray(grid.vertices)
    x, target = unit_box(vertices, vertices.min(0), vertices.max(0)), ellipsoid(vertices)
    model, tx = Surface(), optax.adam(1e-3)
    params = model.init(jax.random.key(0), x[:1], jnp.zeros((1, 256)))

    def distance(params):
        return model.apply(params, x, method="distance")[0]

    @jax.jit
    def fit(params):
        def step(carry, _):
            params, state = carry
            error, grads = jax.value_and_grad(lambda p: jnp.mean(jnp.square(distance(p) - target)))(params)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), error

        (params, _), errors = jax.lax.scan(step, (params, tx.init(params)), length=1000)
        return distance(params), errors

    sdf, errors = fit(params)
    assert float(errors[-50:].max()) < 1e-4 < float(errors[0])
    positions, faces, topology = surface(grid, np.asarray(sdf))
    edges = directed_edges(faces)
    assert all(edges[b, a] == times == 1 for (a, b), times in edges.items())
    assert int(topology.counts["vertices"]) - len(edges) // 2 + len(faces) == 2
    radii = np.linalg.norm(positions[np.asarray(topology.used)], axis=1)
    assert 0.7 < radii.min() and radii.max() < 0.85
