"""What a clip shows, judged from its landmarks and small grey pictures: cuts, mirrored or frozen parts, still lips.

A cut is a frame that differs from those before it and goes on differing, while before it and after it little changes
from frame to frame: of the four pairs across the cut the most alike is compared with the neighbours on either side.
Motion never does that (at 3 Hz and 25 frames a second neighbouring steps differ by a third at most), a flash does not
go on, a caption changes a part of the picture only. Measured: cuts of a broadcast between shots of the same speaker
5.7 to 14, everything else in eight clips, a white square flashing in the corner included, 2.4 at most.
"""

import itertools
import json
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.ndimage import map_coordinates

from preprocess import checks, chunks
from preprocess.checks import Check, judge
from preprocess.framing.survey import FPS, face_height, timestamps
from tkjax.contract import default_split
from tkjax.host.files import write_atomic
from tkjax.media.audio import RATE, read_audio

CONTENT = "content.json"
SMALL = 64  # side of the grey pictures
PICTURE_RATIO, PICTURE_STEP = 5.0, 8.0  # picture alone: how much it stands out, and levels of 255
CHANGED, TILE, TILE_STEP = 0.5, 8, 4.0  # share of its tiles (of 8x8 pixels) that change by this many levels
BOTH_RATIO, FACE_RATIO, FACE_STEP = 2.5, 4.0, 0.02  # picture and face together; the face's step in its heights
ROOT = 0.5, 0.003  # of picture and face: what noise alone changes
SCALE = 1.2  # of the face across a cut: another framing, which one plate and one torso cannot serve
MIRROR_WARN, MIRROR_FAIL = 0.02, 0.05  # by how much more alike the mirrored shot is, in correlation (`mirrored`)
BESIDE = 12  # frames before and after a cut in which the face's height is looked at
BLOCK = 512  # frames at a time
MIN_SHOT = 5  # frames of a shot that is compared with others
SAME_FACE, SAME_PICTURE = 3e-4, 0.1  # heights of the face, levels: less than any live frame changes
FROZEN_RUN = 10  # frames: shorter runs are repeated frames, as of a lower frame rate
FROZEN_WARN, FROZEN_FAIL = 0.02, 0.25  # share of the clip
REPEATED = 0.2  # share of frames that repeat the one before: the clip was recorded at 20 frames a second or less
STILL_LIPS = 0.35  # of the training part's lip motion
MUTE_LIPS = 0.004  # heights of the face: standard deviation of the lip gap; speakers have 0.015 to 0.035


def small_pictures(frames: list[np.ndarray]) -> UInt8[np.ndarray, "n 64 64"]:
    """Grey pictures of SMALL x SMALL pixels of rgb frames."""
    import cv2

    size = (SMALL, SMALL)
    return np.array(
        [cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for rgb in frames]
    )


def _stands_out(step: np.ndarray, root: float) -> tuple[np.ndarray, np.ndarray]:
    """(ratio [n], smallest step across [n]) for steps [3,n] between the frames i and i + 1, 2, 3 (by row), about the
    frame that would begin a shot; zero within three frames of the ends."""
    n = step.shape[1]
    ratio, across = np.zeros(n), np.zeros(n)
    k = np.arange(3, n - 3)
    one, two, three = step
    across[k] = np.min([one[k - 1], two[k - 2], two[k - 1], three[k - 2]], 0)
    side = np.max([one[k - 3], one[k - 2], one[k], one[k + 1], two[k - 3], two[k]], 0)
    ratio[k] = across[k] / (side + root)
    return ratio, across


def _steps(distance, n: int) -> np.ndarray:
    """[3,n] of distance(i, j) over index arrays, for j = i + 1, 2, 3."""
    out = np.zeros((3, n))
    for lag in (1, 2, 3):
        i = np.arange(n - lag)
        out[lag - 1, : n - lag] = distance(i, i + lag)
    return out


def find_cuts(
    small: UInt8[np.ndarray, "n 64 64"], points_px: Float[np.ndarray, "n v 2"], found: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, " c"]:
    """Numbers of the frames that begin a new shot; see the module's text."""
    n = len(small)
    if n < 8:
        return np.zeros(0, int)
    height = float(np.median(np.ptp(points_px[found][..., 1], axis=1)))
    picture, step = _stands_out(_steps(lambda i, j: _change(small, i, j), n), ROOT[0])
    face, jump = _stands_out(_steps(lambda i, j: _moved(points_px, i, j) / height, n), ROOT[1])
    seen = np.zeros(n, bool)
    seen[3:-3] = np.min([found[k : n - 6 + k] for k in range(6)], 0) > 0
    by_face = seen & (face > FACE_RATIO) & (jump > FACE_STEP) & (picture > BOTH_RATIO)
    by_picture = (picture > PICTURE_RATIO) & (step > PICTURE_STEP)
    cuts = [k for k in np.flatnonzero(by_face | by_picture) if by_face[k] or _everywhere(small, k)]
    return np.array([k for i, k in enumerate(cuts) if i == 0 or k > cuts[i - 1] + 1], int)


