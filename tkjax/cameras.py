"""Pixels to rays, and every conversion between the contract's axes and a system's own.

Contract: camera-to-world matrices, camera looks along -z (OpenGL: x right, y up), world x to the right
of a frontal picture, y up, z towards the camera, one unit = 25 cm.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tkjax.types import Array

# ER-NeRF and RAD-NeRF march in (y, z, x) of the contract's world (er-nerf.md §2 "Pose", row order of
# the loader's matrix), with cameras that look along +z (OpenCV). The permutation is cyclic: a rotation.
NGP_FROM_WORLD = (1, 2, 0)
ADNERF_UNITS = 4.0  # AD-NeRF's transform_matrix counts metres; 1 m = 4 contract units


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
