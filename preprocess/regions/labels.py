"""Labels of every frame: 0 background, 1 head with hair and ears, 2 neck, 3 torso. Of a keyed clip the matte says what
is background."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from preprocess import checks, chunks
from preprocess.regions import label_checks, label_repair, segment
from preprocess.resumable import progress, sha256_file
from preprocess.workers import native, ordered
from tkjax.contract import LABEL_BACKGROUND, LABEL_HEAD, LABEL_NECK, LABEL_TORSO
from tkjax.errors import UserError
from tkjax.media.images import decode_png, decode_rgb, encode_png


@dataclasses.dataclass(frozen=True)
class Method:
    """How labels are made: `identity` goes into hashes and the manifest; `sources` are further modules that count."""

    name: str
    identity: str
    path: str = ""
    sources: tuple[ModuleType, ...] = ()


def parse_method(text: str) -> Method:
    """'auto', 'colour' or 'bisenet=PATH'; UserError for anything else and for weights that cannot be used."""
    if text in ("auto", "colour"):
        return Method("colour", "colour")
    name, _, path = text.partition("=")
    if name != "bisenet" or not path:
        raise UserError(f"--labels={text} is unknown; choose auto, colour or bisenet=PATH")
    weights = Path(path).expanduser()
    if not weights.is_file():
        raise UserError(f"{path}: no such file, expected BiSeNet weights such as 79999_iter.pth")
    with native("torch"):
        from preprocess.regions import bisenet
    bisenet.load(str(weights))
    return Method("bisenet", f"bisenet-{sha256_file(weights)[:16]}", str(weights), (bisenet,))


UNSURE_HAIR = 0.15  # posterior from which a bite in the outline of the hair is filled
SAMPLES = 16  # frames from which the colours of the clip are learnt


def small(rgb: np.ndarray) -> np.ndarray:
    """The picture at the size that posteriors are computed at."""
    h, w = segment.work_size(*rgb.shape[:2])
    return rgb if (h, w) == rgb.shape[:2] else cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA)


def grey(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255


def largest(mask: np.ndarray, seed: np.ndarray | None = None) -> np.ndarray:
    """The component of bool [H,W] that has most pixels of `seed` (of itself without one)."""
    n, component = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    count = np.bincount(component[mask if seed is None else mask & seed], minlength=n)
    count[0] = 0
    return component == count.argmax() if count.any() else np.zeros_like(mask)


def fill_holes(mask: np.ndarray, most: int) -> np.ndarray:
    """Fill holes of bool [H,W] of at most `most` pixels that do not touch the border of the picture."""
    n, component, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    h, w = mask.shape
    x, y, bw, bh, area = stats[:n].T
    hole = (area <= most) & (x > 0) & (y > 0) & (x + bw < w) & (y + bh < h)
    hole[0] = False
    return mask | hole[component]


def decide(posterior: np.ndarray, landmarks_px: np.ndarray) -> np.ndarray:
    """Labels uint8 [H,W] from posteriors [4,H,W] and landmarks [478,2] at the same size."""
    h, w = posterior.shape[1:]
    oval = segment.oval_mask(landmarks_px, h, w)
    u, v = segment.head_coordinates(landmarks_px, h, w)
    half = max(float(np.linalg.norm(landmarks_px[10] - landmarks_px[152])) / 2, 1.0)  # half the height of the face
    bone = label_repair.core(u, v) | oval
    likely = (posterior[segment.BACKGROUND] < 0.5) | bone
    person = largest(likely, oval) | _from_below(likely & (v < -1), h * w // 200)
    low = (v < -1.15) | ((v < -0.95) & (np.abs(u) > 1.4))  # hair does not overhang there: gaps are in the clothes
    person |= fill_down(_close(person, low, 0.16 * half) & low, low, round(0.6 * half))
    person = fill_holes(person, h * w // 100)
    kind = posterior[1:].argmax(0) + 1
    cloth = posterior[segment.CLOTH] > posterior[segment.SKIN]
    head = label_repair.head_of(person, kind == segment.HAIR, kind == segment.CLOTH, oval, u, v, half) | bone
    # Below the jaw only locks of some width are hair; thin lines there are edges of clothes or shadows.
    lock = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.07 * half) + 1,) * 2)
    head &= (v > -0.7) | oval | (cv2.morphologyEx(head.astype(np.uint8), cv2.MORPH_OPEN, lock) > 0)
    head = label_repair.fill_crown(largest(head, oval), posterior[segment.HAIR] > UNSURE_HAIR, u, v)
    head = fill_holes(head, h * w // 400) | (fill_holes(head, h * w) & (v > -0.2))
    label = np.where(head, LABEL_HEAD, np.where(cloth | (np.abs(u) > 1.35) | (v < -3.2), LABEL_TORSO, LABEL_NECK))
    label = _steady_parts(np.where(person | head, label, LABEL_BACKGROUND).astype(np.uint8))
    return label_repair.lower(label, v)


def _close(mask: np.ndarray, where: np.ndarray, radius: float) -> np.ndarray:
    """Close notches of bool [H,W] narrower than twice `radius` where `where`; borders of the picture do not count."""
    r = max(1, round(radius))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), r, r, r, r, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(1 - padded, cv2.DIST_L2, 3)
    grown = (distance <= r).astype(np.uint8)
    closed = cv2.distanceTransform(grown, cv2.DIST_L2, 3) > r
    return mask | (closed[r:-r, r:-r] & where)


def _from_below(mask: np.ndarray, least: int) -> np.ndarray:
    """Components of bool [H,W] with at least `least` pixels that reach the lower border."""
    _, component, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    keep = (stats[:, 4] >= least) & (stats[:, 1] + stats[:, 3] == mask.shape[0])
    keep[0] = False
    return keep[component]


def fill_down(person: np.ndarray, where: np.ndarray, most: int) -> np.ndarray:
    """Below a pixel of the person, close gaps of at most `most` rows down to the next one or to the lower border."""
    h = len(person)
    row = np.arange(h, dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(person, row, -h), 0)
    below = np.minimum.accumulate(np.where(person, row, h)[::-1], 0)[::-1]
    return person | (where & (above >= 0) & (below - above - 1 <= most))


def _steady_parts(label: np.ndarray) -> np.ndarray:
    """Small islands of neck or torso take the label of most of their surroundings."""
    out = label.copy()
    for part in (LABEL_NECK, LABEL_TORSO):
        n, component, stats, _ = cv2.connectedComponentsWithStats((out == part).astype(np.uint8), connectivity=4)
        for k in range(1, n):
            if stats[k, 4] * 400 > label.size:
                continue
            x, y, bw, bh = stats[k, :4]
            window = np.s_[max(y - 1, 0) : y + bh + 1, max(x - 1, 0) : x + bw + 1]
            island = component[window] == k
            ring = cv2.dilate(island.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~island
            around = np.bincount(out[window][ring], minlength=4)
            out[window][island] = around.argmax()
    return out


def by_matte(label: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Labels uint8 [H,W] with the background where the matte is below one half; what the matte adds to the person takes
    the nearest label."""
    person = alpha >= 128
    if not (label[person] > 0).any():
        return np.where(person, LABEL_TORSO, LABEL_BACKGROUND).astype(np.uint8)
    known = person & (label > 0)
    _, nearest = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(nearest.max() + 1, np.uint8)
    table[nearest[known]] = label[known]
    return np.where(person, table[nearest], LABEL_BACKGROUND).astype(np.uint8)


