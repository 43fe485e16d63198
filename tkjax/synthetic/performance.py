"""A performance: one subject who says something while the head moves; every instant is known exactly."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int, UInt8

from tkjax import contract
from tkjax.cameras import project_world
from tkjax.synthetic import controls, motion
from tkjax.synthetic.landmarks import landmarks_head
from tkjax.synthetic.mouth import LinearOpening, fit_opening, mouth_opening, widened
from tkjax.synthetic.plate import plate
from tkjax.synthetic.render import Camera, Pose, Scene, portrait_camera
from tkjax.synthetic.speech import speech

WORKERS = 2  # frames that are rendered at once
SWAY = 0.22  # share of the head's shift that the trunk follows


@dataclasses.dataclass(frozen=True)
class Performance:
    """n frames of one subject. World: contract axes and units; `expression` in the order of contract.BLENDSHAPES."""

    look: dict
    camera: Camera
    poses: list[Pose]
    expression: Float[np.ndarray, "n 52"]
    eye_closed: Float[np.ndarray, " n"]

    @property
    def n_frames(self) -> int:
        return len(self.poses)

    def take(self, keep) -> "Performance":
        """The frames with these indices."""
        keep = [int(i) for i in keep]
        poses = [self.poses[i] for i in keep]
        return dataclasses.replace(
            self, poses=poses, expression=self.expression[keep], eye_closed=self.eye_closed[keep]
        )

    @property
    def cam_to_world(self) -> Float[np.ndarray, "n 4 4"]:
        """Camera in head axes, contract units (25 cm)."""
        out = np.stack([np.linalg.inv(p.stage_from_head) @ self.camera.stage_from_camera for p in self.poses])
        out[:, :3, 3] /= contract.UNIT_CM
        return out.astype(np.float32)

    def landmarks_world(self) -> Float[np.ndarray, "n 68 3"]:
        """The named points in contract units."""
        return landmarks_head([p.controls for p in self.poses]) / np.float32(contract.UNIT_CM)

    def landmarks_px(self) -> Float[np.ndarray, "n 68 2"]:
        """Their exact projections."""
        return project_world(self.cam_to_world, self.camera.intrinsics, self.landmarks_world()).astype(np.float32)

    def boxes(self) -> dict[str, Int[np.ndarray, "n 4"]]:
        return contract.boxes_from_landmarks68(self.landmarks_px(), self.camera.height, self.camera.width)

    def plate(self) -> UInt8[np.ndarray, "H W 3"]:
        return plate(self.camera.height, self.camera.width, self.look["plate_seed"])

    def frames(self, boxes=None, smooth: bool = True, workers: int = WORKERS) -> Iterator[dict[str, np.ndarray]]:
        """Rendered frames in order (see `Scene.frame`); boxes [n,4] renders only those rectangles."""
        scene = Scene(self.camera, self.plate())

        def one(i):
            return scene.frame(self.poses[i], None if boxes is None else tuple(int(v) for v in boxes[i]), smooth)

        if workers <= 1:
            yield from (one(i) for i in range(self.n_frames))
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting, ahead = [], workers + 1
            for i in range(self.n_frames):
                waiting.append(pool.submit(one, i))
                if len(waiting) > ahead:
                    yield waiting.pop(0).result()
            for job in waiting:
                yield job.result()


def stage_from_camera_pose(cam_to_world: Float[np.ndarray, "n 4 4"], camera: Camera) -> Float[np.ndarray, "n 4 4"]:
    """Contract poses -> stage_from_head in cm, for the subject's still camera."""
    pose = np.array(cam_to_world, np.float64)
    pose[:, :3, 3] *= contract.UNIT_CM
    return camera.stage_from_camera @ np.linalg.inv(pose)


