"""Pictures in memory and on disk (numpy, Pillow): encode, decode, resize."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from tkjax.errors import UserError
from tkjax.host.files import write_atomic as write_atomic  # the name that it had here

_PIXELS_MAX = 1 << 28  # a header that promises more is damaged, not a portrait
WHITE = (255, 255, 255)  # behind transparent parts, as a page shows them
_ORIENTATION = 0x0112  # EXIF
_T = Image.Transpose
_TURNS = {
    2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE,
    6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90,
}  # fmt: skip
_SWAPPING = (_T.TRANSPOSE, _T.ROTATE_270, _T.TRANSVERSE, _T.ROTATE_90)
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def encode_jpeg(rgb: UInt8[np.ndarray, "H W 3"], quality: int = 95) -> bytes:
    """JPEG bytes of an RGB picture, without colour subsampling (lips are small and red)."""
    _check(rgb, (3,))
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality, subsampling=0)
    return out.getvalue()


def encode_png(picture: UInt8[np.ndarray, "H W *C"]) -> bytes:
    """PNG bytes of a grey [H, W], RGB [H, W, 3] or RGBA [H, W, 4] picture."""
    _check(picture, (None, 3, 4))
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", compress_level=3)
    return out.getvalue()


def _check(picture: np.ndarray, channels: tuple[int | None, ...]) -> None:
    found = picture.shape[2] if picture.ndim == 3 else None
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or found not in channels or 0 in picture.shape:
        names = {None: "[H, W]", 3: "[H, W, 3]", 4: "[H, W, 4]"}
        wanted = " or ".join(names[c] for c in channels)
        raise ValueError(f"picture has dtype {picture.dtype} and shape {picture.shape}, expected uint8 {wanted}")


def _open(data: bytes, name: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > _PIXELS_MAX:
            raise ValueError(f"it claims {picture.width}x{picture.height} pixels")
        if picture.format == "EPS":
            raise ValueError("it is a PostScript program, which is not run")
        picture.load()
    except Exception as e:  # Pillow raises many kinds for damaged files
        reason = "" if isinstance(e, Image.UnidentifiedImageError) else f" ({' '.join(str(e).split())[:80]})"
        raise UserError(f"{name} cannot be decoded{reason}, expected the bytes of a whole picture") from e
    return picture


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright according to its EXIF data; None where nothing has to be done."""
    if picture.format == "TIFF":  # Pillow turns these itself
        return None
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION))
    except Exception:  # EXIF data may be anything, and a picture without it stays as it is
        return None


def is_upright(data: bytes) -> bool:
    """Whether the stored rows are those that are shown: a reader that knows no EXIF sees the same."""
    return turn_of(Image.open(io.BytesIO(data))) is None


def size_of(data: bytes) -> tuple[int, int] | None:
    """(height, width) of the upright picture, by its header; None where the bytes are no picture."""
    try:
        picture = Image.open(io.BytesIO(data))
    except Exception:  # as in _open
        return None
    turn = turn_of(picture)
    return (picture.width, picture.height) if turn in _SWAPPING else (picture.height, picture.width)


def to_bytes(picture: Image.Image, name: str = "picture") -> UInt8[np.ndarray, "H W *C"]:
    """Anything that Pillow opens, upright, as grey [H, W], RGB [H, W, 3] or straight RGBA [H, W, 4].

    The one place that knows the kinds: EXIF turns are carried out; 16 bits are divided by 257, whole numbers of 32 bits
    too (Pillow reads PGM so) unless none is above 255; floats count 0…1, or 0…255 where the largest is above 16; CMYK,
    YCbCr, HSV, LAB and palettes become RGB without regard to colour profiles; grey with an alpha, and colours that the
    file calls transparent, become RGBA. UserError for other ranges and kinds.
    """
    turn = turn_of(picture)
    if turn is not None:
        picture = picture.transpose(turn)
    clear = picture.info.get("transparency")
    if picture.mode in _DEEP:
        return _of_deep(np.asarray(picture), clear, name)
    alpha = clear is not None or picture.mode in ("PA", "LA", "La", "RGBA", "RGBa")
    grey = picture.mode in ("1", "L") and not alpha
    try:
        if picture.mode in ("La", "RGBa"):
            picture = picture.convert(picture.mode.upper())
        return np.array(picture.convert("RGBA" if alpha else "L" if grey else "RGB"))
    except (ValueError, OSError, KeyError) as e:
        raise UserError(
            f"{name} is a picture of the kind {picture.mode}, which has no way to RGB here; store it as RGB"
        ) from e


def _of_deep(values: np.ndarray, clear: object, name: str) -> UInt8[np.ndarray, "H W *C"]:
    """Grey of more than 8 bits [H, W] as `to_bytes` says; with alpha where one value counts as transparent."""
    low, high = (float(f(values)) for f in (np.min, np.max))
    if values.dtype.kind == "f":
        if not (-0.01 <= low and (high <= 1.01 or 16 < high <= 255.5)):
            raise UserError(
                f"{name} holds floats from {low:g} to {high:g}, expected brightness in 0…1 (or levels in 0…255); "
                "store it with 8 or 16 bits"
            )
        scale = 255.0 if high <= 1.01 else 1.0
    elif low < 0 or high > 65535:
        raise UserError(f"{name} holds whole numbers from {low:g} to {high:g}, expected 16 bits (0…65535)")
    else:
        scale = 1.0 if values.dtype.itemsize > 2 and high <= 255 else 255 / 65535
    grey = np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)
    if not isinstance(clear, int):
        return grey
    return np.stack([grey, grey, grey, np.where(values == clear, 0, 255).astype(np.uint8)], -1)


