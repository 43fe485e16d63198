"""A dataset as the trainer sees it: decoded once to a cache of uint8 pictures, then sampled into batches.

The cache holds, at the training size, `target` (the frame where its label is not background, else the plate:
a hard rule, composed at full size and then averaged down), `background` (the true torso over the plate) and
`label` (majority). `disk` reads it with pread, one frame at a time, so resident memory does not grow with the
clip; `host` holds it in memory; `device` puts target and label, and the background where there is room, on the
accelerator as uint8. All three give the same numbers.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from tkjax import contract, images
from tkjax.contract import AudioFeatures, ContractError, Dataset
from tkjax.errors import UserError
from tkjax.types import Batch, SubjectInfo

AUDIO_WINDOWS = 8  # neighbours i-4 … i+3 of frame i; its own has index 4
SAMPLERS = ("rays", "focus", "close", "patch", "lips", "frame")
FOCUS = {"focus": 6, "close": 4}  # one ray in so many is drawn from the lips box by these samplers
FOCUS_EYES = 24  # and one in so many from the surroundings of each eye: blinks are small and rare
BACKGROUNDS = ("torso", "plate")
TARGETS = {"frame": "target", "torso": "background"}  # what a stage compares with -> cached array
EYES, NOSE = (slice(36, 42), slice(42, 48)), slice(31, 36)  # of the 68 points
PRELOADS = ("disk", "host", "device")
_CACHE_VERSION = 1
_CHUNK = contract.SHARD_FRAMES  # frames between two records of progress
_CHANNELS = {"target": (3,), "background": (3,), "label": ()}
_UNIT = np.arange(256, dtype=np.float32) / np.float32(255)  # uint8 -> 0…1, the same bits on every path
_log = logging.getLogger("tkjax.data")


def audio_windows(
    features: AudioFeatures, frame_indices: Int[np.ndarray, " n"], n_windows: int = AUDIO_WINDOWS
) -> Float[np.ndarray, "n W T C"]:
    """Windows of the frames i - W//2 … i + W - W//2 - 1 around each frame i (er-nerf.md §2).

    A window holds steps hop·i - left … + window - 1 of the features, zeros outside them; the window of a frame
    before the first or behind the last (`features.n_windows`) is all zeros.
    """
    frames = np.asarray(frame_indices, np.int64)[:, None] + np.arange(n_windows) - n_windows // 2
    steps = features.hop * frames[..., None] - features.left + np.arange(features.window)
    inside = (steps >= 0) & (steps < len(features.features))
    inside &= ((frames >= 0) & (frames < features.n_windows))[..., None]
    return features.features[np.where(inside, steps, 0)] * inside[..., None].astype(np.float32)


def over(rgba: UInt8[np.ndarray, "H W 4"], plate: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of straight alpha over another: (a·rgb + (255 - a)·plate) / 255, rounded to nearest."""
    alpha = rgba[..., 3:].astype(np.uint16)
    v = alpha * rgba[..., :3] + (255 - alpha) * plate + 128  # at most 255² + 128: fits
    return ((v + (v >> 8)) >> 8).astype(np.uint8)  # = (v - 1) // 255 for every such v


def polygon_area(points: Float[np.ndarray, "n K 2"]) -> Float[np.ndarray, " n"]:
    """Area of polygons by the shoelace formula, px²."""
    x, y = np.moveaxis(points - points.mean(1, keepdims=True), -1, 0)
    return 0.5 * np.abs(np.sum(x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y, 1))


def eye_area(points68: Float[np.ndarray, "n 68 2"], height: int, width: int) -> Float[np.ndarray, " n"]:
    """100 (A(36..41) + A(42..47)) / (H W): both eyes' share of the picture in percent (rad-nerf dossier §2.6)."""
    points = np.asarray(points68, np.float64)
    return (100.0 * sum(polygon_area(points[:, eye]) for eye in EYES) / (height * width)).astype(np.float32)


