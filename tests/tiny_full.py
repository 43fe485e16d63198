"""Tiny datasets that were cut out of larger frames, keyed or not: for tests of paste-back."""

import hashlib

import numpy as np

from tests import tiny, tiny_dataset
from tkjax import contract
from tkjax.avatar import track
from tkjax.media import images
from tkjax.media.full_frames import write_video

FULL_HW, BOX = (60, 80), (20, 12, 68, 48)  # a crop of 48x36, which the dataset holds at 32x24
TRT = (20, 160, 40)


def full_frame(dataset: contract.Dataset, i: int) -> np.ndarray:
    """The dataset's picture enlarged into a frame whose grey rises with the frame's number."""
    frame = np.full((*FULL_HW, 3), 60 + 2 * (i % 40), np.uint8)
    x0, y0, x1, y1 = BOX
    frame[y0:y1, x0:x1] = images.resize_area(
        images.decode_rgb(dataset.frame_bytes("image_bytes", i)), (y1 - y0, x1 - x0)
    )
    return frame


def matte(i: int) -> np.ndarray:
    """A disc that grows, soft at its edge."""
    y, x = np.mgrid[: FULL_HW[0], : FULL_HW[1]]
    return np.rint(255 * np.clip(15 + 0.05 * i - np.hypot(x - 44, y - 30), 0, 1)).astype(np.uint8)


def crop(picture: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = BOX
    return images.resize_area(np.ascontiguousarray(picture[y0:y1, x0:x1]), (24, 32))


def make_dataset(root, n: int = 33, keyed: bool = False):
    """`tiny.make_dataset` with full.mp4, and where keyed full_alpha.mp4 and the name of the colour behind."""
    source = {"crop_px": list(BOX), "full_size": list(FULL_HW[::-1])} | ({"background_trt": list(TRT)} if keyed else {})
    more = {"alpha_bytes": [images.encode_png(crop(matte(i))) for i in range(n)]} if keyed else {}
    tiny.make_dataset(root, n, more=more, source=source)
    dataset = contract.Dataset(root)
    write_video(root / "full.mp4", [full_frame(dataset, i) for i in range(n)], FULL_HW, 25.0)
    names = ["full.mp4"]
    if keyed:
        track.write_matte(root / "full_alpha.mp4", map(matte, range(n)), 25.0)
        names.append("full_alpha.mp4")

    def change(manifest):
        for name in names:
            manifest["files"][name] = hashlib.sha256((root / name).read_bytes()).hexdigest()

    tiny_dataset.redigest(root, change)
    return root
