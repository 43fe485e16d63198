"""Background, hair, skin and clothes of a portrait clip, without a trained network.

Every pixel has a posterior over the four classes: P(k | colour c, steadiness s, place x) ~ h_k(c) g_k(s) pi_k(x), where
- pi_k(x) is where class k lies, in coordinates of the head (u across, in half widths of the face; v up, in half
  heights, +1 at the top of the forehead, -1 at the chin), begun from anatomy and refined by the clip itself;
- h_k(c) are smoothed colour histograms of the clip, learnt by expectation maximisation on sampled frames;
- g_k(s) are histograms, learnt with them, of how steady a pixel is: s is the share of the sampled frames that show
  about the same colour there. Background stays, hair and face move; where nothing moves this says nothing. Behind a
  moving camera it is the clothes that stay, and the background moves as much as hair does;
- for the background, where the person uncovers it, h_0 also knows the colour of the plate at that pixel.
Where colours cannot tell (a dark shoulder before a dark wall) place decides. Posteriors are made to follow the
picture's edges by a guided filter whose coefficients are applied at full size, and are smoothed over neighbouring
frames. Nothing is random.
"""

import dataclasses

import cv2
import numpy as np

from preprocess.faces.face_model import FACE_OVAL
from preprocess.regions import label_repair
from preprocess.regions.plate import MOVED, MOVING, fill_nearest, moved_share, small, soften

BACKGROUND, HAIR, SKIN, CLOTH = range(4)
WORK_PX = 256  # longer side of the picture that posteriors are computed on
SHIFT = 3  # histogram bins are 8 levels wide
BINS = 256 >> SHIFT
ROUNDS = 5
PLATE_SIGMA = 7.0  # levels: how far a background pixel strays from the plate
GUESS_SIGMA = 12.0  # the same where the plate is only continued from its surroundings
CONTINUE = 0.3  # heights of the face over which that is trusted
GRID = 64  # cells of the learnt place prior per axis
STEADY = 9  # levels of steadiness
STEADY_LEVELS = 12.0  # colours closer than this are the same
TEMPER = 0.8  # neighbouring pixels repeat each other: likelihoods count this much
SPAN_U, SPAN_V = 3.0, (-4.0, 3.0)  # its reach in head coordinates
HAIR_FROM = -0.5  # v below which hair counts only where it hangs together with the crown: there are collars
BEYOND = 2.0  # times the size of a head from its middle: so far out even big hair does not reach
SKIN_FROM = -1.4  # v above which skin shows its colours: face and the neck under the chin, not what lies in a collar


@dataclasses.dataclass(frozen=True)
class Plate:
    """What the background should look like: colour [h,w,3] float32, sigma [h,w] in levels, trust [h,w] in 0..1."""

    colour: np.ndarray
    sigma: np.ndarray
    trust: np.ndarray


@dataclasses.dataclass(frozen=True)
class Colours:
    """What `learn` found.

    log_hist [4,BINS^3] log densities; log_steady [4,STEADY] of the steadiness, samples [m,h,w,3] to measure it by;
    place [4,GRID,GRID] mean posteriors over head coordinates, seen [GRID,GRID] how many pixels made them; body [4,h,w]
    mean posteriors over the picture; plate at work size.
    """

    log_hist: np.ndarray
    log_steady: np.ndarray
    samples: np.ndarray
    place: np.ndarray
    seen: np.ndarray
    body: np.ndarray
    plate: Plate


