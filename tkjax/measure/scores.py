"""Scores of frames: crops that are the same for every row, lips that the face tracker found, LPIPS where it can be."""

import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from tkjax import contract, perceptual
from tkjax.errors import UserError
from tkjax.host import torch_side
from tkjax.measure import formulas

KEYS = ("psnr", "psnr_face", "psnr_mouth", "ssim", "lmd_px", "lmd_norm")
MORE_KEYS = ("psnr_head", "ssim_face", "ssim_mouth", "lpips", "nioe", "fid")
SEAM_KEYS = ("seam", "box_edge", "psnr_outside_mask")
# What --metrics can name -> the numbers of a report that it stands for; `response` is whether lips and eyes follow.
OF_METRIC = {
    "psnr": ("psnr", "psnr_head", "psnr_face", "psnr_mouth"),
    "ssim": ("ssim", "ssim_face", "ssim_mouth"),
    "lpips": ("lpips",),
    "lmd": ("lmd_px", "lmd_norm"),
    "nioe": ("nioe",),
    "fid": ("fid",),
    "response": (),
}
NOTES = {
    "PSNR": "10 log10(255² / MSE) over all pixels and channels of a frame (or of its face or lips box), then the mean "
    "over frames; equal pictures count as 100 dB",
    "PSNR head": "over the pixels whose true label is head, whatever stands around it",
    "boxes": "face: bounding box of the 68 points; mouth: square around the outer lips; frames whose face was "
    "not found by the tracker (confidence 0) count for the full frame only",
    "SSIM": "Gaussian 11x11 window, sigma 1.5, channels averaged, windows wholly inside the picture",
    "LPIPS": "AlexNet, weights of version 0.1, on the whole picture at training size",
    "seam": "mean absolute difference between the gradients of picture and target, 8-bit levels per pixel, within "
    "2/256 of the longer side (2 pixels at 256) of the line where the true labels turn from head to neck or torso",
    "LMD": "the face tracker's lip points (48-67 of 68) in the picture and in the true frame, each set centred "
    "on its own mean; mean distance in pixels, and divided by the distance between the eyes' centres",
    "NIOE": "the same points, not centred: mean distance over the distance between the true frame's eye centres",
    "FID": "Fréchet distance of InceptionV3 features (pytorch-fid's weights) between the row's pictures and their "
    "targets; below 2048 pictures comparable at equal numbers only",
}
NAN = float("nan")


def score(
    image: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W 3"], face_box, lips_box,
    head: Bool[np.ndarray, "H W"] | None = None, structure: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Picture measures of one frame; NaN in a region whose box or mask is None or empty. structure: with SSIM, else
    NaN."""
    ssim = formulas.ssim if structure else lambda a, b: NAN
    out = {"psnr": formulas.psnr(image, target), "ssim": ssim(image, target)}
    seen = head is not None and head.any()
    out["psnr_head"] = formulas.psnr(image[head][:, None], target[head][:, None]) if seen else NAN
    for name, box in (("face", face_box), ("mouth", lips_box)):
        a, b = (None, None) if box is None else (formulas.crop(image, box), formulas.crop(target, box))
        out[f"psnr_{name}"] = NAN if a is None else formulas.psnr(a, b)
        out[f"ssim_{name}"] = NAN if a is None else ssim(a, b)
    return out


def mean(values: list[float]) -> float | None:
    """Mean of the finite values, None where there is none."""
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else None


def lpips(models: str | os.PathLike | None) -> tuple[Callable[[np.ndarray, np.ndarray], float] | None, str]:
    """(LPIPS-Alex of two 8-bit pictures, "") or (None, why it is not computed)."""
    path, reason = perceptual.find("lpips_alex", models)
    if path is None:
        return None, f"not computed: needs lpips_alex.npz: {reason}"
    try:
        distance = jax.jit(perceptual.lpips(path, "alex").__call__)
    except UserError as error:
        return None, f"not computed: {error}"
    return lambda a, b: float(distance(*(v[None].astype(np.float32) / 255 for v in (a, b)))[0]), ""


class Faces:
    """The face tracker's points of pictures that go to one child process as they are drawn; none is kept.

    A picture equal to the last of its source (a still one) is looked for once.
    """

    def __init__(self, folder: Path, models: str | os.PathLike | None):
        self._out = Path(folder) / "faces.npz"
        arguments = ["--frames", "-", "--out", str(self._out)]
        self._feed = torch_side.Feed("preprocess.lips", arguments + (["--models_dir", str(models)] if models else []))
        self._rows: dict[str, list[int]] = {}
        self._last: dict[str, np.ndarray] = {}
        self._sent = 0

    def __enter__(self) -> "Faces":
        return self

    def __exit__(self, *_) -> None:
        self._feed.__exit__()

    def add(self, source: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """The next picture of a source."""
        rows, last = self._rows.setdefault(source, []), self._last.get(source)
        if last is not None and np.array_equal(last, image):
            rows.append(rows[-1])
            return
        self._feed.write(struct.pack("<II", *image.shape[:2]), np.ascontiguousarray(image).tobytes())
        self._last[source] = np.array(image)
        rows.append(self._sent)
        self._sent += 1

    def find(self) -> dict[str, Float[np.ndarray, "n 68 2"]]:
        """The points of every source, NaN where no face was found; UserError with the tracker's refusal."""
        self._feed.close()
        with np.load(self._out, allow_pickle=False) as data:
            points, found = data["landmarks_px"].astype(np.float64), data["confidence"] > 0
        points[~found] = np.nan
        points = contract.landmarks68(points, "mediapipe478")
        return {source: points[rows] for source, rows in self._rows.items()}


def add_lips(
    scores: dict[str, dict[str, list]], points: Mapping[str, np.ndarray], known: Bool[np.ndarray, " n"]
) -> None:
    """Fill in lmd_px, lmd_norm and nioe of every source from its points and those of `target`. known: frames with a
    true face."""
    target = points["target"]
    for source, mine in scores.items():
        px = [formulas.lip_distance_px(*pair) for pair in zip(points[source], target, strict=True)]
        mine["lmd_px"] = [v if ok else NAN for v, ok in zip(px, known, strict=True)]
        mine["lmd_norm"] = [v / formulas.eye_distance_px(b) for v, b in zip(mine["lmd_px"], target, strict=True)]
        errors = [formulas.mouth_error(*pair) for pair in zip(points[source], target, strict=True)]
        mine["nioe"] = [v if ok else NAN for v, ok in zip(errors, known, strict=True)]