def widened(boxes: Int[np.ndarray, "n 4"], hw: tuple[int, int]) -> Int[np.ndarray, "n 4"]:
    """Boxes of eyes with what moves around them: a quarter of the width more on every side, inside the picture."""
    margin = np.maximum(1, (boxes[:, 2] - boxes[:, 0] + 2) // 4)[:, None]
    low = np.clip(boxes[:, :2] - margin, 0, np.array(hw[::-1]) - 1)
    return np.concatenate([low, np.clip(boxes[:, 2:] + margin, low + 1, hw[::-1])], 1)


def lower_face_boxes(points68: Float[np.ndarray, "n 68 2"]) -> Float[np.ndarray, "n 4"]:
    """(x0, y0, x1, y1) of all points from the top of the nostrils (31..35) down: RAD-NeRF's face_rect (§2.6)."""
    low, high = points68.min(1), points68.max(1)
    return np.concatenate([low[:, :1], points68[:, NOSE, 1].min(1, keepdims=True), high], 1).astype(np.float32)


def training_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) with the longer side `size`; the picture's own where size is 0 or not smaller."""
    longer = max(height, width)
    if size < 0:
        raise UserError(f"size is {size}, expected 0 (the dataset's own) or a number of pixels")
    if size == 0 or size >= longer:
        return height, width
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def scale_boxes(boxes: Int[np.ndarray, "n 4"], old: tuple[int, int], new: tuple[int, int]) -> Int[np.ndarray, "n 4"]:
    """Boxes of a picture of (h, w) = old in one of size new: corner and side rounded, so squares stay square."""
    (h, w), (nh, nw) = old, new
    factor = np.array([nw / w, nh / h])
    side = np.maximum(1, np.rint((boxes[:, 2:] - boxes[:, :2]) * factor)).astype(np.int64)
    low = np.clip(np.rint(boxes[:, :2] * factor).astype(np.int64), 0, np.array([nw, nh]) - 1)
    high = np.minimum(low + side, [nw, nh])
    return np.concatenate([low, high], 1).astype(np.int32)


# ---------------------------------------------------------------- decoding one frame


def _decode(dataset: Dataset, i: int, plate: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """target, background, label of frame i at `size`; composed at full size. Bad bytes: one sentence."""
    full = (dataset.height, dataset.width)
    rgb = images.decode_rgb(dataset.frame_bytes("image_bytes", i), dataset.where("image_bytes", i))
    torso = images.decode_png(dataset.frame_bytes("torso_bytes", i), dataset.where("torso_bytes", i))
    label = images.decode_png(dataset.frame_bytes("label_bytes", i), dataset.where("label_bytes", i))
    for member, picture, shape in (
        ("image_bytes", rgb, (*full, 3)),
        ("torso_bytes", torso, (*full, 4)),
        ("label_bytes", label, full),
    ):
        if picture.shape != shape:
            raise ContractError(f"{dataset.where(member, i)} decodes to shape {picture.shape}, expected {shape}")
    if label.max() > contract.LABEL_TORSO:
        where = dataset.where("label_bytes", i)
        raise ContractError(f"{where} holds label {label.max()}, expected 0..{contract.LABEL_TORSO}")
    shown = label != contract.LABEL_BACKGROUND
    if dataset.manifest["source"].get("background_trt"):  # keyed: a blend over the plate, soft edges and all
        data, where = dataset.frame_bytes("alpha_bytes", i), dataset.where("alpha_bytes", i)
        if data is None:
            raise ContractError(f"{where} is missing, expected the matte of a keyed clip (source.background_trt)")
        alpha = images.decode_png(data, where)
        if alpha.shape != full:
            raise ContractError(f"{where} decodes to shape {alpha.shape}, expected {full}")
        shown = alpha > 0
    target = np.where(shown[..., None], rgb, plate)
    return {
        "target": images.resize_area(target, size),
        "background": images.resize_area(over(torso, plate), size),
        "label": images.resize_majority(label, size),
    }


# ---------------------------------------------------------------- the cache


class _Array:
    """One cached array on disk, [N, H, W, …] uint8, read a frame at a time."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        self._frame = int(np.prod(shape[1:]))
        self._offset = path.stat().st_size - self._frame * shape[0]
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)

    def __getitem__(self, i: int) -> np.ndarray:
        out = np.empty(self.shape[1:], np.uint8)
        got = os.preadv(self._fd, [out.reshape(-1).data], self._offset + i * self._frame)
        if got != out.nbytes:
            raise UserError(f"{self.path}: ends before frame {i}, expected a whole cache; remove it and start again")
        return out


def _cache_facts(dataset: Dataset, size: tuple[int, int]) -> dict[str, Any]:
    shapes = {name: [dataset.n_frames, *size, *tail] for name, tail in _CHANNELS.items()}
    return {"version": _CACHE_VERSION, "digest": dataset.digest, "shapes": shapes}


def _cache_is_whole(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether marker, headers and sizes of a cache are those of `facts`."""
    try:
        if json.loads((folder / "complete.json").read_text()) != facts:
            return False
        for name, shape in facts["shapes"].items():
            a = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if list(a.shape) != shape or a.dtype != np.uint8 or not a.flags.c_contiguous:
                return False
            if (folder / f"{name}.npy").stat().st_size != a.offset + a.nbytes:
                return False
    except (OSError, ValueError, EOFError):
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time in a folder; the lock goes with the process."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def build_cache(dataset: Dataset, cache_dir: str | Path, size: tuple[int, int], plate: np.ndarray) -> Path:
    """The folder with the decoded pictures of a dataset at a size; made if it is not there or not whole.

    It is built under another name and renamed at the end; a build that was cut short goes on where it was.
    """
    facts = _cache_facts(dataset, size)
    cache_dir = Path(cache_dir)
    folder = cache_dir / f"{dataset.digest[:16]}-{size[0]}x{size[1]}-v{_CACHE_VERSION}"
    if _cache_is_whole(folder, facts):
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir):
            if not _cache_is_whole(folder, facts):  # another process may just have built it
                if folder.exists():
                    _log.warning("%s: the cache is damaged and is built again", folder)
                    shutil.rmtree(folder)
                _build(dataset, folder.with_suffix(".part"), size, plate, facts)
                os.replace(folder.with_suffix(".part"), folder)
    except OSError as e:
        raise UserError(f"{cache_dir}: {e.strerror or e}, expected a folder that can hold the decoded frames") from e
    return folder