def work_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) with the longer side at most WORK_PX."""
    s = min(1.0, WORK_PX / max(height, width))
    return max(1, round(height * s)), max(1, round(width * s))


def head_coordinates(landmarks_px: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """u, v [h,w] of the pixel centres for landmarks [478,2] in the same pixels."""
    top, chin = landmarks_px[10], landmarks_px[152]
    up = top - chin
    half = max(float(np.linalg.norm(up)) / 2, 1.0)
    up = up / (2 * half)
    right = np.array([-up[1], up[0]])
    half_width = 0.74 * half  # of the canonical face; steadier than the projected width of a turned head
    middle = (top + chin) / 2
    centre = middle + right * float((landmarks_px[[454, 234]].mean(0) - middle) @ right)
    x, y = np.meshgrid(np.arange(width) + 0.5 - centre[0], np.arange(height) + 0.5 - centre[1])
    return (x * right[0] + y * right[1]) / half_width, (x * up[0] + y * up[1]) / half


def _step(x: np.ndarray, at: float | np.ndarray, width: float) -> np.ndarray:
    """Smooth step from 0 to 1 around `at`."""
    return 1 / (1 + np.exp(-np.clip((x - at) / width, -30, 30)))


def anatomy(u: np.ndarray, v: np.ndarray, oval: np.ndarray) -> np.ndarray:
    """Place prior [4,h,w] before anything is known of the clip; `oval` marks the face's pixels."""
    a, below = np.abs(u), -1 - v
    shoulder = 0.4 + 0.2 * np.clip(a - 0.6, 0, 3)  # the line of the shoulders, in half faces below the chin
    cloth = 0.95 * _step(below, shoulder + 0.35 * (a < 0.6), 0.2) * (1 - _step(a, 4.2, 0.3))
    neck = (
        0.85
        * _step(below, -0.15, 0.08)
        * (1 - _step(a, 0.62 + 0.1 * np.clip(below, 0, 1), 0.08))
        * (1 - _step(below, 0.95, 0.15))
    )
    radius = np.hypot(u / 1.3, np.where(v > 0, (v - 0.1) / 1.5, v / 1.45))
    hair = 0.65 * (1 - _step(radius, 1.12, 0.09)) + 0.08 * (1 - _step(radius, 1.6, 0.15))
    hair = np.maximum(hair, 0.12 * (a < 1.6) * (below > -1) * (below < 1.6))
    ear = 0.4 * (a < 1.25) * (np.abs(v + 0.1) < 0.45)
    chest = 0.5 * _step(below, 0.6, 0.1) * (1 - _step(below, 2.2, 0.2)) * (1 - _step(a, 0.6, 0.1))
    skin = np.maximum.reduce([neck, ear, chest])
    cloth = cloth * (1 - 0.8 * np.maximum(neck, chest))
    hair = np.clip(hair, 0.003, None) * (1 - 0.7 * neck) * (1 - 0.8 * cloth)
    prior = np.stack(
        [
            np.clip(1 - np.maximum.reduce([cloth, neck, chest, hair]), 0.02, 1),
            hair,
            np.clip(skin, 0.002, 1),
            np.clip(cloth, 0.002, 1),
        ]
    )
    prior /= prior.sum(0)
    prior[:, oval] = np.array([0.001, 0.03, 0.966, 0.003])[:, None]
    return prior.astype(np.float32)


