"""Poses, blinks and the picture behind the head, read from what the user gives.

Every sequence is shorter than the sound as a rule and is played ping-pong (er-nerf.md §6), so a frame's
pose, blink and torso are functions of its index and nothing has to be carried. Smoothed sequences are smoothed whole
before the first frame is drawn: they are known then, the sound is not.
"""

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import ImageColor

from tkjax import cameras, contract
from tkjax.avatar import avatar_json, bundle
from tkjax.avatar.bundle import Avatar
from tkjax.errors import UserError
from tkjax.formats import head_pose, tables, tracks, transforms
from tkjax.formats.tracks import Track
from tkjax.media import images

TRACK = "track"  # --pose=track: the head moves as the track of --drive says
SMOOTH_WINDOW = 7  # frames of a smoothed path (er-nerf.md §6)
HEAD_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])  # 25 cm cube
EYE_PERCENTILES = (95, 5)  # of the clip's eye areas: eyes open (blink 0), eyes closed (blink 1)


def ping_pong(i: int, n: int) -> int:
    """Frame i of a sequence of n played forwards, backwards, …: i mod n in even turns, n-1-(i mod n) in odd ones, so
    its ends are shown twice (avatar-ernerf.md §10)."""
    turn, k = divmod(i, n)
    return k if turn % 2 == 0 else n - 1 - k


def looped(values: Float[np.ndarray, "m *C"], n: int) -> Float[np.ndarray, "n *C"]:
    """n frames of a sequence that is played ping-pong."""
    return np.asarray(values)[[ping_pong(i, len(values)) for i in range(n)]]


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

    .npy or .npz hold [n,4,4] of the contract (in an npz: `cam_to_world`, or its only array). .json is a transforms
    file of the AD-NeRF line: its own focal length goes with its poses, scaled to the picture's width. The folder of a
    dataset, an avatar or a workdir gives its poses with its camera.
    """
    path = Path(path)
    if os.path.isdir(path):
        return _of_folder(path, width)
    if not os.path.isfile(path):  # False too for words that no path can be
        raise UserError(f"--pose: there is no file {str(path)[:200]}")
    if path.suffix == ".json":
        try:
            poses, intrinsics = _transforms(path, width, height)
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    elif path.suffix in (".npy", ".npz"):
        poses, intrinsics = _load_array(path, "--pose", "cam_to_world"), None
    else:
        raise UserError(f"--pose: {path} must be .npz, .npy, an AD-NeRF transforms .json or a track")
    if poses.ndim == 2:
        poses = poses[None]
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise UserError(f"--pose: {path} must hold an array [n,4,4], not {list(poses.shape)}")
    _check_poses(poses, path)
    return poses.astype(np.float32), intrinsics


def folder_of(path: Path, flag: str) -> tuple[Path, bool]:
    """(the folder of a dataset or an avatar that `path` is or, as a workdir, holds; whether it is an avatar)."""
    for folder in (path, path / "dataset", path / "avatar"):
        for name, is_avatar in ((contract.MANIFEST, False), (avatar_json.META, True)):
            if (folder / name).is_file():
                return folder, is_avatar
    raise UserError(f"{flag}: {path} holds no dataset ({contract.MANIFEST}) and no avatar ({avatar_json.META})")


def _of_folder(path: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses of somebody's training frames, and their camera for pictures of this width."""
    folder, is_avatar = folder_of(path, "--pose")
    if is_avatar:
        other = bundle.load(folder)
        return other.cam_to_world[: other.n_train], _scaled(other.info.intrinsics, width / other.info.width)
    d = contract.Dataset(folder)
    return d.column("cam_to_world"), _scaled(d.intrinsics, width / d.width)


def _scaled(intrinsics, factor: float) -> np.ndarray:
    return (np.array(intrinsics, np.float64) * factor).astype(np.float32)


