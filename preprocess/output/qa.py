"""Pictures for the eye: contact sheet, overlay video with landmarks and axes, plot of the reprojection error."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool

from preprocess import chunks
from preprocess.faces.face_model import FACE_OVAL
from preprocess.regions import label_checks
from preprocess.resumable import progress
from tkjax.contract import LANDMARKS_478_TO_68
from tkjax.host.files import write_atomic
from tkjax.media import video
from tkjax.media.images import decode_png, decode_rgb, encode_png

COLOURS = np.array([[30, 30, 30], [255, 170, 60], [255, 90, 110], [70, 110, 255]], np.float32)  # of labels 0..3
TILE = 224
WRONG = (255, 40, 40)  # frame of a tile whose labels do not pass their checks
MARKED = 3  # such frames on the contact sheet besides the evenly spaced ones
AXIS_UNITS = 0.4


def label_overlay(rgb: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The frame tinted by its labels."""
    return (0.55 * rgb + 0.45 * COLOURS[label]).astype(np.uint8)


def draw_track(rgb: np.ndarray, points: np.ndarray, cam_to_world: np.ndarray, focal: float, ok: bool) -> np.ndarray:
    """Landmarks (68 points and the face's outline) and the world's axes x red, y green, z blue on a copy."""
    out = np.ascontiguousarray(rgb).copy()
    h, w = out.shape[:2]
    colour = (90, 255, 90) if ok else (255, 60, 60)
    oval = np.round(points[list(FACE_OVAL)] * 16 - 8).astype(np.int32)
    cv2.polylines(out, [oval], True, colour, 1, cv2.LINE_AA, 4)
    for x, y in points[list(LANDMARKS_478_TO_68)]:
        cv2.circle(out, (round(float(x) * 16 - 8), round(float(y) * 16 - 8)), 20, colour, -1, cv2.LINE_AA, 4)
    ends = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * AXIS_UNITS + [0, 0, 0.3]
    p = (ends - cam_to_world[:3, 3]) @ cam_to_world[:3, :3]
    px = np.stack([w / 2 + focal * p[:, 0] / -p[:, 2], h / 2 - focal * p[:, 1] / -p[:, 2]], -1)
    px = np.clip(np.nan_to_num(px), -4 * w, 5 * w)
    for k, tint in enumerate(((255, 60, 60), (60, 255, 60), (80, 120, 255)), 1):
        a, b = (tuple(int(v) for v in np.round(px[i] * 16 - 8)) for i in (0, k))
        cv2.line(out, a, b, tint, 2, cv2.LINE_AA, 4)
    return out


def _tile(rgb: np.ndarray) -> np.ndarray:
    h, w = rgb.shape[:2]
    s = TILE / max(h, w)
    small = cv2.resize(rgb, (max(1, round(w * s)), max(1, round(h * s))), interpolation=cv2.INTER_AREA)
    out = np.zeros((TILE, TILE, 3), np.uint8)
    out[: small.shape[0], : small.shape[1]] = small
    return out


def mark(tile: np.ndarray, frame: int, words: Sequence[str]) -> np.ndarray:
    """The tile in a red frame, with the frame's number and what is wrong with its labels written below."""
    out = tile.copy()
    cv2.rectangle(out, (1, 1), (out.shape[1] - 2, out.shape[0] - 2), WRONG, 3)
    lines = [f"frame {frame}", *words]
    for k, line in enumerate(lines):
        at = (6, out.shape[0] - 8 - 13 * (len(lines) - 1 - k))
        for colour, width in (((0, 0, 0), 3), ((255, 230, 230), 1)):
            cv2.putText(out, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, colour, width, cv2.LINE_AA)
    return out


def shown_frames(n_frames: int, marked: Bool[np.ndarray, "n M"]) -> list[int]:
    """Frames of the contact sheet: six evenly spaced, and up to MARKED others with the most marks, spread in time."""
    chosen = {round(float(x)) for x in np.linspace(0, n_frames - 1, 6)}
    count = marked.sum(1)
    parts = np.array_split(np.arange(n_frames), MARKED)
    worst = [int(part[count[part].argmax()]) for part in parts if len(part) and count[part].any()]
    return sorted(chosen | set(worst))


