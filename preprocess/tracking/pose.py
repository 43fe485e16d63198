"""Head pose by bundle adjustment: one focal length, one shape, a pose per frame; all in torch, float64, one thread.

Camera here: x right, y down, z forward (pixels u = cx + f X/Z, v = cy + f Y/Z), head point X_cam = R X + t in cm.
1. Key frames (at most 160, evenly spaced among those with a face): start from the scaled orthographic fit, then
   Levenberg-Marquardt on log f, an offset per rigid point and all key poses, poses eliminated by the Schur
   complement, Geman-McClure weights renewed each step.
   Priors: offsets N(0, 1 cm) per axis; log f around the focal that puts the head 85 cm away (3.4 units), with a
   standard deviation of 0.2. The prior is needed: small head motions hardly tell focal from distance, and the
   detector's errors are systematic, so fifty frames count as one independent view.
2. The shape is put back onto the canonical face by a weighted similarity, and poses and distance follow, so that
   world axes, unit and origin are those of the canonical mesh.
3. Each frame on its own (`alone`): Gauss-Newton on its pose with f and shape fixed and Geman-McClure weights of each
   landmark about the frame's own scale. These weights are kept: what a landmark counts says its own frame and never
   the smoothing, which else would throw away whole frames of a fast head, whose landmarks lie off a smoothed track.
4. All frames: Gauss-Newton with a second-difference term of rotation and translation, which takes the noise out and
   bridges frames without a face, ends at cuts, and is as strong as the data say (`smooth`). Solved exactly as one
   banded system. A frame that stands alone (`lone`) is no motion that a head makes: it is bridged as well.
5. Frames of which most landmarks lie too far from their projections are bridged too, and 4 is repeated. Of frames in
   which a part of the face is covered the rest places the head; `pose_checks` says which not to train on.
"""

import dataclasses

import numpy as np
import torch

from preprocess.faces.face_model import RIGID_IDS, RIGID_WEIGHTS
from preprocess.tracking import pose_checks, smooth

KEY_FRAMES = 160
SHAPE_SIGMA_CM = 1.0
DISTANCE_CM, LOG_FOCAL_SIGMA = 85.0, 0.2
FRAMES_PER_VIEW = 50.0  # neighbouring frames repeat the detector's systematic errors
NOISE = 0.008  # standard deviation of a landmark, in heights of the face
ARM_CM = 8.0  # a radian of the head moves its surface by this: turns and shifts in one unit
LONE_CM = 0.7  # 4 % of a face's 18 cm
OWN_STEPS, SMOOTH_STEPS = 12, 3
CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Track:
    """f_px, and f_prior_px of the prior; shape_cm [P,3]: aligned rigid points; rotation [N,3,3] and translation_cm
    [N,3] (X_cam = R X + t); error_px [N]: weighted RMS reprojection error, NaN without a face; bandwidth_hz [N-2,6]: of
    the smoothing about every frame, along the principal directions of the pose, the worst measured first."""

    f_px: float
    shape_cm: np.ndarray
    rotation: np.ndarray
    translation_cm: np.ndarray
    error_px: np.ndarray
    f_prior_px: float
    bandwidth_hz: np.ndarray


def hat(v: torch.Tensor) -> torch.Tensor:
    """[...,3] -> [...,3,3] cross product matrix."""
    zero = torch.zeros_like(v[..., 0])
    x, y, z = v.unbind(-1)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape, 3)


def exp_so3(v: torch.Tensor) -> torch.Tensor:
    """Rotation vectors [...,3] -> matrices [...,3,3]."""
    return torch.linalg.matrix_exp(hat(v))


