"""The real face tracker reads the synthetic subject: found, turned, opened and blinked as the truth says."""

import numpy as np
import pytest

from tkjax import contract, synthetic


def _offset(true, tracked):
    """The constant rotation Q for which true @ Q is nearest to tracked (least squares)."""
    u, _, vt = np.linalg.svd(np.einsum("nji,njk->ik", true, tracked))
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


@pytest.mark.heavy
@pytest.mark.parametrize(("seed", "motion"), [(11, 1.0), (12, 1.4)])
def test_tracker_agrees_with_truth(models_dir, seed, motion):
    mediapipe = pytest.importorskip("mediapipe", reason="the tracker is in the preprocess extra")
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(models_dir / "face_landmarker.task")),
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
    _, p = synthetic.speak(seed, 12.0, size=160, motion_range=motion)
    p = p.take(range(0, p.n_frames, 8))
    found, tracked, scores = [], [], []
    with vision.FaceLandmarker.create_from_options(options) as tracker:
        for frame in p.frames():
            picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=frame["rgb"])
            result = tracker.detect(picture)
            found.append(bool(result.face_landmarks))
            if found[-1]:
                tracked.append(result.facial_transformation_matrixes[0][:3, :3])
                scores.append({c.category_name: c.score for c in result.face_blendshapes[0]})
    found, tracked = np.array(found), np.stack(tracked)
    assert found.mean() >= 0.98
    true = np.stack([pose.stage_from_head[:3, :3] for pose in p.poses])[found]
    error = np.einsum("nij,jk,nlk->nil", true, _offset(true, tracked), tracked)
    degrees = np.rad2deg(np.arccos(np.clip((np.trace(error, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    rms = float(np.sqrt((degrees**2).mean()))
    correlation = {
        name: synthetic.correlation(p.expression[found, contract.BLENDSHAPES.index(name)], [s[name] for s in scores])
        for name in ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight")
    }
    print(f"found {found.mean():.1%}, rotation {rms:.2f} deg RMS, correlations {correlation}")
    assert rms < 3.0
    assert min(correlation.values()) >= 0.8
