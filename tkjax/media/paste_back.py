"""A rendered crop back into the whole frame it was cut from: three original schemes and a better one (numpy, Pillow).

The originals (avatar-ernerf.md §6.2) use binary masks of the original frame: `box` everything in the crop, `face` the
face without ears, hair and neck, `face_neck` face and neck. They show box edges, cut a wider jaw at the old chin, and
leave the old chin under a narrower one.

`blend` takes the union of the rendered head (its alpha) and of head and neck in the original frame, so the old head is
always covered and the new one never cut; widens it by DILATE, feathers the widened part, and fades to 0 towards box
edges that are not edges of the frame. The picture's colours first move by a smooth field towards the frame's, measured
around the heads where both show the same layer.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from tkjax.contract import LABEL_HEAD, LABEL_NECK
from tkjax.media import images

SCHEMES = ("none", "box", "face", "face_neck", "blend")
FACE_CLASSES = (1, 2, 3, 4, 5, 6, 10, 11, 12, 13)  # CelebAMask ids: no ears, neck, cloth, hair (avatar-ernerf.md §6.2)
JAW, BROWS, BRIDGE, CHIN = slice(0, 17), slice(17, 27), 27, 8  # of the 68 points
FOREHEAD = 0.3  # the face reaches above the brows by so much of the way from chin to nose bridge; hair begins at ~0.5

# Of `blend`; lengths are shares of the box's longer side. Ours: the originals have nothing of the kind.
GRID = 128  # masks are made at so many cells along the longer side
FIELD = 32  # and the colour field at so many
SEEN = 26 / 255  # alpha from which on a rendered pixel belongs to the new head
DILATE = 0.03  # the mask reaches so far beyond both heads and falls from 1 to 0 on the way
FADE = 0.06  # and falls to 0 over so much at a box edge inside the frame
RING = 0.07  # colours are compared so far on both sides of the union's edge
SMOOTH = 0.10  # standard deviation of the colour field
OUTLIER = 24.0  # a difference of so many levels counts half: it is another thing, not another light
SHIFT_MAX = 48.0  # levels that a colour may move


def face_of_classes(classes: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The face of the originals' scheme 1, from CelebAMask class ids; scheme 2 adds what is labelled as neck."""
    return np.isin(classes, FACE_CLASSES)


def face_of_landmarks(
    points: Float[np.ndarray, "68 2"], label: UInt8[np.ndarray, "h w"], over: int = 4
) -> Bool[np.ndarray, "h w"]:
    """The face where no classes are known: inside jaw line and raised brows (rounded off), and labelled as head."""
    points = np.asarray(points, np.float64)
    raised = points[BROWS] + FOREHEAD * (points[BRIDGE] - points[CHIN])
    outline = np.concatenate([points[JAW], raised[::-1]])
    for _ in range(2):  # cut the corners
        following = np.roll(outline, -1, 0)
        outline = np.stack([0.75 * outline + 0.25 * following, 0.25 * outline + 0.75 * following], 1).reshape(-1, 2)
    h, w = label.shape
    canvas = Image.new("L", (over * w, over * h))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in (outline * over - 0.5).tolist()], fill=255)
    inside = np.asarray(canvas.resize((w, h), Image.Resampling.BOX)) > 127
    return inside & (label == LABEL_HEAD)