def mattes(chunk: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """The mattes of a chunk of frames; None of a clip that is not keyed."""
    return [decode_png(b) for b in chunks.unpack(chunk, "alpha")] if "alpha_bytes" in chunk else None


def with_matte(posterior: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Posteriors [4,h,w] whose background is what the matte says."""
    if alpha is None:
        return posterior
    h, w = posterior.shape[1:]
    a = np.clip(cv2.resize(alpha, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255, 0.002, 0.998)
    person = posterior[1:] / np.maximum(posterior[1:].sum(0), 1e-6)
    return np.concatenate([1 - a[None], a * person])


def learn(frames: Path, track: Path, n_frames: int) -> segment.Colours:
    """What the clip's colours and places are, from evenly spaced frames."""
    chosen = sorted({round(float(x)) for x in np.linspace(0, n_frames - 1, min(SAMPLES, n_frames))})
    pictures, points = [], []
    for i in chosen:
        rgb = decode_rgb(chunks.picture(frames, i))
        picture = small(rgb)
        landmarks = chunks.read_chunk(track, i // chunks.CHUNK_FRAMES, ["landmarks_px"])["landmarks_px"]
        pictures.append(picture)
        points.append(landmarks[i % chunks.CHUNK_FRAMES].astype(np.float64) * (picture.shape[1] / rgb.shape[1]))
    return segment.learn(pictures, points)


def label_chunk(frames: str, track: str, n_frames: int, index: int, colours: segment.Colours) -> "Labelled":
    """Worker: the labels of one chunk. Posteriors are averaged 1:2:1 with the neighbouring frames."""
    cv2.setNumThreads(1)
    a, b = chunks.spans(n_frames)[index]
    held: dict[int, dict] = {}

    def load(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        k = i // chunks.CHUNK_FRAMES
        if k not in held:
            held.clear()
            held[k] = chunks.read_chunk(Path(track), k, ["landmarks_px"])
            chunk = chunks.read_chunk(Path(frames), k)
            held[k]["blobs"], held[k]["mattes"] = chunks.unpack(chunk, "image"), mattes(chunk)
        rgb = decode_rgb(held[k]["blobs"][i % chunks.CHUNK_FRAMES])
        alpha = held[k]["mattes"] and held[k]["mattes"][i % chunks.CHUNK_FRAMES]
        points = held[k]["landmarks_px"][i % chunks.CHUNK_FRAMES].astype(np.float64)
        picture = small(rgb)
        found = segment.posterior(colours, picture, points * (picture.shape[1] / rgb.shape[1]))
        return with_matte(found, alpha), rgb, points, alpha

    before = load(a - 1) if a else None
    this = load(a)
    found, points_px, alphas = [], [], []
    for i in range(a, b):
        after = load(i + 1) if i + 1 < n_frames else None
        posterior, rgb, points, alpha = this
        mixed = ((before or this)[0] + 2 * posterior + (after or this)[0]) / 4
        found.append(decide(segment.guided(mixed, grey(small(rgb)), grey(rgb)), points))
        points_px.append(points)
        alphas.append(alpha)
        before, this = this, after
    found = label_repair.steady(found, points_px)
    if alphas[0] is not None:
        found = [by_matte(label, alpha) for label, alpha in zip(found, alphas, strict=True)]
    return Labelled.of(found, points_px)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Label PNGs of one chunk, and what they show of themselves: float32 [n,M] of label_checks.MEASURES."""

    pngs: list[bytes]
    measures: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[np.ndarray], landmarks_px: Sequence[np.ndarray]) -> "Labelled":
        pairs = list(zip(labels, landmarks_px, strict=True))
        rows = np.stack([label_checks.measure(label, points) for label, points in pairs])
        grids = np.stack([label_repair.to_head(label, points) for label, points in pairs])
        return cls([encode_png(label) for label in labels], label_checks.over_time(rows, grids))

    def __len__(self) -> int:
        return len(self.pngs)


def parse_chunk(frames: str, track: str, index: int, weights: str) -> Labelled:
    """Worker: the labels of one chunk by BiSeNet."""
    import torch

    from preprocess.regions import bisenet

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    model = bisenet.load(weights)
    found = [bisenet.parse(model, rgb) for rgb in chunks.rgb_frames(Path(frames), index)]
    alphas = mattes(chunks.read_chunk(Path(frames), index))
    if alphas is not None:
        found = [by_matte(label, alpha) for label, alpha in zip(found, alphas, strict=True)]
    points = chunks.read_chunk(Path(track), index, ["landmarks_px"])["landmarks_px"].astype(np.float64)
    return Labelled.of(found, points)


def labels(
    folder: Path, frames: Path, track: Path, n_frames: int, method: Method, executor: Executor, fps: float
) -> None:
    """Stage: chunks of label PNGs (`label`) with `measures` [n,M], and what they say of the clip (`checks`)."""
    spans = chunks.spans(n_frames)
    todo = [i for i in range(len(spans)) if not chunks.has_chunk(folder, i)]
    if todo:
        if method.name == "bisenet":
            results = ordered(executor, parse_chunk, ((str(frames), str(track), i, method.path) for i in todo))
        else:
            colours = learn(frames, track, n_frames)
            results = ordered(executor, label_chunk, ((str(frames), str(track), n_frames, i, colours) for i in todo))
        done = sum(b - a for i, (a, b) in enumerate(spans) if i not in set(todo))
        for i, made in zip(todo, progress(results, n_frames, "labels", done=done), strict=True):
            chunks.write_chunk(folder, i, {**chunks.pack("label", made.pngs), "measures": made.measures})
    checks.write(folder, label_checks.judge_clip(chunks.column(folder, n_frames, "measures"), fps))
