"""Paste-back: what lies outside the mask stays, the originals' values, and no old chin, cut jaw or box in the blend."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkjax.media import images
from tkjax.media.paste_back import SCHEMES, Paster, face_of_classes, face_of_landmarks, resize_bilinear

FULL, BOX = (150, 220), (60, 10, 188, 138)
N = BOX[2] - BOX[0]
Y, X = np.mgrid[:N, :N]
SKIN, NECK_RGB, COAT = (205, 160, 135), (190, 140, 120), (40, 50, 90)


def head(a: float, b: float) -> np.ndarray:
    return ((X - N / 2) / a) ** 2 + ((Y - 0.45 * N) / b) ** 2 < 1


def scene(new: np.ndarray, shift=(0, 0, 0), old: np.ndarray | None = None) -> dict:
    """A frame with the old head, and a picture of its crop with the new one and all colours shifted."""
    old = head(30, 42) if old is None else old
    neck, coat = (abs(X - N / 2) < 17) & (Y > 60) & (Y < 110), (Y > 100) & (abs(X - N / 2) < 15 + 3 * (Y - 100))
    y, x = np.mgrid[: FULL[0], : FULL[1]]
    plate = np.stack([90 + 40 * x / FULL[1], 120 + 30 * y / FULL[0], 100 + 0 * x], -1)
    base, picture = plate.copy(), plate[BOX[1] : BOX[3], BOX[0] : BOX[2]].copy()
    for region, colour in ((coat, COAT), (neck, NECK_RGB), (old, SKIN)):
        base[BOX[1] : BOX[3], BOX[0] : BOX[2]][region] = colour
    for region, colour in ((coat, COAT), (neck, NECK_RGB), (new, SKIN)):
        picture[region] = colour
    label = np.select([old, neck, coat], [1, 2, 3], 0).astype(np.uint8)
    picture = np.clip(picture + np.asarray(shift), 0, 255).astype(np.uint8)
    return {
        "base": base.astype(np.uint8),
        "picture": picture,
        "head_alpha": new.astype(np.float32),
        "label": label,
        "face": old & (Y > 35),
    }


def test_masks_of_the_originals_have_the_known_values():
    assert face_of_classes(np.array([[1, 7], [17, 13]], np.uint8)).tolist() == [[True, False], [False, True]]


def test_a_face_of_landmarks_lies_between_jaw_and_forehead_and_in_the_head():
    t = np.pi * np.arange(17) / 16
    jaw = np.stack([64 - 40 * np.cos(t), 60 + 45 * np.sin(t)], -1)
    brows = np.stack([np.linspace(30, 98, 10), np.full(10, 50.0)], -1)
    points = np.concatenate([jaw, brows, np.tile([[64.0, 55.0]], (41, 1))])  # bridge 50 above the chin
    face = face_of_landmarks(points, np.ones((N, N), np.uint8))
    assert face[100, 64] and not face[109, 64] and face[40, 64] and not face[30, 64] and not face[60, 20]
    assert face[70, 64] and not face_of_landmarks(points, np.full((N, N), 2, np.uint8)).any()
    assert not face_of_landmarks(points - 1000, np.ones((N, N), np.uint8)).any()


@settings(max_examples=30)
@given(h=st.integers(1, 40), w=st.integers(1, 40), size=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_the_originals_resize_is_opencvs_bilinear(h, w, size):
    cv2 = pytest.importorskip("cv2", reason="the oracle is OpenCV, which comes with mediapipe")
    picture = np.random.default_rng(h * 41 + w).integers(0, 256, (h, w, 3), np.uint8)
    expected = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize_bilinear(picture, size).astype(int) - expected).max() <= 1  # its weights have 11 bits


@settings(max_examples=40, deadline=None)
@given(data=st.data(), scheme=st.sampled_from(SCHEMES[1:]), seed=st.integers(0, 999))
def test_outside_the_mask_no_byte_changes_whatever_the_sizes(data, scheme, seed):
    rng = np.random.default_rng(seed)
    fh, fw, h, w = (data.draw(st.integers(8, 60)) for _ in range(4))
    x0, y0 = data.draw(st.integers(-9, fw - 1)), data.draw(st.integers(-9, fh - 1))
    x1, y1 = data.draw(st.integers(max(x0, 0) + 1, fw + 9)), data.draw(st.integers(max(y0, 0) + 1, fh + 9))
    base = rng.integers(0, 256, (fh, fw, 3), np.uint8)
    picture, label = rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 4, (h, w), np.uint8)
    alpha = None if seed % 3 == 0 else rng.random((h, w), np.float32)
    before = base.copy()
    frame, mask = Paster(scheme, (x0, y0, x1, y1), (fh, fw), (h, w))(
        base, picture, alpha, label, rng.random((h, w)) > 0.5
    )
    assert frame.dtype == np.uint8 and mask.dtype == np.float32 and (base == before).all()
    assert mask.min() >= 0 and mask.max() <= 1
    assert (frame[mask == 0] == base[mask == 0]).all()
    outside = np.ones((fh, fw), bool)
    outside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False
    assert not mask[outside].any()


def test_the_originals_take_the_picture_in_their_mask_and_the_frame_elsewhere():
    s = scene(head(36, 38), (12, -8, 6))
    inside = {"box": np.ones((N, N), bool), "face": s["face"], "face_neck": s["face"] | (s["label"] == 2)}
    for scheme, chosen in inside.items():
        frame, mask = Paster(scheme, BOX, FULL, (N, N))(**s)
        window, base = (v[BOX[1] : BOX[3], BOX[0] : BOX[2]] for v in (frame, s["base"]))
        np.testing.assert_array_equal(window, np.where(chosen[..., None], s["picture"], base))
        np.testing.assert_array_equal(mask[BOX[1] : BOX[3], BOX[0] : BOX[2]], chosen)
        assert mask.sum() == chosen.sum()


def blend(s: dict, size: int = N, box=BOX):
    frame, mask = Paster("blend", box, FULL, (size, size))(**s)
    return tuple(v[BOX[1] : BOX[3], BOX[0] : BOX[2]] for v in (frame, mask))


@pytest.mark.parametrize("axes", [(38, 40), (24, 44), (30, 50), (27, 34)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (12, -8, 6), (-20, -20, -20)])
def test_the_blend_shows_the_new_head_whole_and_nothing_of_the_old_one(axes, shift):
    """As if the new head had been drawn into the scene: no double chin, no cut jaw, no shifted colours."""
    new = head(*axes)
    truth = scene(new)
    window, mask = blend(scene(new, shift))
    assert (mask[new | head(30, 42)] == 1).all()
    error = np.abs(window.astype(int) - truth["picture"]).max(-1)
    assert error.mean() < 0.5 and np.quantile(error, 0.99) <= 3 and error.max() < 0.5 * max(30, *map(abs, shift))


def test_the_blend_has_no_edge_where_the_frame_has_none():
    """Differences between neighbours, less those of the scene itself, stay small in spite of a shift of 25 levels."""
    s = scene(head(30, 42), (25, 25, 25))
    window, _ = blend(s)
    base = s["base"][BOX[1] : BOX[3], BOX[0] : BOX[2]]
    change = window.astype(int) - base
    for axis in (0, 1):
        assert np.abs(np.diff(change, axis=axis)).max() <= 4
    boxed = Paster("box", BOX, FULL, (N, N))(**s)[0].astype(int) - s["base"]
    assert np.abs(np.diff(boxed, axis=0)).max() >= 25


@pytest.mark.parametrize("size", [(128, 128), (90, 131), (7, 300)])
def test_the_blend_is_zero_at_box_edges_but_not_at_frame_edges(size):
    h, w = size
    label, alpha = np.ones((h, w), np.uint8), np.ones((h, w), np.float32)
    picture = np.full((h, w, 3), 200, np.uint8)
    base = np.full((h + 40, w + 40, 3), 90, np.uint8)
    for x, y in ((20, 20), (0, 20), (40, 0), (40, 40)):
        mask = Paster("blend", (x, y, x + w, y + h), base.shape[:2], (h, w))(base, picture, alpha, label)[1]
        mask = mask[y : y + h, x : x + w]
        ends = {"left": mask[:, 0], "right": mask[:, -1], "top": mask[0], "bottom": mask[-1]}
        free = {"left": x == 0, "right": x == 40, "top": y == 0, "bottom": y == 40}
        for name, line in ends.items():
            assert line.max() == (1 if free[name] and min(h, w) > 80 else line.max() if free[name] else 0), (name, x, y)
    whole = Paster("blend", (0, 0, w, h), (h, w), (h, w))(base[:h, :w], picture, alpha, label)[1]
    assert (whole == 1).all()


def test_another_background_in_the_picture_does_not_tint_the_face():
    s = scene(head(30, 42))
    coloured = s["picture"].copy()
    coloured[(s["label"] == 0)] = (0, 255, 0)
    window, _ = blend({**s, "picture": coloured})
    inner = head(20, 30)
    assert np.abs(window[inner].astype(int) - SKIN).max() <= 6


def test_pictures_of_any_size_land_in_the_same_place():
    s = scene(head(36, 40), (10, 0, -10))
    small = {
        "base": s["base"],
        "picture": images.resize_area(s["picture"], (64, 64)),
        "head_alpha": images.resize_area((255 * s["head_alpha"]).astype(np.uint8), (64, 64)) / np.float32(255),
        "label": images.resize_nearest(s["label"], (64, 64)),
        "face": None,
    }
    a, b = blend(s)[0], blend(small, 64)[0]
    assert np.abs(a.astype(int) - b).mean() < 2


def test_a_scheme_or_box_that_cannot_be_is_refused():
    for wrong in ("none", "other"):
        with pytest.raises(ValueError, match="box, face"):
            Paster(wrong, BOX, FULL, (N, N))
    with pytest.raises(ValueError, match="no pixel"):
        Paster("box", (300, 0, 310, 10), FULL, (N, N))