def _build(dataset: Dataset, part: Path, size: tuple[int, int], plate: np.ndarray, facts: dict[str, Any]) -> None:
    progress = part / "progress.json"
    try:
        begun = json.loads(progress.read_text())
        first = begun["frames"] if begun["facts"] == facts else 0
    except (OSError, ValueError, KeyError, TypeError):
        first = 0
    if first == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        need = sum(int(np.prod(s)) for s in facts["shapes"].values())
        free = shutil.disk_usage(part).free
        if need > free:
            part.rmdir()
            raise UserError(
                f"{part.parent}: decoded frames need {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free, "
                "expected more room, another folder or a smaller data.size"
            )
        for name, shape in facts["shapes"].items():
            np.lib.format.open_memmap(part / f"{name}.npy", "w+", np.uint8, tuple(shape))
    files, offsets = {}, {}
    try:
        for name, shape in facts["shapes"].items():
            files[name] = os.open(part / f"{name}.npy", os.O_WRONLY)
            offsets[name] = os.fstat(files[name]).st_size - int(np.prod(shape))

        def work(i: int) -> None:
            for name, picture in _decode(dataset, i, plate, size).items():
                data = memoryview(np.ascontiguousarray(picture)).cast("B")
                at = offsets[name] + i * picture.nbytes
                while data:
                    written = os.pwrite(files[name], data, at)
                    data, at = data[written:], at + written

        bar = tqdm(total=dataset.n_frames, initial=first, desc="decoding frames", unit="frame", disable=None)
        with bar, ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for a in range(first, dataset.n_frames, _CHUNK):
                for _ in pool.map(work, range(a, min(a + _CHUNK, dataset.n_frames))):
                    bar.update()
                text = json.dumps({"facts": facts, "frames": min(a + _CHUNK, dataset.n_frames)})
                images.write_atomic(progress, text.encode())
        for fd in files.values():
            os.fsync(fd)
    finally:
        for fd in files.values():
            os.close(fd)
    images.write_atomic(part / "complete.json", json.dumps(facts).encode())
    progress.unlink()


# ---------------------------------------------------------------- the clip