def contact_sheet(
    frames: Path, labels: Path, torso: Path, track: Path, plate: Path, n_frames: int, focal: float
) -> np.ndarray:
    """Six frames, one a row: frame, labels, torso over grey, torso over plate, target, track; the plate below. Frames
    whose labels are beyond a bound of label_checks are marked, and the worst of them have rows of their own."""
    background = decode_rgb((plate / "background.png").read_bytes())
    marked = label_checks.marks(chunks.column(labels, n_frames, "measures"))
    rows = []
    for i in shown_frames(n_frames, marked):
        rgb = decode_rgb(chunks.picture(frames, i))
        label = decode_png(chunks.picture(labels, i, "label"))
        rgba = decode_png(chunks.picture(torso, i, "torso"))
        alpha = rgba[..., 3:] / 255.0
        over = (rgba[..., :3] * alpha + background * (1 - alpha)).astype(np.uint8)
        over_grey = (rgba[..., :3] * alpha + 128 * (1 - alpha)).astype(np.uint8)
        target = np.where(label[..., None] > 0, rgb, background)
        row = chunks.read_chunk(track, i // chunks.CHUNK_FRAMES, ["landmarks_px", "cam_to_world", "confidence"])
        k = i % chunks.CHUNK_FRAMES
        tracked = draw_track(rgb, row["landmarks_px"][k], row["cam_to_world"][k], focal, row["confidence"][k] > 0)
        tiles = [_tile(x) for x in (rgb, label_overlay(rgb, label), over_grey, over, target, tracked)]
        if marked[i].any():
            words = [label_checks.MEASURES[m].short for m in np.flatnonzero(marked[i])]
            tiles[1] = mark(tiles[1], i, words)
        rows.append(np.concatenate(tiles, 1))
    filled = decode_png((plate / "filled.png").read_bytes())
    last = [_tile(background), _tile(np.repeat(filled[..., None], 3, -1))]
    rows.append(np.concatenate([*last, *[np.zeros_like(last[0])] * (6 - len(last))], 1))
    return np.concatenate(rows, 0)


def error_plot(error_px: np.ndarray, fps: float) -> bytes:
    """PNG of the reprojection error over time; frames without a face are marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    t = np.arange(len(error_px)) / fps
    step = max(1, len(t) // 3000)
    axes.plot(t[::step], error_px[::step], linewidth=0.8)
    missing = np.isnan(error_px)
    if missing.any():
        axes.plot(t[missing], np.zeros(missing.sum()), "r|", label="no face")
        axes.legend()
    axes.set_xlabel("time / s")
    axes.set_ylabel("reprojection error / px (RMS)")
    axes.set_title(f"mean {np.nanmean(error_px):.2f} px, max {np.nanmax(error_px):.2f} px", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    canvas.draw()
    return encode_png(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))


def qa(
    folder: Path,
    frames: Path,
    labels: Path,
    torso: Path,
    track: Path,
    plate: Path,
    n_frames: int,
    fps: float,
    sound: Path,
) -> None:
    """Stage: contact_sheet.png, overlay.mp4 (with sound) and reprojection_error.png."""
    cv2.setNumThreads(1)
    focal = json.loads((track / "track.json").read_text())["focal_px"]
    write_atomic(
        folder / "contact_sheet.png", encode_png(contact_sheet(frames, labels, torso, track, plate, n_frames, focal))
    )
    write_atomic(folder / "reprojection_error.png", error_plot(chunks.column(track, n_frames, "error_px"), fps))
    first = decode_rgb(chunks.picture(frames, 0))
    h, w = first.shape[:2]
    spans = chunks.spans(n_frames)
    with video.VideoWriter(folder / "overlay.mp4", h, w, fps=fps, audio=sound, metadata={}, crf=26) as writer:
        for i in progress(range(len(spans)), len(spans), "overlay", "chunks"):
            rows = chunks.read_chunk(track, i, ["landmarks_px", "cam_to_world", "confidence"])
            masks = chunks.unpack(chunks.read_chunk(labels, i), "label")
            for k, rgb in enumerate(chunks.rgb_frames(frames, i)):
                tinted = label_overlay(rgb, decode_png(masks[k])) // 2 + rgb // 2
                writer.write(
                    draw_track(
                        tinted, rows["landmarks_px"][k], rows["cam_to_world"][k], focal, rows["confidence"][k] > 0
                    )
                )
