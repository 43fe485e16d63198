"""What a clip shows: cuts, mirrored and frozen parts and still lips, on drawn pictures with made-up landmarks."""

import numpy as np
import pytest

from preprocess.checks import Check
from preprocess.tracking import content

HW = (256, 256)
N = 100


def scene(seed: int = 0) -> np.ndarray:
    """float [64,64]: blurred shapes, nowhere symmetrical."""
    rng = np.random.default_rng(seed)
    out = np.kron(rng.uniform(60, 200, (8, 8)), np.ones((8, 8)))
    return (out + np.roll(out, 3, 0) + np.roll(out, 3, 1)) / 3


def landmarks(seed: int = 3) -> np.ndarray:
    """[478,2] about the origin, a face of 100 pixels whose named points lie where they should."""
    points = np.random.default_rng(seed).uniform([-35, -45], [35, 45], (478, 2))
    points[10], points[152], points[33], points[263] = (0, -50), (0, 50), (-20, -10), (20, -10)
    points[13], points[14] = (0, 25), (0, 25)
    return points


def clip(n: int = N, path: np.ndarray | None = None, gap: np.ndarray | None = None, noise: float = 2.0, seed: int = 0):
    """(small uint8 [n,64,64], points [n,478,2], found): a head over a scene. path [n,2] pixels of 256; gap [n] pixels:
    of the lips."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / 25
    path = np.stack([4 * np.sin(2 * t), 2 * np.sin(3 * t)], -1) if path is None else path
    gap = 4 + 4 * np.sin(2 * np.pi * 3 * t) if gap is None else gap
    points = landmarks() + [128, 120] + path[:, None] + rng.normal(0, 0.1, (n, 478, 2))
    points[:, 14, 1] += gap
    back, face = scene(1), scene(2)[:28, :22]
    small = np.tile(back, (n, 1, 1))
    for i in range(n):
        x, y = ((points[i].mean(0)) / 4).round().astype(int)
        small[i, y - 14 : y + 14, x - 11 : x + 11] = face
        small[i, y + 6 : y + 6 + round(gap[i] / 4), x - 3 : x + 3] = 20
    small = small + rng.normal(0, noise, small.shape)
    return np.clip(small, 0, 255).astype(np.uint8), points, np.ones(n, bool)


def moved(small, points, begin, by):
    """Everything from frame `begin` on shifted: a jump cut."""
    small, points = small.copy(), points.copy()
    small[begin:] = np.roll(small[begin:], (by[1] // 4, by[0] // 4), (1, 2))
    points[begin:] += by
    return small, points


def mirror(small, points, begin):
    small, points = small.copy(), points.copy()
    small[begin:] = small[begin:, :, ::-1]
    points[begin:, :, 0] = 256 - points[begin:, :, 0]
    points[begin:, [33, 263]] = points[begin:, [263, 33]]
    return small, points


def cuts_of(small, points, found):
    return content.find_cuts(small, points, found).tolist()


@pytest.mark.parametrize("begin", [10, 50, 90])
def test_a_jump_cut_is_found_at_its_frame(begin):
    small, points, found = clip()
    assert cuts_of(*moved(small, points, begin, (24, -16)), found) == [begin]


def test_a_cut_to_another_scene_is_found_also_where_no_face_is_seen():
    small, points, found = clip()
    small[60:] = scene(9) + np.random.default_rng(0).normal(0, 2, (40, 64, 64))
    found[58:] = False
    assert cuts_of(small, points, found) == [60]


@pytest.mark.parametrize("hz", [0.5, 1, 2, 3])
def test_fast_heads_are_no_cuts(hz):
    swing = 40 * np.sin(2 * np.pi * hz * np.arange(N) / 25 + 0.4)
    small, points, found = clip(path=np.stack([swing, 0.4 * swing], -1))
    assert cuts_of(small, points, found) == []


def test_flashes_captions_and_a_glitch_of_the_detector_are_no_cuts():
    small, points, found = clip()
    small[30:33, :12, :12] = 255  # a flash in the corner
    small[50:80, 52:] = 230  # a caption
    small[70:72] = 255  # a camera's flash
    points[20] += 30
    assert cuts_of(small, points, found) == []


def verdicts(rows: list[Check]) -> dict[str, str]:
    return {row.measure: row.verdict for row in rows}


def test_a_cut_is_named_with_its_time_and_only_warned_about():
    small, points, found = clip()
    small, points = moved(small, points, 50, (24, -16))
    rows = content.judge_cuts(small, points, found, np.array([50]), HW)
    assert [row.verdict for row in rows] == ["warn", "good", "good"]
    assert "2.00 s" in rows[0].message


def test_a_shot_of_another_framing_fails():
    small, points, found = clip()
    points[50:] = 128 + 1.6 * (points[50:] - 128)
    rows = content.judge_cuts(small, points, found, np.array([50]), HW)
    assert rows[1].verdict == "fail" and "1.6 times" in rows[1].message and "2.00 s" in rows[1].message


def test_a_head_that_comes_nearer_in_the_course_of_shots_is_no_other_framing():
    small, points, found = clip()
    points = 128 + np.linspace(1, 1.6, N)[:, None, None] * (points - 128)
    assert content.judge_cuts(small, points, found, np.array([20, 50, 80]), HW)[1].verdict == "good"


@pytest.mark.parametrize("begin", [35, 60])
def test_a_mirrored_part_is_found_and_fails(begin):
    small, points, found = clip()
    small, points = mirror(small, points, begin)
    assert cuts_of(small, points, found) == [begin]
    row = content.judge_cuts(small, points, found, np.array([begin]), HW)[2]
    assert row.verdict == "fail" and f"{0 if begin < 50 else begin / 25:.2f} s" in row.message


SPEECH = (0.1 * np.random.default_rng(0).standard_normal(N * 640)).astype(np.float32)


def test_a_frozen_part_under_sound_is_named_and_a_long_one_fails():
    small, points, found = clip()
    rows = content.judge_stillness(small, points, found, SPEECH)
    assert set(verdicts(rows).values()) == {"good"}
    for stop, verdict in ((60, "warn"), (75, "fail")):
        still, fixed = small.copy(), points.copy()
        still[40:stop], fixed[40:stop] = small[40], points[40]
        row = content.judge_stillness(still, fixed, found, SPEECH)[0]
        assert row.verdict == verdict and f"1.60 to {stop / 25:.2f} s" in row.message
    silent = SPEECH.copy()
    silent[38 * 640 : 76 * 640] = 0
    assert content.judge_stillness(still, fixed, found, silent)[0].verdict == "good"


def test_repeated_frames_of_a_lower_rate_are_told():
    small, points, found = clip()
    source = np.arange(N) // 2 * 2
    rows = content.judge_stillness(small[source], points[source], found, SPEECH)
    assert [row.verdict for row in rows] == ["good", "warn"] and "12 pictures a second" in rows[1].message
    source = np.arange(N) - (np.arange(N) % 25 == 24)  # 24 pictures a second
    assert content.judge_stillness(small[source], points[source], found, SPEECH)[1].verdict == "good"


def test_a_held_out_part_without_lip_motion_is_told_with_the_way_out():
    t = np.arange(N) / 25
    gap = 5 + 4 * np.sin(2 * np.pi * 3 * t)
    _, points, found = clip(gap=gap)
    assert set(verdicts(content.judge_lips(points, found)).values()) == {"good"}
    _, points, found = clip(gap=np.where(t > 3.5, 5, gap))
    rows = content.judge_lips(points, found)
    assert [row.verdict for row in rows] == ["good", "warn"] and "--split=blocks" in rows[1].message
    _, points, found = clip(gap=np.full(N, 5.0))
    assert content.judge_lips(points, found)[0].verdict == "warn"


def test_small_pictures_are_grey_and_keep_the_average():
    rgb = np.random.default_rng(0).integers(0, 256, (2, 128, 96, 3), np.uint8)
    small = content.small_pictures(list(rgb))
    assert small.shape == (2, 64, 64) and small.dtype == np.uint8
    assert abs(small.mean() - (rgb @ [0.299, 0.587, 0.114]).mean()) < 1