def _change(small: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the pictures i and j, without large arrays of floats."""
    return np.array([np.abs(small[a].astype(np.int16) - small[b]).mean() for a, b in zip(i, j, strict=True)])


def _moved(points: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """RMS distance of the points of the frames i and j, a block of frames at a time."""
    out = np.empty(len(i))
    for start in range(0, len(i), BLOCK):
        s = slice(start, start + BLOCK)
        out[s] = np.sqrt(((points[i[s]] - points[j[s]]) ** 2).sum(-1).mean(-1))
    return out


def _everywhere(small: np.ndarray, k: int) -> bool:
    """Whether at least half of the picture's tiles change at frame k."""
    difference = np.abs(small[k].astype(np.float64) - small[k - 1])
    tiles = difference.reshape(SMALL // TILE, TILE, SMALL // TILE, TILE).mean((1, 3))
    return bool((tiles > TILE_STEP).mean() >= CHANGED)


def spans(n: int, cuts: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of every shot."""
    edges = [0, *(int(c) for c in cuts), n]
    return list(itertools.pairwise(edges))


def framing(heights_px: np.ndarray, found: np.ndarray, cuts: np.ndarray) -> tuple[float, int]:
    """The largest ratio, at least 1, of face heights just before and just after a cut, and the frame of that cut."""
    worst = 1.0, 0
    for (a, k), (_, b) in itertools.pairwise(spans(len(found), cuts)):
        before, after = slice(max(a, k - BESIDE), k), slice(k, min(b, k + BESIDE))
        if found[before].any() and found[after].any():
            sizes = [float(np.median(heights_px[s][found[s]])) for s in (before, after)]
            worst = max(worst, (max(sizes) / min(sizes), k))
    return worst


def _face_picture(small: np.ndarray, points: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """[24,24]: the head of one small picture, upright and centred by its landmarks [478,2] in pixels of hw."""
    up = points[10] - points[152]
    height = np.linalg.norm(up)
    up = up / height
    across = np.array([-up[1], up[0]])
    grid = np.linspace(-0.75, 0.75, 24) * height
    at = points[[10, 152, 33, 263]].mean(0) + grid[None, :, None] * across - grid[:, None, None] * up
    x, y = at[..., 0] * SMALL / hw[1] - 0.5, at[..., 1] * SMALL / hw[0] - 0.5
    return map_coordinates(small.astype(np.float64), [y, x], order=1, mode="nearest")


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two pictures, 0 where one has no contrast."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def mirrored(
    small: np.ndarray, points_px: np.ndarray, found: np.ndarray, cuts: np.ndarray, hw: tuple[int, int]
) -> tuple[float, int]:
    """By how much a shot is more like the mirror image of the longest shot than like that shot, and its first frame:
    the smaller gain in correlation of the face and of the whole picture, of the shot where it is largest; negative
    where no shot is. Shots of a broadcast have -0.02 at most, mirrored ones 0.02 and more."""
    shots = [(a, b) for a, b in spans(len(small), cuts) if b - a >= MIN_SHOT and found[a:b].any()]
    if len(shots) < 2:
        return 0.0, 0
    pairs = []
    for a, b in shots:
        seen = np.flatnonzero(found[a:b])[:: max(1, int(found[a:b].sum()) // 12)] + a
        face = np.mean([_face_picture(small[i], points_px[i], hw) for i in seen], 0)
        pairs.append((face, small[a:b].mean(0)))
    first = int(np.argmax([b - a for a, b in shots]))
    gains = []
    for k, ((a, _), own) in enumerate(zip(shots, pairs, strict=True)):
        if k != first:
            both = [_alike(x[:, ::-1], y) - _alike(x, y) for x, y in zip(own, pairs[first], strict=True)]
            gains.append((min(both), a))
    return max(gains)


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(start, stop) of every run of true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def repeats(small: np.ndarray, points_px: np.ndarray, found: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Frames that show what the frame before shows."""
    n = len(small)
    i = np.arange(n - 1)
    out = np.zeros(n, bool)
    height = float(np.median(np.ptp(points_px[found][..., 1], axis=1)))
    same_face = found[:-1] & found[1:] & (_moved(points_px, i, i + 1) < SAME_FACE * height)
    out[1:] = (_change(small, i, i + 1) < SAME_PICTURE) & (same_face | ~(found[:-1] | found[1:]))
    return out


def sounding(pcm: np.ndarray, n: int) -> Bool[np.ndarray, " n"]:
    """Frames whose sound is within 20 dB of the clip's loud parts."""
    size = round(RATE / FPS)
    pcm = np.concatenate([pcm[: n * size], np.zeros(max(0, n * size - len(pcm)), np.float32)])
    loud = np.sqrt((pcm.reshape(n, size).astype(np.float64) ** 2).mean(1))
    return loud > max(1e-4, 0.1 * float(np.percentile(loud, 95)))


def judge_cuts(
    small: np.ndarray, points_px: np.ndarray, found: np.ndarray, cuts: np.ndarray, hw: tuple[int, int]
) -> list[Check]:
    """Cuts, shots of another framing, mirrored shots."""
    at = timestamps(cuts, 8)
    advice = "cut the clip to one shot, or to shots that look alike"
    out = [judge("content", "cuts", float(len(cuts)), warn=0.0,
                 message=f"the clip has cuts at {at}: poses are tracked shot by shot, but one background and one torso "
                 f"serve all of them; {advice} if they differ")]  # fmt: skip
    ratio, begins = framing(face_height(points_px), found, cuts)
    out.append(judge("content", "size of the face across cuts", ratio, warn=SCALE, fail=SCALE,
                     message=f"the face is {ratio:.1f} times larger or smaller after the cut at {begins / FPS:.2f} s "
                     f"(cuts at {at}); {advice}"))  # fmt: skip
    gain, begins = mirrored(small, points_px, found, cuts, hw)
    out.append(judge("content", "likeness to its mirror image across cuts", gain, warn=MIRROR_WARN, fail=MIRROR_FAIL,
                     message=f"the shot from {begins / FPS:.2f} s on is mirrored against the longest one, so left and "
                     f"right would mix; {advice}"))  # fmt: skip
    return out


def judge_stillness(small: np.ndarray, points_px: np.ndarray, found: np.ndarray, pcm: np.ndarray) -> list[Check]:
    """Frozen parts under sound, repeated frames."""
    n = len(small)
    same, loud = repeats(small, points_px, found), sounding(pcm, n)
    long = [(a, b) for a, b in runs(same) if b - a >= FROZEN_RUN and loud[a:b].mean() > 0.3]
    frozen = sum(b - a for a, b in long) / n
    where = ", ".join(f"{(a - 1) / FPS:.2f} to {b / FPS:.2f} s" for a, b in long[:3])
    short = sum(b - a for a, b in runs(same) if b - a < FROZEN_RUN) / n
    return [
        judge("content", "share of frozen frames under sound", frozen, warn=FROZEN_WARN, fail=FROZEN_FAIL,
              message=f"the picture stands still at {where} while the sound goes on; cut these parts out"),
        judge("content", "share of repeated frames", short, warn=REPEATED,
              message=f"{short:.0%} of the frames repeat the one before: the clip has about {FPS * (1 - short):.0f} "
              "pictures a second, so lips come late by up to two frames; use a recording of 25 or more"),
    ]  # fmt: skip


def judge_lips(points_px: np.ndarray, found: np.ndarray) -> list[Check]:
    """Whether the lips move, and whether they do in the part that the default split holds out."""
    gap = np.linalg.norm(points_px[:, 13] - points_px[:, 14], axis=-1) / np.maximum(face_height(points_px), 1e-6)
    (a, b), (c, d) = default_split(len(gap)).values()
    moves, held = (float(part.std()) if len(part) > 1 else float("nan") for part in
                   (gap[a:b][found[a:b]], gap[c:d][found[c:d]]))  # fmt: skip
    ratio = held / moves if moves > 0 else float("nan")
    return [
        judge("content", "lip motion, of the face's height", moves, warn=MUTE_LIPS, more_is_worse=False,
              message="the lips hardly move in the whole clip, so there is little speech to learn from"),
        judge("content", "lip motion of the held-out part, of the rest's", ratio, warn=STILL_LIPS, more_is_worse=False,
              message=f"from {c / FPS:.2f} s on, the part that is held out, the lips hardly move, so scores of speech "
              "would say little; --split=blocks holds out blocks from all over the clip"),
    ]  # fmt: skip


def content(folder: Path, landmarks: Path, wav: Path, n_frames: int, hw: tuple[int, int]) -> None:
    """Stage: content.json with the `cuts`, checks.json."""
    small = chunks.column(landmarks, n_frames, "small")
    n_chunks = len(chunks.spans(n_frames))
    points = [chunks.read_chunk(landmarks, i, ["landmarks"])["landmarks"][..., :2].copy() for i in range(n_chunks)]
    points = np.concatenate(points)
    found = chunks.column(landmarks, n_frames, "found")
    cuts = find_cuts(small, points, found)
    write_atomic(folder / CONTENT, json.dumps({"cuts": cuts.tolist()}).encode())
    checks.write(folder, [
        *judge_cuts(small, points, found, cuts, hw),
        *judge_stillness(small, points, found, read_audio(wav)),
        *judge_lips(points, found),
    ])  # fmt: skip


def cuts_of(folder: Path) -> list[int]:
    """The frames that begin a new shot, as the stage found them."""
    return json.loads((folder / CONTENT).read_text())["cuts"]
