"""The occupancy grid against a literal loop over its cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracle
from tkjax.render import occupancy

SIDE = 8
CELLS = SIDE**3
CODES = np.array([oracle.morton(*cell) for cell in np.ndindex(SIDE, SIDE, SIDE)])  # raster order -> Morton


def bump(height):
    """A density that depends on where in the cell it is asked, and not a number where it should not be asked."""

    def sigma(xyz, total):
        value = height * jnp.exp(-3.0 * jnp.sum(jnp.square(xyz - 0.2), -1))
        return jnp.where(jnp.arange(xyz.shape[0]) < total, value, jnp.nan)

    return sigma


def peak(xyz, height):
    return height * np.exp(-3.0 * np.sum(np.square(xyz - 0.2), -1))


def raster(grid):
    return np.asarray(grid)[CODES].reshape(SIDE, SIDE, SIDE)


@pytest.fixture(scope="module")
def refresh():
    return jax.jit(lambda state, height, key: occupancy.refresh(state, bump(height), key))


def test_cells_span_the_cube_as_in_the_originals():
    """Cell c lies at (2 c / 127 - 1)(1 - 1/128) of a side of 128: the same as (2 c + 1) / 128 - 1."""
    codes = jnp.array([oracle.morton(0, 64, 127)])
    want = (2 * np.array([0, 64, 127]) + 1) / 128 - 1
    np.testing.assert_allclose(occupancy.cell_centres(codes, 128)[0], want, atol=1e-6)


@pytest.mark.parametrize("height", [3.0, 300.0])
def test_refresh_equals_the_loop(refresh, height):
    rng = np.random.default_rng(0)
    density = rng.exponential(8.0, CELLS).astype(np.float32)
    density[rng.random(CELLS) < 0.4] = -1.0
    state = {"density": jnp.asarray(density), "bits": jnp.zeros(CELLS // 8, jnp.uint8)}
    key = jax.random.key(3)
    noise = np.asarray(jax.random.uniform(key, (CELLS, 3), minval=-1.0, maxval=1.0))
    new = refresh(state, height, key)

    # Cells -1 count for the maximum of their neighbours and are never raised themselves. Noise is numbered by
    # the cells in Morton order that are evaluated.
    old = raster(density)
    wanted = oracle.dilate((old >= 0).astype(np.float32)) > 0
    order = sorted(code for code, want in zip(CODES, wanted.reshape(-1)) if want)
    rank = {code: i for i, code in enumerate(order)}
    fresh = np.zeros((SIDE,) * 3)
    for cell in np.ndindex(SIDE, SIDE, SIDE):
        code = oracle.morton(*cell)
        if code in rank:
            centre = (2 * np.array(cell) / (SIDE - 1) - 1) * (1 - 1 / SIDE)
            fresh[cell] = peak(centre + noise[rank[code]] / SIDE, height)
    want = np.where(old >= 0, np.maximum(0.95 * old, oracle.dilate(fresh)), old)
    np.testing.assert_allclose(raster(new["density"]), want, rtol=1e-5)
    threshold = min(np.maximum(want, 0).mean(), 10.0)
    bits = np.unpackbits(np.asarray(new["bits"]), bitorder="little")
    clear = np.abs(want - threshold) > 1e-4
    np.testing.assert_array_equal(raster(bits)[clear], (want > threshold)[clear])
    assert 0.02 < occupancy.occupied_share(new["bits"]) < 0.98


def test_everything_is_occupied_before_the_first_refresh():
    assert occupancy.occupied_share(occupancy.init(SIDE)["bits"]) == 1.0


def look(origin, target):
    """OpenCV camera-to-world in grid axes: looks from origin to target along +z."""
    forward = np.subtract(target, origin) / np.linalg.norm(np.subtract(target, origin))
    right = np.cross(forward, [0.3, 1.0, 0.2])
    right /= np.linalg.norm(right)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = origin
    return pose


def test_cells_that_no_camera_sees_are_marked_and_stay_empty(refresh):
    poses = np.stack([look((0.3, 3.0, 0.1), (0.3, 0, 0.1)), look((2.5, 1.0, 0.0), (0.2, 0, 0))])
    intrinsics = np.tile(np.array([60.0, 50.0, 8.0, 12.0], np.float32), (2, 1))
    state = occupancy.mark_unseen(occupancy.init(SIDE), poses, intrinsics, height=24, width=16)
    seen = np.zeros((SIDE,) * 3, bool)
    for cell in np.ndindex(SIDE, SIDE, SIDE):
        point = (2 * np.array(cell) + 1) / SIDE - 1
        for pose in poses.astype(np.float64):
            x, y, z = pose[:3, :3].T @ (point - pose[:3, 3])
            seen[cell] |= z > 0 and abs(x) < 8 / 60 * z + 2 / SIDE and abs(y) < 12 / 50 * z + 2 / SIDE
    assert 0.1 < seen.mean() < 0.9
    np.testing.assert_array_equal(raster(state["density"]) == 0, seen)
    np.testing.assert_array_equal(raster(np.unpackbits(np.asarray(state["bits"]), bitorder="little")) == 1, seen)
    state = refresh(state, 50.0, jax.random.key(0))
    np.testing.assert_array_equal(raster(state["density"]) == -1, ~seen)
    assert not raster(np.unpackbits(np.asarray(state["bits"]), bitorder="little"))[~seen].any()


def test_a_box_keeps_only_the_cells_that_touch_it():
    poses, intrinsics = look((0, 3.3, 0), (0, 0, 0))[None], np.array([[10.0, 10.0, 50.0, 50.0]], np.float32)
    box = np.array([-1, -0.5, -1, 1, 0.5, 1.0])
    state = occupancy.mark_unseen(occupancy.init(SIDE), poses, intrinsics, 100, 100, box)
    assert (raster(state["density"]) == 0).any((0, 2)).tolist() == [False, False] + [True] * 4 + [False] * 2


def test_a_share_keeps_the_cells_that_so_many_cameras_see():
    poses = np.stack([look((0.3, 3.0, 0.1), (0.3, 0, 0.1)), look((2.5, 1.0, 0.0), (0.2, 0, 0))])
    intrinsics = np.tile(np.array([60.0, 50.0, 8.0, 12.0], np.float32), (2, 1))

    def seen(which, share):
        state = occupancy.mark_unseen(
            occupancy.init(SIDE), poses[which], intrinsics[which], height=24, width=16, share=share
        )
        return np.asarray(state["density"]) == 0

    one, other = seen([0], 0.0), seen([1], 0.0)
    assert (one & other).any() and (one ^ other).any()
    for share, want in ((0.0, one | other), (0.5, one | other), (0.6, one & other), (1.0, one & other)):
        np.testing.assert_array_equal(seen([0, 1], share), want)