def log_so3(r: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [...,3,3] -> vectors [...,3], for angles below pi."""
    w = torch.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1) / 2
    sine = w.norm(dim=-1)
    cosine = ((r.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1)
    angle = torch.atan2(sine, cosine)
    return w * torch.where(sine > 1e-9, angle / sine.clamp(min=1e-12), torch.ones_like(sine))[..., None]


def weak_perspective(
    points_px: torch.Tensor, shape_cm: torch.Tensor, weight: torch.Tensor, f: float, centre: torch.Tensor
):
    """Scaled orthographic pose a frame: points [N,P,2], shape [P,3], weight [P] -> R [N,3,3], t [N,3], px/cm [N]."""
    w = weight / weight.sum()
    mean3, mean2 = w @ shape_cm, torch.einsum("p,npc->nc", w, points_px)
    a, b = shape_cm - mean3, points_px - mean2[:, None]
    affine = torch.linalg.solve((a * w[:, None]).T @ a, torch.einsum("pi,p,npc->nic", a, w, b)).transpose(
        1, 2
    )  # [N,2,3]
    scale = affine.norm(dim=-1).mean(-1)
    rows = torch.cat([affine, torch.linalg.cross(affine[:, 0], affine[:, 1])[:, None] / scale[:, None, None]], 1)
    u, _, vh = torch.linalg.svd(rows)
    flip = torch.ones(len(rows), 3, dtype=rows.dtype)
    flip[:, 2] = torch.linalg.det(u @ vh)
    rotation = (u * flip[:, None]) @ vh
    depth = f / scale
    at = torch.cat([(mean2 - centre) * (depth / f)[:, None], depth[:, None]], 1)
    return rotation, at - rotation @ mean3, scale


def linearise(points_px, shape_cm, rotation, translation, f, centre):
    """Residuals r [N,P,2] = projection - points, and derivatives by the pose (left rotation vector, translation)
    [N,P,2,6], by the point [N,P,2,3] and by log f [N,P,2]."""
    turned = torch.einsum("nij,pj->npi", rotation, shape_cm)
    cam = turned + translation[:, None]
    x, y, z = cam.unbind(-1)
    z = z.clamp(min=1.0)
    ray = torch.stack([x / z, y / z], -1)
    residual = f * ray + centre - points_px
    zero = torch.zeros_like(z)
    by_cam = torch.stack([f / z, zero, -f * x / z**2, zero, f / z, -f * y / z**2], -1).reshape(*z.shape, 2, 3)
    by_pose = torch.cat([by_cam @ -hat(turned), by_cam], -1)
    return residual, by_pose, torch.einsum("npci,nij->npcj", by_cam, rotation), f * ray


def robust(residual: torch.Tensor, sigma) -> torch.Tensor:
    """Geman-McClure weights [N,P] of residuals [N,P,2]: 1 / (1 + r^2 / (3 sigma)^2)^2."""
    return (1 + (residual**2).sum(-1) / (3 * sigma) ** 2) ** -2


def adjust_keys(points, canonical, weight, sigma, centre, f_prior, steps=40):
    """Joint fit of key frames: points [K,P,2] -> (f, offsets [P,3]). See the module's text."""
    k, p = points.shape[:2]
    rotation, translation, _ = weak_perspective(points, canonical, weight, f_prior, centre)
    log_f = torch.tensor(float(np.log(f_prior)), dtype=points.dtype)
    offset = torch.zeros_like(canonical)
    data = weight[None, :, None] / sigma**2 / FRAMES_PER_VIEW
    prior = torch.cat([torch.full((1,), LOG_FOCAL_SIGMA**-2), torch.full((3 * p,), SHAPE_SIGMA_CM**-2)]).to(points)

    def cost(log_f, offset, rotation, translation):
        r = linearise(points, canonical + offset, rotation, translation, log_f.exp(), centre)[0]
        s = (r**2).sum(-1) / (3 * sigma) ** 2
        loss = (data[..., 0] * (3 * sigma) ** 2 * s / (1 + s)).sum()
        return loss + ((log_f - np.log(f_prior)) / LOG_FOCAL_SIGMA) ** 2 + ((offset / SHAPE_SIGMA_CM) ** 2).sum()

    damping, current = 1e-3, cost(log_f, offset, rotation, translation)
    for _ in range(steps):
        r, by_pose, by_point, by_f = linearise(points, canonical + offset, rotation, translation, log_f.exp(), centre)
        w = data * robust(r, sigma)[..., None]
        a = torch.einsum("npci,npc,npcj->nij", by_pose, w.expand_as(r), by_pose)
        ga = torch.einsum("npci,npc->ni", by_pose, w * r)
        to_points = torch.einsum("npci,npc,npcj->nipj", by_pose, w.expand_as(r), by_point).reshape(k, 6, 3 * p)
        cross = torch.cat([torch.einsum("npci,npc->ni", by_pose, w * by_f)[..., None], to_points], -1)  # [K,6,1+3P]
        shared = torch.zeros(1 + 3 * p, 1 + 3 * p, dtype=points.dtype)
        shared[0, 0] = (w * by_f**2).sum()
        shared[0, 1:] = shared[1:, 0] = torch.einsum("npc,npcj->pj", w * by_f, by_point).reshape(-1)
        blocks = torch.einsum("npci,npc,npcj->pij", by_point, w.expand_as(r), by_point)
        shared[1:, 1:] = torch.block_diag(*blocks)
        gs = torch.cat([(w * r * by_f).sum()[None], torch.einsum("npcj,npc->pj", by_point, w * r).reshape(-1)])
        state = torch.cat([(log_f - np.log(f_prior))[None], offset.reshape(-1)])
        shared = shared + torch.diag(prior)
        gs = gs + prior * state
        while True:
            damp = a + damping * torch.diag_embed(a.diagonal(dim1=-2, dim2=-1))
            solved = torch.linalg.solve(damp, torch.cat([cross, ga[..., None]], -1))
            reduced = shared * (1 + damping * torch.eye(len(shared))) - torch.einsum(
                "nis,nit->st", cross, solved[..., :-1]
            )
            step = -torch.linalg.solve(reduced, gs - torch.einsum("nis,ni->s", cross, solved[..., -1]))
            pose = -solved[..., -1] - torch.einsum("nis,s->ni", solved[..., :-1], step)
            trial = (
                log_f + step[0],
                offset + step[1:].reshape(p, 3),
                exp_so3(pose[:, :3]) @ rotation,
                translation + pose[:, 3:],
            )
            value = cost(*trial)
            if value < current or damping > 1e6:
                break
            damping *= 4
        if not value < current:
            break
        gain = float((current - value) / current)
        (log_f, offset, rotation, translation), current, damping = trial, value, max(damping / 10, 1e-9)
        if gain < 1e-7:
            break
    return float(log_f.exp()), offset


def similarity(source: torch.Tensor, target: torch.Tensor, weight: torch.Tensor):
    """s, Q, q with s Q source + q ~ target (weighted least squares); [P,3], [P,3], [P]."""
    w = weight / weight.sum()
    ms, mt = w @ source, w @ target
    a, b = source - ms, target - mt
    u, d, vh = torch.linalg.svd((b * w[:, None]).T @ a)
    sign = torch.ones(3, dtype=source.dtype)
    sign[2] = torch.linalg.det(u @ vh)
    q = (u * sign) @ vh
    s = (d * sign).sum() / (w @ (a**2).sum(-1))
    return s, q, mt - s * q @ ms


def alone(points, shape, rotation, translation, f, centre, weight, sigma):
    """Each frame's own pose from a start: (rotation [N,3,3], translation [N,3], weights [N,P]), in chunks of frames.

    The weights are Geman-McClure's about the larger of sigma and 0.85 median distances of the frame (for normal errors
    their standard deviation), so that a start that is far off, or a blurred frame, keeps the landmarks that agree.
    """
    turned, moved, weights = [], [], []
    for start in range(0, len(points), CHUNK):
        s = slice(start, start + CHUNK)
        p, r, t = points[s].double(), rotation[s], translation[s]
        for _ in range(OWN_STEPS):
            residual, by_pose, _, _ = linearise(p, shape, r, t, f, centre)
            scale = (0.85 * residual.norm(dim=-1).median(1).values).clamp(min=sigma)
            w = robust(residual, scale[:, None]) * weight
            both = w[..., None].expand_as(residual)
            information = torch.einsum("npci,npc,npcj->nij", by_pose, both, by_pose)
            step = -torch.linalg.solve(information, torch.einsum("npci,npc->ni", by_pose, both * residual))
            r, t = exp_so3(step[:, :3]) @ r, t + step[:, 3:]
            if step.abs().max() < 1e-4:
                break
        turned.append(r)
        moved.append(t)
        weights.append(w)
    return torch.cat(turned), torch.cat(moved), torch.cat(weights)


def lone(shape: torch.Tensor, rotation: torch.Tensor, translation: torch.Tensor, usable: np.ndarray) -> np.ndarray:
    """bool [N]: frames whose pose lies `LONE_CM` away from what two frames before and after it say, and as far from
    both neighbours: a glitch of the detector. At 3 Hz that prediction misses a twentieth of the amplitude; a frame at
    the turning point of a nod is a quarter of it from its neighbours."""
    out = np.zeros(len(usable), bool)
    if len(usable) < 5:
        return out
    at = (torch.einsum("nij,pj->npi", rotation, shape) + translation[:, None]).numpy()
    at = at * [1, 1, 0.3]  # depth is measured worse

    def rms(d: np.ndarray) -> np.ndarray:
        return np.sqrt((d**2).sum(-1).mean(-1))

    before, own, after = at[1:-3], at[2:-2], at[3:-1]
    said = (4 * (before + after) - at[:-4] - at[4:]) / 6
    off = rms(own - said)
    near = np.minimum(rms(own - before), rms(own - after))
    seen = usable[:-4] & usable[1:-3] & usable[2:-2] & usable[3:-1] & usable[4:]
    out[2:-2] = seen & (off > LONE_CM) & (near > LONE_CM) & (off > 0.6 * near)
    return out


def _pose_blocks(points, shape, rotation, translation, f, centre, weights, sigma):
    """Data blocks [N,6,6] and gradients [N,6] for weights [N,P], computed in chunks of frames."""
    blocks, gradients = [], []
    for start in range(0, len(points), CHUNK):
        s = slice(start, start + CHUNK)
        r, by_pose, _, _ = linearise(points[s].double(), shape, rotation[s], translation[s], f, centre)
        w = weights[s][..., None].expand_as(r) / sigma**2
        blocks.append(torch.einsum("npci,npc,npcj->nij", by_pose, w, by_pose))
        gradients.append(torch.einsum("npci,npc->ni", by_pose, w * r))
    return torch.cat(blocks), torch.cat(gradients)


def fit(points_px: np.ndarray, found: np.ndarray, canonical_cm: np.ndarray, weight: np.ndarray, height: int, width: int,
        fps: float = 25.0, f_prior_px: float | None = None, cuts: np.ndarray | None = None) -> Track:  # fmt: skip
    """Track a head from landmarks.

    points_px [N,P,2] (rows without a face are ignored), found bool [N], canonical_cm [P,3] and weight [P] of the
    same points; the principal point is the centre of the picture. f_prior_px overrides the prior's centre. cuts:
    numbers of the frames that begin a new shot, across which nothing is smoothed.
    ValueError when fewer than two frames have a face.
    """
    if found.sum() < 2:
        raise ValueError(f"{int(found.sum())} frames with a face are too few for a pose; at least 2 are needed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(points_px, found, canonical_cm, weight, height, width, fps, f_prior_px, cuts)
    finally:
        torch.set_num_threads(threads)


def _fit(points_px, found, canonical_cm, weight, height, width, fps, f_prior_px, cuts) -> Track:
    points = torch.from_numpy(np.asarray(points_px))
    canonical, w = (
        torch.from_numpy(np.asarray(canonical_cm, np.float64)),
        torch.from_numpy(np.asarray(weight, np.float64)),
    )
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    y_up = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)  # the mesh in the axes of the camera
    flipped = canonical * y_up
    index = np.flatnonzero(found)
    keys = index[np.unique(np.linspace(0, len(index) - 1, min(KEY_FRAMES, len(index))).round().astype(int))]
    key_points = points[keys].double()

    px_per_cm = float(weak_perspective(key_points, flipped, w, 1.0, centre)[2].median())
    sigma = NOISE * px_per_cm * 18.0  # the canonical face is 18 cm high
    f_prior = f_prior_px or px_per_cm * DISTANCE_CM
    f, offset = adjust_keys(key_points, flipped, w, sigma, centre, f_prior)

    scale, q, _ = similarity(flipped + offset, flipped, w)
    shape = scale * (flipped + offset) @ q.T
    shape = shape + w @ (flipped - shape) / w.sum()

    filled = _filled(points, found)
    rotation, translation, _ = weak_perspective(filled, shape, w, f, centre)
    rotation, translation, own = alone(filled, shape, rotation, translation, f, centre, w, sigma)
    shot = smooth.shots(len(found), np.zeros(0) if cuts is None else cuts)
    usable = found & ~lone(shape, rotation, translation, found)
    turn, aligned = torch.diag(y_up), (shape * y_up).numpy()

    def together(usable):
        r, t, strength = _together(points, usable, shot, shape, rotation, translation, own, f, centre, sigma, fps)
        r, t = (r @ turn).numpy(), t.numpy()
        off = pose_checks.distances(np.asarray(points_px), aligned, r, t, f, (width / 2, height / 2))
        return r, t, off, strength

    turned, moved, off, strength = together(usable)
    bad = usable & pose_checks.lost(np.median(off, axis=1), pose_checks.face_heights(moved, f))
    if bad.any() and (usable & ~bad).sum() >= 2:  # what fits no face says nothing of the pose: bridged as well
        turned, moved, off, strength = together(usable & ~bad)
    error = pose_checks.rms(off, w.numpy())
    error[~found] = np.nan
    return Track(f, aligned, turned, moved, error, f_prior, smooth.cutoff(strength, fps))


def _steps(rotation: torch.Tensor, translation: torch.Tensor) -> np.ndarray:
    """[N-1,6]: rotation vector and translation from each frame to the next."""
    turns = log_so3(rotation[1:] @ rotation[:-1].transpose(1, 2))
    return torch.cat([turns, translation.diff(dim=0)], 1).numpy()


def _together(points, usable, shot, shape, rotation, translation, own, f, centre, sigma, fps):
    """The frames' own poses smoothed: (rotation, translation, strength [N-2,6]).

    The strength is chosen along the principal directions of a typical frame's information, in which errors of the pose
    are independent and alike.
    """
    weights = own * torch.from_numpy(usable.astype(np.float64))[:, None]
    if len(usable) < 3:
        return rotation, translation, np.zeros((0, 6))
    typical = _pose_blocks(points, shape, rotation, translation, f, centre, weights, sigma)[0][usable].median(0).values
    units = np.diag([1 / ARM_CM] * 3 + [1.0] * 3)
    values, vectors = np.linalg.eigh(units @ ((typical + typical.T) / 2).numpy() @ units)
    whiten = np.diag(np.sqrt(values.clip(min=1e-12 * values.max()))) @ vectors.T @ np.linalg.inv(units)
    first = _steps(rotation, translation)
    first[shot[1:] != shot[:-1]] = 0
    path = np.concatenate([np.zeros((1, 6)), np.cumsum(first, 0)]) @ whiten.T
    strength = smooth.choose(path, usable, shot, fps)
    temporal = np.einsum("ki,mk,kj->mij", whiten, strength, whiten)
    for _ in range(SMOOTH_STEPS):
        blocks, gradient = _pose_blocks(points, shape, rotation, translation, f, centre, weights, sigma)
        step = smooth.solve(blocks.numpy(), gradient.numpy(), temporal, shot, _steps(rotation, translation))
        rotation = exp_so3(torch.from_numpy(step[:, :3])) @ rotation
        translation = translation + torch.from_numpy(step[:, 3:])
        if np.abs(step).max() < 1e-6:
            break
    return rotation, translation, strength


def _filled(points: torch.Tensor, found: np.ndarray) -> torch.Tensor:
    """Points with the rows without a face taken from the nearest row that has one (a start for those poses)."""
    index = np.flatnonzero(found)
    where = np.searchsorted(index, np.arange(len(found))).clip(0, len(index) - 1)
    before = index[(where - 1).clip(0)]
    after = index[where]
    n = np.arange(len(found))
    return points[np.where(np.abs(n - before) < np.abs(after - n), before, after)].double()


def cam_to_world(track: Track, unit_cm: float, origin_cm: np.ndarray) -> np.ndarray:
    """float32 [N,4,4]: OpenGL camera (looks along -z) to the contract's world, whose axes are the canonical mesh's."""
    out = np.tile(np.eye(4), (len(track.rotation), 1, 1))
    head_to_cam_t = track.rotation.transpose(0, 2, 1)
    out[:, :3, :3] = head_to_cam_t * np.array([1.0, -1.0, -1.0])
    centre_cm = -np.einsum("nij,nj->ni", head_to_cam_t, track.translation_cm)
    out[:, :3, 3] = (centre_cm - np.asarray(origin_cm)) / unit_cm
    return out.astype(np.float32)


def rigid_points() -> tuple[np.ndarray, np.ndarray]:
    """Landmark ids [P] and weights [P] that the tracker uses."""
    return np.array(RIGID_IDS), np.array([RIGID_WEIGHTS[i] for i in RIGID_IDS])
