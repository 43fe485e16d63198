"""A dataset as the trainer sees it: decoded once to a cache of uint8 pictures, then sampled into batches.

The cache holds, at the training size, `target` (the frame where its label is not background, else the plate:
a hard rule, composed at full size and then averaged down), `background` (the true torso over the plate) and
`label` (majority). `disk` reads it with pread, one frame at a time, so resident memory does not grow with the
clip; `host` holds it in memory; `device` puts target and label, and the background where there is room, on the
accelerator as uint8. All three give the same numbers.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from tkjax import contract, samplers, signals
from tkjax.contract import Dataset, described
from tkjax.data import sampling
from tkjax.data import split as splitting
from tkjax.data.frame_cache import CHANNELS, open_cache
from tkjax.errors import UserError
from tkjax.media import images
from tkjax.signals import SOUND, Signal, Use
from tkjax.types import Batch, SubjectInfo

PLAIN = {"white": 255, "black": 0}  # backgrounds of one colour
BACKGROUNDS = ("torso", "plate", *PLAIN)
TARGETS = ("frame", "torso", "head")  # what a stage compares with
PRELOADS = ("disk", "host", "device")
_UNIT = np.arange(256, dtype=np.float32) / np.float32(255)  # uint8 -> 0…1, the same bits on every path
_log = logging.getLogger("tkjax.data.dataset_clip")


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
        self.eye_regions = np.stack([sampling.widened(self.boxes[f"eye_{s}_box_px"], hw) for s in ("left", "right")], 1)
        self.truth = {"lip_shape": sampling.standardised(sampling.lip_shape(d.landmarks68()), self._learns())}
        self.signals, self.members = self._signals(audio_kind), _Members(d)
        self.lower_face = sampling.lower_face_boxes(self.landmarks68_px)
        made_up = "x_picture_missing" in d.manifest["members"]  # an imported clip's holes, filled from neighbours
        self.picture_missing = d.column("x_picture_missing") if made_up else np.zeros(d.n_frames, bool)
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

    def _signals(self, audio_kind: str) -> dict[str, Signal]:
        """All that the dataset knows of what drives a head; the area of the eyes is measured where it is not stored."""
        d, kind = self.dataset, choose_kind(self.dataset, audio_kind)
        heard = kind if d.manifest["audio"] or audio_kind != "auto" else None  # a dataset may be without any sound
        self.audio = None if heard is None else d.audio_features(heard)
        found = d.signals() if heard is None else {SOUND: described.of_sound(self.audio), **d.signals()}
        if "eye_area" not in found:
            area = sampling.eye_area(d.landmarks68(), d.height, d.width)
            found["eye_area"] = signals.of_frames("eye_area", area, d.fps, source="landmarks")
        return {name: signal.with_range(self.train_frames) for name, signal in found.items()}

    @property
    def info(self) -> SubjectInfo:
        """The facts that a model's shapes depend on."""
        return SubjectInfo(
            n_frames=self.n_frames,
            height=self.height,
            width=self.width,
            intrinsics=tuple(float(x) for x in self.intrinsics),
            signals=tuple(signal.info for signal in self.signals.values()),
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

    def target(self, i: int, kind: str = "frame", background: str = "plate") -> UInt8[np.ndarray, "H W 3"]:
        """The plate-replaced frame; or the `torso` over the plate, or the `head` alone over a background."""
        _choose("target", kind, TARGETS)
        if kind == "torso":
            return self.background(i)
        whole = self._picture("target", int(i))
        if kind == "frame":
            return whole
        return np.where(self.label(i)[..., None] == contract.LABEL_HEAD, whole, self.background(i, background))

    def background(self, i: int, kind: str = "torso") -> UInt8[np.ndarray, "H W 3"]:
        """What stands behind the head: `torso` (the true torso over the plate), the `plate`, `white` or `black`."""
        _choose("background", kind, BACKGROUNDS)
        if kind in PLAIN:
            return np.full_like(self.plate, PLAIN[kind])
        return self._picture("background", int(i)) if kind == "torso" else self.plate

    def label(self, i: int) -> UInt8[np.ndarray, "H W"]:
        """Labels 0 background, 1 head, 2 neck, 3 torso."""
        return self._picture("label", int(i))

    def torso_rgba(self, i: int) -> UInt8[np.ndarray, "H W 4"]:
        """The torso picture of frame i (straight alpha), averaged down premultiplied; decoded at each call."""
        name = self.dataset.where("torso_bytes", int(i))
        rgba = images.decode_png(self.dataset.frame_bytes("torso_bytes", int(i)), name)
        return images.resize_area(rgba, (self.height, self.width))

    # ------------------------------------------------ batches

    @functools.cached_property
    def _sampled_boxes(self) -> dict[str, np.ndarray]:
        """The boxes that samplers look at and losses mask by, [n,4] each."""
        boxes = {name: self.boxes[f"{name}_box_px"] for name in ("face", "lips")}
        eyes = {f"eye_{side}": self.eye_regions[:, k] for k, side in enumerate(("left", "right"))}
        head = sampling.head_boxes(self.landmarks68_px, (self.height, self.width))
        return {**boxes, **eyes, "lower_face": self.lower_face, "head": head}

    @functools.cache  # noqa: B019  # a clip lives as long as its process
    def _longest(self, box: str) -> int:
        """The longest side of a box over the training frames with a detection, in whole pixels."""
        part = self.train_frames
        corners = self._sampled_boxes[box][part][self.confidence[part] > 0]
        return int(np.ceil((corners[:, 2:] - corners[:, :2]).max(initial=1)))

    def _view(self, i: int, rng: np.random.Generator, rays: int, patch: int) -> samplers.View:
        boxes = {name: values[i] for name, values in self._sampled_boxes.items()}
        hw = (self.height, self.width)
        return samplers.View(hw, rng, rays, patch, boxes, self._longest, lambda: self.label(i))

    def batch(
        self,
        frames: Int[np.ndarray, " B"],
        keys: Sequence[np.random.Generator],
        sampler: str = "rays",
        rays: int = 4096,
        patch: int = 32,
        background: str = "torso",
        target: str = "frame",
        driven_by: Sequence[Use] = (),
        masks: Sequence[str] = (),
        truth: Sequence[str] = (),
    ) -> Batch:
        """B frames with R pixels each, float32 in 0…1; numpy arrays (pictures: device arrays with preload=device).

        keys: one generator per frame, so a frame's pixels do not depend on the others or on the device. sampler: a name
        of `tkjax.samplers`. background, target, masks, truth: see `interface.Stage`. driven_by: the signals whose
        windows the batch holds.
        """
        choose = samplers.find(sampler)
        _choose("target", target, TARGETS)
        _choose("background", background, BACKGROUNDS)
        frames = np.asarray(frames, np.int32)
        if frames.ndim != 1 or len(frames) != len(keys):
            raise UserError(f"{len(keys)} generators for frames of shape {frames.shape}, expected one per frame")
        if frames.size and not (0 <= frames.min() and frames.max() < self.n_frames):
            raise UserError(f"frames {frames.tolist()} do not all exist, expected 0..{self.n_frames - 1}")
        picked = [choose(self._view(int(i), key, rays, patch)) for i, key in zip(frames, keys, strict=True)]
        flat = np.stack(picked)
        row, column = np.divmod(flat, self.width)
        behind = self._behind(background, frames, flat)
        label = self._gather("label", frames, flat)
        return Batch(
            frame=frames,
            cam_to_world=self.cam_to_world[frames],
            intrinsics=np.tile(self.intrinsics, (len(frames), 1)),
            pixels_px=np.stack([column, row], -1).astype(np.float32) + np.float32(0.5),
            background=behind,
            signals={use.name: signals.windows(self.signal(use.name), frames, use) for use in driven_by},
            target=self._compared(target, frames, flat, label, behind),
            label=label,
            masks={name: sampling.inside(self._box(name)[frames], row, column) for name in masks},
            truth={name: self._measure(name)[frames] for name in truth},
            image_hw=(self.height, self.width) if sampler == "frame" else None,
            patches=sampler if samplers.gives_patches(sampler) else None,
        )

    def frame_batch(self, i: int, background: str = "torso", driven_by: Sequence[Use] = ()) -> Batch:
        """One whole frame."""
        rng = np.random.default_rng(0)
        return self.batch(np.array([i]), [rng], "frame", background=background, driven_by=driven_by)

    def signal(self, name: str) -> Signal:
        """UserError lists those that the dataset has."""
        self.info.signal(name)
        return self.signals[name]

    def _box(self, name: str) -> np.ndarray:
        _choose("mask", name, tuple(self._sampled_boxes))
        return self._sampled_boxes[name]

    def _measure(self, name: str) -> np.ndarray:
        _choose("measure", name, tuple(self.truth))
        return self.truth[name]

    def _behind(self, kind: str, frames: np.ndarray, flat: np.ndarray) -> Any:
        """Pixels [B,R,3] of what stands behind the model."""
        if kind in PLAIN:
            return np.full((*flat.shape, 3), _UNIT[PLAIN[kind]], np.float32)
        return self._gather("background", frames, flat) if kind == "torso" else self._plate_pixels(flat)

    def _compared(self, kind: str, frames: np.ndarray, flat: np.ndarray, label: Any, behind: Any) -> Any:
        """Pixels [B,R,3] of what the picture is compared with."""
        if kind == "torso":
            return self._gather("background", frames, flat)
        whole = self._gather("target", frames, flat)
        if kind == "frame":
            return whole
        xp = np if isinstance(whole, np.ndarray) else _jnp()
        return xp.where(label[..., None] == contract.LABEL_HEAD, whole, behind)

    def _plate_pixels(self, flat: np.ndarray) -> np.ndarray:
        return _UNIT[self.plate.reshape(-1, 3)[flat]]

    def _gather(self, name: str, frames: np.ndarray, flat: np.ndarray) -> Any:
        """Pixels [B, R, …] of one cached array: rgb as float32 in 0…1, labels as uint8."""
        if name in self._device:
            jnp = _jnp()
            picked = self._device[name][frames[:, None], flat.astype(np.int32)]
            return picked if name == "label" else jnp.asarray(_UNIT)[picked]
        tail = CHANNELS[name]
        picked = np.stack([self._cache[name][int(i)].reshape(-1, *tail)[f] for i, f in zip(frames, flat, strict=True)])
        return picked if name == "label" else _UNIT[picked]


class _Members(Mapping):
    """The extra members `x_<name>` of a dataset by their full names, [n, …] each; read when they are asked for."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._names = [name for name in dataset.manifest["members"] if name.startswith("x_")]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._dataset.column(name)

    def __iter__(self):
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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


def _jnp() -> Any:
    import jax.numpy

    return jax.numpy


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
