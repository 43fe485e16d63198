"""Which poses to trust: the reprojection error of every frame against the height of the face, and likely causes.

A pose is lost where the landmarks that the tracker uses lie, as weighted RMS, more than `FRAME_BOUND` of the face's
height from where the pose puts them. Good clips stay below a third of that in every frame (a real broadcast of 71 s:
0.3 % median, 1.0 % at most), and a misplaced head at 3 % shows as a doubled outline after training. Such frames, and
those without a face, get confidence 0, so that training leaves them out.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from preprocess.checks import Check, judge
from preprocess.framing.survey import MAX_MISSING, timestamps

SHAPE = "shape.json"  # of the track stage: ids, weights and shape_cm of the landmarks that it fits
FRAME_BOUND = 0.03
MEDIAN_WARN, MEDIAN_FAIL = 0.01, 0.03
LOST_WARN = 0.02  # share of the frames; beyond MAX_MISSING, as for frames without a face, the clip is refused
FACE_CM = 17.7  # top of the forehead to the chin of the canonical face
TURNED_DEG = 45.0  # from the clip's usual direction: the landmarks of the far side are guesses
FAST = 0.06  # of the face's height a frame: more blurs the picture at the usual shutter of 1/50 s
NEAR = 3  # frames
BLOCK = 512  # frames at a time


def distances(
    points_px: Float[np.ndarray, "n p 2"],
    shape_cm: Float[np.ndarray, "p 3"],
    rotation: Float[np.ndarray, "n 3 3"],
    translation_cm: Float[np.ndarray, "n 3"],
    f_px: float,
    centre_px: tuple[float, float],
) -> Float[np.ndarray, "n p"]:
    """Distance in pixels of each point from its projection; X_cam = R X + t, camera axes x right, y down, z forward."""
    out = np.empty(points_px.shape[:2])
    for start in range(0, len(points_px), BLOCK):
        s = slice(start, start + BLOCK)
        cam = np.einsum("nij,pj->npi", rotation[s], shape_cm) + translation_cm[s, None]
        off = f_px * cam[..., :2] / np.maximum(cam[..., 2:], 1.0) + centre_px - points_px[s]
        out[s] = np.linalg.norm(off, axis=-1)
    return out


def rms(distance_px: Float[np.ndarray, "n p"], weight: Float[np.ndarray, " p"]) -> Float[np.ndarray, " n"]:
    """Weighted RMS of each frame's distances: the reprojection error."""
    return np.sqrt((distance_px**2 @ weight) / weight.sum())


def face_heights(translation_cm: Float[np.ndarray, "n 3"], f_px: float) -> Float[np.ndarray, " n"]:
    """Height in pixels that a frontal face would have at each frame's distance."""
    return f_px * FACE_CM / np.maximum(translation_cm[:, 2], 1.0)


def lost(error_px: Float[np.ndarray, " n"], heights_px: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Frames with a face (error not NaN) whose pose does not fit it, or of which a part is covered."""
    return np.nan_to_num(error_px / heights_px) > FRAME_BOUND


def causes(
    frames: Sequence[int],
    points_px: Float[np.ndarray, "n p 2"],
    found: Bool[np.ndarray, " n"],
    rotation: Float[np.ndarray, "n 3 3"],
    heights_px: Float[np.ndarray, " n"],
    cuts: Sequence[int],
) -> str:
    """The likely cause of most of the frames, in words."""
    centre = np.where(found[:, None], points_px.mean(1), np.nan)
    speed = np.zeros(len(found))
    step = np.linalg.norm(np.diff(centre, axis=0), axis=-1) / heights_px[1:]
    speed[1:], speed[:-1] = np.nan_to_num(step), np.fmax(speed[:-1], np.nan_to_num(step))
    usual = np.linalg.svd(rotation[found].sum(0))
    usual = usual[0] @ usual[2]
    turn = np.degrees(np.arccos(np.clip((np.einsum("nij,ij->n", rotation, usual) - 1) / 2, -1, 1)))
    missing = np.flatnonzero(~found)
    named: dict[str, int] = {}
    for i in frames:
        if any(abs(i - c) <= 1 for c in cuts):
            cause = "a cut"
        elif turn[i] > TURNED_DEG:
            cause = "the face is turned away"
        elif speed[i] > FAST:
            cause = "fast motion blurs the face"
        elif len(missing) and np.abs(missing - i).min() <= NEAR:
            cause = "the face is covered or leaves the picture"
        else:
            cause = "something covers the face, or the picture is unclear"
        named[cause] = named.get(cause, 0) + 1
    return max(named, key=named.__getitem__)


def judge_poses(
    error_px: np.ndarray, heights_px: np.ndarray, found: np.ndarray, points_px: np.ndarray, rotation: np.ndarray,
    cuts: Sequence[int] = (),
) -> list[Check]:  # fmt: skip
    """The checks of a track; errors NaN where no face was found."""
    relative = error_px / heights_px
    bad = lost(error_px, heights_px)
    share = float((bad | ~found).mean())
    frames = np.flatnonzero(bad)
    message = f"{(~found).sum()} of {len(found)} frames show no face"
    if len(frames):
        cause = causes(frames, points_px, found, rotation, heights_px, cuts)
        message = (
            f"the poses of {len(frames)} of {len(found)} frames do not fit their landmarks, at {timestamps(frames)}; "
            f"likely cause: {cause}"
        )
    typical = float(np.nanmedian(relative)) if found.any() else float("nan")
    return [
        judge("poses", "reprojection error (median), % of the face's height", 100 * typical, warn=100 * MEDIAN_WARN,
              fail=100 * MEDIAN_FAIL,
              message=f"heads lie {typical:.1%} of the face's height off their landmarks; {message}"),
        judge("poses", "share of frames without a pose that fits", share, warn=LOST_WARN, fail=MAX_MISSING,
              message=f"{message}; training leaves them out, and a clip with many of them should be cut or replaced"),
    ]  # fmt: skip