def resize_bilinear(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Two taps per axis at pixel centres, also when shrinking (no area mean), as in the originals; rounded."""
    if picture.shape[:2] == tuple(size):
        return picture
    out = picture
    for axis, n in enumerate(size):
        length = picture.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * length / n - 0.5, 0, length - 1)
        low = np.floor(at).astype(np.intp)
        share = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        a, b = out.take(low, axis), out.take(np.minimum(low + 1, length - 1), axis)
        out = a + share * (b.astype(np.float32) - a)
    return np.rint(out).astype(np.uint8)


class Paster:
    """Paste pictures of one crop into frames of one size.

    box: (x0, y0, x1, y1) in the frame, half open; what lies outside the frame is left out. full_hw, crop_hw: sizes
    (H, W) of the frames and (h, w) of the pictures. Holds constants only: equal inputs give equal bytes.
    """

    def __init__(self, scheme: str, box: tuple[int, int, int, int], full_hw: tuple[int, int], crop_hw: tuple[int, int]):
        if scheme not in SCHEMES[1:]:
            raise ValueError(f"scheme {scheme!r} pastes nothing, expected one of {', '.join(SCHEMES[1:])}")
        x0, y0, x1, y1 = self.box = tuple(int(v) for v in box)
        self.scheme, self.full_hw, self.crop_hw = scheme, tuple(full_hw), tuple(crop_hw)
        self._y, self._x = slice(max(y0, 0), min(y1, full_hw[0])), slice(max(x0, 0), min(x1, full_hw[1]))
        if self._y.start >= self._y.stop or self._x.start >= self._x.stop or min(crop_hw) < 1:
            raise ValueError(f"box {self.box} has no pixel in a frame of {full_hw[1]}x{full_hw[0]}")
        self._size = (y1 - y0, x1 - x0)
        self._inner = slice(self._y.start - y0, self._y.stop - y0), slice(self._x.start - x0, self._x.stop - x0)
        if scheme == "blend":
            self._constants()

    def _constants(self) -> None:
        h, w = self._size
        longer = max(h, w)
        scale = min(1.0, GRID / longer)
        self._grid = (max(1, round(h * scale)), max(1, round(w * scale)))
        cells = max(self._grid)
        self._reach = max(2, round(DILATE * cells))  # grid cells
        self._ring = max(2, round(RING * cells))
        (x0, y0, x1, y1), (fh, fw) = self.box, self.full_hw
        inside = [[y0 > 0, y1 < fh], [x0 > 0, x1 < fw]]
        self._fade = None
        if any(map(any, inside)):
            rows, columns = (_fade(n, max(1.0, FADE * longer), *ends) for n, ends in zip((h, w), inside))
            self._fade = Image.fromarray(np.rint(255 * np.minimum(rows[:, None], columns)).astype(np.uint8))
        self._field = tuple(max(1, round(n * FIELD / cells)) for n in self._grid)
        self._pool = tuple(_pool(m, n) for m, n in zip(self._field, self._grid))
        self._blur = tuple(_gauss(n, SMOOTH * max(self._field)) for n in self._field)

    def __call__(
        self,
        base: UInt8[np.ndarray, "FH FW 3"],
        picture: UInt8[np.ndarray, "h w 3"],
        head_alpha: Float[np.ndarray, "h w"] | None,
        label: UInt8[np.ndarray, "h w"],
        face: Bool[np.ndarray, "h w"] | None = None,
    ) -> tuple[UInt8[np.ndarray, "FH FW 3"], Float[np.ndarray, "FH FW"]]:
        """(the frame with the picture in it, the mask 0…1 by which it was mixed in).

        picture: the whole crop, background and torso included. head_alpha: of the rendered head alone, None where it
        is not known (then the labels decide alone). label: 0 background, 1 head, 2 neck, 3 torso of the original
        frame. face: its face, for `face` and `face_neck`. Where the mask is 0 the frame's bytes are the base's.
        """
        if base.shape != (*self.full_hw, 3) or picture.shape != (*self.crop_hw, 3) or label.shape != self.crop_hw:
            found = f"base {base.shape}, picture {picture.shape}, label {label.shape}"
            raise ValueError(f"{found}; expected the sizes {self.full_hw} and {self.crop_hw}")
        frame, mask = base.copy(), np.zeros(self.full_hw, np.float32)
        if self.scheme == "blend":
            window, weight = self._blend(base, picture, head_alpha, label)
            frame[self._y, self._x] = window[self._inner]
            mask[self._y, self._x] = weight[self._inner].astype(np.float32) * np.float32(1 / 255)
            return frame, mask
        chosen = self._original_mask(label, face)[self._inner]
        window = resize_bilinear(picture, self._size)[self._inner]
        frame[self._y, self._x][chosen] = window[chosen]  # trunc(base (1 - m) + head m) for m in {0, 1}
        mask[self._y, self._x] = chosen
        return frame, mask

    def _original_mask(self, label: np.ndarray, face: np.ndarray | None) -> Bool[np.ndarray, "BH BW"]:
        """Nearest by pixel centres (the originals' nearest lies up to half a pixel up and left)."""
        if self.scheme == "box":
            return np.ones(self._size, bool)
        if face is None:
            raise ValueError(f"scheme {self.scheme!r} needs the face of the original frame")
        chosen = face | (label == LABEL_NECK) if self.scheme == "face_neck" else face.copy()
        return images.resize_nearest(chosen.view(np.uint8), self._size).view(bool)

    # ------------------------------------------------ blend

    def _blend(
        self, base, picture, head_alpha, label
    ) -> tuple[UInt8[np.ndarray, "BH BW 3"], UInt8[np.ndarray, "BH BW"]]:
        h, w = self._size
        behind = base[self._y, self._x]
        if behind.shape[:2] != self._size:
            (ya, xa), (yb, xb) = (s.start for s in self._inner), (s.stop for s in self._inner)
            behind = np.pad(behind, ((ya, h - yb), (xa, w - xb), (0, 0)), mode="edge")
        behind, front = Image.fromarray(np.ascontiguousarray(behind)), Image.fromarray(picture)
        mask, weight = self._masks(head_alpha, label)
        front_small, behind_small = (np.asarray(_to_grid(im, self._grid), np.float32) for im in (front, behind))
        field = self._colour_field(behind_small - front_small, weight)
        if front.size != (w, h):
            front = front.resize((w, h), Image.Resampling.BICUBIC)
        if field.any():
            shift = Image.fromarray(np.rint(field + 128).astype(np.uint8)).resize((w, h), Image.Resampling.BILINEAR)
            front = ImageChops.add(front, shift, 1.0, -128)
        return np.asarray(Image.composite(front, behind, mask)), np.asarray(mask)

    def _masks(self, head_alpha, label) -> tuple[Image.Image, Float[np.ndarray, "gh gw"]]:
        """(the mask at the box's size, the weights of the colour comparison at the grid's)."""
        old = _share(label == LABEL_HEAD, self._grid)
        covered = old | _share(label == LABEL_NECK, self._grid)
        new = old if head_alpha is None else _share(np.asarray(head_alpha) > SEEN, self._grid)
        wide = Image.fromarray(_dilate(covered | new, self._reach).view(np.uint8) * np.uint8(255))
        half = self._reach / 2  # two box filters of half the reach: the union itself stays at 255
        soft = wide.filter(ImageFilter.BoxBlur(half - 0.5)).filter(ImageFilter.BoxBlur(half - 0.5))
        mask = soft.resize(self._size[::-1], Image.Resampling.BILINEAR)
        if self._fade is not None:
            mask = ImageChops.multiply(mask, self._fade)
        heads = old | new
        ring = _dilate(heads, self._ring) & _dilate(~heads, self._ring)
        same = (old & new & _whole(label == LABEL_HEAD, self._grid)) | ~heads
        return mask, (ring & same).astype(np.float32)

    def _colour_field(self, difference, weight) -> Float[np.ndarray, "fh fw 3"]:
        """Normalised blur of base - picture over the ring; far from it, the ring's mean."""
        size = np.abs(difference).max(-1)
        weight = weight / (1 + (size / OUTLIER) ** 2)
        if weight.sum() < 1:
            return np.zeros((*self._field, 3), np.float32)
        mean = np.einsum("hwc,hw->c", difference, weight) / weight.sum()
        (a, b), (u, v) = self._pool, self._blur
        left, right = u @ a, (v @ b).T
        below = left @ weight @ right
        above = np.stack([left @ (difference[..., c] * weight) @ right for c in range(3)], -1)
        far = 0.02 * below.max()
        return np.clip((above + far * mean) / (below + far)[..., None], -SHIFT_MAX, SHIFT_MAX)


def _fade(n: int, length: float, low: bool, high: bool) -> Float[np.ndarray, " n"]:
    """Smooth rise from exactly 0 at the ends that are not edges of the frame."""
    at = np.arange(n, dtype=np.float64)
    far = np.full(n, length)
    t = np.minimum(np.minimum(at if low else far, at[::-1] if high else far), length) / length
    return t * t * (3 - 2 * t)


def _dilate(mask: Bool[np.ndarray, "h w"], reach: int) -> Bool[np.ndarray, "h w"]:
    """Every pixel within `reach` rows and columns of the mask, in about log3(reach) steps."""
    out, done = mask.copy(), 0
    while done < reach:
        step = min(2 * done + 1, reach - done)
        for lines in (out, out.T):
            before = lines.copy()
            lines[step:] |= before[:-step]
            lines[:-step] |= before[step:]
        done += step
    return out


def _pool(m: int, n: int) -> Float[np.ndarray, "m n"]:
    """Row i holds the shares of the n cells that make up the i-th of m."""
    low, high = np.arange(m)[:, None] * n / m, np.arange(1, m + 1)[:, None] * n / m
    cell = np.arange(n)
    share = np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)
    return (share * m / n).astype(np.float32)


def _gauss(n: int, sigma: float) -> Float[np.ndarray, "n n"]:
    at = np.arange(n)
    return np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2).astype(np.float32)


def _to_grid(picture: Image.Image, grid: tuple[int, int]) -> Image.Image:
    return picture.resize(grid[::-1], Image.Resampling.BOX, reducing_gap=1.0)


def _small(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    return np.asarray(_to_grid(Image.fromarray(mask.view(np.uint8) * np.uint8(255)), grid))


def _share(mask: Bool[np.ndarray, "h w"], grid: tuple[int, int]) -> Bool[np.ndarray, "gh gw"]:
    """Cells with any (more than 1/500) of the mask in them."""
    return _small(mask, grid) > 0


def _whole(mask: Bool[np.ndarray, "h w"], grid: tuple[int, int]) -> Bool[np.ndarray, "gh gw"]:
    """Cells that the mask fills."""
    return _small(mask, grid) > 250
