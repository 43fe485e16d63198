"""A mesh with trained vertex colours, drawn whole-frame by a z-buffer; no rays. The mean over windows of 27 frames of
coefficients moves its colours: logit = colours + encoder applied to that mean."""

import jax
import jax.numpy as jnp
import numpy as np

from tkjax import interface
from tkjax.interface import Rate, Stage
from tkjax.signals import Use
from tkjax.types import Render, Variables

ROWS, COLUMNS = 7, 10


def ellipsoid():
    """Vertices [V,3] in world units and triangles [F,3] of a head-sized ellipsoid."""
    theta, phi = np.meshgrid(
        np.linspace(0.05, np.pi - 0.05, ROWS), np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False), indexing="ij"
    )
    xyz = np.stack([0.3 * np.sin(theta) * np.sin(phi), 0.36 * np.cos(theta), 0.3 * np.sin(theta) * np.cos(phi)], -1)
    a = np.arange(ROWS - 1)[:, None] * COLUMNS + np.arange(COLUMNS)
    b = np.arange(ROWS - 1)[:, None] * COLUMNS + (np.arange(COLUMNS) + 1) % COLUMNS
    faces = np.stack([np.stack([a, b, a + COLUMNS], -1), np.stack([b, b + COLUMNS, a + COLUMNS], -1)])
    return xyz.reshape(-1, 3).astype(np.float32), faces.reshape(-1, 3)


VERTICES, FACES = ellipsoid()


def rasterize(cam_to_world, intrinsics, hw):
    """Nearest triangle per pixel: (face [H*W], barycentric weights [H*W,3], camera z [H*W], hit [H*W])."""
    height, width = hw
    p = (VERTICES - cam_to_world[:3, 3]) @ cam_to_world[:3, :3]
    fx, fy, cx, cy = intrinsics
    z = -p[:, 2]
    xy = jnp.stack([cx + fx * p[:, 0] / z, cy - fy * p[:, 1] / z], -1)
    columns, rows = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    pixel = jnp.stack([columns.ravel(), rows.ravel()], -1)[:, None]

    def cross(u, v):
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    a, b, c = (xy[FACES[:, i]][None] for i in range(3))
    area = cross(b - a, c - a)
    edges = jnp.stack([cross(b - pixel, c - pixel), cross(c - pixel, a - pixel), cross(a - pixel, b - pixel)], -1)
    weights = edges / jnp.where(jnp.abs(area) < 1e-6, 1e-6, area)[..., None]
    z_pixel = jnp.sum(weights * z[FACES], -1)
    inside = jnp.all(weights >= 0, -1) & (jnp.abs(area) > 1e-6)
    buffer = jnp.where(inside, z_pixel, jnp.inf)
    face = jnp.argmin(buffer, -1)
    nearest = jnp.take_along_axis(weights, face[:, None, None], 1)[:, 0]
    return face, nearest, jnp.min(buffer, -1), jnp.any(inside, -1)


class Model(interface.Model):
    def signals(self):
        return (Use("expression", before=13, after=13, edge="repeat"),)

    def init(self, key):
        a, b = jax.random.split(key)
        size = (self.info.signal("expression").channels, len(VERTICES), 3)
        colours, encoder = 0.1 * jax.random.normal(a, size[1:]), 0.01 * jax.random.normal(b, size)
        return Variables({"colours": colours, "encoder": encoder}, {})

    def render(self, variables, batch, key, clock, train):
        if batch.image_hw is None:
            raise ValueError("a mesh is drawn whole: the batch needs image_hw")
        raster = jax.vmap(lambda pose, k: rasterize(pose, k, batch.image_hw))
        face, weights, z, hit = jax.lax.stop_gradient(raster(batch.cam_to_world, batch.intrinsics))
        mean = batch.signals["expression"][:, :, 0].mean(1)
        logits = variables.params["colours"] + jnp.einsum("bk,kvc->bvc", mean, variables.params["encoder"])
        corners = jax.vmap(lambda vertices, at: vertices[at])(jax.nn.sigmoid(logits), jnp.asarray(FACES)[face])
        alpha = hit[..., None].astype(jnp.float32)
        rgb = jnp.sum(weights[..., None] * corners, -2) * alpha
        return Render(rgb, alpha, jnp.where(hit, z, jnp.nan)[..., None])

    def loss_terms(self, variables, render, batch, key, clock):
        return {"l1": jnp.mean(jnp.abs(render.rgb + (1 - render.alpha) * batch.background - batch.target))}

    def stages(self):
        rates = {"all": Rate(0.05, eps=1e-5)}
        return (Stage("mesh", self.config.model.steps, 0, rates, {"l1": 1.0}, ("frame",), ema=None),)
