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
from tkjax.synthetic.packed import Packed, unpack

CHUNK = 2048  # rays in one call; all calls have this size, so each function compiles once
STEPS = 6  # sphere-tracing steps between compactions
ROUNDS = 14  # then the few rays that still creep along an outline count as misses
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


_MAPS = {"head": shape.head, "body": body_.body, "solid": shape.solid}


@functools.partial(jax.jit, static_argnames=("layout", "which"))
def _march(vector, origin, d, t, t_end, layout, which):
    """STEPS sphere-tracing steps from t > 0 on; -t where the surface was met, t > t_end where the ray left.

    One array carries both facts: with two outputs XLA would evaluate the distance once for each.
    """
    f, sdf = unpack(vector, layout), _MAPS[which]
    dx, dy, dz = d[:, 0], d[:, 1], d[:, 2]

    def step(_, t):
        dist = sdf(origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz, f)
        on = jnp.where(dist < EPSILON, -t, t + jnp.maximum(dist * shape.STEP_SCALE, 0.5 * EPSILON))
        return jnp.where((t > 0) & (t < t_end), on, t)

    return jax.lax.fori_loop(0, STEPS, step, t)


@functools.partial(jax.jit, static_argnames=("layout", "which"))
def _distance(vector, p, layout, which):
    """Distances at p [3,K,N], K of them for each of N points."""
    return _MAPS[which](p[0], p[1], p[2], unpack(vector, layout))


_CORNERS = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32).T  # differences for the normal
_REACH = np.array([0.4, 1.2, 2.8], np.float32)[:, None]  # cm along the normal, ambient occlusion
_REACH_WEIGHT = np.array([0.50, 0.32, 0.24], np.float32)[:, None]
_TOWARDS_KEY = np.array([0.6, 1.4, 2.9, 5.5], np.float32)[:, None]  # cm towards the key light


def _normals(f: Packed, which, p, pixel_cm):
    """Unit normals [3,N] at points p [3,N] by differences over about a pixel."""
    v = np.asarray(
        _distance(f.vector, p[:, None] + np.float32(0.35 * pixel_cm) * _CORNERS[:, :, None], f.layout, which)
    )
    n = _CORNERS @ v
    return n / np.sqrt((n * n).sum(0) + 1e-12)


def _light(f: Packed, which, p, n, key, occluders):
    """[2,N]: how much of the key light and of the surroundings reaches the points p [3,N], 0…1."""
    along_normal = p[:, None] + _REACH * n[:, None]
    if which == "head":
        along_key = p[:, None] + 0.15 * n[:, None] + _TOWARDS_KEY * key[:, None, None]
        v = np.asarray(_distance(f.vector, np.concatenate([along_normal, along_key], 1), f.layout, "solid"))
        near, far = v[: len(_REACH)], v[len(_REACH) :]
        shadow = (0.5 + 0.5 * np.clip(4.5 * far / _TOWARDS_KEY, -1, 1)).min(0)
    else:
        near = np.asarray(_distance(f.vector, along_normal, f.layout, which))
        shadow = np.ones(p.shape[1], np.float32)
    # how much nearer the surface is than the way walked along the normal
    ao = np.clip(1 - 1.15 * (_REACH_WEIGHT * np.clip(1 - near / _REACH, 0, 1.2)).sum(0), 0, 1)
    for x, y, z, radius in occluders:
        # the head above throws a soft shadow on the body: spheres, in closed form
        rel = p - np.array([x, y, z], np.float32)[:, None]
        far2, along = (rel * rel).sum(0), -(key @ rel)
        miss = np.sqrt(np.maximum(far2 - along**2, 1e-6)) - radius
        s = np.clip((miss / np.maximum(0.45 * along, 0.8) + 0.9) / 1.9, 0, 1)
        shadow = shadow * np.where(along > 0, s * s * (3 - 2 * s), 1.0)
        distance = np.sqrt(far2 + 1e-6)
        facing = -(n * rel).sum(0) / distance
        ao = ao * (1 - np.clip(0.35 + 0.65 * facing, 0, 1) * np.clip(radius / distance, 0, 1) ** 2 * 0.85)
    return np.stack([shadow * shadow * (3 - 2 * shadow), ao]).astype(np.float32)