def oval_mask(landmarks_px: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [h,w]: inside the outline of the face."""
    out = np.zeros((height, width), np.uint8)
    cv2.fillPoly(out, [np.round(landmarks_px[list(FACE_OVAL)] * 8 - 4).astype(np.int32)], 1, shift=3)
    return out > 0


_DARK = np.round(255 * (np.arange(256) / 255) ** 0.6).astype(np.uint8)  # finer bins for dark colours


def _bins(rgb: np.ndarray) -> np.ndarray:
    b = (_DARK[rgb] >> SHIFT).astype(np.int32)
    return (b[..., 0] * BINS + b[..., 1]) * BINS + b[..., 2]


def steadiness(picture: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """int [h,w] in 0..STEADY-1: how many of the samples [m,h,w,3] show about the picture's colour at a pixel."""
    same = np.zeros(picture.shape[:2], np.uint8)
    for other in samples:
        red, green, blue = cv2.split(cv2.absdiff(picture, other))
        difference = cv2.blur(cv2.max(cv2.max(red, green), blue), (3, 3))
        same += (difference < STEADY_LEVELS).view(np.uint8)
    return np.minimum(same.astype(np.int32) * STEADY // len(samples), STEADY - 1)


def _histograms(samples, posteriors, where) -> np.ndarray:
    """Smoothed log densities [4,BINS^3] of classes weighted by their posteriors, hair and skin only
    where bool [2,h,w] `where` (else what lies beside the neck, a white collar say, becomes a colour of hair)."""
    out = np.empty((4, BINS**3), np.float32)
    for k in range(4):
        count = np.zeros(BINS**3)
        for bins, post, own in zip(samples, posteriors, where, strict=True):
            weight = post[k] * own[k - HAIR] if k in (HAIR, SKIN) else post[k]
            count += np.bincount(bins.ravel(), weight.ravel(), BINS**3)
        cube = count.reshape(BINS, BINS, BINS).astype(np.float32)
        for axis in range(3):
            flat = np.moveaxis(cube, axis, 0).reshape(BINS, -1)
            flat = cv2.GaussianBlur(np.ascontiguousarray(flat), (1, 7), 1.0, borderType=cv2.BORDER_REFLECT)
            cube = np.moveaxis(flat.reshape(BINS, BINS, BINS), 0, axis)
        cube = cube.reshape(-1)
        out[k] = np.log(cube / max(cube.sum(), 1) + 0.02 / BINS**3)
    return out


def _cells(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    i = np.clip((u + SPAN_U) / (2 * SPAN_U) * GRID, 0, GRID - 1).astype(np.int32)
    j = np.clip((v - SPAN_V[0]) / (SPAN_V[1] - SPAN_V[0]) * GRID, 0, GRID - 1).astype(np.int32)
    return j * GRID + i


def _place_prior(start: np.ndarray, u, v, place, seen, body) -> np.ndarray:
    """Anatomy blended with what the clip showed at the same place of the head and, below the chin, at the same
    place of the picture (body [4,h,w]): shoulders stay where they are when the head leans."""
    i = ((u + SPAN_U) / (2 * SPAN_U) * GRID - 0.5).astype(np.float32)
    j = ((v - SPAN_V[0]) / (SPAN_V[1] - SPAN_V[0]) * GRID - 0.5).astype(np.float32)
    look = [cv2.remap(p, i, j, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for p in (*place, seen)]
    trust = 0.6 * look[4] / (look[4] + 50.0)
    prior = start * (1 - trust) + np.clip(np.stack(look[:4]), 0.01, 1) * trust
    still = 0.6 * _step(-1 - v, 0.25, 0.1)
    return (prior * (1 - still) + np.clip(body, 0.01, 1) * still).astype(np.float32)


def _steady_histograms(steady, posteriors, moving: bool) -> np.ndarray:
    """Log likelihoods [4,STEADY] of steadiness by class. Clothes may be as steady as a wall: they do not lose by it.
    A background that moves is told from clothes by that, and not from hair."""
    count = np.zeros((4, STEADY))
    for s, post in zip(steady, posteriors, strict=True):
        for k in range(4):
            count[k] += np.bincount(s.ravel(), post[k].ravel(), STEADY)
    p = count / np.maximum(count.sum(1, keepdims=True), 1)
    if moving:
        p[HAIR] = p[BACKGROUND]
    else:
        p[CLOTH] = np.maximum(p[CLOTH], p[BACKGROUND])
    return np.log(0.9 * p + 0.1 / STEADY).astype(np.float32)


def _posterior(picture, bins, steady, prior, log_hist, log_steady, plate: Plate) -> np.ndarray:
    """P(k | c, s, x) [4,h,w]; the background's density is a mixture of histogram and plate, by the plate's trust."""
    log = log_hist[:, bins] + log_steady[:, steady]
    # Gaussian around the plate's colour, as a mass per histogram bin of 8^3 levels
    far = ((picture.astype(np.float32) - plate.colour) ** 2).sum(-1) / plate.sigma**2
    near = np.exp(-0.5 * np.minimum(far, 60)) * (1 << SHIFT) ** 3 / ((2 * np.pi) ** 1.5 * plate.sigma**3)
    background = log_hist[0][bins]
    usual, match = np.exp(background), np.exp(-0.5 * np.minimum(far, 60))
    near = np.maximum(near, usual * match)  # a plain wall is no less likely where it is due
    log[0] += np.log((1 - plate.trust) * usual + plate.trust * near + 1e-9) - background
    # Beside a moving head the background is uncovered now and then; being unsteady does not speak against the plate.
    log[0] += plate.trust * match * (log_steady.max(0) - log_steady[0])[steady]
    log = TEMPER * log + np.log(prior)
    log -= log.max(0)
    p = np.exp(log)
    return p / p.sum(0)


def _box(x: np.ndarray, r: int) -> np.ndarray:
    return cv2.blur(x, (2 * r + 1, 2 * r + 1), borderType=cv2.BORDER_REFLECT)


def guided(
    posterior: np.ndarray, guide: np.ndarray, full: np.ndarray | None = None, radius: int = 4, eps: float = 4e-4
) -> np.ndarray:
    """Guided filter (He et al.) of [4,h,w] by a grey guide [h,w] in 0..1; with `full` [H,W] the coefficients are
    applied to the full-size guide: [4,H,W]."""
    mean = _box(guide, radius)
    var = _box(guide * guide, radius) - mean**2
    out = []
    for p in posterior:
        mp = _box(p, radius)
        a = (_box(p * guide, radius) - mp * mean) / (var + eps)
        b = mp - a * mean
        a, b = _box(a, radius), _box(b, radius)
        if full is None:
            out.append(a * guide + b)
        else:
            h, w = full.shape
            out.append(
                cv2.resize(a, (w, h), interpolation=cv2.INTER_LINEAR) * full
                + cv2.resize(b, (w, h), interpolation=cv2.INTER_LINEAR)
            )
    return np.stack(out)


def learn(pictures: list[np.ndarray], landmarks: list[np.ndarray]) -> Colours:
    """Colour histograms, place prior and plate from sampled frames (rgb uint8 at work size, landmarks [478,2])."""
    h, w = pictures[0].shape[:2]
    coords = [head_coordinates(lm, h, w) for lm in landmarks]
    starts = [anatomy(u, v, oval_mask(lm, h, w)) for (u, v), lm in zip(coords, landmarks, strict=True)]
    samples = np.stack(pictures)
    bins = [_bins(p) for p in pictures]
    steady = [steadiness(p, samples) for p in pictures]
    grey = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255 for p in pictures]
    cells = [_cells(u, v) for u, v in coords]
    seen = sum(np.bincount(c.ravel(), minlength=GRID**2) for c in cells).reshape(GRID, GRID).astype(np.float32)
    posteriors, priors = starts, starts
    face_px = float(np.median([np.linalg.norm(lm[10] - lm[152]) for lm in landmarks]))
    clothed = np.mean([p[CLOTH] for p in starts], 0) > 0.1
    surely = [
        (p[BACKGROUND] > 0.85) & (np.hypot(u / 1.3, v / 1.5) > BEYOND) for p, (u, v) in zip(starts, coords, strict=True)
    ]
    far = np.stack([small(mask.astype(np.uint8) * 255) > 254 for mask in surely])
    moving = moved_share(np.stack([small(p) for p in pictures]), far) > MOVING
    plate = _plate(pictures, starts, face_px, clothed, moving)
    for turn in range(ROUNDS):
        least, low = (0.35, SKIN_FROM) if turn else (1.0, -1.0)  # at first nothing is known of what lies below the chin
        hair = [
            label_repair.hanging(p[HAIR] > least, v, face_px / 2) for p, (_, v) in zip(posteriors, coords, strict=True)
        ]
        own = [np.stack([part | (v > HAIR_FROM), v > low]) for part, (_, v) in zip(hair, coords, strict=True)]
        log_hist = _histograms(bins, posteriors, own)
        log_steady = _steady_histograms(steady, posteriors, moving)
        posteriors = [
            np.clip(guided(_posterior(p, b, s, pr, log_hist, log_steady, plate), g), 1e-3, 1)
            for p, b, s, pr, g in zip(pictures, bins, steady, priors, grey, strict=True)
        ]
        place = np.zeros((4, GRID**2), np.float32)
        for cell, p in zip(cells, posteriors, strict=True):
            place += [np.bincount(cell.ravel(), p[k].ravel(), GRID**2) for k in range(4)]
        place = place.reshape(4, GRID, GRID) / np.maximum(seen, 1)
        body = cv2.GaussianBlur(np.mean(posteriors, 0).transpose(1, 2, 0), (0, 0), 3.0).transpose(2, 0, 1)
        priors = [_place_prior(s, u, v, place, seen, body) for s, (u, v) in zip(starts, coords, strict=True)]
        plate = _plate(pictures, posteriors, face_px, clothed, moving)
    return Colours(log_hist, log_steady, samples, place, seen, body, plate)


def _plate(pictures, posteriors, face_px: float, body: np.ndarray, moving: bool) -> Plate:
    """Mean colour of the pixels that are surely background; known where the person covers them at other times, and
    continued from the nearest ones, with less trust the farther in, where the background is never sure and no body is
    expected (body [h,w] bool). Of a moving background nothing is known where it strays, and nothing continued."""
    weight = np.stack([p[BACKGROUND] > 0.85 for p in posteriors])
    weight &= np.stack([cv2.erode(m.astype(np.uint8), np.ones((5, 5))) > 0 for m in weight])
    count = weight.sum(0)
    total = sum(p * m[..., None].astype(np.float32) for p, m in zip(pictures, weight, strict=True))
    squares = sum((p.astype(np.float32) ** 2) * m[..., None] for p, m in zip(pictures, weight, strict=True))
    colour = total / np.maximum(count, 1)[..., None]
    strays = np.sqrt(np.maximum(squares / np.maximum(count, 1)[..., None] - colour**2, 0)).max(-1) > MOVED
    covered = sum((p[BACKGROUND] < 0.3).astype(np.int32) for p in posteriors)
    sure = count > 0
    if not sure.any():
        return Plate(colour, np.full(count.shape, PLATE_SIGMA, np.float32), np.zeros(count.shape, np.float32))
    filled = soften(fill_nearest(np.round(colour).astype(np.uint8), sure), sure).astype(np.float32)
    depth = cv2.distanceTransform((~sure).astype(np.uint8), cv2.DIST_L2, 3)
    known = (count >= 2) & (covered >= 1) & ~(strays & moving)
    trust = np.where(known, 0.85, np.where(sure | body | moving, 0.0, 0.5 * np.exp(-depth / (CONTINUE * face_px))))
    sigma = np.where(known, PLATE_SIGMA, GUESS_SIGMA)
    return Plate(np.where(sure[..., None], colour, filled), sigma.astype(np.float32), trust.astype(np.float32))


def posterior(colours: Colours, picture: np.ndarray, landmarks_px: np.ndarray) -> np.ndarray:
    """[4,h,w] of one frame at work size, before filtering."""
    h, w = picture.shape[:2]
    u, v = head_coordinates(landmarks_px, h, w)
    prior = _place_prior(anatomy(u, v, oval_mask(landmarks_px, h, w)), u, v, colours.place, colours.seen, colours.body)
    steady = steadiness(picture, colours.samples)
    return _posterior(picture, _bins(picture), steady, prior, colours.log_hist, colours.log_steady, colours.plate)