class Clip:
    """A validated dataset at training size.

    audio_kind: which audio_<kind>.npz; `auto`: log-mel, which new sound can always be described by, else what is there.
    size: longer side in pixels (0, or one that is not smaller: the dataset's own). Intrinsics, boxes and
    landmarks are scaled with the pictures. `boxes` has the contract's names (`face_box_px`, …).
    """

    def __init__(
        self,
        dataset_root: str | Path,
        cache_dir: str | Path,
        size: int = 0,
        preload: str = "disk",
        audio_kind: str = "auto",
    ):
        if preload not in PRELOADS:
            raise UserError(f"preload is {preload!r}, expected one of {', '.join(PRELOADS)}")
        self.dataset = d = Dataset(dataset_root)
        self.audio = d.audio_features(choose_kind(d, audio_kind))
        self.digest, self.n_frames, self.fps = d.digest, d.n_frames, d.fps
        self.train_range, self.heldout_range = d.train_range, d.heldout_range
        self.height, self.width = hw = training_size(d.height, d.width, size)
        full = (d.height, d.width)
        factor = np.array([self.width / d.width, self.height / d.height])
        self.intrinsics = (np.array(d.intrinsics) * np.tile(factor, 2)).astype(np.float32)
        self.landmarks68_px = (d.landmarks68() * factor).astype(np.float32)
        self.boxes = {name: scale_boxes(d.column(name), full, hw) for name in contract.BOXES}
        self.cam_to_world = d.column("cam_to_world")
        self.eye_closed, self.confidence = d.column("eye_closed"), d.column("confidence")
        stored = "eye_area" in d.manifest["members"]
        self.eye_area = d.column("eye_area") if stored else eye_area(d.landmarks68(), d.height, d.width)
        self.eye_regions = np.stack([widened(self.boxes[f"eye_{s}_box_px"], hw) for s in ("left", "right")], 1)
        self.lower_face = lower_face_boxes(self.landmarks68_px)
        made_up = "x_picture_missing" in d.manifest["members"]  # an imported clip's holes, filled from neighbours
        self.picture_missing = d.column("x_picture_missing") if made_up else np.zeros(d.n_frames, bool)
        self.expression = d.column("expression")
        self.expression_names = tuple(d.manifest["expression_names"])
        path = d.path(contract.BACKGROUND)
        plate = images.decode_rgb(path.read_bytes(), str(d.root / contract.BACKGROUND))
        self.plate = images.resize_area(plate, hw)
        folder = build_cache(d, cache_dir, hw, plate)
        shapes = _cache_facts(d, hw)["shapes"]
        self._cache: dict[str, Any] = {n: _Array(folder / f"{n}.npy", tuple(s)) for n, s in shapes.items()}
        self._device: dict[str, Any] = {}
        if preload == "host":
            self._load_host(folder)
        elif preload == "device":
            self._load_device(folder)

    @property
    def info(self) -> SubjectInfo:
        """The sizes that a model's shapes depend on."""
        a = self.audio
        return SubjectInfo(
            n_frames=self.n_frames,
            height=self.height,
            width=self.width,
            audio_kind=a.kind,
            audio_channels=a.channels,
            audio_steps=a.window,
            audio_windows=AUDIO_WINDOWS,
            n_expression=self.expression.shape[1],
            intrinsics=tuple(float(x) for x in self.intrinsics),
        )

    # ------------------------------------------------ where the pictures lie

    def _load_host(self, folder: Path) -> None:
        need, free = sum(int(np.prod(a.shape)) for a in self._cache.values()), _free_memory()
        if free is not None and need > free:
            _log.warning("preload=host needs %.1f GB and %.1f GB are free: reading from disk", need / 1e9, free / 1e9)
            return
        self._cache = {name: np.load(folder / f"{name}.npy") for name in self._cache}

    def _load_device(self, folder: Path) -> None:
        import jax

        device = jax.local_devices()[0]
        stats = device.memory_stats() or {}
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else _free_memory()
        for name in ("target", "label", "background"):
            shape = self._cache[name].shape
            need = int(np.prod(shape))
            if free is not None and need > 0.9 * free:  # the rest is for the model
                message = "preload=device: %s needs %.1f GB and %.1f GB are free: reading it from disk"
                _log.warning(message, name, need / 1e9, free / 1e9)
                continue
            whole = np.load(folder / f"{name}.npy", mmap_mode="r")
            flat = whole.reshape(shape[0], shape[1] * shape[2], *shape[3:])
            self._device[name] = jax.device_put(flat, device)
            free = None if free is None else free - need

    # ------------------------------------------------ single frames, uint8

    def _picture(self, name: str, i: int) -> np.ndarray:
        if not 0 <= i < self.n_frames:
            raise IndexError(f"frame {i} does not exist, expected 0..{self.n_frames - 1}")
        return self._cache[name][i]

    def target(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        """The plate-replaced frame."""
        return self._picture("target", int(i))

    def background(self, i: int, kind: str = "torso") -> UInt8[np.ndarray, "H W 3"]:
        """What stands behind the head: `torso` (the true torso over the plate) or the `plate`."""
        _choose("background", kind, BACKGROUNDS)
        return self._picture("background", int(i)) if kind == "torso" else self.plate

    def label(self, i: int) -> UInt8[np.ndarray, "H W"]:
        """Labels 0 background, 1 head, 2 neck, 3 torso."""
        return self._picture("label", int(i))

    def torso_rgba(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        """The torso picture of frame i (straight alpha), averaged down premultiplied; decoded at each call."""
        name = self.dataset.where("torso_bytes", int(i))
        rgba = images.decode_png(self.dataset.frame_bytes("torso_bytes", int(i)), name)
        return images.resize_area(rgba, (self.height, self.width))

    def audio_windows(self, frames: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n W T C"]:
        """The 8 neighbouring windows of each frame; see `audio_windows`."""
        return audio_windows(self.audio, frames)

    # ------------------------------------------------ batches

    def lips_tiles(self, patch: int) -> int:
        """k such that k x k tiles of patch x patch pixels cover the lips box of every training frame.

        Frames without a detection do not count, and the square never exceeds the picture.
        """
        self._check_patch(patch)
        part = slice(*self.train_range)
        box = self.boxes["lips_box_px"][part][self.confidence[part] > 0]
        side = int((box[:, 2:] - box[:, :2]).max(initial=1))
        return max(1, min(-(-side // patch), min(self.height, self.width) // patch))

    def _check_patch(self, patch: int) -> None:
        if not 1 <= patch <= min(self.height, self.width):
            raise UserError(
                f"patch is {patch} for pictures of {self.width}x{self.height}, expected 1 to the shorter side"
            )

    def _sample(self, i: int, rng: np.random.Generator, sampler: str, rays: int, patch: int) -> Int[np.ndarray, " R"]:
        """Flat pixel numbers (row · width + column) of frame i; patches one after another, each row by row."""
        h, w = self.height, self.width
        if sampler == "frame":
            return np.arange(h * w)
        if sampler in ("rays", *FOCUS):
            if rays < 1:
                raise UserError(f"a stage's rays is {rays}, expected at least 1 pixel per frame")
            flat = rng.integers(0, h * w, rays)
            x0, y0, x1, y1 = self.boxes["lips_box_px"][i].tolist()
            if sampler in FOCUS and rays >= FOCUS[sampler]:
                n = rays // FOCUS[sampler]
                flat[:n] = rng.integers(y0, y1, n) * w + rng.integers(x0, x1, n)
                for x0, y0, x1, y1 in self.eye_regions[i].tolist():
                    start, n = n, n + rays // FOCUS_EYES
                    flat[start:n] = rng.integers(y0, y1, n - start) * w + rng.integers(x0, x1, n - start)
            return flat
        self._check_patch(patch)
        if sampler == "patch":
            count = rays // patch**2
            if count < 1:
                raise UserError(f"rays is {rays}, expected at least patch² = {patch**2} for the sampler patch")
            top, left = rng.integers(0, h - patch + 1, count), rng.integers(0, w - patch + 1, count)
        else:
            k = self.lips_tiles(patch)
            x0, y0, x1, y1 = self.boxes["lips_box_px"][i].tolist()
            corner_y = min(max((y0 + y1 - k * patch) // 2, 0), h - k * patch)
            corner_x = min(max((x0 + x1 - k * patch) // 2, 0), w - k * patch)
            row, column = np.divmod(np.arange(k * k), k)
            top, left = corner_y + row * patch, corner_x + column * patch
        row, column = np.divmod(np.arange(patch**2), patch)
        return ((top[:, None] + row) * w + left[:, None] + column).ravel()

    def batch(
        self,
        frames: Int[np.ndarray, " B"],
        keys: Sequence[np.random.Generator],
        sampler: str = "rays",
        rays: int = 4096,
        patch: int = 32,
        background: str = "torso",
        target: str = "frame",
    ) -> Batch:
        """B frames with R pixels each, float32 in 0…1; numpy arrays (pictures: device arrays with preload=device).

        keys: one generator per frame, so a frame's pixels do not depend on the others or on the device.
        `rays`: `rays` pixels, uniform with replacement over the picture. `focus`, `close`: the same, but one in FOCUS
        of them uniform over the frame's lips box, which is a few hundredths of the picture, and one in FOCUS_EYES over
        each eye with its lids.
        `patch`: rays // patch² patches of patch x patch at uniform places.
        `lips`: the k x k tiles of patch x patch around the middle of the lips
        box that cover it in every training frame (`lips_tiles`; one size per clip, so one compilation; `in_lips`
        says which pixels are inside). Both give whole patches in a row: [B, R] reshapes to [B, -1, patch, patch].
        `frame`: every pixel, row by row.
        `target`: the whole `frame`, or the `torso` over the plate.
        """
        _choose("sampler", sampler, SAMPLERS)
        _choose("target", target, tuple(TARGETS))
        _choose("background", background, BACKGROUNDS)
        frames = np.asarray(frames, np.int32)
        if frames.ndim != 1 or len(frames) != len(keys):
            raise UserError(f"{len(keys)} generators for frames of shape {frames.shape}, expected one per frame")
        if frames.size and not (0 <= frames.min() and frames.max() < self.n_frames):
            raise UserError(f"frames {frames.tolist()} do not all exist, expected 0..{self.n_frames - 1}")
        flat = np.stack([self._sample(int(i), key, sampler, rays, patch) for i, key in zip(frames, keys, strict=True)])
        row, column = np.divmod(flat, self.width)
        b = len(frames)
        behind = self._gather("background", frames, flat) if background == "torso" else self._plate_pixels(flat)
        return Batch(
            frame=frames,
            cam_to_world=self.cam_to_world[frames],
            intrinsics=np.tile(self.intrinsics, (b, 1)),
            pixels_px=np.stack([column, row], -1).astype(np.float32) + np.float32(0.5),
            background=behind,
            audio=self.audio_windows(frames),
            expression=self.expression[frames],
            eye_closed=self.eye_closed[frames],
            eye_area=self.eye_area[frames],
            target=self._gather(TARGETS[target], frames, flat),
            label=self._gather("label", frames, flat),
            in_face=_inside(self.boxes["face_box_px"][frames], row, column),
            in_lips=_inside(self.boxes["lips_box_px"][frames], row, column),
            in_lower_face=_inside(self.lower_face[frames], row, column),
            image_hw=(self.height, self.width) if sampler == "frame" else None,
            sampler=sampler,
        )

    def frame_batch(self, i: int, background: str = "torso") -> Batch:
        """One whole frame."""
        return self.batch(np.array([i]), [np.random.default_rng(0)], "frame", background=background)

    def _plate_pixels(self, flat: np.ndarray) -> np.ndarray:
        return _UNIT[self.plate.reshape(-1, 3)[flat]]

    def _gather(self, name: str, frames: np.ndarray, flat: np.ndarray) -> Any:
        """Pixels [B, R, …] of one cached array: rgb as float32 in 0…1, labels as uint8."""
        if name in self._device:
            import jax.numpy as jnp

            picked = self._device[name][frames[:, None], flat.astype(np.int32)]
            return picked if name == "label" else jnp.asarray(_UNIT)[picked]
        tail = _CHANNELS[name]
        picked = np.stack([self._cache[name][int(i)].reshape(-1, *tail)[f] for i, f in zip(frames, flat, strict=True)])
        return picked if name == "label" else _UNIT[picked]


def _inside(boxes: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Whether pixel centres [B, R] lie in the boxes [B, 4] of their frames."""
    x0, y0, x1, y1 = boxes.T[..., None]
    return (column + 0.5 > x0) & (column + 0.5 < x1) & (row + 0.5 > y0) & (row + 0.5 < y1)


def choose_kind(dataset: Dataset, kind: str) -> str:
    """`auto` -> logmel where the dataset has it, else the first kind that it has."""
    kinds = sorted(dataset.manifest["audio"])
    return kind if kind != "auto" or not kinds else "logmel" if "logmel" in kinds else kinds[0]


def _choose(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{what} {value!r} is unknown, expected one of {', '.join(choices)}")


def _free_memory() -> int | None:
    """Bytes of main memory that are free, where the system says."""
    try:
        with open("/proc/meminfo") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