def _shown(poses: np.ndarray, intrinsics: np.ndarray, hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """([n] share of the head's box that the picture shows, [n] height of the box over that of the picture, [n] distance
    in contract units); a camera in the head, or with the head behind it, shows nothing of it."""
    poses = np.asarray(poses, np.float64)
    local = np.einsum("nji,nkj->nki", poses[:, :3, :3], HEAD_CORNERS[None] - poses[:, None, :3, 3])
    front = (local[..., 2] < -1e-3).all(1)
    corners = np.nan_to_num(corners_px(poses, intrinsics), nan=0.0, posinf=1e9, neginf=-1e9)
    low, high, size = corners.min(1), corners.max(1), np.array(hw[::-1], np.float64)
    seen = np.clip(np.minimum(high, size) - np.maximum(low, 0), 0, None).prod(1)
    share = np.where(front, seen / np.maximum((high - low).prod(1), 1e-9), 0.0)
    return share, np.where(front, (high - low)[:, 1] / hw[0], np.inf), np.linalg.norm(poses[:, :3, 3], axis=1)


def view(
    poses: Float[np.ndarray, "n 4 4"],
    intrinsics: Float[np.ndarray, " 4"],
    own: Float[np.ndarray, "m 4 4"],
    own_intrinsics: Float[np.ndarray, " 4"],
    hw: tuple[int, int],
) -> str:
    """One sentence where the head fills or leaves the picture, or is tiny, in frames of a path; else "".

    Held against the clip's own poses: a frame counts where less than half of the share of the head's box (25 cm) is in
    the picture that the clip shows on average, or where the box is less than a quarter of the clip's.
    """
    share, height, distance = _shown(poses, intrinsics, hw)
    own_share, own_height, own_distance = (float(np.median(v)) for v in _shown(own, own_intrinsics, hw))
    wrong = (share < 0.5 * own_share) | (height < 0.25 * own_height)
    if not wrong.any():
        return ""
    d, usual = float(np.median(distance[wrong])), own_distance
    unit = next(
        (u for u, f in (("metres", 4), ("centimetres", 0.04), ("decimetres", 0.4)) if 0.6 < d * f / usual < 1.7), ""
    )
    hint = f"; are they in {unit}? Poses count units of 25 cm" if unit else ""
    return (
        f"the head fills, leaves or hardly touches the picture in {int(wrong.sum())} of {len(poses)} frames (camera "
        f"{25 * d:.0f} cm from the head there, {25 * usual:.0f} cm in the clip){hint}"
    )


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


def _transforms(path: Path, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses by img_id, gaps filled between their neighbours and said; intrinsics for pictures of this size."""
    head, frames = transforms.split(transforms.read_json(path), path)
    entries = [transforms.read_entry(f, f"{path}: frame {i}") for i, f in enumerate(frames)]
    wrong = next((i for i, e in enumerate(entries) if e.pose is None), None)
    if not entries or wrong is not None:
        what = "names no frame" if not entries else f"frame {wrong} has no usable transform_matrix"
        raise UserError(f"{path}: {what}, expected frames with img_id and a transform_matrix of 4x4")
    cx, cy = transforms.number(head, "cx"), transforms.number(head, "cy")
    if "w" not in head and not (cx and cy and cx > 0 and cy > 0):
        raise UserError(f"{path}: has cx {cx} and cy {cy} and no w and h, expected the positive middle of the pictures")
    k, (full_h, full_w) = transforms.intrinsics(head, (2 * (cy or 0), 2 * (cx or 0)))
    s = width / full_w
    middle = width / 2 + (k["cx"] - full_w / 2) * s, height / 2 + (k["cy"] - full_h / 2) * s
    return _by_number(entries, path), np.array([k["fx"] * s, k["fy"] * s, *middle], np.float32)


def _by_number(entries: list[transforms.Entry], path: Path) -> np.ndarray:
    """[n,4,4] in the order of img_id; where less than half of the numbers are missing, with a pose for each."""
    if any(e.number is None for e in entries):
        return np.stack([e.pose for e in entries])
    poses = {e.number: e.pose for e in reversed(entries)}  # the first of a number counts, as in the import
    known = sorted(poses)
    missing = known[-1] + 1 - known[0] - len(known)
    if 0 < missing <= len(known):
        gaps = tables.ranges(set(range(known[0], known[-1])) - set(known))
        print(f"--pose: {path} has no pose for img_id {gaps}: between their neighbours", flush=True)
        for a, b in itertools.pairwise(known):
            poses |= {i: transforms.between(poses[a], poses[b], (i - a) / (b - a)) for i in range(a + 1, b)}
    elif missing:
        print(f"--pose: {path} has {len(known)} poses with gaps between them, played one after the other", flush=True)
    return np.stack([poses[i] for i in sorted(poses)])


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
    except tracks.UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{flag}: {path} is not readable as numpy data") from error
    if array.dtype.kind not in "fiu":
        raise UserError(f"{flag}: {path} must hold numbers, not {array.dtype}")
    return array


def read_blinks(path: Path | str) -> Float[np.ndarray, " n"]:
    """Blink of each frame in 0 (open) .. 1 (closed): .npy/.npz [n], a one-column .csv, or OpenFace's AU45_r (`tables`:
    each row at its own frame; gaps are filled and said).
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"--eye: there is no file {str(path)[:200]}")
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
        column = tables.read_blinks(path)
        values, made_up = tables.filled(column, path)
    except UserError as error:
        raise UserError(f"--eye: {error}") from error
    for text in (*column.notes, *([made_up] if made_up else [])):
        print(f"--eye: {path}: {text}", flush=True)
    return values


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
class Motion:
    """Pose and backdrop of every output frame, as loops.

    `track` names for each pose the frame of the avatar's track whose torso and whole frame go with it. `rows`: the
    track's frames that are played. `background`: what the user named, else None.
    """

    cam_to_world: Float[np.ndarray, "n 4 4"]
    intrinsics: Float[np.ndarray, " 4"]
    track: Int[np.ndarray, " n"]
    rows: Int[np.ndarray, " m"]
    plate: UInt8[np.ndarray, "H W 3"]
    background: str | None = None

    def pose(self, i: int) -> Float[np.ndarray, "4 4"]:
        return self.cam_to_world[ping_pong(i, len(self.cam_to_world))]

    def track_frame(self, i: int) -> int:
        return int(self.track[ping_pong(i, len(self.track))])


