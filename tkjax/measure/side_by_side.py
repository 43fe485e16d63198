"""The same held-out frames of several systems beside the truth, from their evaluations' comparison videos."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from tkjax.data.clip import Clip
from tkjax.measure.evaluate import heldout_sound
from tkjax.media import images, video

LINES = ((16, 13, (240, 240, 240)), (33, 10, (165, 172, 180)))  # middle, size of letters, colour; over each picture
BAR, PAPER = 43, (28, 30, 33)
STILLS = 3
LEAST_HEIGHT = 160  # smaller pictures are enlarged, so that labels can be read


@dataclasses.dataclass(frozen=True)
class Column:
    """One picture of each scored frame of an evaluation: label, a second line for it, its comparison video, how many
    pictures that has side by side and which of them this is; the frames' numbers in its order."""

    label: str
    more: str
    video: Path
    columns: int
    column: int
    frames: Sequence[int]

    def read(self, wanted: Sequence[int]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        places = {number: place for place, number in enumerate(self.frames)}
        chosen = {places[i] for i in wanted}
        for place, strip in enumerate(video.read_frames(self.video)):
            if place in chosen:
                width = strip.shape[1] // self.columns
                yield strip[:, self.column * width : (self.column + 1) * width]


def common(columns: Sequence[Column]) -> list[int]:
    """The numbers of the frames that all of them have."""
    return sorted(set.intersection(*(set(c.frames) for c in columns)))


def labelled(picture: UInt8[np.ndarray, "h w 3"], *lines: str) -> UInt8[np.ndarray, "H w 3"]:
    """The picture under a bar with one or two lines, in smaller letters where they are too long for it."""
    bar = Image.new("RGB", (picture.shape[1], BAR), PAPER)
    draw = ImageDraw.Draw(bar)
    for text, (middle, size, colour) in zip(lines, LINES):
        while size > 7 and draw.textlength(text, ImageFont.load_default(size)) > picture.shape[1] - 10:
            size -= 1
        draw.text((6, middle), text, colour, ImageFont.load_default(size), anchor="lm")
    return np.concatenate([np.asarray(bar), picture])


def make(
    columns: Sequence[Column], clip: Clip, out: Path, metadata: dict[str, str]
) -> list[tuple[str, UInt8[np.ndarray, "H W 3"]]]:
    """Write the video of the common frames, truth first; some of its frames with captions for a page. clip: whose
    frames are the truth, at the height that all pictures get."""
    wanted = common(columns)
    if not wanted:
        return []
    height = max(clip.height, LEAST_HEIGHT)
    stills = set(np.linspace(0, len(wanted) - 1, min(STILLS, len(wanted))).round().astype(int).tolist())
    kept, writer = [], None
    sound = heldout_sound(clip, np.array(wanted)) if len(wanted) == wanted[-1] - wanted[0] + 1 else None
    try:
        for k, pictures in enumerate(zip(*(c.read(wanted) for c in columns), strict=True)):
            parts = [(("truth",), np.asarray(clip.target(wanted[k])))]
            parts += [((c.label, c.more), p) for c, p in zip(columns, pictures, strict=True)]
            strip = np.concatenate([labelled(_at_height(p, height), *lines) for lines, p in parts], 1)
            if writer is None:
                size = strip.shape[:2]
                writer = video.VideoWriter(out, *size, fps=clip.fps, audio=sound, metadata=metadata)
            writer.write(strip)
            if k in stills:
                kept.append((f"frame {wanted[k]}", strip))
        writer.close()
    except BaseException as error:
        if writer is not None:
            writer.__exit__(type(error), error, None)
        raise
    return kept


def _at_height(picture: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "H W 3"]:
    """Scaled as a whole; made larger by repeating what is between pixels linearly, smaller by averages."""
    if picture.shape[0] == height:
        return picture
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    if picture.shape[0] > height:
        return images.resize_area(picture, (height, width))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
