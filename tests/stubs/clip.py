"""A `tkjax.data.clip.Clip` in memory: smooth pictures of a blob that moves and speaks."""

import numpy as np

from tkjax import samplers
from tkjax.signals import SOUND, Signal, SignalInfo, of_frames, windows
from tkjax.types import Batch, SubjectInfo

LABEL_BACKGROUND, LABEL_HEAD, LABEL_TORSO = 0, 1, 3


def u8(picture):
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


class FakeClip:
    """n_frames pictures of height x width. A head-like blob follows the camera, a dark mouth follows the audio.

    Everything is drawn from `seed`; 10/11 of the frames train.
    """

    def __init__(self, n_frames: int = 12, height: int = 24, width: int = 24, seed: int = 0):
        rng = np.random.default_rng(seed)
        n, h, w = n_frames, height, width
        focal = 3.0 * w
        self.n_frames, self.height, self.width, self.digest = n, h, w, f"fake-{seed}-{n}-{h}-{w}"
        self.train_range = (0, n * 10 // 11)
        self.heldout_range = (n * 10 // 11, n)
        self.intrinsics = np.array([focal, focal, w / 2, h / 2], np.float32)

        # camera: in front of the head, turning a little
        phase = 2 * np.pi * np.arange(n) / max(n, 1)
        yaw, self.mouth = 0.2 * np.sin(phase), 0.5 + 0.5 * np.sin(2 * phase)
        self.cam_to_world = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
        self.cam_to_world[:, 0, 0] = self.cam_to_world[:, 2, 2] = np.cos(yaw)
        self.cam_to_world[:, 0, 2], self.cam_to_world[:, 2, 0] = np.sin(yaw), -np.sin(yaw)
        self.cam_to_world[:, :3, 3] = 3.3 * self.cam_to_world[:, :3, 2]

        # what drives it: the mouth's opening is the mean of the audio window
        self.audio = (self.mouth[:, None, None] + 0.1 * rng.standard_normal((n, 4, 6))).astype(np.float32)
        expression = rng.uniform(0, 1, (n, 3)).astype(np.float32)
        self.eye_closed = rng.uniform(0, 1, n).astype(np.float32)
        self.confidence = np.ones(n, np.float32)
        heard = SignalInfo(SOUND, 6, 100.0, window=4, hop=4, left=0, kind="logmel")
        area = (0.2 * (1 - self.eye_closed)).astype(np.float32)
        frames = {"expression": expression, "eye_closed": self.eye_closed, "eye_area": area}
        found = {SOUND: Signal(heard, self.audio.reshape(-1, 6))}
        found |= {name: of_frames(name, values, 25.0) for name, values in frames.items()}
        self.signals = {name: s.with_range(np.arange(*self.train_range)) for name, s in found.items()}
        self.truth, self.members = {}, {}
        infos = tuple(s.info for s in self.signals.values())
        self.info = SubjectInfo(n, h, w, (focal, focal, w / 2, h / 2), infos)

        # pictures
        y, x = (np.mgrid[:h, :w] + 0.5) / np.array([h, w])[:, None, None]
        plate = np.stack([0.3 + 0.2 * x, 0.5 + 0.2 * y, 0.6 - 0.2 * x], -1)
        torso = y > 0.8
        body = np.where(torso[..., None], [0.2, 0.2, 0.5], plate)
        self._background = {"plate": u8(plate), "torso": u8(body)}
        self._background |= {k: np.full((h, w, 3), v, np.uint8) for k, v in (("white", 255), ("black", 0))}
        cx, cy, radius = 0.5 - 0.5 * yaw, np.full(n, 0.45), 0.28
        distance = np.hypot(x - cx[:, None, None], (y - cy[:, None, None]) / 1.2)
        skin = 1 / (1 + np.exp((distance - radius) * 40))[..., None]
        lips = np.hypot(x - cx[:, None, None], (y - 0.57) * 2) < 0.04 + 0.06 * self.mouth[:, None, None]
        tone = np.where(lips[..., None], [0.35, 0.1, 0.1], np.array([0.85, 0.65, 0.5]) * (1.1 - 0.4 * y[..., None]))
        self._target = u8(skin * tone + (1 - skin) * body)
        self._label = np.where(skin[..., 0] > 0.5, LABEL_HEAD, np.where(torso, LABEL_TORSO, 0)).astype(np.uint8)
        edges = np.stack([(cx - radius) * w, (cy - 0.3) * h, (cx + radius) * w, (cy + 0.3) * h], -1)
        lip_edges = np.stack([(cx - 0.12) * w, 0.45 * h + 0 * cx, (cx + 0.12) * w, 0.69 * h + 0 * cx], -1)
        limit = [w, h, w, h]
        self.boxes = {
            "face_box_px": np.clip(np.round(edges), 0, limit).astype(np.int32),
            "lips_box_px": np.clip(np.round(lip_edges), 0, limit).astype(np.int32),
        }

        eyes = [[(cx + a) * w, 0.32 * h + 0 * cx, (cx + b) * w, 0.42 * h + 0 * cx] for a, b in ((-0.18, 0), (0, 0.18))]
        self.eye_boxes = [np.round(np.stack(edges, -1)) for edges in eyes]

        # what the evaluator asks for besides
        self.landmarks68_px = self._landmarks(cx)
        self.eye_regions = np.tile(self.boxes["face_box_px"][:, None], (1, 2, 1))
        self.lower_face = self.boxes["face_box_px"].astype(np.float32)
        self.picture_missing = np.zeros(self.n_frames, bool)
        self.fps, self.plate = 25.0, self._background["plate"]
        self.dataset, self.split, self.has_labels = None, "last", True

    def _landmarks(self, cx: np.ndarray) -> np.ndarray:
        """68 points on the face; the inner lips' middle pairs are as far apart as the mouth is open."""
        points = np.random.default_rng(0).uniform([-0.2, -0.2], [0.2, 0.1], (68, 2))
        points[[36, 39, 42, 45]] = [[-0.15, -0.1], [-0.05, -0.1], [0.05, -0.1], [0.15, -0.1]]
        points = np.tile(points, (self.n_frames, 1, 1))
        for top, bottom in ((61, 67), (62, 66), (63, 65)):
            points[:, bottom] = points[:, top] + np.stack([0 * cx, 0.04 + 0.06 * self.mouth], -1)
        points += np.stack([cx, np.full_like(cx, 0.45)], -1)[:, None]
        return (points * [self.width, self.height]).astype(np.float32)

    @property
    def train_frames(self) -> np.ndarray:
        return np.arange(*self.train_range)

    @property
    def heldout_frames(self) -> np.ndarray:
        return np.arange(*self.heldout_range)

    def torso_rgba(self, i: int) -> np.ndarray:
        alpha = np.any(self._background["torso"] != self._background["plate"], -1, keepdims=True)
        return np.concatenate([self._background["torso"], 255 * alpha.astype(np.uint8)], -1)

    def target(self, i: int, kind: str = "frame", background: str = "plate") -> np.ndarray:
        if kind == "torso":
            return self._background["torso"]
        if kind == "frame":
            return self._target[i]
        return np.where(self._label[i][..., None] == LABEL_HEAD, self._target[i], self._background[background])

    def background(self, i: int, kind: str = "torso") -> np.ndarray:
        return self._background[kind]

    def label(self, i: int) -> np.ndarray:
        return self._label[i]

    def frame_batch(self, i: int, background: str = "torso", driven_by=()) -> Batch:
        rows, columns = np.divmod(np.arange(self.height * self.width), self.width)
        batch = self._gather(np.array([i]), rows[None], columns[None], background, (self.height, self.width))
        return batch.replace(signals={u.name: windows(self.signals[u.name], np.array([i]), u) for u in driven_by})

    def batch(
        self, frames, keys, sampler="rays", rays=64, patch=8, background="torso", target="frame", driven_by=(),
        masks=(), truth=(),
    ) -> Batch:  # fmt: skip
        h, w = self.height, self.width
        choose, picked = samplers.find(sampler), []
        for i, rng in zip(frames, keys, strict=True):
            edges = {name: self.boxes[f"{name}_box_px"][i] for name in ("face", "lips")}
            eyes = dict.fromkeys(("eye_left", "eye_right"), edges["face"])
            label = lambda i=i: self._label[i]  # noqa: E731
            view = samplers.View((h, w), rng, rays, patch, edges | eyes | {"head": edges["face"]}, self._longest, label)
            picked.append(np.divmod(choose(view), w))
        rows, columns = (np.stack(a) for a in zip(*picked, strict=True))
        one = self._gather(np.asarray(frames), rows, columns, background, (h, w) if sampler == "frame" else None)
        frames = np.asarray(frames)
        head = np.where(one.label[..., None] == LABEL_HEAD, one.target, one.background)
        return one.replace(
            patches=sampler if samplers.gives_patches(sampler) else None,
            target={"torso": one.background, "head": head, "frame": one.target}[target],
            signals={u.name: windows(self.signals[u.name], frames, u) for u in driven_by},
            masks={name: one.masks[name] for name in masks},
            truth={name: self.truth[name][frames] for name in truth},
        )

    def _longest(self, name: str) -> int:
        corners = self.boxes[f"{name}_box_px"]
        return int((corners[:, 2:] - corners[:, :2]).max())

    def _gather(self, frames, rows, columns, background, image_hw) -> Batch:
        n, at = len(frames), (frames[:, None], rows, columns)

        def within(box):
            x0, y0, x1, y1 = box[frames].T[..., None]
            return (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)

        return Batch(
            frame=frames.astype(np.int32),
            cam_to_world=self.cam_to_world[frames],
            intrinsics=np.tile(self.intrinsics, (n, 1)),
            pixels_px=np.stack([columns, rows], -1).astype(np.float32) + 0.5,
            background=self._background[background][rows, columns] / np.float32(255),
            target=self._target[at] / np.float32(255),
            label=self._label[at],
            masks={
                "face": within(self.boxes["face_box_px"]),
                "lips": within(self.boxes["lips_box_px"]),
                "lower_face": within(self.boxes["face_box_px"]) & (rows > 0.45 * self.height),
                "eye_left": within(self.eye_boxes[0]),
                "eye_right": within(self.eye_boxes[1]),
            },
            image_hw=image_hw,
        )
