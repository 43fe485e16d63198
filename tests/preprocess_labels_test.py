"""Labels judge and mend themselves: drawn people whose exact labels are known."""

import json
from concurrent.futures import Future

import cv2
import numpy as np
import pytest

from preprocess import checks, chunks
from preprocess.checks import FAIL, GOOD, WARN
from preprocess.output import qa
from preprocess.regions import label_checks, label_repair, labels, plate, segment
from tkjax.contract import LABEL_BACKGROUND, LABEL_HEAD, LABEL_NECK, LABEL_TORSO
from tkjax.media.images import decode_png, encode_jpeg

SIZE, HALF = 160, 28.0  # of the picture; half the height of the face
SKIN, HAIR, WHITE, SHIRT = (212, 162, 134), (70, 45, 30), (232, 230, 226), (40, 60, 110)
JUDGED = {m.name: m.words for m in label_checks.MEASURES}


def points(x: float = 80.0, y: float = 76.0) -> np.ndarray:
    """Landmarks [478,2] of an upright face around (x, y)."""
    out = np.tile([x, y], (478, 1))
    angle = np.linspace(0, 2 * np.pi, len(segment.FACE_OVAL), endpoint=False)
    out[list(segment.FACE_OVAL)] = [x, y] + HALF * np.stack([0.74 * np.sin(angle), -np.cos(angle)], -1)
    out[[454, 234]] = [x + 0.74 * HALF, y], [x - 0.74 * HALF, y]
    return out


def truth(landmarks: np.ndarray, long_hair: bool = False) -> np.ndarray:
    """Exact labels: face, cap of hair, neck, and clothes whose collar reaches up beside the jaw."""
    u, v = segment.head_coordinates(landmarks, SIZE, SIZE)
    oval = segment.oval_mask(landmarks, SIZE, SIZE)
    out = np.zeros((SIZE, SIZE), np.uint8)
    out[(v < -1.4 - 0.25 * np.clip(np.abs(u) - 1, 0, 2))] = LABEL_TORSO
    out[(v < -0.6) & (np.abs(u) < 0.7)] = LABEL_NECK
    out[(v < -0.75) & (v > -1.9) & (np.abs(u) > 0.5) & (np.abs(u) < 1.1)] = LABEL_TORSO  # the collar
    hair = (np.hypot(u / 1.25, (v - 0.2) / 1.35) < 1) & (v > (-0.1 if not long_hair else -0.6))
    if long_hair:
        hair |= (np.abs(u) > 0.75) & (np.abs(u) < 1.35) & (v > -2.2) & (v < 0.3)
    out[hair | oval] = LABEL_HEAD
    return out


def drawn(landmarks: np.ndarray, label: np.ndarray, behind: np.ndarray, rng) -> np.ndarray:
    """A picture with these labels: white collar, dark shirt and hair, over `behind`."""
    u, v = segment.head_coordinates(landmarks, SIZE, SIZE)
    rgb = behind.copy()
    rgb[label == LABEL_TORSO] = SHIRT
    rgb[(label == LABEL_TORSO) & (v > -1.9) & (np.abs(u) < 1.1)] = WHITE
    rgb[label == LABEL_NECK] = SKIN
    rgb[label == LABEL_HEAD] = HAIR
    rgb[segment.oval_mask(landmarks, SIZE, SIZE) & (v < 0.85)] = SKIN
    return np.clip(cv2.GaussianBlur(rgb, (0, 0), 0.7) + rng.normal(0, 2, rgb.shape), 0, 255).astype(np.uint8)


def scenery(rng) -> np.ndarray:
    """Sky, hills and trunks, wider than the picture."""
    out = np.empty((SIZE, 4 * SIZE, 3), np.float32)
    out[:], ridge = (150, 180, 215), 70 + 8 * np.sin(np.arange(4 * SIZE) / 23)
    out[np.arange(SIZE)[:, None] > ridge] = (95, 110, 70)
    out[110:] = (125, 105, 75)
    out += cv2.GaussianBlur(rng.normal(0, 60, out.shape[:2]).astype(np.float32), (0, 0), 2)[..., None]
    for x in rng.integers(0, 4 * SIZE, 24):
        out[60:125, x : x + 8] = rng.uniform(20, 200)
    return np.clip(out, 0, 255)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def verdicts(frames: list[np.ndarray], landmarks: list[np.ndarray]) -> dict[str, str]:
    """Measure -> verdict of a clip of these labels."""
    rows = labels.Labelled.of(frames, landmarks).measures
    found = {c.measure: c for c in label_checks.judge_clip(rows, 25.0)}
    return {name: found[words].verdict for name, words in JUDGED.items() if words in found}


def moving_clip(n: int = 12, **kw) -> tuple[list[np.ndarray], list[np.ndarray]]:
    at = [points(80 + 6 * np.sin(i / 3), 76 + 3 * np.cos(i / 4)) for i in range(n)]
    return [truth(p, **kw) for p in at], at


