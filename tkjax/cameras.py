"""Pixels to rays, and every conversion between the contract's axes and a system's own.

Contract: camera-to-world matrices, camera looks along -z (OpenGL: x right, y up), world x to the right
of a frontal picture, y up, z towards the camera, one unit = 25 cm.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tkjax.types import Array

# ER-NeRF and RAD-NeRF march in (y, z, x) of the contract's world (er-nerf.md §2 "Pose", row order of
# the loader's matrix), with cameras that look along +z (OpenCV). The permutation is cyclic: a rotation.
NGP_FROM_WORLD = (1, 2, 0)
ADNERF_UNITS = 4.0  # AD-NeRF's transform_matrix counts metres; 1 m = 4 contract units
DECIMETRES = 2.5  # a contract unit in those of the Basel face model, which DynTet's space is (dossier dyntet §2.4)
NEAR, FAR = 0.1, 1000.0  # planes of its projection, dm (§2.4)


def pixel_rays(
    cam_to_world: Float[Array, "*#B 4 4"], intrinsics: Float[Array, "*#B 4"], pixels_px: Float[Array, "*B R 2"]
) -> tuple[Float[Array, "*B R 3"], Float[Array, "*B R 3"]]:
    """World origins and unit directions of the rays through pixel positions.

    d_cam = normalise((u - cx)/fx, -(v - cy)/fy, -1), d = R d_cam, o = the camera's centre.
    """
    fx, fy, cx, cy = (intrinsics[..., None, i] for i in range(4))
    x = (pixels_px[..., 0] - cx) / fx
    y = -(pixels_px[..., 1] - cy) / fy
    d_cam = jnp.stack([x, y, -jnp.ones_like(x)], -1)
    d_cam = d_cam / jnp.linalg.norm(d_cam, axis=-1, keepdims=True)
    d = jnp.einsum("...ij,...rj->...ri", cam_to_world[..., :3, :3], d_cam)
    o = jnp.broadcast_to(cam_to_world[..., None, :3, 3], d.shape)
    return o, d


def camera_z(cam_to_world, rays_d, t):
    """Camera z (positive in front, contract units) of the points at distance t along unit rays."""
    forward = -cam_to_world[..., None, :3, 2]
    return t * jnp.sum(rays_d * forward, -1)


def to_ngp_axes(v: Float[Array, "*B 3"]) -> Float[Array, "*B 3"]:
    """World vectors or points in the axes that RAD-NeRF and ER-NeRF march in: (y, z, x)."""
    return v[..., list(NGP_FROM_WORLD)]


def euler_xyz(angles: Float[Array, "*B 3"]) -> Float[Array, "*B 3 3"]:
    """Rx(a) Ry(b) Rz(c) of angles (a, b, c) in radians, standard matrices; differentiable."""
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    zero, one = jnp.zeros_like(angles[..., 0]), jnp.ones_like(angles[..., 0])

    def rows(*entries):
        return jnp.stack(entries, -1).reshape(*angles.shape[:-1], 3, 3)

    (ca, cb, cc), (sa, sb, sc) = (tuple(v[..., i] for i in range(3)) for v in (cos, sin))
    rx = rows(one, zero, zero, zero, ca, -sa, zero, sa, ca)
    ry = rows(cb, zero, sb, zero, one, zero, -sb, zero, cb)
    rz = rows(cc, -sc, zero, sc, cc, zero, zero, zero, one)
    return rx @ ry @ rz


def to_ngp_pose(cam_to_world: Float[np.ndarray, "*B 4 4"], scale: float = 1.0) -> Float[np.ndarray, "*B 4 4"]:
    """[...,4,4] contract pose -> the originals' loader pose (rows permuted, OpenCV columns; er-nerf.md §2).

    scale: of the marched space, in its units per contract unit (NeRFBlendShape: 0.33 / 4, its dossier §2.3)."""
    out = np.array(cam_to_world, copy=True)
    out[..., :3, :] = out[..., list(NGP_FROM_WORLD), :]
    out[..., :3, 1:3] *= -1
    out[..., :3, 3] *= scale
    return out


def from_adnerf_json(transform_matrix: np.ndarray) -> np.ndarray:
    """[...,4,4] `transform_matrix` of AD-NeRF style json (camera to head, metres) -> contract cam_to_world."""
    out = np.array(transform_matrix, dtype=np.float32, copy=True)
    out[..., :3, 3] *= ADNERF_UNITS
    return out


def project_world(cam_to_world: np.ndarray, intrinsics: np.ndarray, xyz_world: np.ndarray) -> np.ndarray:
    """[...,V,3] world points -> [...,V,2] pixel positions (numpy; the inverse of `pixel_rays`)."""
    rotation, centre = cam_to_world[..., :3, :3], cam_to_world[..., :3, 3]
    p = np.einsum("...ji,...vj->...vi", rotation, xyz_world - centre[..., None, :])
    fx, fy, cx, cy = (np.asarray(intrinsics)[..., i, None] for i in range(4))
    return np.stack([cx + fx * p[..., 0] / -p[..., 2], cy - fy * p[..., 1] / -p[..., 2]], -1)


# Rasterising: DynTet's model space has the contract's axes, in decimetres (dossier dyntet §2.4)


def world_to_camera(cam_to_world: Float[Array, "*B 4 4"], scale: float = 1.0) -> Float[Array, "*B 4 4"]:
    """The inverse [R | scale t] of contract poses, X_cam = R X + t; scale: of the target's space, in its units per
    contract unit (DynTet: DECIMETRES). Differentiable."""
    rotation = jnp.swapaxes(cam_to_world[..., :3, :3], -1, -2)
    t = -scale * jnp.sum(rotation * cam_to_world[..., None, :3, 3], -1)
    last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0], t.dtype), (*t.shape[:-1], 1, 4))
    return jnp.concatenate([jnp.concatenate([rotation, t[..., None]], -1), last], -2)


def camera_to_clip(
    intrinsics: Float[Array, "*B 4"], width: int, height: int, near: float = NEAR, far: float = FAR
) -> Float[Array, "*B 4 4"]:
    """Projection whose clip coordinates x/w, y/w in ±1 span the picture, row 0 at y/w = -1, and z/w from -1 at `near`
    to 1 at `far`; w = -Z (dossier dyntet §2.4):

      ((2 fx/W, 0, 1 - 2 cx/W, 0), (0, -2 fy/H, 1 - 2 cy/H, 0), (0, 0, -(f+n)/(f-n), -2 f n/(f-n)), (0, 0, -1, 0)).

    ValueError unless 0 < near < far. Differentiable in the intrinsics (fx, fy, cx, cy in pixels).
    """
    if not 0 < near < far:
        raise ValueError(f"camera_to_clip: expected 0 < near < far, got {near} and {far}")
    fx, fy, cx, cy = (intrinsics[..., i] for i in range(4))
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = (
        (2 * fx / width, zero, 1 - 2 * cx / width, zero),
        (zero, -2 * fy / height, 1 - 2 * cy / height, zero),
        (zero, zero, -(far + near) / (far - near) * one, -2 * far * near / (far - near) * one),
        (zero, zero, -one, zero),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def to_clip(points: Float[Array, "*B M 3"], world_to_clip: Float[Array, "*B 4 4"]) -> Float[Array, "*B M 4"]:
    """Clip coordinates of points; world_to_clip = camera_to_clip @ world_to_camera. Differentiable in both; products
    in full float32, since a pixel is a thousandth of the picture."""
    turned = jnp.einsum("...ij,...mj->...mi", world_to_clip[..., :3], points, precision=jax.lax.Precision.HIGHEST)
    return turned + world_to_clip[..., None, :, 3]


def eye_position(view: Float[Array, "*B 4 4"], original: bool = False) -> Float[Array, "*B 3"]:
    """The camera's centre -R^T t of world-to-camera matrices; `original`: -t, DynTet's slip, right for R = 1 alone."""
    t = view[..., :3, 3]
    return -t if original else -jnp.sum(view[..., :3, :3] * t[..., :, None], -2)
