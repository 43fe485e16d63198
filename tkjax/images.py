"""Pictures in memory and on disk (numpy, Pillow): encode, decode, resize."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tkjax.errors import UserError
from tkjax.files import write_atomic as write_atomic  # the name that it had here

_PIXELS_MAX = 1 << 28  # a header that promises more is damaged, not a portrait


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
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as e:
        reason = "" if isinstance(e, Image.UnidentifiedImageError) else f" ({' '.join(str(e).split())[:80]})"
        raise UserError(f"{name} cannot be decoded{reason}, expected the bytes of a whole picture") from e
    return picture


def decode_rgb(data: bytes, name: str = "picture") -> UInt8[np.ndarray, "H W 3"]:
    """RGB picture of JPEG, PNG or other bytes; `name` opens the sentence of the error."""
    return np.array(_open(data, name).convert("RGB"))


def decode_png(data: bytes, name: str = "picture") -> UInt8[np.ndarray, "H W *C"]:
    """The PNG as it is: [H, W] grey, [H, W, 3] RGB or [H, W, 4] RGBA (palettes become RGB or RGBA)."""
    picture = _open(data, name)
    if picture.mode not in ("L", "RGB", "RGBA"):
        alpha = "transparency" in picture.info or picture.mode in ("PA", "LA")
        picture = picture.convert("RGBA" if alpha else "L" if picture.mode == "1" else "RGB")
    return np.array(picture)


def read_rgb(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """The picture of a file as RGB; the error is one sentence with the path."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected a picture file") from e
    return decode_rgb(data, str(path))


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