@pytest.mark.parametrize("long_hair", [False, True])
def test_exact_labels_of_a_moving_head_pass_every_check(long_hair):
    assert set(verdicts(*moving_clip(long_hair=long_hair)).values()) == {GOOD}


def _damage(name: str, label: np.ndarray, landmarks: np.ndarray, i: int) -> np.ndarray:
    u, v = segment.head_coordinates(landmarks, SIZE, SIZE)
    out = label.copy()
    if name == "core":
        out[(v > 0.2) & (u > 0)] = LABEL_BACKGROUND
    elif name == "under_chin":
        out[v < -1.1] = LABEL_BACKGROUND
    elif name == "head_below":
        out[(v < -0.8) & (v > -2.2) & (np.abs(u) < 1.2)] = LABEL_HEAD
    elif name == "apart":
        out[5:50, 5:20] = LABEL_TORSO
    elif name == "beside":
        out[(v < -0.4) & (out == LABEL_BACKGROUND)] = LABEL_TORSO
    elif name == "bite":
        out[(np.abs(u) < 0.25) & (v > 1.1)] = LABEL_BACKGROUND
    elif name == "flicker" and i % 2:
        out[np.hypot(u / 1.25, (v - 0.2) / 1.35) > 0.92] = LABEL_BACKGROUND
    elif name == "area" and i < 4:
        out[(np.hypot(u / 1.25, (v - 0.2) / 1.35) < 1.3) & (v > -0.1)] = LABEL_HEAD
    return out


@pytest.mark.parametrize("name", label_checks.NAMES)
def test_each_kind_of_damage_is_seen_by_its_own_measure(name):
    frames, at = moving_clip()
    damaged = [_damage(name, label, p, i) for i, (label, p) in enumerate(zip(frames, at, strict=True))]
    assert verdicts(damaged, at)[name] in (WARN, FAIL)


def test_a_failed_check_names_the_time_and_a_way_out():
    frames, at = moving_clip()
    damaged = [_damage("beside", label, p, 0) if i > 4 else label for i, (label, p) in enumerate(zip(frames, at))]
    rows = labels.Labelled.of(damaged, at).measures
    check = next(c for c in label_checks.judge_clip(rows, 25.0) if c.measure == JUDGED["beside"])
    assert check.verdict == FAIL and "first at 0.20 s" in check.message and "--background_ref" in check.message


def test_what_the_picture_cuts_off_is_no_bite():
    at = [points(80 + i, 36) for i in range(4)]  # the crown lies above the picture
    assert verdicts([truth(p) for p in at], at)["bite"] == GOOD


def test_a_bite_that_may_be_hair_is_filled_and_one_that_is_not_stays():
    landmarks = points()
    u, v = segment.head_coordinates(landmarks, SIZE, SIZE)
    head = truth(landmarks) == LABEL_HEAD
    bitten = head & ~((np.abs(u) < 0.25) & (v > 1.1))
    everywhere = np.ones_like(head)
    assert iou(label_repair.fill_crown(bitten, everywhere, u, v), head) > 0.98 > iou(bitten, head) + 0.02
    assert np.array_equal(label_repair.fill_crown(bitten, ~everywhere, u, v), bitten)
    assert np.array_equal(label_repair.fill_crown(head, everywhere, u, v), head)


def test_frames_that_differ_from_their_neighbours_in_time_are_outvoted():
    frames, at = moving_clip()
    u, v = segment.head_coordinates(at[5], SIZE, SIZE)
    frames[5][(u > 0.3) & (v > 0.5)] = LABEL_BACKGROUND
    frames[8][30:50, 112:122] = LABEL_HEAD
    mended, exact = label_repair.steady(frames, at), moving_clip()[0]
    for i in (5, 8):
        assert iou(mended[i] == LABEL_HEAD, exact[i] == LABEL_HEAD) > 0.97
    assert label_repair.steady(frames[:2], at[:2])[0] is frames[0]


@pytest.mark.parametrize("long_hair", [False, True])
def test_only_hair_that_hangs_from_the_crown_is_head_below_the_jaw(long_hair):
    """What has the colour of hair beside the neck is a collar or a shoulder, unless locks lead to it."""
    landmarks = points()
    u, v = segment.head_coordinates(landmarks, SIZE, SIZE)
    label, oval = truth(landmarks, long_hair), segment.oval_mask(landmarks, SIZE, SIZE)
    coloured = ((label == LABEL_HEAD) & ~oval) | ((label == LABEL_TORSO) & (v < -0.9))
    if long_hair:
        coloured &= ~((label == LABEL_TORSO) & (v < -0.9))
    head = label_repair.head_of(label > 0, coloured, label == LABEL_TORSO, oval, u, v, HALF)
    assert iou(head, label == LABEL_HEAD) > 0.93


def learnt_labels(pictures: list[np.ndarray], at: list[np.ndarray]) -> list[np.ndarray]:
    colours = segment.learn(pictures, at)
    return [
        labels.decide(segment.guided(segment.posterior(colours, rgb, p), labels.grey(rgb)), p)
        for rgb, p in zip(pictures, at, strict=True)
    ]


