"""rasterize and interpolate beside another renderer: DEODR's compiled one, which shares no line with these."""

import importlib.machinery
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import raster_oracle as oracle
from tests.ops.grid_cases import BACKENDS, running
from tests.ops.rasterize_test import drawn
from tkjax.ops import Raster, interpolate

HEIGHT, WIDTH = 24, 30


def _extension():
    """DEODR's compiled module alone, or None: the package around it asks for more than is needed here."""
    found = importlib.util.find_spec("deodr")
    files = list(Path(found.origin).parent.glob("differentiable_renderer_cython*.so")) if found else []
    if not files:
        return None
    loader = importlib.machinery.ExtensionFileLoader("differentiable_renderer_cython", str(files[0]))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


DEODR = _extension()
pytestmark = pytest.mark.skipif(DEODR is None, reason="deodr is not installed (pip install --no-deps deodr)")


def theirs(clip, faces, values):
    """Pixels [H,W,C] of values [F,3,C] at the corners of each face, in perspective; their depth is W."""
    corners = clip[faces].reshape(-1, 4).astype(np.float64)
    n = len(corners)
    columns = (corners[:, 0] / corners[:, 3] + 1) * WIDTH / 2
    rows = (corners[:, 1] / corners[:, 3] + 1) * HEIGHT / 2
    own, channels = np.arange(n, dtype=np.uint32).reshape(-1, 3), values.shape[-1]
    scene = SimpleNamespace(
        faces=own, faces_uv=own, ij=np.stack([columns, rows], 1), depths=corners[:, 3].copy(),
        textured=np.zeros(n // 3, bool), uv=np.zeros((n, 2)), shade=np.zeros(n), shaded=np.zeros(n // 3, bool),
        colors=values.reshape(n, channels).astype(np.float64), edgeflags=np.zeros((n // 3, 3), bool), height=HEIGHT,
        width=WIDTH, nb_colors=channels, texture=np.zeros((0, 0, 0)), background_image=None,
        background_color=np.zeros(channels), clockwise=False, backface_culling=False, strict_edge=False,
        perspective_correct=True, integer_pixel_centers=False,
    )  # fmt: skip
    image, depth = np.zeros((HEIGHT, WIDTH, channels)), np.zeros((HEIGHT, WIDTH))
    DEODR.renderSceneCpp(scene, 0.0, image, depth)
    return image


@pytest.mark.heavy
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**31))
def test_another_renderer_draws_the_same(name, seed):
    """Faces and attributes of triangles anywhere, W from 0.5 to 3, near ones hiding far ones."""
    clip, faces = oracle.soup(seed, "plain", 7, 9)
    w = clip[:, 3:]
    near, far = 0.4, 4.0
    z = (w * (far + near) - 2 * far * near) / (far - near)
    clip = np.concatenate([clip[:, :2], z, w], 1)
    attributes = np.random.default_rng(seed).normal(size=(9, 2)).astype(np.float32)
    number = np.broadcast_to(np.arange(1, 8)[:, None, None], (7, 3, 1))
    want = theirs(clip, faces, np.concatenate([number, attributes[faces]], 2))
    with running(name) as backend:
        raster = drawn(backend, clip, faces, HEIGHT, WIDTH)
        got = np.asarray(
            interpolate(jnp.asarray(attributes), Raster(*map(jnp.asarray, raster)), jnp.asarray(faces), backend=backend)
        )
    sure = oracle.rasterize(clip, faces, HEIGHT, WIDTH)[3]  # not so where the same triangle is there twice
    same = np.abs(raster.face - want[..., 0]) < 1e-3
    assert same[sure].mean() > 0.98  # they take some pixels for covered that lie a little outside of a face
    np.testing.assert_allclose(got[same], want[same][:, 1:], atol=2e-3)
