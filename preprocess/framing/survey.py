"""First look at a clip: is it one person, large enough, and which square of the picture shows the head?"""

import collections
import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from preprocess import checks
from preprocess.framing import head_box, looks
from preprocess.keying import screen
from preprocess.keying.backdrop import OWN_ALPHA
from preprocess.resumable import progress
from preprocess.workers import ordered
from tkjax.errors import UserError
from tkjax.host.files import write_atomic
from tkjax.media import video
from tkjax.media.images import resize_area

FPS = 25.0
EVERY = 12  # frames between two looks: about half a second
LOOK_PX = 960  # longer side of the pictures that are looked at
MAX_MISSING = 0.2  # share of frames without a face that is still accepted
SECOND_SIZE, SECOND_SHARE = (
    0.45,
    0.1,
)  # a second person: this part of the height of the first, in this part of the looks
LARGE_ENOUGH = 0.3  # share of the picture's height at which a nearly square picture is left as it is
DEFAULT_MAX_PX = 512


@dataclasses.dataclass(frozen=True)
class Framing:
    """crop_px (x0, y0, x1, y1) in the source picture, and the size of the picture made of it."""

    crop_px: tuple[int, int, int, int]
    height: int
    width: int

    @property
    def scale(self) -> float:
        return self.width / (self.crop_px[2] - self.crop_px[0])

    @classmethod
    def load(cls, folder: Path) -> "Framing":
        d = json.loads((folder / "framing.json").read_text())
        return cls(tuple(d["crop_px"]), d["height"], d["width"])

    def save(self, folder: Path) -> None:
        write_atomic(folder / "framing.json", json.dumps(dataclasses.asdict(self)).encode())


def face_height(landmarks: np.ndarray) -> np.ndarray:
    """Distance from the top of the forehead to the chin [...] of landmarks [...,478,2+]."""
    return np.linalg.norm(landmarks[..., 10, :2] - landmarks[..., 152, :2], axis=-1)


def timestamps(frames: np.ndarray, n: int = 3) -> str:
    """The first `n` frames as times: '0.48 s, 0.96 s, 1.44 s and 5 more'."""
    shown = ", ".join(f"{f / FPS:.2f} s" for f in frames[:n])
    return shown + (f" and {len(frames) - n} more" if len(frames) > n else "")


def check_faces(found: np.ndarray, frames: np.ndarray, source: str, max_missing: float = MAX_MISSING) -> None:
    """UserError when too many of the frames looked at (numbers `frames`, `found` each) have no face."""
    missing = frames[~found]
    if len(missing) == len(frames):
        raise UserError(f"{source} shows no face that the detector finds; expected one frontal face in the whole clip")
    if len(missing) > max_missing * len(frames):
        raise UserError(
            f"{source} has no face in {len(missing)} of {len(frames)} frames looked at, first at "
            f"{timestamps(missing)}; at most {max_missing:.0%} may lack one, so cut the clip to the part with the face"
        )


def check_second(second: np.ndarray, heights: np.ndarray, frames: np.ndarray, source: str) -> None:
    """UserError when a second large face is in view too often; heights of the second and first faces in pixels."""
    two = second > SECOND_SIZE * heights
    if two.sum() >= max(2, SECOND_SHARE * len(frames)):
        raise UserError(
            f"{source} shows two people, first at {timestamps(frames[two])}; "
            "crop or cut it so that only one face is in view"
        )


def check_size(heights: np.ndarray, source: str, min_face: int) -> None:
    """UserError where the face is too small; heights from chin to forehead in pixels of the source."""
    tall = float(np.median(heights))
    if tall < min_face:
        raise UserError(
            f"the face in {source} is too small, {tall:.0f} pixels from chin to forehead; at least {min_face} are "
            "needed, so use a closer or larger recording"
        )


def even(x: float) -> int:
    return max(2, 2 * round(x / 2))


def stays_whole(landmarks: np.ndarray, height: int, width: int) -> bool:
    """Whether the picture is nearly square and the head fills it."""
    square = abs(width - height) <= 0.02 * max(width, height)
    return square and float(np.median(face_height(landmarks))) >= LARGE_ENOUGH * height


def choose_framing(
    landmarks: np.ndarray,
    height: int,
    width: int,
    crop: str,
    size: int,
    reach: np.ndarray | None = None,
    box: head_box.Box | None = None,
) -> Framing:
    """Crop and output size from landmarks [n,478,2+] of the frames looked at.

    crop 'auto': `head_box.default_box`; a nearly square picture with a large face stays whole. reach: what the masks of
    the looks say of the hair. box: a square to use in any case. size: longer side of the output; 0 keeps the pixels,
    shrunk to at most 512 (smaller crops are not enlarged; the original makes 512 of all of them).
    """
    if box is not None:
        box = head_box.clamp(box, height, width)
    elif crop == "auto" and not stays_whole(landmarks, height, width):
        box = head_box.default_box(landmarks, height, width, reach)
    else:
        box = (0, 0, width, height)
    w, h = box[2] - box[0], box[3] - box[1]
    longest = size or min(max(w, h), DEFAULT_MAX_PX)
    s = longest / max(w, h)
    if s == 1:
        return Framing(box, h, w)
    return Framing(box, even(h * s), even(w * s))