def _chunks(index):
    """Index arrays of length CHUNK (the last padded with its own first entry) and how many count."""
    for a in range(0, len(index), CHUNK):
        part = index[a : a + CHUNK]
        yield np.concatenate([part, np.full(CHUNK - len(part), part[0])]) if len(part) < CHUNK else part, len(part)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Head or body in its own axes, ready to be traced and painted."""

    which: str
    f: Packed
    origin: np.ndarray  # [3] the camera's centre, cm
    key: np.ndarray  # [3] towards the key light
    occluders: np.ndarray  # [k,4] spheres (centre, radius) that shade it
    pixel_cm: float

    def hits(self, d, t0, t1):
        """Distances along rays [M,3]; NaN for a miss. Rays that have arrived are dropped between rounds."""
        out = np.full(len(d), np.nan, np.float32)
        t = np.maximum(t0, 1e-3).astype(np.float32)
        live = np.flatnonzero(t1 > t0)
        for _ in range(ROUNDS):
            if not len(live):
                break
            for index, count in _chunks(live):
                done = _march(self.f.vector, self.origin, d[index], t[index], t1[index], self.f.layout, self.which)
                t[index[:count]] = np.asarray(done)[:count]
            met = t[live] < 0
            out[live[met]] = -t[live[met]]
            live = live[~met & (t[live] < t1[live])]
        return out

    def paint(self, d, t, light=None):
        """(rgb [M,3], label [M], light [M,2]) where t is finite; `light` of other samples may be handed in."""
        rgb, label = np.zeros((len(t), 3), np.float32), np.zeros(len(t), np.uint8)
        known = light is not None
        light = light if known else np.ones((len(t), 2), np.float32)
        colour = shading.head_colour if self.which == "head" else shading.body_colour
        for index, count in _chunks(np.flatnonzero(np.isfinite(t))):
            di = np.ascontiguousarray(d[index].T)
            p = self.origin[:, None] + t[index] * di
            n = _normals(self.f, self.which, p, self.pixel_cm)
            lit = light[index].T if known else _light(self.f, self.which, p, n, self.key, self.occluders)
            out, kind = colour(self.f, tuple(p), tuple(n), tuple(-di), np.ascontiguousarray(lit))
            index = index[:count]
            rgb[index], label[index] = np.asarray(out)[:count], np.asarray(kind)[:count]
            if not known:
                light[index] = lit.T[:count]
        return rgb, label, light


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
    near, far = np.minimum(a, b), np.maximum(a, b)
    t0 = np.maximum(np.maximum(near[:, 0], near[:, 1]), near[:, 2])  # columns: reductions over short axes are slow
    return t0.astype(np.float32), np.minimum(np.minimum(far[:, 0], far[:, 1]), far[:, 2]).astype(np.float32)


class _View:
    """One pose seen by the camera: the two layers, each in its own axes."""

    def __init__(self, camera: Camera, pose: Pose):
        rotation, shift = pose.stage_from_head[:3, :3], pose.stage_from_head[:3, 3]
        lights = {"key": shading.KEY, "fill": shading.FILL, "rim": shading.RIM, "up": np.array([0.0, 1.0, 0.0])}
        spheres = (((0, 1.5, -2.0), 8.2), ((0, -6.0, 1.5), 4.2))  # what throws the head's shadow on the neck
        occluders = np.stack([np.append(rotation @ np.array(c) + shift, r) for c, r in spheres])
        shared = {
            **pose.controls,
            "neck_top": rotation @ np.array(body_.NECK_TOP) + shift - pose.body,
            "body": pose.body,
        }
        in_head = {k: rotation.T @ v for k, v in lights.items()}
        origin, pixel_cm = camera.stage_from_camera[:3, 3], float(camera.stage_from_camera[2, 3] / camera.fy)

        def layer(which, light, centre, spheres):
            key = light["key"].astype(np.float32)
            return _Layer(which, Packed.of({**shared, **light}), centre.astype(np.float32), key, spheres, pixel_cm)

        self.head = layer("head", in_head, (origin - shift) @ rotation, np.zeros((0, 4)))
        self._body = layer("body", lights, origin, occluders)
        self._rotation, self._bound = rotation, shape.bound(pose.controls)

    def head_hits(self, d):
        """(directions in head axes, distances) of rays on the stage."""
        d = (d @ self._rotation).astype(np.float32)
        return d, self.head.hits(d, *_ellipsoid_range(self.head.origin, d, *self._bound))

    def body(self, d, light=None):
        """(t, rgb, label, light) of neck and torso with the head away."""
        d = d.astype(np.float32)
        t = self._body.hits(
            d, *_box_range(self._body.origin, d, np.array([-40.0, -50.0, -17.0]), np.array([40.0, -0.5, 9.0]))
        )
        return t, *self._body.paint(d, t, light)


class Scene:
    """The subject in front of a camera and a plate [H,W,3]."""

    def __init__(self, camera: Camera, plate: UInt8[np.ndarray, "H W 3"]):
        self.camera, self.plate = camera, plate

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
        view = _View(self.camera, pose)
        d = self.camera.directions(pixels)
        t_body, body_c, body_label, body_light = view.body(d)
        d_head, t_head = view.head_hits(d)
        with np.errstate(invalid="ignore"):
            t_head[t_body < t_head] = np.nan  # hair behind the neck
        seen = np.isfinite(t_head)
        head_c, _, head_light = view.head.paint(d_head, t_head)
        label = np.where(seen, 1, body_label).astype(np.uint8)
        z = np.where(seen, t_head, t_body) * -(d @ self.camera.stage_from_camera[:3, 2])
        head_a, body_a = seen.astype(np.float32), (body_label > 0).astype(np.float32)
        if smooth:
            head_edge = _edges(head_c, seen, np.where(seen, z, 0), h, w)
            body_edge = _edges(body_c, body_label, 0 * z, h, w)
            t_sub = np.repeat(t_body[:, None], 4, 1)
            at = np.flatnonzero(body_edge)
            if len(at):
                lit = _spread(body_light, body_label > 0, h, w)[at]
                t, rgb, lab, _ = view.body(self._subpixels(pixels[at]), np.repeat(lit, 4, 0))
                hit = (lab > 0).astype(np.float32)
                t_sub[at] = t.reshape(-1, 4)
                body_a[at] = hit.reshape(-1, 4).mean(1)
                body_c[at] = (rgb * hit[:, None]).reshape(-1, 4, 3).sum(1) / np.maximum(hit.reshape(-1, 4).sum(1), 1)[
                    :, None
                ]
            at = np.flatnonzero(head_edge)
            if len(at):
                sub, t = view.head_hits(self._subpixels(pixels[at]))
                with np.errstate(invalid="ignore"):
                    t[t_sub[at].ravel() < t] = np.nan
                lit = _spread(head_light, seen, h, w)[at]
                rgb, _, _ = view.head.paint(sub, t, np.repeat(lit, 4, 0))
                head_a[at] = np.isfinite(t).reshape(-1, 4).mean(1)
                head_c[at] = rgb.reshape(-1, 4, 3).mean(1)
        torso = np.round(np.clip(np.concatenate([body_c, body_a[:, None]], 1), 0, 1) * 255).astype(np.uint8)
        plate = self.plate[y0:y1, x0:x1].reshape(-1, 3) / 255.0
        a = torso[:, 3:] / 255.0
        behind = torso[:, :3] / 255.0 * a + plate * (1 - a)
        rgb = head_c + (1 - head_a[:, None]) * behind
        return {
            "rgb": np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8).reshape(h, w, 3),
            "torso": torso.reshape(h, w, 4),
            "label": label.reshape(h, w),
            "depth": (z / UNIT_CM).astype(np.float16).reshape(h, w),
            "alpha": np.round(head_a * 255).astype(np.uint8).reshape(h, w),
        }

    def _subpixels(self, pixels):
        """Directions of the 2x2 samples of pixels [M,2], as [4M,3]."""
        offsets = np.array([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])
        return self.camera.directions((pixels[:, None] + offsets).reshape(-1, 2))


def _spread(light, known, h, w):
    """light [h*w,2] carried from known pixels to their unknown neighbours (mean of the 3x3 around)."""
    weight = np.pad(known.reshape(h, w).astype(np.float32), 1)
    value = np.pad((light * known[:, None]).reshape(h, w, 2), ((1, 1), (1, 1), (0, 0)))
    steps = [(i, j) for i in range(3) for j in range(3)]
    total = sum(weight[i : i + h, j : j + w] for i, j in steps)
    mean = sum(value[i : i + h, j : j + w] for i, j in steps) / np.maximum(total, 1)[..., None]
    out = np.where(total[..., None] > 0, mean, 1.0).reshape(-1, 2)
    return np.where(known[:, None], light, out).astype(np.float32)


def _edges(rgb, ident, z, h, w):
    """[h*w] bool: pixels whose neighbour differs in kind, in depth (> 1 cm) or in colour (> 0.2)."""
    ident = np.asarray(ident).reshape(h, w).astype(np.int16)
    rgb, z = rgb.reshape(h, w, 3), np.nan_to_num(z.reshape(h, w))
    out = np.zeros((h, w), bool)
    for axis in (0, 1):
        a = [slice(None)] * 2
        b = [slice(None)] * 2
        a[axis], b[axis] = slice(1, None), slice(None, -1)
        a, b = tuple(a), tuple(b)
        step = np.abs(rgb[a] - rgb[b])
        jump = (ident[a] != ident[b]) | (step[..., 0] > 0.2) | (step[..., 1] > 0.2) | (step[..., 2] > 0.2)
        jump |= (np.abs(z[a] - z[b]) > 1.0) & (ident[a] > 0)
        out[a] |= jump
        out[b] |= jump
    return out.ravel()
