"""Composites with known alpha, foreground and backdrop, for the tests of matting."""

import cv2
import numpy as np

from tkjax.media import video

GREEN, BLUE = (62, 170, 84), (40, 80, 190)


def subject(size: int = 320, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(F [S,S,3] float32 levels, a [S,S] in 0..1): a head with loose hair and a grey shirt, drawn 4 times larger."""
    rng = np.random.default_rng(seed)
    s = 4 * size
    alpha, hair = np.zeros((s, s), np.uint8), np.zeros((s, s), np.uint8)
    skin, cloth = np.zeros((s, s), np.uint8), np.zeros((s, s), np.uint8)
    cv2.ellipse(cloth, (s // 2, s), (int(0.38 * s), int(0.32 * s)), 0, 0, 360, 255, -1)
    cv2.rectangle(skin, (int(0.45 * s), int(0.5 * s)), (int(0.55 * s), int(0.75 * s)), 255, -1)
    cv2.ellipse(hair, (s // 2, int(0.38 * s)), (int(0.17 * s), int(0.22 * s)), 0, 0, 360, 255, -1)
    cv2.ellipse(skin, (s // 2, int(0.42 * s)), (int(0.13 * s), int(0.18 * s)), 0, 0, 360, 255, -1)
    for angle in rng.uniform(-np.pi, 0, 140):
        start = np.array([s / 2 + 0.165 * s * np.cos(angle), 0.38 * s + 0.21 * s * np.sin(angle)])
        direction = np.array([np.cos(angle), np.sin(angle)]) + 0.3 * rng.standard_normal(2)
        points = [start + direction * t * s * rng.uniform(0.03, 0.07) for t in np.linspace(-0.3, 1, 5)]
        cv2.polylines(hair, [np.array(points).astype(np.int32)], False, 255, int(rng.integers(2, 5)), cv2.LINE_AA)
    hair[skin > 0] = 0
    cloth[skin > 0] = 0
    alpha = np.maximum.reduce([skin, hair, cloth])
    shade = 1 + 0.15 * np.sin(np.linspace(0, 40, s))[None] * np.cos(np.linspace(0, 30, s))[:, None]
    colour = np.zeros((s, s, 3), np.float32)
    for mask, rgb in ((hair, (78, 52, 36)), (cloth, (120, 120, 120)), (skin, (206, 152, 126))):
        colour += mask[..., None] / np.float32(255) * np.array(rgb, np.float32) * shade[..., None].astype(np.float32)

    def shrink(x):
        return cv2.resize(x.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)

    a = shrink(alpha) / 255
    return shrink(colour) / np.maximum(a, 1e-3)[..., None], a


def backdrop(size: int, rgb=GREEN, uneven: float = 0.12) -> np.ndarray:
    """A lit screen, brighter in the middle [S,S,3]."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    light = 1 + uneven * (0.5 - 2 * (x**2 + y**2)) + 0.5 * uneven * x
    return light[..., None].astype(np.float32) * np.array(rgb, np.float32)


def room(size: int, seed: int = 0) -> np.ndarray:
    """A picture of an empty room [S,S,3] with edges and soft structure."""
    rng = np.random.default_rng(seed)
    out = np.full((size, size, 3), (186, 196, 204), np.float32)
    for _ in range(6):
        x, y, w, h = (rng.random(4) * size * [0.9, 0.5, 0.3, 0.3]).astype(int)
        out[y : y + h, x : x + w] = rng.uniform(40, 240, 3)
    return cv2.GaussianBlur(out, (0, 0), 1.2)


def compose(fore, alpha, back, noise: float = 1.5, seed: int = 0) -> np.ndarray:
    """uint8 picture a F + (1 - a) B with noise."""
    a = alpha[..., None]
    picture = a * fore + (1 - a) * back + noise * np.random.default_rng(seed).standard_normal(fore.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def recorded(frames, path, crf: int = 18) -> list[np.ndarray]:
    """The frames after H.264."""
    with video.VideoWriter(path, *frames[0].shape[:2], crf=crf) as w:
        for f in frames:
            w.write(f)
    return list(video.read_frames(path))


def half_body(path, n: int = 52, size: int = 224, height: int = 360, width: int = 560, rgb=GREEN, seed: int = 3):
    """Write a clip of the synthetic subject before a lit screen, off the middle of a wide picture, with its sound; 12
    pictures to and fro. Returns the truth of frame k % 24 < 12: (F [12,H,W,3] float32 levels, a [12,H,W] in 0..1)."""
    from tkjax import synthetic

    pcm, tracks = synthetic.speech(seed, n / 25)
    p = synthetic.perform(tracks, seed=seed, size=size)
    plate, left, top = p.plate().astype(np.float32), int(0.55 * (width - size)), int(0.3 * (height - size))
    fore, alpha = [], []
    for frame, _ in zip(p.frames(), range(12), strict=False):
        head, body = frame["alpha"][..., None] / 255.0, frame["torso"][..., 3:] / 255.0
        a = 1 - (1 - head) * (1 - body)
        straight = np.clip((frame["rgb"] - (1 - a) * plate) / np.maximum(a, 0.02), 0, 255) * (a > 0)
        fore.append(_placed(straight, height, width, left, top))
        alpha.append(_placed(a[..., 0], height, width, left, top))
    back = cv2.resize(backdrop(256, rgb), (width, height))
    with video.VideoWriter(path, height, width, audio=iter(np.array_split(pcm, 3)), crf=16) as out:
        for k in range(n):
            i = order(k)
            out.write(compose(fore[i], alpha[i], back, 1.0, k))
    return np.array(fore, np.float32), np.array(alpha, np.float32)


def order(k: int) -> int:
    """The picture of `half_body` that frame k shows."""
    return k % 24 if k % 24 < 12 else 23 - k % 24


def _placed(square: np.ndarray, height: int, width: int, left: int, top: int) -> np.ndarray:
    """A square picture in a larger empty one; its last row goes on downwards."""
    out = np.zeros((height, width, *square.shape[2:]), np.float32)
    n = len(square)
    out[top : top + n, left : left + n] = square
    out[top + n :, left : left + n] = square[-1]
    return out