def clip_checks(info: video.VideoInfo, framing: Framing, keyed_by: str) -> list[checks.Check]:
    """What is done to the clip's colours, alpha channel and size, where anything is. keyed_by: identity of the
    reference that the person is cut out by, "" without one."""
    out = []
    if info.colours:
        out.append(checks.Check("content", "colours", f"{info.colours} mapped to BT.709", "BT.709", checks.GOOD))
    if info.alpha and keyed_by == OWN_ALPHA.identity:
        out.append(checks.Check("content", "alpha channel", "taken as the matte", "as the clip has it", checks.GOOD))
    elif info.alpha:
        message = "the clip has an alpha channel, which is left out for --background_ref; leave that flag out to use it"
        out.append(checks.Check("content", "alpha channel", "left out", "taken as the matte", checks.WARN, message))
    x0, y0, x1, y1 = framing.crop_px
    if framing.scale < 1:
        small = f"{x1 - x0}x{y1 - y0} reduced to {framing.width}x{framing.height}"
        out.append(checks.Check("content", "picture size", small, "as recorded, up to --size", checks.GOOD))
    return out


def _looks(path: Path, alpha: bool) -> Iterator[tuple[int, np.ndarray, float]]:
    """(frame number, picture of at most LOOK_PX, how much smaller) every EVERY frames."""
    for i, rgb in enumerate(video.read_frames_at_fps(path, FPS, alpha)):
        if i % EVERY:
            continue
        s = min(1.0, LOOK_PX / max(rgb.shape[:2]))
        small = rgb if s == 1 else resize_area(rgb, (round(rgb.shape[0] * s), round(rgb.shape[1] * s)))
        yield i, small, s


def survey(folder: Path, source: Path, n_frames: int, hw: tuple[int, int], model: Path, crop: str, size: int,
           min_face: int, executor: Executor, key: Path | None = None,
           body: head_box.BodyPoints | None = None) -> None:  # fmt: skip
    """Stage: look at a frame every half second, refuse what cannot become a dataset, write framing.json.

    key: folder of the screen stage of a keyed clip. body: a body detector's points, for the original's rule.
    """
    numbers, scales = [], []
    total = -(-n_frames // EVERY)
    album = looks.Album(total)

    def items():
        for i, small, s in _looks(source, key is not None and screen.load(key).own_alpha):
            numbers.append(i)
            scales.append(s)
            album.offer(i // EVERY, looks.visible(small))
            yield str(model), small, None if key is None else str(key)

    seen = list(progress(ordered(executor, looks.look, items()), total, "survey", "looks"))
    faces = [f for f, _ in seen]
    frames = np.array(numbers)
    found = np.array([bool(f.found[0]) for f in faces])
    check_faces(found, frames, source.name, 0.35)  # sparse looks: the exact count follows with the landmarks
    back = 1 / np.array(scales)[found]
    landmarks = (
        np.stack([f.landmarks[0] for f, ok in zip(faces, found, strict=True) if ok])[..., :2] * back[:, None, None]
    )
    heights = face_height(landmarks)
    second = np.array([float(f.second[0]) for f, ok in zip(faces, found, strict=True) if ok]) * back
    check_second(second, heights, frames[found], source.name)
    check_size(heights, source.name, min_face)
    tall = float(np.median(heights))
    box = reach = None
    if body is not None or (crop == "auto" and not stays_whole(landmarks, *hw)):
        backdrop, reach = _backdrop(seen, album, key)
        if body is not None:
            box = _by_body_points(source, model, backdrop, body, executor)
    framing = choose_framing(landmarks, *hw, crop, size, reach, box)
    shown, longest = tall * framing.scale, max(framing.height, framing.width)
    if shown < min_face / 2:
        raise UserError(
            f"the face would be {shown:.0f} pixels high at --size={longest}; choose a --size of at least "
            f"{even(longest * min_face / 2 / shown + 1)}"
        )
    framing.save(folder)


def _backdrop(seen: list, album: looks.Album, key: Path | None) -> tuple[looks.Backdrop, np.ndarray]:
    """What stands behind the person, and how far the head reaches beyond the face in the looks [n,3]."""
    if key is not None:
        return looks.Backdrop(str(key)), np.array([r for _, r in seen if r is not None])
    pairs = [(rgb, seen[i][0].landmarks[0][:, :2]) for i, rgb in album.pictures() if seen[i][0].found[0]]
    if not pairs:
        return looks.Backdrop(), np.zeros((0, 3))
    pictures, points = zip(*pairs, strict=True)
    backdrop = looks.learn(pictures, points)
    return backdrop, looks.reaches(backdrop, pictures, points)


def _by_body_points(
    source: Path, model: Path, backdrop: looks.Backdrop, body: head_box.BodyPoints, executor: Executor
) -> head_box.Box:
    """The original's rule on every 25th frame that the file of points has, in a second pass over the clip."""
    chosen: collections.deque[head_box.Body] = collections.deque()

    def pictures() -> Iterator[tuple]:
        alpha = backdrop.key is not None and screen.load(Path(backdrop.key)).own_alpha
        for i, rgb in enumerate(video.read_frames_at_fps(source, FPS, alpha)):
            if i % head_box.STEP == 0 and i in body.bodies:
                chosen.append(body.bodies[i])
                yield str(model), rgb, backdrop
            if body.only_first:
                return

    masks = ordered(executor, looks.person, pictures())
    return head_box.original_rule(((chosen.popleft(), m) for m in masks), body.only_first, source.name)