def plan(
    avatar: Avatar,
    *,
    pose: Path | str | None = None,
    background: str | None = None,
    smooth_window: int = 0,
    data_range: tuple[int, int] | None = None,
    poses: str = "train",
) -> Motion:
    """The poses that the user asked for, by default those of the training clip; smooth_window 0 does not smooth.

    poses: `train` or `test`, the frames that are played; data_range counts within them. pose: a file of poses or a
    folder that has them, as `read_poses` takes it, or a track whose head channels move the head (`follow`).
    """
    hw = (avatar.info.height, avatar.info.width)
    rows = _rows(avatar, poses, data_range)
    if smooth_window and smooth_window % 2 == 0:
        raise UserError(f"--smooth_path_window={smooth_window} must be odd")
    own = np.asarray(avatar.info.intrinsics, np.float32)
    path, intrinsics, track = avatar.cam_to_world[rows], own, rows
    plate = avatar.plate if background is None else read_background(background, hw)
    moves = Motion(path, intrinsics, track, rows, plate, background)
    if pose is not None and os.path.isfile(pose) and tracks.is_track(pose):
        fps = float(avatar.meta["fps"])
        return follow(avatar, moves, tracks.read(pose, fps).resampled(fps), smooth_window)
    if pose is not None:
        path, intrinsics = read_poses(pose, hw[1], hw[0])
        moves = _on_path(avatar, moves, path, own if intrinsics is None else intrinsics, str(pose))
    if smooth_window:
        moves = dataclasses.replace(moves, cam_to_world=smooth_path(moves.cam_to_world, smooth_window))
    return moves


def follow(avatar: Avatar, moves: Motion, track: Track, smooth_window: int = 0) -> Motion:
    """The head moves as a track says, about the avatar's usual pose of the frames that are played
    (`head_pose.moved`)."""
    turns = track.columns(head_pose.TURNS)
    if turns is None:
        raise UserError(
            f"--pose: {track.where} says nothing of the head, expected the channels {', '.join(head_pose.TURNS)} in "
            f"radians, and {', '.join(head_pose.PLACES)} where it also moves"
        )
    own = avatar.cam_to_world[moves.rows]
    path = head_pose.moved(own, turns.astype(np.float64), track.columns(head_pose.PLACES))
    moves = _on_path(avatar, moves, path, np.asarray(avatar.info.intrinsics, np.float32), track.where)
    return dataclasses.replace(moves, cam_to_world=smooth_path(path, smooth_window)) if smooth_window else moves


def _on_path(avatar: Avatar, moves: Motion, path: np.ndarray, intrinsics: np.ndarray, where: str) -> Motion:
    """The same with other poses, and with the torso of the nearest of the frames that are played."""
    hw, own = (avatar.info.height, avatar.info.width), np.asarray(avatar.info.intrinsics, np.float32)
    played = avatar.cam_to_world[moves.rows]
    word = view(path, intrinsics, played, own, hw)
    if word:
        print(f"--pose: {where}: {word}", flush=True)
    track = moves.rows[nearest_pose(path, intrinsics, played, own)]
    return dataclasses.replace(moves, cam_to_world=path, intrinsics=intrinsics, track=track)


def _rows(avatar: Avatar, poses: str, data_range: tuple[int, int] | None) -> Int[np.ndarray, " n"]:
    """The track frames that are played, in order. Training frames with held-out blocks among them are played with
    those (their poses and eyes), so that the head does not jump over the blocks."""
    start, stop = (0, avatar.n_train) if poses == "train" else (avatar.n_train, avatar.n_track)
    what = "training" if poses == "train" else "held-out"
    if start == stop:
        raise UserError(f"--poses={poses}: the avatar holds no {what} frames; leave it out, or name a file with --pose")
    low, high = data_range or (0, stop - start)
    if not 0 <= low < high <= stop - start:
        raise UserError(f"--data_range={low},{high} must lie within the avatar's {stop - start} {what} frames")
    rows = np.arange(start + low, start + high)
    if poses == "test" or not avatar.in_blocks:
        return rows
    numbers = avatar.numbers
    first, last = numbers[rows[0]], numbers[rows[-1]]
    return np.array([k for k in np.argsort(numbers) if first <= numbers[k] <= last])
