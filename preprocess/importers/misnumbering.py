"""The originals' misalignment after a frame without landmarks, and how it is undone.

Their tracker skips frames without .lms, and the last step numbers its rows 0, 1, … as img_id (rad-nerf.md §2.3 trap b,
er-nerf.md §2 "Landmarks"): from the first such frame on, each pose stands at a picture too early. Which frames were
skipped cannot be read off a folder that somebody has worked on since (landmarks copied from a neighbour, lost, or
pictures cut off), so it is measured: fixed points of the head are fitted to their pictures, and of all numberings that
skip frames here and there the one is searched in which the poses put these points where the landmarks are.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from preprocess.importers.folder_layout import Notes, Transforms
from preprocess.importers.track_columns import read_lms
from tkjax.formats import tables

RIGID = (*range(27, 36), 36, 39, 42, 45)  # nose and corners of the eyes
BETTER = 0.8  # the error of the frames that another numbering moves must fall at least to this share
LEAST = 3  # frames from which a fit says anything about a numbering
MOST_SKIPPED = 256  # frames that the tracker may have skipped in all
ROUNDS = 8  # of fitting the points and searching the numbering
CAPPED = 9.0  # what one frame can say against a numbering, in variances of the noise
# What it takes to skip a frame: next to nothing where it has no landmarks, little where it has its neighbour's, and
# else what three frames can say.
NO_LANDMARKS, COPIED, UNEXPLAINED = 0.01, 0.5, 3 * CAPPED
COPIED_FROM = 0.6  # the neighbour from which it has them, by habit the earlier one
UNSEEN = 1.0  # for a pose on a frame without landmarks: as much as one that fits with the usual noise
# Nine of ten poses are nearer to their landmarks than the noise is taken to be: a numbering that is wrong for many
# frames then gives a noise that still tells better from worse, instead of a cap that all of them reach.
MOST_BELOW = 90
NOISE_PX = 0.05  # at least: .lms files have six digits, but no detector is that good
FITS = 0.03  # of the face's height: farther than this from its landmarks, a pose is not that frame's
CHECKED = 400  # frames that the final check looks at
OFTEN = 0.05  # of the checked frames

STEPS, HELD = 4, 2.0  # of the fit; pixels that a point's distance of one unit (25 cm) from the plane weighs

Points = Float[np.ndarray, "n p 2"]


# ---------------------------------------------------------------- the fit


def rigid_points(poses: Float[np.ndarray, "n 4 4"], camera: Mapping[str, float], points_px: Points) -> np.ndarray:
    """World points [p,3] whose pictures are nearest to `points_px`: least squares by Gauss and Newton.

    They are held near where they would lie in the plane of the head's middle (the contract's origin), because a head
    that never turns says nothing about their depth.
    """
    r, c = poses[:, :3, :3], poses[:, :3, 3]
    middle = np.maximum(np.einsum("nj,nj->n", r[:, :, 2], c), 1e-3)  # depth of the origin
    ray = (points_px - [camera["cx"], camera["cy"]]) / [camera["fx"], -camera["fy"]]
    ray = np.concatenate([ray, np.full((*ray.shape[:2], 1), -1.0)], -1)
    start = (c[:, None] + np.einsum("nij,npj->npi", r, ray) * middle[:, None, None]).mean(0)
    world = start
    for _ in range(STEPS):
        error, slope = _errors(world, poses, camera, points_px)
        slope = np.einsum("npak,nik->npai", slope, r)  # of the two coordinates by the world's three
        square = np.einsum("npai,npaj->pij", slope, slope) + HELD**2 * np.eye(3)
        pull = np.einsum("npai,npa->pi", slope, error) + HELD**2 * (world - start)
        world = world - np.linalg.solve(square, pull[..., None])[..., 0]
    return world


def _errors(world, poses, camera, points_px: Points) -> tuple[np.ndarray, np.ndarray]:
    """(picture of the world points minus `points_px` [n,p,2], its slope [n,p,2,3] by the camera's coordinates).

    u = cx + fx x / d, v = cy - fy y / d with (x, y, -d) = R^T (X - c).
    """
    x, y, z = np.moveaxis(np.einsum("nji,npj->npi", poses[:, :3, :3], world - poses[:, None, :3, 3]), -1, 0)
    d, fx, fy, zero = np.maximum(-z, 1e-3), camera["fx"], camera["fy"], np.zeros_like(x)
    at = np.stack([camera["cx"] + fx * x / d, camera["cy"] - fy * y / d], -1)
    slope = np.stack([np.stack([fx / d, zero, fx * x / d**2], -1), np.stack([zero, -fy / d, -fy * y / d**2], -1)], -2)
    return at - points_px, slope


def errors_px(world, poses: Float[np.ndarray, "n 4 4"], camera: Mapping[str, float], points_px: Points):
    """Root mean square distance [n] between the pictures of world points [p,3] and `points_px`."""
    return np.sqrt((_errors(world, poses, camera, points_px)[0] ** 2).sum(-1).mean(1))


def rigid_error(poses: Float[np.ndarray, "n 4 4"], camera: Mapping[str, float], points_px: Points) -> float:
    """Root mean square distance in pixels between points and the pictures of the fixed world points nearest to them."""
    return float(np.sqrt((errors_px(_world(poses, camera, points_px), poses, camera, points_px) ** 2).mean()))


def _world(poses, camera, points_px: Points) -> np.ndarray:
    """`rigid_points`, and again without the frames that are far from the rest."""
    world = rigid_points(poses, camera, points_px)
    error = errors_px(world, poses, camera, points_px)
    near = error <= 2 * np.median(error)
    return rigid_points(poses[near], camera, points_px[near]) if near.sum() >= LEAST else world


# ---------------------------------------------------------------- the numbering


class _Search:
    """The numbering of poses 0 … n - 1: pose k belongs to frame k + skipped[k], where `skipped` never falls."""

    def __init__(self, poses: dict[int, np.ndarray], n: int, seen: dict[int, np.ndarray], camera, most: int):
        """seen: landmarks [68,2] by frame. most: largest number of skipped frames."""
        self.camera, self.n, self.most = camera, n, most
        self.rows = np.array(sorted(poses))
        self.poses = np.stack([poses[k] for k in self.rows])
        self.points = np.full((n + most + 1, len(RIGID), 2), np.nan)
        for i, p in seen.items():
            if i < len(self.points):
                self.points[i] = p[list(RIGID)]
        self.free = _skip_costs(self.points)

    def world(self, skipped: Int[np.ndarray, " n"]) -> np.ndarray | None:
        at = self.rows + skipped[self.rows]
        known = np.isfinite(self.points[at]).all((1, 2))
        if known.sum() < LEAST:
            return None
        return _world(self.poses[known], self.camera, self.points[at][known])

    def errors(self, world: np.ndarray, skipped: Int[np.ndarray, " n"] | int) -> Float[np.ndarray, " n"]:
        """Error of each pose in pixels; NaN where it or the landmarks are missing."""
        out = np.full(self.n, np.nan)
        at = self.rows + (skipped if np.isscalar(skipped) else skipped[self.rows])
        out[self.rows] = errors_px(world, self.poses, self.camera, self.points[at])
        return out

    def step(self, skipped: Int[np.ndarray, " n"], first: bool) -> Int[np.ndarray, " n"]:
        """The best numbering for the points that fit the given one; dynamic programming over frames and skips.

        first: the noise is then guessed from what each pose fits best, since the given numbering may fit nothing.
        """
        world = self.world(skipped)
        if world is None:
            return skipped
        cost = np.stack([self.errors(world, s) for s in range(self.most + 1)], 1)
        known = cost[np.isfinite(cost).any(1)]
        noise = np.nanpercentile(np.nanmin(known, 1) if first else self.errors(world, skipped), MOST_BELOW)
        cost = cost / max(float(noise), NOISE_PX)
        cost = np.where(np.isnan(cost), UNSEEN, np.minimum(cost**2, CAPPED))
        before = np.concatenate([[0.0], np.cumsum(self.free)])  # cost of skipping all frames before one
        offsets, total = np.arange(self.most + 1), cost[0] + before[: self.most + 1]
        came = np.zeros((self.n, self.most + 1), int)
        for k in range(1, self.n):
            so_far = total - before[k + offsets]
            best = np.minimum.accumulate(so_far)
            came[k] = np.maximum.accumulate(np.where(so_far == best, offsets, 0))
            total = best + before[k + offsets] + cost[k]
        out = np.zeros(self.n, int)
        out[-1] = int(np.argmin(total))
        for k in range(self.n - 1, 0, -1):
            out[k - 1] = came[k, out[k]]
        return out

    def run(self, start: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The numbering that gives itself, from a given one; and once more with the noise that the best fit of each
        pose would leave, since a numbering that is one frame off for half of a clip takes its own error for noise."""
        found = self._settle(start)
        again = self._settle(found)
        return min((found, again), key=lambda s: self.better(s) if s.any() else np.inf)

    def _settle(self, start: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        for i in range(ROUNDS):
            found = self.step(start, first=i == 0)
            if i and (found == start).all():
                break
            start = found
        return start

    def better(self, skipped: Int[np.ndarray, " n"]) -> float:
        """The error of the frames that this numbering moves, as a share of what they have where the json puts them;
        infinity where too few of them have landmarks."""
        moved, share = skipped > 0, []
        for numbering in (skipped, np.zeros_like(skipped)):
            world = self.world(numbering)
            error = np.array([np.nan]) if world is None else self.errors(world, numbering)[moved]
            error = error[np.isfinite(error)]
            share.append(float(np.sqrt((error**2).mean())) if len(error) >= LEAST else np.nan)
        return max(share[0], NOISE_PX) / max(share[1], NOISE_PX) if np.isfinite(share).all() else np.inf


def _skip_costs(points: Float[np.ndarray, "m p 2"]) -> Float[np.ndarray, " m"]:
    """What it takes to skip each frame."""
    known = np.isfinite(points).all((1, 2))
    out = np.where(known, UNEXPLAINED, NO_LANDMARKS)
    same = (points[1:] == points[:-1]).all((1, 2))
    out[:-1][same] = COPIED_FROM
    out[1:][same] = COPIED
    return out


def unshift(
    t: Transforms, pictures: dict[int, Path], lms: dict[int, Path], camera: dict[str, float], notes: Notes
) -> Transforms:
    """The transforms with the frame numbers that their poses belong to; the same where nothing was shifted."""
    n = len(t.part)
    if t.ids != list(range(n)):
        return t
    seen = {i: p for i in sorted(lms) if i in pictures and (p := read_lms(lms[i])) is not None}
    if len(seen) < LEAST:
        return t
    gaps = set(range(max(seen) + 1)) - set(seen)
    copies = [i for i in seen if i - 1 in seen and np.array_equal(seen[i], seen[i - 1])]
    most = min(MOST_SKIPPED, len(gaps) + len(copies) + max(0, len(seen) - n))
    if most == 0:
        return t
    search = _Search(t.poses, n, seen, camera, most)
    starts = [np.zeros(n, int), np.minimum(_without(gaps, n), most), np.minimum(_without(gaps | set(copies), n), most)]
    found = min((search.run(s) for s in starts), key=lambda s: search.better(s) if s.any() else np.inf)
    if not found.any() or search.better(found) > BETTER:
        if gaps:
            notes.said.append(
                f"frames without landmarks ({tables.ranges(gaps)}): the json's poses are kept at its img_id"
            )
        return t
    numbers = np.arange(n) + found
    lost = sorted(set(range(int(numbers[-1]) + 1)) - set(numbers.tolist()))
    notes.said.append(
        f"the poses of the json stand too early from img_id {int(np.argmax(found > 0))} on, because the original "
        f"counted only frames with landmarks (without: {tables.ranges(lost)}); each pose, split and sound index was "
        "put to its own frame"
    )
    number = dict(enumerate(numbers.tolist()))
    return Transforms(
        {number[i]: m for i, m in t.poses.items()},
        {number[i]: a + number[i] - i for i, a in t.aud_id.items()},
        {number[i]: p for i, p in t.part.items()},
        t.head,
        t.parts,
    )


def _without(skipped: set[int], n: int) -> Int[np.ndarray, " n"]:
    """The numbering in which just these frames were skipped."""
    numbers = [i for i in range(n + len(skipped)) if i not in skipped][:n]
    return np.array(numbers) - np.arange(n)


# ---------------------------------------------------------------- the check


def check_fit(t: Transforms, lms: dict[int, Path], camera: dict[str, float], shift: float, notes: Notes) -> None:
    """Say so where the poses do not put the head where the landmarks are. shift: added to the .lms files' pixels."""
    rows = [i for i in t.ids if i in t.poses and i in lms]
    found = {i: read_lms(lms[i]) for i in rows[:: max(1, len(rows) // CHECKED)]}
    found = {i: p + shift for i, p in found.items() if p is not None}
    if len(found) < 2 * LEAST:
        return
    poses, points = np.stack([t.poses[i] for i in found]), np.stack(list(found.values()))
    face = float(np.median(np.ptp(points[..., 1], axis=1)))
    seen = points[:, list(RIGID)]
    error = errors_px(_world(poses, camera, seen), poses, camera, seen)
    bad = error > FITS * face
    if bad.mean() > OFTEN:
        at = tables.ranges(i for i, b in zip(found, bad, strict=True) if b)
        notes.said.append(
            f"the poses of the json do not fit the landmarks, in no numbering: {np.median(error[bad]):.1f} px beside "
            f"them, of a face of {face:.0f} px (expected below {FITS * face:.1f}), at img_id {at}; they may be another "
            "clip's, or landmarks and camera another size's: look at them, or track the clip anew"
        )
