"""A dataset as the trainer sees it: decoded once to a cache of uint8 pictures, then sampled into batches.

The cache holds, at the training size, `target` (the frame where its label is not background, else the plate:
a hard rule, composed at full size and then averaged down), `background` (the true torso over the plate) and
`label` (majority). `disk` reads it with pread, one frame at a time, so resident memory does not grow with the
clip; `host` holds it in memory; `device` puts target and label, and the background where there is room, on the
accelerator as uint8. All three give the same numbers.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from tkjax import contract
from tkjax.contract import AudioFeatures, Dataset
from tkjax.data import sampling
from tkjax.data import split as splitting
from tkjax.data.frame_cache import CHANNELS, open_cache, over
from tkjax.data.sampling import FOCUS, SAMPLERS
from tkjax.errors import UserError
from tkjax.media import images
from tkjax.types import Batch, SubjectInfo

__all__ = [
    "AUDIO_WINDOWS",
    "BACKGROUNDS",
    "PRELOADS",
    "SAMPLERS",
    "DatasetClip",
    "audio_windows",
    "choose_kind",
    "over",
]

AUDIO_WINDOWS = 8  # neighbours i-4 … i+3 of frame i; its own has index 4
BACKGROUNDS = ("torso", "plate")
TARGETS = {"frame": "target", "torso": "background"}  # what a stage compares with -> cached array
PRELOADS = ("disk", "host", "device")
_UNIT = np.arange(256, dtype=np.float32) / np.float32(255)  # uint8 -> 0…1, the same bits on every path
_log = logging.getLogger("tkjax.data.dataset_clip")


def audio_windows(
    features: AudioFeatures, frame_indices: Int[np.ndarray, " n"], n_windows: int = AUDIO_WINDOWS
) -> Float[np.ndarray, "n W T C"]:
    """Windows of the frames i - W//2 … i + W - W//2 - 1 around each frame i (er-nerf.md §2).

    A window holds steps hop·i - left … + window - 1 of the features, zeros outside them; the window of a frame
    before the first or behind the last (`features.n_windows`) is all zeros.
    """
    frames = np.asarray(frame_indices, np.int64)[:, None] + np.arange(n_windows) - n_windows // 2
    f = features
    return contract.cut_windows(f.features, frames, f.window, f.hop, f.left, end=f.n_windows)


class DatasetClip:
    """A validated dataset at training size.

    audio_kind: which audio_<kind>.npz; `auto`: log-mel, which new sound can always be described by, else what is there.
    size: longer side in pixels (0, or one that is not smaller: the dataset's own). Intrinsics, boxes and
    landmarks are scaled with the pictures. `boxes` has the contract's names (`face_box_px`, …).
    split: one of `split.SPLITS`; `train_frames` and `heldout_frames` are what it gives, the ranges go around them.
    """

    def __init__(
        self,
        dataset_root: str | Path,
        cache_dir: str | Path,
        size: int = 0,
        preload: str = "disk",
        audio_kind: str = "auto",
        split: str = "last",
    ):
        if preload not in PRELOADS:
            raise UserError(f"preload is {preload!r}, expected one of {', '.join(PRELOADS)}")
        self.dataset = d = Dataset(dataset_root)
        self.audio = d.audio_features(choose_kind(d, audio_kind))
        self.digest, self.n_frames, self.fps = d.digest, d.n_frames, d.fps
        self.split = split
        self.train_frames, self.heldout_frames = splitting.frames(split, d.train_range, d.heldout_range)
        self.train_range, self.heldout_range = _around(self.train_frames), _around(self.heldout_frames, d.heldout_range)
        self.height, self.width = hw = sampling.training_size(d.height, d.width, size)
        full = (d.height, d.width)
        factor = np.array([self.width / d.width, self.height / d.height])
        self.intrinsics = (np.array(d.intrinsics) * np.tile(factor, 2)).astype(np.float32)
        self.landmarks68_px = (d.landmarks68() * factor).astype(np.float32)
        self.boxes = {name: sampling.scale_boxes(d.column(name), full, hw) for name in contract.BOXES}
        self.cam_to_world = d.column("cam_to_world")
        self.eye_closed, self.confidence = d.column("eye_closed"), d.column("confidence")
        stored = "eye_area" in d.manifest["members"]
        self.eye_area = d.column("eye_area") if stored else sampling.eye_area(d.landmarks68(), d.height, d.width)
        self.eye_regions = np.stack([sampling.widened(self.boxes[f"eye_{s}_box_px"], hw) for s in ("left", "right")], 1)
        self.lip_shape = sampling.standardised(sampling.lip_shape(d.landmarks68()), self._learns())
        self.lower_face = sampling.lower_face_boxes(self.landmarks68_px)
        made_up = "x_picture_missing" in d.manifest["members"]  # an imported clip's holes, filled from neighbours
        self.picture_missing = d.column("x_picture_missing") if made_up else np.zeros(d.n_frames, bool)
        self.expression = d.column("expression")
        self.expression_names = tuple(d.manifest["expression_names"])
        path = d.path(contract.BACKGROUND)
        plate = images.decode_rgb(path.read_bytes(), str(d.root / contract.BACKGROUND))
        self.plate = images.resize_area(plate, hw)
        self.has_labels = True
        self._cache: dict[str, Any] = open_cache(d, cache_dir, hw, plate)
        self._device: dict[str, Any] = {}
        if preload == "host":
            self._load_host()
        elif preload == "device":
            self._load_device()

    def _learns(self) -> Bool[np.ndarray, " n"]:
        """Which frames the trainer learns from: those of the training split whose face was found."""
        frames = np.arange(self.n_frames)
        return (frames >= self.train_range[0]) & (frames < self.train_range[1]) & (self.confidence > 0)

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

    def _load_host(self) -> None:
        need, free = sum(int(np.prod(a.shape)) for a in self._cache.values()), _free_memory()
        if free is not None and need > free:
            _log.warning("preload=host needs %.1f GB and %.1f GB are free: reading from disk", need / 1e9, free / 1e9)
            return
        self._cache = {name: np.array(array.mapped()) for name, array in self._cache.items()}

    def _load_device(self) -> None:
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
            flat = self._cache[name].mapped().reshape(shape[0], shape[1] * shape[2], *shape[3:])
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
        sampling.check_patch(patch, (self.height, self.width))
        part = self.train_frames
        box = self.boxes["lips_box_px"][part][self.confidence[part] > 0]
        side = int((box[:, 2:] - box[:, :2]).max(initial=1))
        return max(1, min(-(-side // patch), min(self.height, self.width) // patch))

    def _sample(
        self, i: int, rng: np.random.Generator, sampler: str, rays: int, patch: int, tiles: int
    ) -> Int[np.ndarray, " R"]:
        """Flat pixel numbers (row · width + column) of frame i; patches one after another, each row by row."""
        hw, lips = (self.height, self.width), self.boxes["lips_box_px"][i]
        if sampler == "frame":
            return np.arange(self.height * self.width)
        if sampler in ("rays", *FOCUS):
            return sampling.focused_pixels(sampler, hw, rng, rays, np.stack([lips, *self.eye_regions[i]]))
        if sampler == "patch":
            corners = sampling.patch_corners(hw, rng, rays, patch)
        else:
            corners = sampling.tile_corners(hw, lips, patch, tiles)
        return sampling.patch_pixels(*corners, patch, self.width)

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
        `patch`: rays // patch² patches of patch x patch at uniform places. `lips`: the k x k tiles of patch x patch
        around the middle of the lips box that cover it in every training frame (`lips_tiles`; one size per clip, so one
        compilation; `in_lips` says which pixels are inside). Both give whole patches in a row: [B, R] reshapes to
        [B, -1, patch, patch].
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
        tiles = self.lips_tiles(patch) if sampler == "lips" else 0
        samples = [self._sample(int(i), key, sampler, rays, patch, tiles) for i, key in zip(frames, keys, strict=True)]
        flat = np.stack(samples)
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
            lip_shape=self.lip_shape[frames],
            target=self._gather(TARGETS[target], frames, flat),
            label=self._gather("label", frames, flat),
            in_face=sampling.inside(self.boxes["face_box_px"][frames], row, column),
            in_lips=sampling.inside(self.boxes["lips_box_px"][frames], row, column),
            in_lower_face=sampling.inside(self.lower_face[frames], row, column),
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
        tail = CHANNELS[name]
        picked = np.stack([self._cache[name][int(i)].reshape(-1, *tail)[f] for i, f in zip(frames, flat, strict=True)])
        return picked if name == "label" else _UNIT[picked]


def _around(frames: Int[np.ndarray, " n"], none: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """The range from the first to the last of the frames; `none` where there is none."""
    return (int(frames[0]), int(frames[-1]) + 1) if len(frames) else tuple(none)


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
