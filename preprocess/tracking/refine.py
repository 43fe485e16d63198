"""Head poses refined by feature tracks all over the head, hair included, in a second bundle adjustment.

A face tracker's landmarks lie within a few centimetres of depth and are biased with the head's turn, so a degree
of rotation trades against a millimetre of translation: the face stays in place, the hair (12 cm behind it) does not.
Corners of the picture that are followed by optical flow over many frames know nothing of faces and see the whole head.

Per window of frames: corners inside the head's label, outside eyes and mouth, are followed with the pyramidal
Lucas-Kanade method, forwards and backwards; then every corner is looked for once more in frames far from its track,
because a chain of tracks drifts (by 0.9 degrees within 13 s, benchmarks/NOTES.md). Then Gauss-Newton, points eliminated
by the Schur complement, minimises
    sum_o rho(|proj(R_f X_p + t_f) - x_o| / SIGMA_PX) + sum_p |X_p - X_p0|^2 / POINT_SIGMA_CM^2
    + sum_f |log(R_f R_f0^T)|^2 / ROTATION_SIGMA^2 + |(t_f - t_f0) / TRANSLATION_SIGMA_CM|^2
    + sum_fk |proj(R_f A_k + t_f) - proj(R_f0 A_k + t_f0)|^2 / ANCHOR_SIGMA_PX^2,
rho Geman-McClure, X_p0 on an ellipsoid about the head, (R_f0, t_f0) the landmarks' pose, A_k in the plane of the face.
The anchors say that landmarks place the face in the picture well, whatever its turn; without them chains of tracks
drift, and hair that slips would take the face along. The rest of the prior keeps the world's axes, unit
and origin where the landmarks put them on the whole, and carries frames without tracks.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.transform import Rotation

from preprocess import checks, chunks
from preprocess.resumable import progress, say
from preprocess.tracking import pose_checks
from tkjax.contract import LABEL_HEAD, UNIT_CM, boxes_from_landmarks68, landmarks68
from tkjax.host.files import write_atomic
from tkjax.media.images import decode_png

WINDOW, OVERLAP = 400, 80  # frames
MAX_AGE, MIN_AGE = 100, 8  # frames of one track
CORNERS, RENEW_EVERY = 300, 6
KEY_EVERY = 15  # frames; in these corners are looked for again
ALIKE = 0.85  # least correlation of a corner's surroundings with where it was found again
BACK_PX = 0.4  # forward and backward flow agree to this, pixels of a 512 picture
SIGMA_PX = 0.5  # of a 512 picture
POINT_SIGMA_CM = 2.0
ROTATION_SIGMA = np.radians(1.5)
TRANSLATION_SIGMA_CM = np.array([2.0, 2.0, 2.0])
ANCHOR_SIGMA_PX = 0.25  # of a 512 picture
# a plane: a turn about its middle moves these to second order only
ANCHORS_CM = np.array([[-4.5, 3, 4.5], [4.5, 3, 4.5], [0, 0, 4.5], [-4, -3.5, 4.5], [4, -3.5, 4.5]])
HEAD_CENTRE_CM, HEAD_RADII_CM = np.array([0.0, 1.5, -2.0]), np.array([8.5, 13.0, 10.0])  # the proxy, canonical axes
STEPS = 12
SLACK = 0.01  # of the face's height: what tracks all over the head may say against the landmarks of the face


@dataclasses.dataclass
class Tracks:
    """Observations sorted by track: length [T], and of each observation its frame [O] in the window and xy_px [O,2].
    The frames of a track ascend."""

    length: np.ndarray
    frame: np.ndarray
    xy_px: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """Number [T] of each track's first observation."""
        return np.cumsum(self.length) - self.length


