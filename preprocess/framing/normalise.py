"""25 frames a second by timestamp, turned upright, cropped and scaled; sound at 16 kHz mono, as long as the video.

Of a keyed clip the pictures are the person over the constant plate `backdrop.TARGET`, with the matte beside them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from preprocess import chunks
from preprocess.chunks import CHUNK_FRAMES
from preprocess.framing import full_frame
from preprocess.framing.survey import FPS, Framing
from preprocess.keying import backdrop
from preprocess.resumable import progress
from tkjax.errors import UserError
from tkjax.host.files import write_atomic
from tkjax.media import audio, video
from tkjax.media.images import encode_jpeg, encode_png, resize_area

JPEG_QUALITY = 96
RATE = 16000
MIN_SECONDS = 2.0


def reframe(rgb: np.ndarray, framing: Framing) -> np.ndarray:
    """Crop and resize one picture."""
    x0, y0, x1, y1 = framing.crop_px
    part = rgb[y0:y1, x0:x1]
    if part.shape[:2] == (framing.height, framing.width):
        return np.ascontiguousarray(part)
    if framing.height > part.shape[0]:
        import cv2

        return cv2.resize(part, (framing.width, framing.height), interpolation=cv2.INTER_CUBIC)
    return resize_area(np.ascontiguousarray(part), (framing.height, framing.width))


def _pictures(source: Path, keyed: Path | None, framing: Framing) -> Iterator[dict[str, Callable[[], bytes]]]:
    """Of each frame how to encode its `image` (and `alpha`): frames that are there already are not encoded."""
    if keyed is None:
        for rgb in video.read_frames_at_fps(source, FPS):
            yield {"image": lambda rgb=rgb: encode_jpeg(reframe(rgb, framing), JPEG_QUALITY)}
        return
    for colour, alpha in full_frame.read_keyed(keyed):
        yield {
            "image": lambda c=colour, a=alpha: encode_jpeg(reframe(backdrop.blend(c, a), framing), JPEG_QUALITY),
            "alpha": lambda a=alpha: encode_png(reframe(a, framing)),
        }


def normalise(folder: Path, source: Path, framing: Framing, expected_frames: int, keyed: Path | None = None) -> None:
    """Stage: chunks of JPEG frames (`image`), audio.wav and count.txt. Chunks that are there are not encoded again.

    keyed: folder of the full stage of a keyed clip; its person over the constant plate then is the picture, and the
    chunks hold the matte too (`alpha`, PNG).
    """
    blobs: dict[str, list[bytes]] = {}
    n = 0

    def flush() -> None:
        if blobs:
            packed = [chunks.pack(name, rows) for name, rows in blobs.items()]
            chunks.write_chunk(folder, (n - 1) // CHUNK_FRAMES, {k: v for p in packed for k, v in p.items()})
            blobs.clear()

    for encoders in progress(_pictures(source, keyed, framing), expected_frames, "normalise"):
        if not chunks.has_chunk(folder, n // CHUNK_FRAMES) or blobs:
            for name, encode in encoders.items():
                blobs.setdefault(name, []).append(encode())
        n += 1
        if n % CHUNK_FRAMES == 0:
            flush()
    flush()
    if n < MIN_SECONDS * FPS:
        raise UserError(f"{source.name} lasts {n / FPS:.2f} s, shorter than the {MIN_SECONDS:.0f} s that are needed")
    write_sound(folder / "audio.wav", source, round(n * RATE / FPS))
    write_atomic(folder / "count.txt", str(n).encode())


def write_sound(path: Path, source: Path, n_samples: int, late: int = 0) -> None:
    """The sound of `source` as 16 kHz mono, cut or padded with silence to `n_samples`; in blocks.

    late: samples by which it comes after its pictures (negative: before them) and which are taken out.
    """

    def blocks():
        left, skip = n_samples, max(late, 0)
        for silence in _silence(min(max(-late, 0), left)):
            left -= len(silence)
            yield silence
        for block in audio.stream_audio(source, RATE, RATE):
            block, skip = block[skip:], max(skip - len(block), 0)
            block = block[:left]
            left -= len(block)
            if len(block):
                yield block
            if not left:
                return
        yield from _silence(left)

    audio.write_wav(path, blocks(), RATE)


def _silence(n: int) -> Iterator[np.ndarray]:
    for a in range(0, n, RATE):
        yield np.zeros(min(n - a, RATE), np.float32)


def frame_count(folder: Path) -> int:
    """Number of frames of a finished normalise stage."""
    return int((folder / "count.txt").read_text())