def perform(
    tracks: dict[str, Float[np.ndarray, " n"]],
    *,
    seed: int = 0,
    subject_seed: int | None = None,
    motion_range: float | int = 1.0,
    size: int | tuple[int, int] = 256,
    cam_to_world: Float[np.ndarray, "n 4 4"] | None = None,
    blink: Float[np.ndarray, " n"] | None = None,
) -> Performance:
    """The subject `subject_seed` (default: seed) with the mouth of `tracks` (from `speech`).

    Head motion, blinks and gaze come from `seed`, unless cam_to_world (contract poses) or blink (0…1) are given;
    then the clip is as long as the shorter of them and the tracks. size: pixels, or (height, width).
    """
    height, width = (size, size) if np.isscalar(size) else size
    look = controls.looks(seed if subject_seed is None else subject_seed)
    camera = portrait_camera(int(height), int(width))
    n = len(tracks["jawOpen"])
    if cam_to_world is not None:
        n = min(n, len(cam_to_world))
        stage = stage_from_camera_pose(np.asarray(cam_to_world)[:n], camera)
    else:
        stage = motion.head_motion(seed, n, motion_range, tracks.get("envelope"))
    eyes = motion.eye_motion(seed, n)
    if blink is not None:
        n = min(n, len(blink))
        eyes["blink"] = np.clip(np.asarray(blink, np.float64)[:n], 0, 1)
    poses, expression = [], np.zeros((n, len(contract.BLENDSHAPES)), np.float32)
    for i in range(n):
        e = {k: float(v[i]) for k, v in tracks.items() if k not in ("envelope", "closure")}
        e["browInnerUp"] = float(eyes["brow"][i])
        e["eyeBlinkLeft"] = e["eyeBlinkRight"] = float(eyes["blink"][i])
        # eyes hold the camera (or a point near it) while the head turns
        h, v = eyes["gaze"][i]
        eye_to_camera = camera.stage_from_camera[:3, 3] - stage[i, :3, 3]
        aim = np.array([eye_to_camera[0], eye_to_camera[1], eye_to_camera[2]]) / np.linalg.norm(eye_to_camera)
        d = stage[i, :3, :3].T @ aim
        gaze = np.clip([np.arctan2(d[0], d[2]) + h, np.arcsin(np.clip(d[1], -1, 1)) + v], -0.55, 0.55)
        gaze[1] = np.clip(gaze[1], -0.35, 0.35)
        e.update(controls.gaze_names(gaze))
        expression[i] = [np.clip(e.get(name, 0.0), 0.0, 1.0) for name in contract.BLENDSHAPES]
        moved = stage[i, :3, :3] @ motion.PIVOT + stage[i, :3, 3] - motion.PIVOT
        poses.append(Pose(stage[i], controls.frame_controls(e, gaze, look), SWAY * moved))
    return Performance(look, camera, poses, expression, eyes["blink"].astype(np.float32))


def measure_opening(
    performance: Performance, smooth: bool = True
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, "n 4"]]:
    """Mouth opening [n] that the subject shows, measured on rendered true lips, and the boxes [n,4] used."""
    boxes = performance.boxes()["lips_box_px"]
    out = []
    for frame, box in zip(performance.frames(boxes, smooth), boxes):
        h, w = box[3] - box[1], box[2] - box[0]
        out.append(mouth_opening(frame["rgb"], (0, 0, w, h)))
    return np.asarray(out, np.float64), boxes


@dataclasses.dataclass(frozen=True)
class TrueOpening:
    """`opening` [n] by `measure`, the linear one that was fitted to these true frames; `sharp` [n], the same by
    `mouth.mouth_opening`; the lips `boxes` [n,4] they were measured in; and `jaw_correlation`: how well `opening`
    follows the lip aperture (jawOpen - mouthClose) that drove the same true frames."""

    opening: Float[np.ndarray, " n"]
    sharp: Float[np.ndarray, " n"]
    boxes: Int[np.ndarray, "n 4"]
    measure: LinearOpening
    jaw_correlation: float


def correlation(a, b) -> float:
    """Pearson correlation; nan where one of them does not vary."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(a) < 2 or a.std() < 1e-12 or b.std() < 1e-12:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def true_opening(
    tracks: dict[str, Float[np.ndarray, " n"]],
    cam_to_world: Float[np.ndarray, "n 4 4"] | None = None,
    *,
    subject_seed: int = 0,
    size: int | tuple[int, int] = 256,
    seed: int = 0,
) -> TrueOpening:
    """What the subject would show while it speaks `tracks` in the poses cam_to_world (contract).

    Only the lips' rectangles are rendered. `size` must be the size of the pictures that are compared,
    because `boxes` are in its pixels: measure the other pictures in the same boxes.
    """
    p = perform(tracks, seed=seed, subject_seed=subject_seed, size=size, cam_to_world=cam_to_world)
    boxes = p.boxes()["lips_box_px"]
    around = np.clip([widened(box) for box in boxes], 0, [p.camera.width, p.camera.height] * 2)
    lips = [frame["rgb"] for frame in p.frames(around)]
    inside = boxes - np.tile(around[:, :2], 2)  # the lips' boxes in the pictures of `lips`
    measure = fit_opening(lips, inside)
    opening = np.asarray([measure(picture, box) for picture, box in zip(lips, inside)])
    sharp = np.asarray([mouth_opening(picture, box) for picture, box in zip(lips, inside)])
    aperture = (tracks["jawOpen"] - tracks["mouthClose"])[: p.n_frames]
    return TrueOpening(opening, sharp, boxes, measure, correlation(opening, aperture))


def speak(seed: int, seconds: float | int, **options) -> tuple[Float[np.ndarray, " S"], Performance]:
    """Speech of `seed` and the subject that says it; options as in `perform`."""
    pcm, tracks = speech(seed, seconds)
    return pcm, perform(tracks, seed=seed, **options)