def carried(xy: np.ndarray, before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """float32: points [m,2] moved, turned and scaled as the points before [v,2] must be to lie on now [v,2]."""
    a, b = before @ [1, 1j], now @ [1, 1j]
    centre = a.mean()
    turn = np.vdot(a - centre, b - b.mean()) / np.vdot(a - centre, a - centre)
    out = b.mean() + turn * (xy @ [1, 1j] - centre)
    return np.ascontiguousarray(np.stack([out.real, out.imag], -1), np.float32)


def _flow(a, b, xy: np.ndarray, guess: np.ndarray | None, back, scale: float, options: dict):
    """Corners xy [m,2] of picture a in picture b: (where [m,2], whether the flow comes back to them). guess: where the
    search starts; back: the same for the way back, as a function of what was found."""
    old = np.asarray(xy, np.float32).reshape(-1, 1, 2)
    new, ok, _ = cv2.calcOpticalFlowPyrLK(a, b, old, None if guess is None else guess.reshape(-1, 1, 2), **options)
    back_guess = None if guess is None else back(new[:, 0]).reshape(-1, 1, 2)
    again, ok_back, _ = cv2.calcOpticalFlowPyrLK(b, a, new, back_guess, **options)
    error = np.linalg.norm(again - old, axis=-1)[:, 0]
    return new[:, 0], (ok[:, 0] & ok_back[:, 0] > 0) & (error < BACK_PX * scale)


def _inside(where: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """bool [m]: points (x, y) whose pixel is in `where`."""
    h, w = where.shape
    column, row = np.clip(xy.round().astype(int), 0, [w - 1, h - 1]).T
    return where[row, column]


def _likeness(a: np.ndarray, xy: np.ndarray, b: np.ndarray, other: np.ndarray, side: int) -> np.ndarray:
    """[m] correlation of the squares about points of two pictures."""
    out = np.zeros(len(xy))
    for k, (p, q) in enumerate(zip(xy, other, strict=True)):
        u, v = (cv2.getRectSubPix(g, (side, side), (float(r[0]), float(r[1]))) for g, r in ((a, p), (b, q)))
        u, v = u.astype(np.float64) - u.mean(), v.astype(np.float64) - v.mean()
        out[k] = (u * v).sum() / max(np.sqrt((u * u).sum() * (v * v).sum()), 1e-9)
    return out


def _found_again(tracks: list, keys: dict, shot: np.ndarray, face_px: np.ndarray, scale: float, options: dict) -> list:
    """[(frame, xy) ...] of each track (first frame, [xy, ...]): the frames of `keys` (frame -> (grey, where)) outside
    it, in its own shot, in which the corner of its middle key frame is found again. It starts where the face says."""
    again: list[list] = [[] for _ in tracks]
    mine: dict[int, list[int]] = {}
    for number, (first, points) in enumerate(tracks):
        inside = [k for k in keys if first <= k < first + len(points)]
        if inside:
            mine.setdefault(inside[len(inside) // 2], []).append(number)
    side = 2 * round(7 * scale) + 1
    for key, numbers in mine.items():
        grey, _ = keys[key]
        for other, (picture, where) in keys.items():
            outside = [n for n in numbers if not tracks[n][0] <= other < tracks[n][0] + len(tracks[n][1])]
            if shot[key] != shot[other] or not outside:
                continue
            xy = np.array([tracks[n][1][key - tracks[n][0]] for n in outside], np.float32)
            guess = carried(xy, face_px[key], face_px[other])
            new, good = _flow(
                grey, picture, xy, guess, lambda v, a=other, b=key: carried(v, face_px[a], face_px[b]), scale, options
            )
            good &= _inside(where, new)
            good[good] &= _likeness(grey, xy[good], picture, new[good], side) > ALIKE
            for n, at, fine in zip(outside, new, good, strict=True):
                if fine:
                    again[n].append((other, at))
    return again


def follow(
    frames: Iterator[tuple[np.ndarray, np.ndarray]],
    scale: float,
    cuts: Sequence[int] = (),
    face_px: np.ndarray | None = None,
) -> Tracks:
    """Follow corners through (grey uint8 [H,W], where bool [H,W]) of consecutive frames.

    scale: longer side of the pictures over 512. A track ends where the flow fails its backward check, leaves `where`
    or is MAX_AGE frames old, and where a shot does (cuts: the frames that begin one, counted from the first here);
    tracks shorter than MIN_AGE are dropped. face_px [n,v,2]: landmarks of the frames, with which the search for every
    corner starts where the face says, so that fast heads are followed as well; with them corners are also looked for
    again in frames of their shot that lie outside their tracks.
    """
    options = {"winSize": (21, 21), "maxLevel": 3, "criteria": (3, 20, 0.01)}
    options |= {} if face_px is None else {"flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    live, done, before = [], [], None  # each track: (first frame, [xy, ...])
    keys, n = {}, 0
    for index, (grey, where) in enumerate(frames):
        n = index + 1
        if index in cuts:
            live, done = [], done + live
        if face_px is not None and index % KEY_EVERY == 0:
            keys[index] = grey, where
        if live:
            old = np.array([points[-1] for _, points in live], np.float32)
            guess, back = None, None
            if face_px is not None:
                guess = carried(old, face_px[index - 1], face_px[index])

                def back(xy, index=index):
                    return carried(xy, face_px[index], face_px[index - 1])

            new, good = _flow(before, grey, old, guess, back, scale, options)
            good &= _inside(where, new)
            kept = []
            for track, xy, fine in zip(live, new, good, strict=True):
                if fine:
                    track[1].append(xy)
                (kept if fine and len(track[1]) < MAX_AGE else done).append(track)
            live = kept
        if (index % RENEW_EVERY == 0 or index in cuts) and len(live) < CORNERS:
            free = where.astype(np.uint8)
            for _, points in live:
                cv2.circle(free, tuple(round(float(v)) for v in points[-1]), round(9 * scale), 0, -1)
            corners = cv2.goodFeaturesToTrack(grey, CORNERS - len(live), 0.005, max(3, round(9 * scale)), mask=free)
            live += [(index, [xy]) for xy in (corners[:, 0] if corners is not None else [])]
        before = grey
    tracks = [t for t in done + live if len(t[1]) >= MIN_AGE]
    shot = np.searchsorted(sorted(cuts), np.arange(n), side="right")
    again = _found_again(tracks, keys, shot, face_px, scale, options) if keys else [[] for _ in tracks]
    seen = [
        sorted([(first + k, tuple(xy)) for k, xy in enumerate(points)] + [(k, tuple(xy)) for k, xy in more])
        for (first, points), more in zip(tracks, again, strict=True)
    ]
    return Tracks(
        np.array([len(track) for track in seen], np.int64),
        np.array([frame for track in seen for frame, _ in track], np.int64),
        np.array([xy for track in seen for _, xy in track], np.float64).reshape(-1, 2) + 0.5,
    )


def on_head(centre: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Points [T,3] where rays (centre, direction [T,3], head axes, cm) first meet the proxy ellipsoid, or the points
    of the rays that are nearest to it."""
    o, d = (centre - HEAD_CENTRE_CM) / HEAD_RADII_CM, direction / HEAD_RADII_CM
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    t = (-b - np.sqrt(np.maximum(b * b - a * c, 0))) / a
    return centre + t[:, None] * direction


def _hat(v: np.ndarray) -> np.ndarray:
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2], out[..., 1, 2] = -v[..., 2], v[..., 1], -v[..., 0]
    return out - np.swapaxes(out, -1, -2)


def _by_camera(ray: np.ndarray, z: np.ndarray, f: float) -> np.ndarray:
    """Derivative [...,2,3] of f X/Z, f Y/Z by the point (X, Y, Z)."""
    out = np.zeros((*z.shape, 2, 3))
    out[..., 0, 0] = out[..., 1, 1] = f / z
    out[..., :, 2] = -f * ray / z[..., None]
    return out


def adjust(tracks: Tracks, rotation: np.ndarray, translation: np.ndarray, f: float, centre: np.ndarray, scale: float):
    """Refined (rotation [N,3,3], translation_cm [N,3], RMS px before, after); X_cam = R X + t, camera x right, y down,
    z forward, f and centre [2] in pixels, scale: longer side of the pictures over 512. RMS are robust: over
    observations within 3 SIGMA_PX before or after."""
    sigma_px, anchor_sigma = SIGMA_PX * scale, ANCHOR_SIGMA_PX * scale
    n, (frame, length) = len(rotation), (tracks.frame, tracks.length)
    if not len(length):
        return rotation, translation, float("nan"), float("nan")
    track = np.repeat(np.arange(len(length)), length)
    starts = tracks.start
    middle = starts + length // 2
    r0, t0 = rotation.copy(), translation.copy()
    rays = np.concatenate([(tracks.xy_px[middle] - centre) / f, np.ones((len(middle), 1))], 1)
    turn = np.swapaxes(rotation[frame[middle]], 1, 2)
    start = on_head(-np.einsum("tij,tj->ti", turn, translation[frame[middle]]), np.einsum("tij,tj->ti", turn, rays))
    points = start.copy()
    info = np.concatenate([np.full(3, ROTATION_SIGMA**-2.0), TRANSLATION_SIGMA_CM**-2.0])

    def project(rotation, translation, points):
        turned = np.einsum("oij,oj->oi", rotation[frame], points[track])
        cam = turned + translation[frame]
        z = np.maximum(cam[:, 2], 1.0)
        ray = cam[:, :2] / z[:, None]
        return f * ray + centre - tracks.xy_px, turned, ray, z

    def anchors(rotation, translation):
        turned = np.einsum("nij,kj->nki", rotation, ANCHORS_CM)
        cam = turned + translation[:, None]
        z = np.maximum(cam[..., 2], 1.0)
        return f * cam[..., :2] / z[..., None], turned, cam[..., :2] / z[..., None], z

    placed = anchors(r0, t0)[0]

    def off(rotation, translation):
        turns = Rotation.from_matrix(rotation @ np.swapaxes(r0, 1, 2)).as_rotvec()
        return np.concatenate([turns, translation - t0], 1)

    def cost(rotation, translation, points):
        s = (project(rotation, translation, points)[0] ** 2).sum(-1) / (3 * sigma_px) ** 2
        prior = (off(rotation, translation) ** 2 * info).sum() + (((points - start) / POINT_SIGMA_CM) ** 2).sum()
        prior += ((anchors(rotation, translation)[0] - placed) ** 2).sum() / anchor_sigma**2
        return 9 * (s / (1 + s)).sum() + prior

    first_error = np.linalg.norm(project(rotation, translation, points)[0], axis=-1)
    damping, current = 1e-4, cost(rotation, translation, points)
    for _ in range(STEPS):
        r, turned, ray, z = project(rotation, translation, points)
        w = (1 + (r**2).sum(-1) / (3 * sigma_px) ** 2) ** -2 / sigma_px**2
        by_cam = _by_camera(ray, z, f)
        by_pose = np.concatenate([by_cam @ -_hat(turned), by_cam], -1)
        by_point = by_cam @ rotation[frame]
        wp = by_pose * w[:, None, None]
        poses = np.zeros((n, 6, 6))
        np.add.at(poses, frame, np.swapaxes(wp, 1, 2) @ by_pose)
        gradient = np.zeros((n, 6))
        np.add.at(gradient, frame, np.einsum("oki,ok->oi", wp, r))
        gradient += info * off(rotation, translation)
        poses += np.diag(info)
        at, at_turned, at_ray, at_z = anchors(rotation, translation)
        at_pose = _by_camera(at_ray, at_z, f)
        at_pose = np.concatenate([at_pose @ -_hat(at_turned), at_pose], -1) / anchor_sigma
        poses += np.einsum("nkci,nkcj->nij", at_pose, at_pose)
        gradient += np.einsum("nkci,nkc->ni", at_pose, (at - placed) / anchor_sigma)
        inner = np.add.reduceat(np.swapaxes(by_point * w[:, None, None], 1, 2) @ by_point, starts)
        inner += np.eye(3) / POINT_SIGMA_CM**2
        inner_gradient = np.add.reduceat(np.einsum("oki,o,ok->oi", by_point, w, r), starts)
        inner_gradient += (points - start) / POINT_SIGMA_CM**2
        cross = np.swapaxes(wp, 1, 2) @ by_point  # [O,6,3]
        for _ in range(8):
            inverse = np.linalg.inv(inner * (1 + damping * np.eye(3)))
            eliminated = cross @ inverse[track]
            system = np.zeros((6 * n, 6 * n))
            for k in range(n):
                system[6 * k : 6 * k + 6, 6 * k : 6 * k + 6] = poses[k] * (1 + damping * np.eye(6))
            tall = np.zeros((n, 6, len(length), 3))  # cross times a root of the inverse: its square is eliminated
            tall[frame, :, track] = cross @ np.linalg.cholesky(inverse)[track]
            tall = tall.reshape(6 * n, -1)
            system -= tall @ tall.T
            rhs = gradient.copy()
            np.add.at(rhs, frame, -np.einsum("oij,oj->oi", eliminated, inner_gradient[track]))
            step = -cho_solve(cho_factor(system, overwrite_a=True, check_finite=False), rhs.reshape(-1)).reshape(n, 6)
            pull = np.add.reduceat(np.einsum("oij,oi->oj", cross, step[frame]), starts)
            trial = (
                Rotation.from_rotvec(step[:, :3]).as_matrix() @ rotation,
                translation + step[:, 3:],
                points - np.einsum("tij,tj->ti", inverse, inner_gradient + pull),
            )
            value = cost(*trial)
            if value < current:
                break
            damping *= 10
        if not value < current:
            break
        gain = (current - value) / current
        (rotation, translation, points), current, damping = trial, value, max(damping / 10, 1e-7)
        if gain < 1e-5:
            break
    error = np.linalg.norm(project(rotation, translation, points)[0], axis=-1)
    inlier = np.minimum(error, first_error) < 3 * sigma_px
    rms = [float(np.sqrt((e[inlier] ** 2).mean())) if inlier.any() else float("nan") for e in (first_error, error)]
    return rotation, translation, *rms


def _frames(frames: Path, labels: Path, track: Path, a: int, b: int, size: tuple[int, int]):
    """(grey, where to follow corners) of the frames a <= i < b."""
    h, w = size
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(max(h, w) / 85) + 1,) * 2)
    for index in range(a // chunks.CHUNK_FRAMES, (b - 1) // chunks.CHUNK_FRAMES + 1):
        masks = chunks.unpack(chunks.read_chunk(labels, index), "label")
        points = chunks.read_chunk(track, index, ["landmarks_px"])["landmarks_px"]
        boxes = boxes_from_landmarks68(landmarks68(points, "mediapipe478"), h, w)
        for k, rgb in enumerate(chunks.rgb_frames(frames, index)):
            if a <= index * chunks.CHUNK_FRAMES + k < b:
                where = cv2.erode((decode_png(masks[k]) == LABEL_HEAD).astype(np.uint8), reach) > 0
                for name in ("lips_box_px", "eye_left_box_px", "eye_right_box_px"):
                    x0, y0, x1, y1 = boxes[name][k]
                    where[y0:y1, x0:x1] = False
                yield cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), where


def windows(n_frames: int) -> list[tuple[int, int]]:
    """(start, stop) of overlapping windows that cover the clip."""
    if n_frames <= WINDOW:
        return [(0, n_frames)]
    starts = range(0, n_frames - OVERLAP, WINDOW - OVERLAP)
    return [(a, min(a + WINDOW, n_frames)) for a in starts]


class _Landmarked:
    """The landmarks that the track was fitted to, against which refined poses are judged once more."""

    def __init__(self, track: Path, n_frames: int, f_px: float, centre_px: tuple[float, float]):
        shape = json.loads((track / pose_checks.SHAPE).read_text())
        self.shape, self.weights = np.array(shape["shape_cm"]), np.array(shape["weights"])
        self.points = np.concatenate([
            chunks.read_chunk(track, i, ["landmarks_px"])["landmarks_px"][:, shape["ids"]]
            for i in range(len(chunks.spans(n_frames)))
        ])  # fmt: skip
        self.found = np.isfinite(chunks.column(track, n_frames, "error_px"))
        self.f_px, self.centre_px = f_px, centre_px

    def error(self, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
        """[n] in pixels, NaN without a face."""
        off = pose_checks.distances(self.points, self.shape, rotation, translation, self.f_px, self.centre_px)
        return np.where(self.found, pose_checks.rms(off, self.weights), np.nan)

    def worse(self, rotation, translation, turns, shifts) -> np.ndarray:
        """bool [n]: frames that the refinement moves off their landmarks by more than SLACK of the face's height."""
        before = self.error(rotation, translation)
        after = self.error(Rotation.from_rotvec(turns).as_matrix() @ rotation, translation + shifts)
        return np.nan_to_num(after - before) > SLACK * pose_checks.face_heights(translation, self.f_px)

    def judge(self, error, rotation, translation, cuts) -> tuple[np.ndarray, list[checks.Check]]:
        """Which frames [n] to trust, and the checks."""
        heights = pose_checks.face_heights(translation, self.f_px)
        judged = pose_checks.judge_poses(error, heights, self.found, self.points, rotation, cuts)
        return self.found & ~pose_checks.lost(error, heights), judged


def refine(
    folder: Path, frames: Path, labels: Path, track: Path, n_frames: int, height: int, width: int, cuts: Sequence[int]
) -> None:
    """Stage: the chunks of `track` with a better `cam_to_world`, its `error_px` and `confidence`; track.json with the
    figures of both; checks.json. A frame whose landmarks the refinement would leave keeps the pose that it had."""
    poses = chunks.column(track, n_frames, "cam_to_world").astype(np.float64)
    figures = json.loads((track / "track.json").read_text())
    scale = max(height, width) / 512
    flip = np.array([1.0, -1.0, -1.0])  # OpenGL camera axes to those of `adjust`
    rotation = np.swapaxes(poses[:, :3, :3] * flip, 1, 2)
    translation = -np.einsum("nij,nj->ni", rotation, poses[:, :3, 3] * UNIT_CM)
    turns, shifts = np.zeros((n_frames, 3)), np.zeros((n_frames, 3))
    weights, errors, followed = np.zeros(n_frames), [], 0
    landmarked = _Landmarked(track, n_frames, figures["focal_px"], (width / 2, height / 2))
    for a, b in progress(windows(n_frames), len(windows(n_frames)), "refine", "windows"):
        pictures = _frames(frames, labels, track, a, b, (height, width))
        tracks = follow(pictures, scale, [c - a for c in cuts], landmarked.points[a:b].astype(np.float64))
        followed += len(tracks.length)
        centre = np.array([width / 2, height / 2])
        new_r, new_t, *rms = adjust(tracks, rotation[a:b], translation[a:b], figures["focal_px"], centre, scale)
        ramp = np.minimum(np.arange(b - a) + 1, np.arange(b - a)[::-1] + 1).clip(max=OVERLAP).astype(np.float64)
        turns[a:b] += ramp[:, None] * Rotation.from_matrix(new_r @ np.swapaxes(rotation[a:b], 1, 2)).as_rotvec()
        shifts[a:b] += ramp[:, None] * (new_t - translation[a:b])
        weights[a:b] += ramp
        errors.append(rms)
    turns, shifts = turns / weights[:, None], shifts / weights[:, None]
    kept = landmarked.worse(rotation, translation, turns, shifts)
    turns[kept], shifts[kept] = 0, 0
    new_r = Rotation.from_rotvec(turns).as_matrix() @ rotation
    error = landmarked.error(new_r, translation + shifts)
    sure, judged = landmarked.judge(error, new_r, translation + shifts, cuts)
    checks.write(folder, judged)
    poses[:, :3, :3] = np.swapaxes(new_r, 1, 2) * flip
    poses[:, :3, 3] = -np.einsum("nji,nj->ni", new_r, translation + shifts) / UNIT_CM
    for i, (a, b) in enumerate(chunks.spans(n_frames)):
        rows = chunks.read_chunk(track, i)
        better = {"cam_to_world": poses[a:b], "error_px": error[a:b], "confidence": sure[a:b]}
        chunks.write_chunk(folder, i, rows | {k: v.astype(np.float32) for k, v in better.items()})
    before, after = (float(np.nanmean(e)) if np.isfinite(e).any() else None for e in np.array(errors).T)
    figures |= {
        "feature_tracks": followed,
        "feature_rms_px_before": before,
        "feature_rms_px": after,
        "error_px_mean": float(np.nanmean(error)),
        "error_px_p95": float(np.nanpercentile(error, 95)),
        "error_px_max": float(np.nanmax(error)),
        "frames_refinement_undone": int(kept.sum()),
        "refined_by_deg_rms": float(np.degrees(np.sqrt((turns**2).sum(-1).mean()))),
    }
    write_atomic(folder / "track.json", json.dumps(figures, indent=1).encode())
    if followed:
        say(
            f"refine: {followed} feature tracks, {before:.2f} px before, {after:.2f} px after; "
            f"heads turned by {figures['refined_by_deg_rms']:.2f} degrees RMS"
        )
    else:
        say("refine: no feature could be followed on the head; poses stay as the landmarks give them")