def flatten(picture: UInt8[np.ndarray, "H W *C"], under: tuple[int, int, int] = WHITE) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of a grey, RGB or straight RGBA picture; what is transparent shows the colour `under`."""
    if picture.ndim == 2:
        return np.repeat(picture[..., None], 3, -1)
    if picture.shape[2] == 3:
        return picture
    if (picture[..., 3] == 255).all():
        return np.ascontiguousarray(picture[..., :3])
    a = picture[..., 3:].astype(np.uint32)
    v = a * picture[..., :3] + (255 - a) * np.asarray(under, np.uint32)
    return ((2 * v + 255) // 510).astype(np.uint8)


def is_transparent(picture: UInt8[np.ndarray, "H W *C"]) -> bool:
    """Whether any pixel of it is not opaque."""
    return picture.shape[2:] == (4,) and bool((picture[..., 3] < 255).any())


def decode_rgb(data: bytes, name: str = "picture") -> UInt8[np.ndarray, "H W 3"]:
    """Upright RGB picture of JPEG, PNG or other bytes, white where it is transparent (`to_bytes`, `flatten`); `name`
    opens the sentence of the error."""
    return flatten(to_bytes(_open(data, name), name))


def decode_png(data: bytes, name: str = "picture") -> UInt8[np.ndarray, "H W *C"]:
    """The picture as it is: [H,W] grey, [H,W,3] RGB or [H,W,4] straight RGBA (other kinds as `to_bytes` says)."""
    return to_bytes(_open(data, name), name)


def decode_ids(data: bytes, name: str = "picture") -> Int[np.ndarray, "H W"] | None:
    """The numbers that a picture of labels stores, never scaled and never turned: grey values of any depth, also those
    of a palette of greys, else indices of a palette; None where its colours differ."""
    picture = _open(data, name)
    if picture.mode in ("L", "1", *_DEEP):
        values = np.asarray(picture)
        return None if values.dtype.kind == "f" else values.astype(np.int64)
    rgb = np.asarray(picture.convert("RGBA"))[..., :3]
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0].astype(np.int64)
    return np.asarray(picture).astype(np.int64) if picture.mode == "P" else None


def read_picture(path: str | Path) -> UInt8[np.ndarray, "H W *C"]:
    """The picture of a file, as `to_bytes`; the error is one sentence with the path."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected a picture file") from e
    return decode_png(data, str(path))


def read_rgb(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """The opaque picture of a file as RGB; UserError with the path also where parts of it are transparent."""
    picture = read_picture(path)
    if is_transparent(picture):
        raise UserError(
            f"{path} is transparent in parts, expected a picture without an alpha channel; flatten it first"
        )
    return flatten(picture)


def resize_area(picture: UInt8[np.ndarray, "H W *C"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w *C"]:
    """Resize to size = (h, w): each output pixel is the mean of the area that it covers (nearest when enlarging).

    RGBA pictures (straight alpha) are averaged premultiplied, so colours under alpha 0 do not bleed in.
    """
    _check(picture, (None, 3, 4))
    h, w = size
    if picture.shape[:2] == (h, w):
        return picture.copy()
    if picture.shape[2:] != (4,):
        return np.array(Image.fromarray(picture).resize((w, h), Image.Resampling.BOX))
    alpha = picture[..., 3].astype(np.float32)
    planes = [picture[..., c] * (alpha / 255) for c in range(3)] + [alpha]
    small = np.stack([np.asarray(Image.fromarray(p).resize((w, h), Image.Resampling.BOX)) for p in planes], -1)
    rgb = small[..., :3] * (255 / np.maximum(small[..., 3:], 1e-6))
    return np.rint(np.clip(np.concatenate([rgb, small[..., 3:]], -1), 0, 255)).astype(np.uint8)


def resize_nearest(label: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Resize a label picture to size = (h, w): the label under each output pixel's centre."""
    h, w = size
    rows = ((np.arange(h) + 0.5) * label.shape[0] / h).astype(np.intp)
    columns = ((np.arange(w) + 0.5) * label.shape[1] / w).astype(np.intp)
    return label[rows[:, None], columns]


def resize_majority(label: UInt8[np.ndarray, "H W"], size: tuple[int, int], n: int = 4) -> UInt8[np.ndarray, "h w"]:
    """Resize a picture of labels 0..n-1 to size = (h, w): the label that covers most of each output pixel."""
    if label.shape == tuple(size):
        return label.copy()
    present = [k for k in range(n) if (label == k).any()]
    cover = np.stack([resize_area(np.where(label == k, np.uint8(255), np.uint8(0)), size) for k in present])
    return np.array(present, np.uint8)[cover.argmax(0)]
