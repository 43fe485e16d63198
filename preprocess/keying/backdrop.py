"""The backdrop that a person is cut out of: what the user names, its colours, and the plate that takes its place."""

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from tkjax.errors import UserError
from tkjax.media.images import read_rgb

TARGET = (128, 128, 128)  # what stands behind the keyed person in the dataset: Avatar-ERNeRF's gray (§2.4, §8)
# (R, G, B). The original has cyan and yellow swapped (a trap of its §2.4): here they are what their names say.
NAMES = {
    "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128), "grey": (128, 128, 128),
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "cyan": (0, 255, 255),
    "fuchsia": (255, 0, 255), "magenta": (255, 0, 255), "yellow": (255, 255, 0),
}  # fmt: skip
BODY = np.array([[205, 150, 125], [120, 75, 55], [170, 85, 90]], np.float32)  # light skin, dark skin, lips
OPPOSITE = 10.0  # levels of the opposite of the screen's colour that a solved F may have beyond its neighbourhood


@dataclasses.dataclass(frozen=True)
class Reference:
    """--background_ref: a colour (r, g, b) or the path of a clean plate, or the clip's own alpha channel (`OWN_ALPHA`);
    `identity` goes into hashes."""

    identity: str
    colour: tuple[int, int, int] | None = None
    plate: Path | None = None


OWN_ALPHA = Reference("alpha")  # nothing has to be learnt: the clip says where the person is


def parse_reference(text: str) -> Reference:
    """A colour name, `r,g,b`, `#rrggbb` or the path of a picture; never evaluated. UserError for anything else."""
    word = text.strip()
    if word.lower() in NAMES:
        return _colour(NAMES[word.lower()])
    if m := re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", word):
        return _colour(tuple(int(x, 16) for x in m.groups()))
    if m := re.fullmatch(r"(\()?\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(-?\d+)\s*(?(1)\))", word):
        rgb = tuple(int(x) for x in m.groups()[1:])
        if not all(0 <= x <= 255 for x in rgb):
            raise UserError(f"--background_ref={text} is no colour; r, g and b lie in 0..255")
        return _colour(rgb)
    path = Path(word).expanduser()
    if not word or not path.is_file():
        raise UserError(
            f"--background_ref={text} is neither a colour ({', '.join(sorted(NAMES))}, r,g,b or #rrggbb) nor a picture "
            "of the clean background that exists"
        )
    picture = read_rgb(path)
    return Reference(f"plate-{hashlib.sha256(picture.tobytes()).hexdigest()[:16]}", plate=path)


def _colour(rgb: tuple[int, int, int]) -> Reference:
    return Reference(",".join(map(str, rgb)), colour=rgb)


def blend(
    colour: UInt8[np.ndarray, "H W 3"], alpha: UInt8[np.ndarray, "H W"], background: tuple[int, int, int] = TARGET
) -> UInt8[np.ndarray, "H W 3"]:
    """a F + (1 - a) background, rounded to nearest; exactly the background where alpha is 0."""
    a = alpha[..., None].astype(np.uint32)
    v = a * colour + (255 - a) * np.asarray(background, np.uint32)
    return ((2 * v + 255) // 510).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Hue:
    """Channels of a screen's colour that stand out, and those that do not."""

    high: tuple[int, ...]
    low: tuple[int, ...]

    @classmethod
    def of(cls, rgb: np.ndarray) -> "Hue | None":
        """None for a colour without hue (black, white, grey and pale ones)."""
        rgb = np.asarray(rgb, np.float32)
        middle = (rgb.max() + rgb.min()) / 2
        hue = cls(tuple(np.flatnonzero(rgb > middle).tolist()), tuple(np.flatnonzero(rgb <= middle).tolist()))
        return hue if rgb.max() - rgb.min() >= 30 and float(hue.excess(rgb)) >= 20 else None

    def excess(self, rgb: np.ndarray) -> Float[np.ndarray, "..."]:
        """min(high channels) - max(low channels) in levels: how much of the screen's colour is in it, negative for
        the opposite; green: G - max(R, B)."""
        rgb = rgb.astype(np.float32)
        high = np.minimum.reduce([rgb[..., c] for c in self.high])
        return high - np.maximum.reduce([rgb[..., c] for c in self.low])

    @property
    def despills(self) -> bool:
        """Whether skin and lips have none of this colour, so that it can be taken away everywhere."""
        return bool((self.excess(BODY) <= 0).all())

    def despill(self, rgb: np.ndarray) -> Float[np.ndarray, "... 3"]:
        """The high channels lowered until there is no excess; other colours stay as they are."""
        return self._moved(rgb, -np.maximum(self.excess(rgb), 0))

    def near(self, rgb: np.ndarray, like: np.ndarray) -> Float[np.ndarray, "... 3"]:
        """Colours that lack more of the screen's colour than others `like` them (magenta rims on green) lack it no
        more than these, and OPPOSITE levels."""
        return self._moved(rgb, np.maximum(self.excess(like) - OPPOSITE - self.excess(rgb), 0))

    def _moved(self, rgb: np.ndarray, by: np.ndarray) -> np.ndarray:
        out = rgb.astype(np.float32)
        for c in self.high:
            out[..., c] += by
        return out
