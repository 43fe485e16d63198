"""The torso of both systems computed literally: float64 loops from the dossiers, and small cases for them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tests import oracle
from tkjax import cameras
from tkjax.fields.torso import Torso
from tkjax.ops import GridSpec

SYSTEMS = {
    "euler": dict(pose="euler", xy_octaves=10, pose_octaves=4, deform_hidden=64),
    "anchors": dict(pose="anchors", xy_octaves=8, pose_octaves=3, deform_hidden=32),
}
SMALL = GridSpec(2, 4, 2, 4, 40, 8, "tiled")
H, W, SIDE, ROWS = 13, 22, 9, 7
FRAMES = np.array([5, 2], np.int32)


def contract_pose(euler, trans):
    """rad-nerf §2.3, §2.4: tracker's Euler angles and translation -> contract cam_to_world."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(euler), np.sin(euler)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, sz, 0], [-sz, cz, 0], [0, 0, 1]])
    json = np.eye(4)
    json[:3, :3] = (rx @ ry @ rz).T
    json[:3, 3] = -json[:3, :3] @ np.array(trans) / 10
    return cameras.from_adnerf_json(json)


POSES = np.stack([contract_pose((0.1, 0.2, 0.3), (0.5, -0.3, -8)), contract_pose((-0.2, 0.1, 0.05), (-0.4, 0.2, -7))])


def small(system, **changes):
    sizes = dict(height=H, width=W, code_rows=ROWS, spec=SMALL, side=SIDE, chunk=32, threshold=0.3)
    return Torso(**SYSTEMS[system] | sizes | changes)


def random_params(torso, seed=0):
    """Parameters whose every part matters: tables of size 0.5, offsets that reach the border."""
    params = torso.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    params["grid"] = {"tables": jnp.asarray(rng.uniform(-0.5, 0.5, params["grid"]["tables"].shape), jnp.float32)}
    for name, size in [("deform", 1.5), ("colour", 2.5)]:
        params[name] = {k: size * v for k, v in params[name].items()}
    params["codes"] = 5 * params["codes"]
    return params


def random_state(torso, seed=0):
    alpha = np.random.default_rng(seed).uniform(0, 1, torso.side**2) ** 2
    return {"alpha": jnp.asarray(alpha, jnp.float32)}


def random_pixels(rays, seed=0):
    """Pixel centres of the picture, its corners first, and some positions off the centres."""
    rng = np.random.default_rng(seed)
    pixels = np.stack([rng.integers(0, W, (2, rays)), rng.integers(0, H, (2, rays))], -1) + 0.5
    pixels[:, :4] = [(0.5, 0.5), (W - 0.5, 0.5), (0.5, H - 0.5), (W - 0.5, H - 0.5)]
    pixels[:, -5:] += rng.uniform(-0.5, 0.5, (2, 5, 2))
    return pixels.astype(np.float32)


def waves(values, octaves):
    out = list(values)
    for k in range(octaves):
        out += [math.sin(2**k * v) for v in values] + [math.cos(2**k * v) for v in values]
    return out


def pose_code(pose_kind, cam_to_world, anchors):
    """Six numbers from a contract pose, by the rows of er-nerf §2 "Pose" and the formulas of both dossiers."""
    c = np.float64(cam_to_world)
    p = np.array([c[1] * [1, -1, -1, 1], c[2] * [1, -1, -1, 1], c[0] * [1, -1, -1, 1], [0, 0, 0, 1]])
    if pose_kind == "euler":
        return [math.atan2(-p[1, 2], p[2, 2]), math.asin(p[0, 2]), math.atan2(-p[0, 1], p[0, 0]), *p[:3, 3]]
    out = []
    for a in anchors:
        q = np.linalg.inv(p) @ a
        out += [q[0] / q[3] / q[2], q[1] / q[3] / q[2]]
    return out


def network(layers, x):
    for k in range(len(layers)):
        x = np.asarray(x) @ layers[f"kernel_{k}"]
        x = np.maximum(x, 0) if k + 1 < len(layers) else x
    return x


def pixel(torso, params, constant, at):
    """(alpha, rgb) at unshrunk (row, col); `constant`: encoded pose and code of the frame."""
    x = np.asarray(at) * 0.8
    context = waves(x, torso.xy_octaves) + constant
    y = np.clip(x + network(params["deform"], context), -1, 1)
    s = torso.spec
    features = oracle.grid_encode(
        (y[None, None] + 1) / 2, params["grid"]["tables"], levels=s.levels, base=s.base, finest=s.finest,
        log2_entries=s.log2_entries, kind=s.kind,
    ).ravel()  # fmt: skip
    out = 1 / (1 + np.exp(-network(params["colour"], [*features, *context])))
    return out * 1.002 - 0.001 if torso.pose == "anchors" else out


def frame_constant(torso, params, cam_to_world, row):
    code = pose_code(torso.pose, cam_to_world, params.get("anchors"))
    return waves(code, torso.pose_octaves) + list(params["codes"][row])


def bilinear(alpha, side, at):
    """grid_sample with align_corners and zero padding; alpha's flat index is side * col + row."""
    row, col = (np.asarray(at, np.float64) + 1) / 2 * (side - 1)
    total = 0.0
    for i in range(side):
        for j in range(side):
            total += alpha[side * j + i] * max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(col - j))
    return total


def pixel_at(pixel_px):
    x, y = np.float64(pixel_px)
    return 2 * (y - 0.5) / (H - 1) - 1, 2 * (x - 0.5) / (W - 1) - 1


def float64(tree):
    return jax.tree.map(np.float64, tree)


def draw_literally(torso, params, alpha, poses, rows, pixels, wanted):
    """(premultiplied rgb and alpha [B,R,4], whether rounding may change the mask [B,R])."""
    b, r = pixels.shape[:2]
    out, close = np.zeros((b, r, 4)), np.zeros((b, r), bool)
    limit = min(torso.threshold, np.mean(alpha))
    for i in range(b):
        constant = frame_constant(torso, params, poses[i], rows[i])
        for j in range(r):
            at = pixel_at(pixels[i, j])
            seen = bilinear(alpha, torso.side, at)
            close[i, j] = abs(seen - limit) < 1e-5
            if wanted[i, j] and seen > limit:
                value = pixel(torso, params, constant, at)
                out[i, j] = [*value[0] * value[1:], value[0]]
    return out, close


def refresh_literally(torso, params, alpha, pose, row, noise):
    constant, side = frame_constant(torso, params, pose, row), torso.side
    fresh = np.zeros((side, side))
    for col in range(side):
        for row_cell in range(side):
            shift = noise[side * col + row_cell] / side
            at = np.array([(2 * row_cell + 1) / side - 1, (2 * col + 1) / side - 1]) + shift
            fresh[col, row_cell] = pixel(torso, params, constant, at)[0]
    out = np.zeros(side * side)
    for col in range(side):
        for row_cell in range(side):
            near = fresh[max(col - 2, 0) : col + 3, max(row_cell - 2, 0) : row_cell + 3]
            out[side * col + row_cell] = max(0.95 * alpha[side * col + row_cell], near.max())
    return out
