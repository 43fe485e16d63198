"""A small RAD-NeRF, its batches and its losses, as the tests of the system use them."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import rad_nerf as rad_nerf_config
from tests.infos import subject_info
from tkjax.ops import GridSpec
from tkjax.signals import SOUND
from tkjax.types import Batch, Clock

SIZE, RAYS, FRAMES, PATCH = 16, 64, 12, 4
A, T, W = 6, 16, 8
SPACE = GridSpec(3, 4, 2, 8, 40, 10, "tiled")  # of `tiny`
AMBIENT = GridSpec(2, 3, 2, 8, 30, 8, "tiled")
KEY = jax.random.key(7)


def clock(stage="head", step=16, progress=0.5):
    return Clock(jnp.int32(step), jnp.float32(progress), stage)


def info(channels=A, steps=T, n_frames=FRAMES):
    return subject_info(n_frames, SIZE, SIZE, "logmel", channels, steps, 4, (40.0, 40.0, SIZE / 2, SIZE / 2))


def tiny(**changes):
    c = rad_nerf_config.get_config("smoke")
    grids = dict(grid_base=8, grid_levels=4, grid_finest=40, grid_log2_entries=10)
    grids |= dict(ambient_levels=3, ambient_finest=30, ambient_log2_entries=8)
    grids |= dict(torso_levels=3, torso_finest=32, torso_log2_entries=8)
    c.model.update(grids | dict(code_rows=16, occupancy_side=16, chunk=64, samples=8, waves=2))
    c.model.update(changes)
    c.train.lips.update(dict(patch=PATCH, perceptual="structure"))
    return c


def pose(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s, 3.3 * s], [0, 1, 0, 0.05], [-s, 0, c, 3.3 * c], [0, 0, 0, 1]], np.float32)


def batch(frames=(3,), seed=0, rays=RAYS, sampler="rays"):
    """Random pixels; of `lips` four tiles of PATCH x PATCH in the middle, as `tkjax.data.dataset_clip` gives them."""
    parts = []
    for frame in frames:
        rng = np.random.default_rng([seed, frame])
        pixels = rng.uniform(0, SIZE, (rays, 2))
        if sampler == "lips":
            tile, pixel = np.divmod(np.arange(4 * PATCH**2), PATCH**2)
            y, x = (a * PATCH + b for a, b in zip(np.divmod(tile, 2), np.divmod(pixel, PATCH)))
            pixels = np.stack([x, y], -1) + 4.5
        near = np.hypot(*(pixels - SIZE / 2).T) < SIZE / 4
        parts.append(
            dict(
                frame=np.int32(frame), cam_to_world=pose(0.05 * frame), intrinsics=np.array(info().intrinsics),
                pixels_px=pixels, background=rng.uniform(size=(len(pixels), 3)), label=near.astype(np.uint8),
                signals={SOUND: rng.normal(size=(W, T, A)), "eye_area": np.full((1, 1, 1), 0.2)},
                masks={"lips": near, "lower_face": near & (pixels[:, 1] > SIZE / 2)},
                target=np.where(near[:, None], [0.9, 0.6, 0.4], 0.2),
            )
        )  # fmt: skip
    stacked = jax.tree.map(lambda *values: np.stack(values), *parts)
    arrays = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32 if v.dtype == np.float64 else v.dtype), stacked)
    return Batch(**arrays, patches=sampler if sampler in ("lips", "patch") else None)


def changed(data, name, values):
    return data.replace(signals=data.signals | {name: values})


def total(model):
    """A jitted value and gradient of a stage's whole loss, as a trainer forms it: (variables, batch, key, clock)."""
    stages = {stage.name: stage for stage in model.stages()}

    @jax.jit
    def run(variables, data, key, now):
        weights = stages[now.stage].weights

        def loss(params):
            v = variables.replace(params=params)
            render = model.render(v, data, key, now, True)
            terms = model.loss_terms(v, render, data, key, now)
            values = {k: w(now.progress) if callable(w) else w for k, w in weights.items()}
            assert set(terms) <= set(values)
            return sum(values[k] * terms[k] for k in terms), (terms, render)

        return jax.value_and_grad(loss, has_aux=True)(variables.params)

    return run


def grown(variables):
    """Parameters away from their start, where tables are nearly zero and nothing is opaque."""

    def grow(path, p):
        if path[-1].key == "tables":
            return p * 1e4
        return p * (5.0 if path[0].key == "sigma" else 1.0)

    return variables.replace(params=jax.tree_util.tree_map_with_path(grow, variables.params))
