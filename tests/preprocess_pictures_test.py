"""Background plate, torso in-painting and label clean-up on pictures made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.regions import labels, plate, segment, torso
from tkjax.contract import LABEL_HEAD, LABEL_NECK, LABEL_TORSO
from tkjax.errors import UserError

H = W = 96


def wall() -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    return np.stack([60 + x, 90 + y // 2, 140 - x // 2], -1).astype(np.uint8)


def moving_person(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """A red block of 30x60 pixels in front of the wall, and its mask."""
    mask = np.zeros((H, W), bool)
    mask[36:, 20 + shift : 50 + shift] = True
    rgb = wall()
    rgb[mask] = (200, 30, 30)
    return rgb, mask


def test_plate_is_the_wall_wherever_some_frame_shows_it_clearly():
    found, filled = plate.plate_from([moving_person(s) for s in (0, 20, 40)], 3.0)
    assert filled.mean() > 0.8
    assert np.array_equal(found[filled], wall()[filled])
    assert not (np.abs(found.astype(int) - (200, 30, 30)).sum(-1) < 60).any()  # no ghost, also where it was guessed


def test_plate_takes_the_frame_whose_person_is_farthest():
    near = moving_person(0)[0] + np.uint8(9)  # its wall is brighter
    mask_near = moving_person(0)[1]
    far, mask_far = moving_person(40)
    found, _ = plate.plate_from([(near, mask_near), (far, mask_far)], 3.0)
    assert np.array_equal(found[70, 18], far[70, 18])  # 2 px from the person in the first, 42 px in the second
    assert np.array_equal(found[70, 88], near[70, 88])


def test_plate_pixels_never_seen_copy_their_nearest_neighbour_before_softening():
    rgb = wall()
    filled = np.ones((H, W), bool)
    filled[40:60, 40:60] = False
    rgb[~filled] = 0
    out = plate.fill_nearest(rgb, filled)
    assert np.array_equal(out[41, 50], wall()[39, 50]) and np.array_equal(out[50, 58], wall()[50, 60])
    soft = plate.soften(out, filled)
    assert np.array_equal(soft[filled], wall()[filled])
    assert np.abs(soft.astype(int) - wall())[~filled].max() < 40


def test_plate_without_any_clear_pixel_is_refused():
    try:
        plate.plate_from([(wall(), np.ones((H, W), bool))], 3.0)
    except ValueError as e:
        assert "never" in str(e) or "ever" in str(e)
    else:
        raise AssertionError("a picture full of person has no plate")


@given(st.integers(1, 200000))
def test_sampled_frames_are_in_range_rising_and_bounded(n):
    chosen = plate.sample_frames(n)
    assert chosen[0] == 0 and chosen[-1] == n - 1
    assert len(chosen) == len(set(chosen)) <= plate.SAMPLES and chosen == sorted(chosen)


def portrait() -> tuple[np.ndarray, np.ndarray]:
    """512x512: head rows 100-299, neck 300-379 below it in columns 200-299, clothes from 380, a strand of hair left."""
    label = np.zeros((512, 512), np.uint8)
    label[100:300, 180:320] = LABEL_HEAD
    label[300:380, 200:300] = LABEL_NECK
    label[380:, 100:400] = LABEL_TORSO
    label[300:380, 120:140] = LABEL_HEAD
    rgb = np.zeros((512, 512, 3), np.uint8) + 50
    rgb[label == LABEL_HEAD] = (90, 60, 30)
    rgb[label == LABEL_NECK] = (200, 150, 120)
    rgb[label == LABEL_TORSO] = (40, 60, 160)
    return rgb, label


def test_neck_goes_up_53_rows_behind_the_head_and_darkens_by_2_percent_a_row():
    rgb, label = portrait()
    out = torso.torso_picture(rgb, label)
    painted = (out[..., 3] == 255) & (label == LABEL_HEAD)
    # The neck grows to row 297; the colour is taken 4 rows further down (301) and goes up 53 rows: 301-52 = 249.
    assert painted[249, 200:300].all() and not painted[248].any()
    for row in (290, 275, 260):
        expected = np.array([200, 150, 120]) * 0.98 ** (301 - row)
        assert np.abs(out[row, 250, :3] - expected).max() < 4  # the blur mixes neighbouring shades
    assert not painted[:249].any()
    assert np.array_equal(out[340, 250], [200, 150, 120, 255])


def test_clothes_go_up_9_rows_under_hair_only():
    rgb, label = portrait()
    alpha = torso.torso_picture(rgb, label)[..., 3]
    assert (alpha[372:380, 120:140] == 255).all() and (alpha[300:372, 120:140] == 0).all()
    assert (alpha[300:380, 100:118] == 0).all()  # background above the clothes stays open


@given(st.integers(0, 2**32 - 1))
def test_torso_picture_keeps_true_pixels_and_never_paints_background(seed):
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 4, (8, 8)), np.ones((16, 16))).astype(np.uint8)
    rgb = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
    out = torso.torso_picture(rgb, label)
    own = label == LABEL_TORSO
    assert (out[own, 3] == 255).all() and np.array_equal(out[own, :3], rgb[own])
    grown = np.zeros_like(own)
    neck = label == LABEL_NECK
    for d in (-1, 0, 1):
        grown |= np.roll(neck, d, 0)
    outside = (label == 0) & ~grown
    assert (out[outside] == 0).all()
    assert set(np.unique(out[..., 3])) <= {0, 255}


def test_torso_sizes_scale_with_the_picture():
    rgb, label = portrait()
    half = torso.torso_picture(np.ascontiguousarray(rgb[::2, ::2]), np.ascontiguousarray(label[::2, ::2]))[..., 3] > 0
    full = torso.torso_picture(rgb, label)[..., 3] > 0
    assert abs(int(half[:, 125].argmax()) - int(full[:, 250].argmax()) / 2) <= 2


def test_small_holes_are_filled_and_large_or_open_ones_stay():
    mask = np.ones((50, 50), bool)
    mask[10:12, 10:12] = False
    mask[20:40, 20:40] = False
    mask[:5, 45:] = False
    out = labels.fill_holes(mask, 10)
    assert out[10, 10] and not out[30, 30] and not out[2, 47]


def test_largest_component_is_the_one_with_the_face():
    mask = np.zeros((40, 40), bool)
    mask[:30, :20] = True
    mask[:8, 30:] = True
    seed = np.zeros_like(mask)
    seed[3:5, 32:36] = True
    assert labels.largest(mask)[10, 10] and labels.largest(mask, seed)[3, 35] and not labels.largest(mask, seed)[10, 10]


def test_gaps_below_the_shoulder_close_down_to_the_border():
    person = np.zeros((40, 10), bool)
    person[10:20] = True
    person[30:, 3] = True
    everywhere = np.ones_like(person)
    assert labels.fill_down(person, everywhere, 25)[10:].all()
    assert not labels.fill_down(person, everywhere, 5)[25, 5]
    assert not labels.fill_down(person, everywhere, 12)[25, 5] and labels.fill_down(person, everywhere, 12)[25, 3]


def test_posteriors_are_distributions_and_the_oval_is_skin():
    rng = np.random.default_rng(0)
    landmarks = np.zeros((478, 2))
    angle = np.linspace(0, 2 * np.pi, len(segment.FACE_OVAL), endpoint=False)
    landmarks[list(segment.FACE_OVAL)] = 48 + np.stack([16 * np.sin(angle), -20 * np.cos(angle)], -1)
    pictures = []
    for shift in range(4):
        rgb = wall()
        oval = segment.oval_mask(landmarks + np.array([shift, 0]), H, W)
        hair = segment.oval_mask((landmarks - [48, 56]) * [1.3, 1.4] + [48 + shift, 56], H, W)
        rgb[hair & (np.arange(H)[:, None] < 60)] = (60, 35, 20)
        rgb[oval] = (210, 160, 130)
        rgb[75:, 20:76] = (30, 40, 90)
        pictures.append((rgb + rng.integers(0, 4, rgb.shape)).astype(np.uint8))
    points = [landmarks + np.array([s, 0]) for s in range(4)]
    learnt = segment.learn(pictures, points)
    p = segment.posterior(learnt, pictures[1], points[1])
    assert np.allclose(p.sum(0), 1, atol=1e-4) and (p >= 0).all()
    assert (p.argmax(0)[segment.oval_mask(points[1], H, W)] == segment.SKIN).mean() > 0.9
    assert p.argmax(0)[24, 49] == segment.HAIR and p.argmax(0)[40, 29] == segment.HAIR
    assert (p.argmax(0)[:12] == segment.BACKGROUND).mean() > 0.95
    assert (p.argmax(0)[85:, 30:66] == segment.CLOTH).mean() > 0.9


@pytest.mark.heavy
def test_bisenet_weights_load_by_name_and_classes_become_labels(tmp_path):
    import torch

    from preprocess.regions import bisenet

    torch.manual_seed(0)
    made = bisenet.BiSeNet().eval()
    assert sum(p.numel() for p in made.parameters()) == 13_300_416
    path = tmp_path / "79999_iter.pth"
    torch.save({f"module.{k}": v for k, v in made.state_dict().items()}, path)
    method = labels.parse_method(f"bisenet={path}")
    assert method.name == "bisenet" and bisenet in method.sources
    loaded = bisenet.load(str(path))
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        scores = loaded(x)
        assert scores.shape == (1, 19, 64, 96) and torch.equal(scores, made(x))
    label = bisenet.parse(loaded, np.zeros((48, 40, 3), np.uint8))
    assert label.shape == (48, 40) and label.dtype == np.uint8 and label.max() <= 3
    assert bisenet.LABEL_OF_CLASS.tolist() == [0] + [1] * 13 + [2, 2, 3, 1, 1]


@pytest.mark.parametrize("content", [b"", b"nothing", b"hello this is no file of weights\n", {"cp.conv": 1}, [1, 2]])
def test_files_that_are_no_bisenet_weights_are_one_sentence(tmp_path, content):
    import torch

    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="cannot be used as BiSeNet weights") as e:
        labels.parse_method(f"bisenet={path}")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="no such file"):
        labels.parse_method(f"bisenet={tmp_path / 'none.pth'}")
