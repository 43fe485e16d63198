"""What moves the head besides sound: poses, blinks, and the picture behind it; read from what the user gives.

Every sequence is shorter than the sound as a rule and is played ping-pong (er-nerf.md §6), so a frame's
pose, blink and torso are functions of its index and nothing has to be carried. Smoothed sequences are smoothed whole
before the first frame is drawn: they are known then, the sound is not.
"""

import csv
import dataclasses
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import ImageColor

from tkjax import cameras, images
from tkjax.avatar import Avatar
from tkjax.errors import UserError

SMOOTH_WINDOW = 7  # frames of a smoothed path (er-nerf.md §6)
HEAD_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])  # 25 cm cube
EYE_PERCENTILES = (95, 5)  # of the clip's eye areas: eyes open (blink 0), eyes closed (blink 1)
AU45_FULL = 2.0  # OpenFace's AU45_r at which an eye counts as closed (er-nerf.md §2)


def ping_pong(i: int, n: int) -> int:
    """Frame i of a sequence of n played forwards, backwards, …: i mod n in even turns, n-1-(i mod n) in odd ones, so
    its ends are shown twice (avatar-ernerf.md §10)."""
    turn, k = divmod(i, n)
    return k if turn % 2 == 0 else n - 1 - k


def smooth_eyes(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mean of each value and its neighbours, two at the ends (rad-nerf dossier §6)."""
    padded, there = np.pad(values.astype(np.float64), 1), np.pad(np.ones(len(values)), 1)
    sums, counts = (v[:-2] + v[1:-1] + v[2:] for v in (padded, there))
    return (sums / counts).astype(np.float32)


def areas_of_blinks(blinks: Float[np.ndarray, " n"], areas: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Blinks 0…1 as eye areas of the clip with these: linear from the area of open eyes to that of closed ones."""
    opened, closed = np.percentile(areas, EYE_PERCENTILES)
    return (opened + blinks * (closed - opened)).astype(np.float32)


def smooth_path(cam_to_world: Float[np.ndarray, "n 4 4"], window: int) -> Float[np.ndarray, "n 4 4"]:
    """Each pose replaced by the mean translation and mean rotation over ±window//2 frames, fewer at the ends.

    The mean rotation is the one nearest to the mean matrix (chordal mean), found by singular values.
    """
    out = np.array(cam_to_world, np.float32)
    reach = window // 2
    for i in range(len(out)):
        part = cam_to_world[max(0, i - reach) : i + reach + 1].astype(np.float64)
        u, _, vt = np.linalg.svd(part[:, :3, :3].mean(0))
        out[i, :3, :3] = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        out[i, :3, 3] = part[:, :3, 3].mean(0)
    return out


def corners_px(cam_to_world: Float[np.ndarray, "n 4 4"], intrinsics: Float[np.ndarray, " 4"]) -> np.ndarray:
    """[n,8,2] pixel positions of the corners of a cube around the head: a pose as the picture shows it."""
    poses = np.asarray(cam_to_world, np.float64)
    return cameras.project_world(
        poses, np.asarray(intrinsics, np.float64), np.broadcast_to(HEAD_CORNERS, (len(poses), 8, 3))
    )


def nearest_pose(
    cam_to_world: Float[np.ndarray, "n 4 4"],
    intrinsics: Float[np.ndarray, " 4"],
    other: Float[np.ndarray, "m 4 4"],
    other_intrinsics: Float[np.ndarray, " 4"],
) -> Int[np.ndarray, " n"]:
    """For each pose the index of the one of `other` with the smallest RMS pixel distance of the head cube's corners."""
    a, b = corners_px(cam_to_world, intrinsics), corners_px(other, other_intrinsics)
    return np.array([np.argmin(np.sum((b - p) ** 2, axis=(1, 2))) for p in a], np.int64)


def read_poses(path: Path | str, width: int, height: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(camera-to-world [n,4,4], intrinsics [4] scaled to width, or None where the file names none).

    .npy or .npz hold [n,4,4] of the contract (in an npz: `cam_to_world`, or its only array). .json is AD-NeRF's
    transforms file: its own focal length goes with its poses, scaled to the picture's width.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--pose: there is no file {path}")
    if path.suffix == ".json":
        poses, intrinsics = _adnerf(path, width, height)
    elif path.suffix in (".npy", ".npz"):
        poses, intrinsics = _load_array(path, "--pose", "cam_to_world"), None
    else:
        raise UserError(f"--pose: {path} must be .npz, .npy or an AD-NeRF transforms .json")
    if poses.ndim == 2:
        poses = poses[None]
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise UserError(f"--pose: {path} must hold an array [n,4,4], not {list(poses.shape)}")
    _check_poses(poses, path)
    return poses.astype(np.float32), intrinsics


def _check_poses(poses: np.ndarray, path: Path) -> None:
    if not np.all(np.isfinite(poses)):
        raise UserError(f"--pose: {path} holds numbers that are not finite")
    rotation = poses[:, :3, :3]
    wrong = np.abs(rotation @ np.swapaxes(rotation, 1, 2) - np.eye(3)).max((1, 2)) > 1e-2
    wrong |= np.linalg.det(rotation) < 0
    wrong |= np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1) > 1e-4
    if wrong.any():
        raise UserError(
            f"--pose: matrix {int(np.argmax(wrong))} of {path} is no camera-to-world pose "
            "(a rotation, a translation, and the last row 0 0 0 1)"
        )


def _adnerf(path: Path, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        data = json.loads(path.read_bytes())
        matrices = np.array([f["transform_matrix"] for f in data["frames"]], np.float64).reshape(-1, 4, 4)
        focal, cx, cy = (float(data[k]) for k in ("focal_len", "cx", "cy"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--pose: {path} is no AD-NeRF transforms file (focal_len, cx, cy, frames[].transform_matrix): "
            f"{type(error).__name__} {' '.join(str(error).split())}"
        ) from error
    if not all(math.isfinite(v) and v > 0 for v in (focal, cx, cy)):
        raise UserError(f"--pose: {path} has focal_len {focal:g}, cx {cx:g}, cy {cy:g}; they must be positive pixels")
    focal *= width / (2 * cx)
    return cameras.from_adnerf_json(matrices), np.array([focal, focal, width / 2, height / 2], np.float32)


def _load_array(path: Path, flag: str, member: str) -> np.ndarray:
    """The array of an npy, or one member of an npz; never a pickle."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                names = loaded.files
                if member not in names and len(names) != 1:
                    raise UserError(
                        f"{flag}: {path} must hold one array, or one named {member!r}; it has {', '.join(names)}"
                    )
                array = loaded[member if member in names else names[0]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{flag}: {path} is not readable as numpy data") from error
    if array.dtype.kind not in "fiu":
        raise UserError(f"{flag}: {path} must hold numbers, not {array.dtype}")
    return array


def read_blinks(path: Path | str) -> Float[np.ndarray, " n"]:
    """Blink of each frame in 0 (open) .. 1 (closed): .npy/.npz [n], a one-column .csv, or OpenFace's AU45_r.

    AU45_r counts 0..5; clip(AU45_r, 0, 2)/2 as in training (er-nerf.md §2).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--eye: there is no file {path}")
    if path.suffix in (".npy", ".npz"):
        values = _load_array(path, "--eye", "eye_closed").astype(np.float64)
    elif path.suffix == ".csv":
        values = _blink_csv(path)
    else:
        raise UserError(f"--eye: {path} must be .npy, .npz or .csv")
    if values.ndim != 1 or len(values) == 0:
        raise UserError(f"--eye: {path} must hold one number for each frame, not an array {list(values.shape)}")
    wrong = ~np.isfinite(values) | (values < 0) | (values > 1)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise UserError(f"--eye: value {i} of {path} is {values[i]:g}; blinks lie between 0 (open) and 1 (closed)")
    return values.astype(np.float32)


def _blink_csv(path: Path) -> np.ndarray:
    try:
        with path.open(newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
        header = rows[0] if rows else []
        if "AU45_r" in header:
            column = header.index("AU45_r")
            return np.clip([float(r[column]) for r in rows[1:]], 0, AU45_FULL) / AU45_FULL
        if len(header) != 1:
            raise UserError(f"--eye: {path} must have one column, or OpenFace's AU45_r among its columns")
        start = 0 if _is_number(header[0]) else 1
        return np.array([float(r[0]) for r in rows[start:]])
    except (ValueError, IndexError, UnicodeDecodeError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--eye: {path} is not readable as numbers: {' '.join(str(error).split())}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_background(text: str, hw: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """A colour name or #rrggbb, or a picture: cut to the aspect of (H, W) around its centre and resized by area.

    What is transparent in the picture is white, and a line says so.
    """
    height, width = hw
    path = Path(text)
    if not os.path.isfile(path):  # False too for words that no path can be
        return np.broadcast_to(np.array(_colour(text), np.uint8), (height, width, 3)).copy()
    try:
        picture = images.read_picture(path)
    except UserError as error:
        raise UserError(f"--background: {error}") from error
    if images.is_transparent(picture):
        print(f"--background: {path} is transparent in parts; they are white", flush=True)
    h, w = picture.shape[:2]
    keep_w = max(1, min(w, round(h * width / height)))
    keep_h = max(1, min(h, round(w * height / width)))
    y, x = (h - keep_h) // 2, (w - keep_w) // 2
    part = images.flatten(np.ascontiguousarray(picture[y : y + keep_h, x : x + keep_w]))
    return images.resize_area(part, (height, width))


def _colour(text: str) -> tuple[int, int, int]:
    """The opaque colour that a word names."""
    try:
        colour = ImageColor.getrgb(text)
    except ValueError:
        raise UserError(
            f"--background={text} is neither a picture file nor a colour such as white or #4080c0"
        ) from None
    if not all(0 <= c <= 255 for c in colour):
        raise UserError(f"--background={text} is no colour; red, green and blue lie in 0…255 (0…100 %)")
    if colour[3:] not in ((), (255,)):
        raise UserError(f"--background={text} is a transparent colour; name an opaque one, or use --alpha")
    return colour[:3]


@dataclasses.dataclass(frozen=True)
class Drive:
    """Pose, blink, expression and backdrop of every output frame, as loops.

    `track` names for each pose the frame of the avatar's track whose torso, expression and whole frame go with it.
    `eye_area` belongs to `eye_closed`, None where the avatar has none. `background`: what the user named, else None.
    """

    cam_to_world: Float[np.ndarray, "n 4 4"]
    intrinsics: Float[np.ndarray, " 4"]
    track: Int[np.ndarray, " n"]
    eye_closed: Float[np.ndarray, " m"]
    plate: UInt8[np.ndarray, "H W 3"]
    eye_area: Float[np.ndarray, " m"] | None = None
    background: str | None = None

    def pose(self, i: int) -> Float[np.ndarray, "4 4"]:
        return self.cam_to_world[ping_pong(i, len(self.cam_to_world))]

    def track_frame(self, i: int) -> int:
        return int(self.track[ping_pong(i, len(self.track))])

    def eye(self, i: int) -> float:
        return float(self.eye_closed[ping_pong(i, len(self.eye_closed))])

    def area(self, i: int) -> float | None:
        return None if self.eye_area is None else float(self.eye_area[ping_pong(i, len(self.eye_area))])


def plan(
    avatar: Avatar,
    *,
    pose: Path | str | None = None,
    background: str | None = None,
    smooth_window: int = 0,
    fix_eye: float | int | None = None,
    eye: Path | str | None = None,
    data_range: tuple[int, int] | None = None,
    poses: str = "train",
    smooth_eye: bool = False,
) -> Drive:
    """The loops that the user asked for, by default those of the training clip; smooth_window 0 does not smooth.

    poses: `train` or `test`, the frames that are played; data_range counts within them.
    """
    hw = (avatar.info.height, avatar.info.width)
    low, high = _split(avatar, poses, data_range)
    if fix_eye is not None and eye is not None:
        raise UserError("--fix_eye and --eye exclude each other; leave one out")
    if smooth_window and smooth_window % 2 == 0:
        raise UserError(f"--smooth_path_window={smooth_window} must be odd")
    own = np.asarray(avatar.info.intrinsics, np.float32)
    path, intrinsics, track = avatar.cam_to_world[low:high], own, np.arange(low, high)
    if pose is not None:
        path, intrinsics = read_poses(pose, hw[1], hw[0])
        intrinsics = own if intrinsics is None else intrinsics
        track = low + nearest_pose(path, intrinsics, avatar.cam_to_world[low:high], own)
    if smooth_window:
        path = smooth_path(path, smooth_window)
    eyes, areas = avatar.eye_closed[low:high], avatar.eye_area
    if eye is not None or fix_eye is not None:
        eyes = read_blinks(eye) if eye is not None else np.array([fix_eye], np.float32)
        areas = None if areas is None else areas_of_blinks(eyes, areas[: avatar.n_train])
    elif areas is not None:
        areas = areas[low:high]
    if smooth_eye:
        eyes, areas = smooth_eyes(eyes), None if areas is None else smooth_eyes(areas)
    plate = avatar.plate if background is None else read_background(background, hw)
    return Drive(path, intrinsics, track, eyes, plate, areas, background)


def _split(avatar: Avatar, poses: str, data_range: tuple[int, int] | None) -> tuple[int, int]:
    """First track frame that is played, and the one behind the last."""
    start, stop = (0, avatar.n_train) if poses == "train" else (avatar.n_train, avatar.n_track)
    what = "training" if poses == "train" else "held-out"
    if start == stop:
        raise UserError(f"--poses={poses}: the avatar holds no {what} frames; leave it out, or name a file with --pose")
    low, high = data_range or (0, stop - start)
    if not 0 <= low < high <= stop - start:
        raise UserError(f"--data_range={low},{high} must lie within the avatar's {stop - start} {what} frames")
    return start + low, start + high
