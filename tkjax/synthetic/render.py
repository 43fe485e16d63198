"""Sphere tracing of the subject on the CPU: layers, labels, depth and smooth edges for any set of pixels.

A frame has three layers, head over body over plate. The body layer is the neck and torso with the head taken
away (its shadow stays), so that picture = head + (1 - alpha) * (body over plate) holds exactly.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from tkjax.synthetic import body as body_
from tkjax.synthetic import shading, shape

CHUNK = 2048  # rays in one call; all calls have this size, so each function compiles once
STEPS = 6  # sphere-tracing steps between compactions
ROUNDS = 9
EPSILON = 0.012  # cm; a hit
UNIT_CM = 25.0


@dataclasses.dataclass(frozen=True)
class Camera:
    """A still pinhole camera on the stage: looks along -z from (0, height, distance), centimetres."""

    height: int
    width: int
    fx: float
    fy: float
    cx: float
    cy: float
    stage_from_camera: np.ndarray  # [4,4], cm

    @property
    def intrinsics(self) -> Float[np.ndarray, " 4"]:
        return np.array([self.fx, self.fy, self.cx, self.cy], np.float32)

    def directions(self, pixels_px) -> Float[np.ndarray, "M 3"]:
        """Unit directions on the stage through pixel positions [M,2]."""
        d = np.stack(
            [(pixels_px[:, 0] - self.cx) / self.fx, -(pixels_px[:, 1] - self.cy) / self.fy, -np.ones(len(pixels_px))], 1
        )
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        return d @ self.stage_from_camera[:3, :3].T


def portrait_camera(height: int, width: int) -> Camera:
    """Head and shoulders from 85 cm: 40 cm of the subject over the height of the picture."""
    distance, view, look_at = 85.0, 40.0, -4.0
    focal = height * distance / view
    pose = np.eye(4)
    pose[:3, 3] = (0.0, look_at, distance)
    return Camera(height, width, focal, focal, width / 2, height / 2, pose)


@dataclasses.dataclass(frozen=True)
class Pose:
    """One instant: where the head is and what the face does. `controls` from `controls.frame_controls`."""

    stage_from_head: np.ndarray  # [4,4], cm
    controls: dict
    body: np.ndarray  # [3] cm, how far the trunk has swayed


@dataclasses.dataclass
class Traced:
    """Layers at M pixel positions. rgb are display values 0…1, valid where hit; z is camera depth in cm."""

    head: np.ndarray  # [M] bool: the head is what one sees
    head_rgb: np.ndarray  # [M,3]
    body: np.ndarray  # [M] uint8: 0, 2 neck, 3 torso, as if the head were away
    body_rgb: np.ndarray  # [M,3]
    z: np.ndarray  # [M] cm, of the nearest hit; NaN where there is none


def _layout(controls):
    return tuple((k, np.asarray(v).shape) for k, v in controls.items())


def _pack(controls):
    return np.concatenate([np.asarray(v, np.float32).ravel() for v in controls.values()])


def _unpack(vector, layout):
    out, at = {}, 0
    for name, dims in layout:
        size = int(np.prod(dims)) if dims else 1
        out[name] = vector[at : at + size].reshape(dims) if dims else vector[at]
        at += size
    return out


_MAPS = {"head": shape.head, "body": body_.body}


@functools.partial(jax.jit, static_argnames=("layout", "which"))
def _march(vector, origin, d, t, t_end, layout, which):
    """STEPS sphere-tracing steps; returns (t, hit) with t > t_end for rays that left."""
    f, sdf = _unpack(vector, layout), _MAPS[which]
    dx, dy, dz = d[:, 0], d[:, 1], d[:, 2]

    def step(_, state):
        t, hit = state
        dist = sdf(origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz, f)
        now = dist < EPSILON
        go = ~(hit | now) & (t < t_end)
        return jnp.where(go, t + jnp.maximum(dist * shape.STEP_SCALE, 0.5 * EPSILON), t), hit | now

    return jax.lax.fori_loop(0, STEPS, step, (t, jnp.zeros_like(t, bool)))


@functools.partial(jax.jit, static_argnames=("layout", "which"))
def _shade(vector, origin, d, t, pixel_cm, layout, which):
    """Display rgb [N,3] (and labels [N] of the body) at distance t along the rays."""
    f, sdf = _unpack(vector, layout), _MAPS[which]
    dx, dy, dz = d[:, 0], d[:, 1], d[:, 2]
    x, y, z = origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
    e = 0.35 * pixel_cm
    corners = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)

    def corner(i, acc):
        c = jnp.asarray(corners)[i]
        v = sdf(x + e * c[0], y + e * c[1], z + e * c[2], f)
        return tuple(a + ci * v for a, ci in zip(acc, c))

    zero = jnp.zeros_like(x)
    n = jax.lax.fori_loop(0, 4, corner, (zero, zero, zero))
    length = jnp.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2 + 1e-12)
    n = [c / length for c in n]

    # ambient occlusion: how much nearer the surface is than the way walked along the normal
    reach = np.array([0.35, 0.9, 1.9, 3.4], np.float32)

    def occlude(i, acc):
        h = jnp.asarray(reach)[i]
        v = sdf(x + h * n[0], y + h * n[1], z + h * n[2], f)
        return acc + jnp.asarray(np.array([0.42, 0.30, 0.17, 0.11], np.float32))[i] * jnp.clip(1 - v / h, 0, 1.2)

    ao = jnp.clip(1 - 1.15 * jax.lax.fori_loop(0, 4, occlude, zero), 0.0, 1.0)

    key = f["key"]
    if which == "head":
        at = np.array([0.5, 1.1, 2.0, 3.3, 5.2, 8.0], np.float32)

        def block(i, acc):
            h = jnp.asarray(at)[i]
            v = sdf(x + h * key[0] + 0.15 * n[0], y + h * key[1] + 0.15 * n[1], z + h * key[2] + 0.15 * n[2], f)
            return jnp.minimum(acc, 0.5 + 0.5 * jnp.clip(4.5 * v / h, -1, 1))

        shadow = jax.lax.fori_loop(0, len(at), block, zero + 1.0)
    else:
        # the head above throws a soft shadow: two spheres, in closed form
        shadow = zero + 1.0
        for i in range(2):
            rel = [x - f["occluder"][i, 0], y - f["occluder"][i, 1], z - f["occluder"][i, 2]]
            radius = f["occluder"][i, 3]
            along = -(rel[0] * key[0] + rel[1] * key[1] + rel[2] * key[2])
            miss = jnp.sqrt(jnp.maximum(rel[0] ** 2 + rel[1] ** 2 + rel[2] ** 2 - along**2, 1e-6)) - radius
            lit = shape.smoothstep(-0.9, 1.0, miss / jnp.maximum(0.45 * along, 0.8))
            shadow = shadow * jnp.where(along > 0, lit, 1.0)
            far = jnp.sqrt(rel[0] ** 2 + rel[1] ** 2 + rel[2] ** 2 + 1e-6)
            facing = -(n[0] * rel[0] + n[1] * rel[1] + n[2] * rel[2]) / far
            ao = ao * (1 - jnp.clip(0.35 + 0.65 * facing, 0, 1) * jnp.clip(radius / far, 0, 1) ** 2 * 0.85)
    shadow = shadow * shadow * (3 - 2 * shadow)
    view = [-dx, -dy, -dz]
    if which == "head":
        return shading.head_colour((x, y, z), n, view, shadow, ao, f), jnp.ones_like(x, jnp.uint8)
    return shading.body_colour((x, y, z), n, view, shadow, ao, f)


def _chunks(index):
    """Index arrays of length CHUNK (the last padded with its own first entry) and how many count."""
    for a in range(0, len(index), CHUNK):
        part = index[a : a + CHUNK]
        yield np.concatenate([part, np.full(CHUNK - len(part), part[0])]) if len(part) < CHUNK else part, len(part)


def _trace(vector, layout, which, origin, d, t0, t1):
    """Distances along rays [M,3]; NaN for a miss. Rays that have arrived are dropped between rounds."""
    out = np.full(len(d), np.nan, np.float32)
    t = t0.astype(np.float32)
    live = np.flatnonzero(t1 > t0)
    for _ in range(ROUNDS):
        rest = []
        for index, count in _chunks(live):
            ts, hit = _march(vector, origin, d[index], t[index], t1[index], layout, which)
            ts, hit = np.asarray(ts)[:count], np.asarray(hit)[:count]
            index = index[:count]
            t[index] = ts
            out[index[hit]] = ts[hit]
            rest.append(index[~hit & (ts < t1[index])])
        live = np.concatenate(rest) if rest else live[:0]
        if not len(live):
            break
    # what is still creeping along a silhouette counts as a hit if it is close
    return out


def _ellipsoid_range(origin, d, centre, radii):
    """Entry and exit of rays through an ellipsoid; exit < entry where they miss."""
    o, r = (origin - centre) / radii, d / radii
    a, b, c = (r * r).sum(1), (r * o).sum(1), (o * o).sum() - 1
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    t0, t1 = (-b - root) / a, (-b + root) / a
    return np.where(disc > 0, t0, 1.0).astype(np.float32), np.where(disc > 0, t1, 0.0).astype(np.float32)


def _box_range(origin, d, low, high):
    with np.errstate(divide="ignore"):
        inv = 1.0 / d
    a, b = (low - origin) * inv, (high - origin) * inv
    return np.minimum(a, b).max(1).astype(np.float32), np.maximum(a, b).min(1).astype(np.float32)


class Scene:
    """The subject in front of a camera; `trace` looks at pixel positions, `frame` makes a whole picture."""

    def __init__(self, camera: Camera, plate: UInt8[np.ndarray, "H W 3"]):
        self.camera, self.plate = camera, plate

    def _vectors(self, pose: Pose):
        head_r, head_t = pose.stage_from_head[:3, :3], pose.stage_from_head[:3, 3]
        lights = {"key": shading.KEY, "fill": shading.FILL, "rim": shading.RIM, "up": np.array([0.0, 1.0, 0.0])}
        top = head_r @ np.array(body_.NECK_TOP) + head_t
        occluders = np.stack([np.append(head_r @ np.array(c) + head_t, r) for c, r in (((0, 1.5, -2.0), 8.2), ((0, -6.0, 1.5), 4.2))])
        shared = {**pose.controls, "neck_top": top - pose.body, "occluder": occluders, "body": pose.body}
        head = {**shared, **{k: head_r.T @ v for k, v in lights.items()}}
        return head, {**shared, **lights}

    def trace(self, pose: Pose, pixels_px: Float[np.ndarray, "M 2"], want=("head", "body")) -> Traced:
        """Layers at pixel positions (see `Traced`); without "body" in `want` only the head is traced."""
        m = len(pixels_px)
        f_head, f_body = self._vectors(pose)
        layout = _layout(f_head)
        d_stage = self.camera.directions(pixels_px)
        origin = self.camera.stage_from_camera[:3, 3]
        pixel_cm = np.float32(origin[2] / self.camera.fy)
        forward = -self.camera.stage_from_camera[:3, 2]
        cosine = d_stage @ forward
        head_r, head_t = pose.stage_from_head[:3, :3], pose.stage_from_head[:3, 3]
        o_head = ((origin - head_t) @ head_r).astype(np.float32)
        d_head = (d_stage @ head_r).astype(np.float32)
        long = float(pose.controls["hair_long"])
        t0, t1 = _ellipsoid_range(o_head, d_head, np.array([0, 1.0 - 2 * long, -3.0]), np.array([11.0 + long, 17.5 + 2.5 * long, 13.2]))
        v_head = jnp.asarray(_pack(f_head))
        t_head = _trace(v_head, layout, "head", o_head, d_head, t0, t1)
        t_body, label, body_rgb = np.full(m, np.nan, np.float32), np.zeros(m, np.uint8), np.zeros((m, 3), np.float32)
        if "body" in want:
            d32, o32 = d_stage.astype(np.float32), origin.astype(np.float32)
            b0, b1 = _box_range(origin, d_stage, np.array([-40.0, -50.0, -17.0]), np.array([40.0, -0.5, 9.0]))
            v_body = jnp.asarray(_pack(f_body))
            t_body = _trace(v_body, layout, "body", o32, d32, b0, b1)
            hits = np.flatnonzero(np.isfinite(t_body))
            for index, count in _chunks(hits):
                rgb, lab = _shade(v_body, o32, d32[index], t_body[index], pixel_cm, layout, "body")
                body_rgb[index[:count]], label[index[:count]] = np.asarray(rgb)[:count], np.asarray(lab)[:count]
        with np.errstate(invalid="ignore"):
            seen = np.isfinite(t_head) & ~(t_body < t_head)
        head_rgb = np.zeros((m, 3), np.float32)
        for index, count in _chunks(np.flatnonzero(seen)):
            rgb, _ = _shade(v_head, o_head, d_head[index], t_head[index], pixel_cm, layout, "head")
            head_rgb[index[:count]] = np.asarray(rgb)[:count]
        z = np.fmin(np.where(seen, t_head, np.nan), t_body) * cosine
        return Traced(seen, head_rgb, label, body_rgb, z.astype(np.float32))

    def frame(self, pose: Pose, box=None, smooth: bool = True) -> dict[str, np.ndarray]:
        """One picture, or the part of it inside box = (x0, y0, x1, y1) in pixels.

        Returns `rgb` u8 [h,w,3], `torso` RGBA u8 [h,w,4] (straight alpha, head removed), `label` u8 [h,w],
        `depth` float16 [h,w] (camera z in contract units at the pixel centre, NaN on the background) and
        `alpha` u8 [h,w] (coverage of the head). `smooth` averages 2x2 samples on edges.
        """
        x0, y0, x1, y1 = box if box is not None else (0, 0, self.camera.width, self.camera.height)
        h, w = y1 - y0, x1 - x0
        gx, gy = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
        pixels = np.stack([gx.ravel(), gy.ravel()], 1)
        c = self.trace(pose, pixels)
        label = np.where(c.head, 1, c.body).astype(np.uint8)
        depth = (c.z / UNIT_CM).astype(np.float16).reshape(h, w)
        head_a, body_a = c.head.astype(np.float32), (c.body > 0).astype(np.float32)
        head_c, body_c = c.head_rgb * head_a[:, None], c.body_rgb * body_a[:, None]
        if smooth:
            edge = np.flatnonzero(_edges(np.where(c.head[:, None], c.head_rgb, 0), c.head, c.z, h, w)
                                  | _edges(c.body_rgb, c.body, np.zeros_like(c.z), h, w))  # fmt: skip
            if len(edge):
                offsets = np.array([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
                s = self.trace(pose, (pixels[edge][:, None] + offsets).reshape(-1, 2))
                ha, ba = s.head.astype(np.float32), (s.body > 0).astype(np.float32)
                head_a[edge], body_a[edge] = ha.reshape(-1, 4).mean(1), ba.reshape(-1, 4).mean(1)
                head_c[edge] = (s.head_rgb * ha[:, None]).reshape(-1, 4, 3).mean(1)
                body_c[edge] = (s.body_rgb * ba[:, None]).reshape(-1, 4, 3).mean(1)
        straight = np.where(body_a[:, None] > 0, body_c / np.maximum(body_a[:, None], 1e-6), 0)
        torso = np.round(np.clip(np.concatenate([straight, body_a[:, None]], 1), 0, 1) * 255).astype(np.uint8)
        plate = self.plate[y0:y1, x0:x1].reshape(-1, 3) / 255.0
        a = torso[:, 3:] / 255.0
        behind = torso[:, :3] / 255.0 * a + plate * (1 - a)
        rgb = head_c + (1 - head_a[:, None]) * behind
        return {
            "rgb": np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8).reshape(h, w, 3),
            "torso": torso.reshape(h, w, 4),
            "label": label.reshape(h, w),
            "depth": depth,
            "alpha": np.round(head_a * 255).astype(np.uint8).reshape(h, w),
        }


def _edges(rgb, ident, z, h, w):
    """[h*w] bool: pixels whose neighbour differs in kind, in depth (> 1 cm) or in colour (> 0.13)."""
    ident = np.asarray(ident).reshape(h, w).astype(np.int16)
    rgb, z = rgb.reshape(h, w, 3), np.nan_to_num(z.reshape(h, w))
    out = np.zeros((h, w), bool)
    for axis in (0, 1):
        a = [slice(None)] * 2
        b = [slice(None)] * 2
        a[axis], b[axis] = slice(1, None), slice(None, -1)
        a, b = tuple(a), tuple(b)
        jump = (ident[a] != ident[b]) | (np.abs(rgb[a] - rgb[b]).max(-1) > 0.13)
        jump |= (np.abs(z[a] - z[b]) > 1.0) & (ident[a] > 0)
        out[a] |= jump
        out[b] |= jump
    return out.ravel()