def test_a_white_collar_is_not_head():
    frames, at = moving_clip(8)
    rng, wall = np.random.default_rng(0), np.full((SIZE, SIZE, 3), (60, 110, 190), np.float32)
    found = learnt_labels([drawn(p, label, wall, rng) for label, p in zip(frames, at, strict=True)], at)
    for made, label in zip(found, frames, strict=True):
        assert iou(made == LABEL_HEAD, label == LABEL_HEAD) > 0.9
        assert iou(made == LABEL_TORSO, label == LABEL_TORSO) > 0.9 and iou(made > 0, label > 0) > 0.93


def test_scenery_behind_a_moving_camera_is_not_the_person():
    frames, at = moving_clip(8)
    rng = np.random.default_rng(1)
    wide = scenery(rng)
    pictures = [
        drawn(p, label, wide[:, 20 + 23 * i : 20 + 23 * i + SIZE], rng)
        for i, (label, p) in enumerate(zip(frames, at, strict=True))
    ]
    pairs = list(zip(learnt_labels(pictures, at), frames, strict=True))
    heads = [iou(made == LABEL_HEAD, label == LABEL_HEAD) for made, label in pairs]
    people = [iou(made > 0, label > 0) for made, label in pairs]
    assert np.mean(heads) > 0.85 and min(heads) > 0.75
    assert np.mean(people) > 0.9 and min(people) > 0.85


def test_movement_of_the_background_is_measured_and_light_and_noise_are_not():
    rng = np.random.default_rng(2)
    wide, everywhere = scenery(rng).astype(np.uint8), np.ones((10, 60, 60), bool)
    still = np.stack([np.clip(wide[:60, :60] * 0.9 + 4 * i + rng.normal(0, 4, (60, 60, 3)), 0, 255) for i in range(10)])
    panned = np.stack([wide[40:100, 9 * i : 9 * i + 60] for i in range(10)])
    assert plate.moved_share(still.astype(np.uint8), everywhere) < plate.MOVING / 4
    assert plate.moved_share(panned, everywhere) > 2 * plate.MOVING
    assert plate.moved_share(panned, ~everywhere) == 0
    crossing = still.astype(np.uint8)
    crossing[:, 20:40, 20:40] = rng.integers(0, 255, (10, 20, 20, 3))  # the person moves, nothing else
    behind = everywhere.copy()
    behind[:, 20:40, 20:40] = False
    assert plate.moved_share(crossing, behind) < plate.MOVING / 4


class Here:
    """An executor that works at once, in this process."""

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def stored(folder, pictures, at):
    (folder / "frames").mkdir(), (folder / "track").mkdir()
    chunks.write_chunk(folder / "frames", 0, chunks.pack("image", [encode_jpeg(rgb, 95) for rgb in pictures]))
    chunks.write_chunk(folder / "track", 0, {"landmarks_px": np.stack(at).astype(np.float32)})
    return folder / "frames", folder / "track"


@pytest.mark.heavy
@pytest.mark.parametrize("pans", [False, True])
def test_the_stages_write_what_they_measured(tmp_path, pans):
    labelled, at = moving_clip(10)
    rng = np.random.default_rng(3)
    wide = scenery(rng)
    pictures = [
        drawn(p, label, wide[:, 20 + 19 * i * pans :][:, :SIZE], rng)
        for i, (label, p) in enumerate(zip(labelled, at, strict=True))
    ]
    frames, track = stored(tmp_path, pictures, at)
    for name in ("labels", "plate"):
        (tmp_path / name).mkdir()
    labels.labels(tmp_path / "labels", frames, track, 10, labels.parse_method("auto"), Here(), 25.0)
    plate.plate(tmp_path / "plate", frames, tmp_path / "labels", 10)
    found = checks.read(tmp_path / "labels")
    assert {c.stage for c in found} == {"labels"} and len(found) == len(label_checks.MEASURES)
    assert FAIL not in {c.verdict for c in found}
    background = next(c for c in checks.read(tmp_path / "plate") if c.stage == "background")
    assert background.verdict == (WARN if pans else GOOD)
    assert chunks.column(tmp_path / "labels", 10, "measures").shape == (10, len(label_checks.MEASURES))
    assert decode_png(chunks.picture(tmp_path / "labels", 3, "label")).shape == (SIZE, SIZE)
    json.loads((tmp_path / "plate" / "checks.json").read_text())


def test_the_contact_sheet_shows_and_marks_frames_that_do_not_pass():
    marked = np.zeros((100, len(label_checks.MEASURES)), bool)
    marked[37, 2] = True
    assert qa.shown_frames(100, marked) == [0, 20, 37, 40, 59, 79, 99]
    assert qa.shown_frames(100, ~marked & False) == [0, 20, 40, 59, 79, 99]
    tile = np.zeros((qa.TILE, qa.TILE, 3), np.uint8)
    shown = qa.mark(tile, 37, ["neck labelled head"])
    assert (shown[1] == qa.WRONG).all(-1).sum() > 100 and (shown[-40:] > 200).all(-1).any() and not tile.any()
