"""Pose, blink and expression of every frame in the contract's terms, from the landmark stage."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preprocess import checks, chunks
from preprocess.faces.face_model import load_canonical
from preprocess.resumable import say
from preprocess.tracking import pose, pose_checks
from preprocess.tracking.landmarks import Filled
from tkjax.contract import BLENDSHAPES, ORIGIN_CANONICAL_CM, UNIT_CM
from tkjax.host.files import write_atomic

BLINK = [BLENDSHAPES.index("eyeBlinkLeft"), BLENDSHAPES.index("eyeBlinkRight")]
MIN_BLINK_RANGE = 0.4  # of the blendshape: a clip without a whole blink does not stretch noise to 1


def calibrate_blink(blink: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, float, float]:
    """eye_closed [N] in 0..1 from the mean eyeBlink [N]: 0 at the clip's open level, 1 at its closed level.

    open = the median over frames with a face (eyes are open most of the time); closed = the 99.5th percentile, at
    least open + 0.4 and at most 1.
    """
    level_open = float(np.median(blink[found]))
    level_closed = min(1.0, max(float(np.percentile(blink[found], 99.5)), level_open + MIN_BLINK_RANGE))
    return (
        np.clip((blink - level_open) / (level_closed - level_open), 0, 1).astype(np.float32),
        level_open,
        level_closed,
    )


def jitter_degrees(rotation: np.ndarray) -> float:
    """Mean angle between successive frame-to-frame rotations, in degrees: 0 for a steady turn."""
    step = rotation[1:] @ rotation[:-1].transpose(0, 2, 1)
    change = step[1:] @ step[:-1].transpose(0, 2, 1)
    return (
        float(np.degrees(np.arccos(np.clip((np.trace(change, axis1=1, axis2=2) - 1) / 2, -1, 1))).mean())
        if len(change)
        else 0.0
    )


def track(
    folder: Path, landmarks: Path, n_frames: int, height: int, width: int, model: Path, fps: float, cuts: Sequence[int]
) -> None:
    """Stage: chunks with `landmarks_px` [n,478,2], `expression` [n,52], `eye_closed`, `confidence`, `error_px` [n] and
    `cam_to_world` [n,4,4]; track.json with the focal length and the figures; shape.json with the points that were
    fitted; checks.json. cuts: numbers of the frames that begin a new shot."""
    filled = Filled(landmarks, n_frames)
    ids, weight = pose.rigid_points()
    points = np.empty((n_frames, len(ids), 2), np.float32)
    blink = np.empty(n_frames, np.float32)
    spans = chunks.spans(n_frames)
    for i, (a, b) in enumerate(spans):
        rows = filled.rows(i)
        points[a:b] = rows["landmarks"][:, ids, :2]
        blink[a:b] = rows["blendshapes"][:, BLINK].mean(1)
    canonical = load_canonical(model).vertices_cm[ids]
    found = filled.found
    fitted = pose.fit(points, found, canonical, weight, height, width, fps, cuts=np.asarray(cuts, int))
    heights = pose_checks.face_heights(fitted.translation_cm, fitted.f_px)
    sure = found & ~pose_checks.lost(fitted.error_px, heights)
    eye_closed, level_open, level_closed = calibrate_blink(blink, found)
    poses = pose.cam_to_world(fitted, UNIT_CM, np.array(ORIGIN_CANONICAL_CM))
    for i, (a, b) in enumerate(spans):
        rows = filled.rows(i)
        chunks.write_chunk(folder, i, {
            "landmarks_px": np.ascontiguousarray(rows["landmarks"][..., :2]),
            "expression": rows["blendshapes"],
            "eye_closed": eye_closed[a:b],
            "confidence": sure[a:b].astype(np.float32),
            "cam_to_world": poses[a:b],
            "error_px": fitted.error_px[a:b].astype(np.float32),
        })  # fmt: skip
    figures = {
        "focal_px": fitted.f_px,
        "focal_prior_px": fitted.f_prior_px,
        "error_px_mean": float(np.nanmean(fitted.error_px)),
        "error_px_p95": float(np.nanpercentile(fitted.error_px, 95)),
        "error_px_max": float(np.nanmax(fitted.error_px)),
        "jitter_deg": jitter_degrees(fitted.rotation),
        "shape_offset_cm_rms": float(np.sqrt(((fitted.shape_cm - canonical) ** 2).sum(-1).mean())),
        "error_share_of_face_median": float(np.nanmedian(fitted.error_px / heights)),
        "bandwidth_hz": np.median(fitted.bandwidth_hz, axis=0).round(2).tolist(),
        "frames_without_face": int((~found).sum()),
        "frames_without_pose": int((found & ~sure).sum()),
        "blink_open": level_open,
        "blink_closed": level_closed,
    }
    write_atomic(folder / "track.json", json.dumps(figures, indent=1).encode())
    shape = {"ids": ids.tolist(), "weights": weight.tolist(), "shape_cm": fitted.shape_cm.tolist()}
    write_atomic(folder / pose_checks.SHAPE, json.dumps(shape).encode())
    checks.write(folder, pose_checks.judge_poses(fitted.error_px, heights, found, points, fitted.rotation, cuts))
    say(
        f"track: reprojection error {figures['error_px_mean']:.2f} px mean, {figures['error_px_p95']:.2f} px in 95 % "
        f"of the frames, {figures['error_share_of_face_median']:.2%} of the face's height (median), focal "
        f"{fitted.f_px:.0f} px, jitter {figures['jitter_deg']:.3f} degrees"
    )
