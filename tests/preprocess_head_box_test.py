"""The square that shows the head: known values of the original's rule, and what must not disturb ours."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.__main__ import main
from preprocess.faces import landmarker
from preprocess.faces.face_model import FACE_OVAL
from preprocess.framing import head_box, looks
from preprocess.workers import pool
from tkjax import contract
from tkjax.errors import UserError
from tkjax.media import images, video

H, W = 1080, 1920


def face(x: float, y: float, tall: float) -> np.ndarray:
    """[478,2] landmarks: the outline an ellipse about (x, y), `tall` from forehead to chin."""
    out = np.full((478, 2), [x, y], np.float64)
    angle = np.linspace(0, 2 * np.pi, len(FACE_OVAL), endpoint=False)
    out[list(FACE_OVAL)] = np.stack([x + 0.37 * tall * np.sin(angle), y - 0.5 * tall * np.cos(angle)], -1)
    out[10], out[152] = (x, y - tall / 2), (x, y + tall / 2)
    out[234], out[454] = (x - 0.37 * tall, y), (x + 0.37 * tall, y)
    return out


def person(x: float, y: float, tall: float, hair: float = 0.3, height: int = H, width: int = W) -> np.ndarray:
    """Mask of a head with hair reaching `hair` heights of the face beyond it, a neck and a body below."""
    row, column = np.mgrid[:height, :width] + 0.5
    head = ((column - x) / (0.37 + hair)) ** 2 + ((row - y) / (0.5 + hair)) ** 2 < tall**2
    neck = (np.abs(column - x) < 0.2 * tall) & (row > y)
    body = (np.abs(column - x) < 1.2 * tall) & (row > y + 0.8 * tall)
    return head | neck | body


# ---------------------------------------------------------------- the original's rule


def matte_with(top: int, columns: dict[int, int]) -> np.ndarray:
    """A matte whose topmost row is `top`, and whose topmost row in each of the columns is as given."""
    m = np.zeros((H, W), bool)
    m[top, 955:965] = True
    for column, row in columns.items():
        m[row:, column] = True
    return m


def body(ears=(900.4, 1020.6), shoulders=((800, 570), (1120, 575)), scores=0.9, box=(880, 150, 1040, 400)):
    points = np.zeros((17, 3))
    points[3], points[4] = (ears[0], 260, scores), (ears[1], 261, scores)
    points[5], points[6] = (*shoulders[0], scores), (*shoulders[1], scores)
    five = np.array([[900, 250], [1000, 250], [950, 300], [926, 352], [1000, 352]], float)
    return head_box.Body(tuple(map(float, box)), five, points)


def test_one_frame_gives_the_known_box():
    matte = matte_with(120, {800: 560, 1120: 540})
    b = body()
    centre, edge, box = head_box.original_frame(b.points[3:5, :2], b.points[5:7, :2], b.face_box, matte)
    assert (centre, edge, box) == ((960, 340), 462, (729, 109, 1191, 571))
    assert head_box.original_rule([(b, matte)], False, "clip") == (729, 109, 1191, 571)


def test_the_union_has_the_known_box():
    boxes = np.array([(720, 100, 1190, 570), (724, 104, 1198, 578), (700, 90, 1180, 570)])
    assert head_box.union(boxes) == (705, 90, 1193, 578)


def test_only_the_first_frame_gives_the_known_box():
    matte = matte_with(120, {800: 560, 1120: 540})
    assert np.allclose(body().face_points.mean(0), (955.2, 300.8))
    assert head_box.original_rule([(body(), matte), (None, None)], True, "clip") == (724, 69, 1186, 531)


def test_frames_at_the_extremes_are_left_out_and_all_stay_where_none_would():
    boxes = np.array([(100 + k, 100, 300 + k, 300) for k in range(40)] + [(900, 100, 1100, 300)])
    keep = head_box.kept(boxes)
    assert not keep[-1] and not keep[0] and keep[5:35].all()
    assert head_box.kept(np.array([(0, 0, 10, 10), (5, 0, 25, 20)])).any()
    assert head_box.kept(np.array([(0, 0, 10, 10)])).all()


@pytest.mark.parametrize("shoulders", [((-1, -1), (1120, 575)), ((5000, 10), (1120, 575)), ((700, 10), (1120, 575))])
def test_shoulders_outside_the_frame_or_the_matte_are_skipped(shoulders):
    b = body(shoulders=shoulders)
    matte = matte_with(120, {1120: 560})
    *_, box = head_box.original_frame(b.points[3:5, :2], b.points[5:7, :2], b.face_box, matte)
    assert box == (729, 109, 1191, 571)  # the right shoulder's column alone says 560


def test_points_with_a_low_score_do_not_count():
    known, matte = (729, 109, 1191, 571), matte_with(120, {800: 560, 1120: 540})
    assert head_box.original_rule([(body(scores=0.3), matte)], False, "clip") == known
    *_, without = head_box.original_frame(None, [], body().face_box, matte)
    assert head_box.original_rule([(body(scores=0.29), matte)], False, "clip") == without != known


def test_a_clip_without_one_usable_frame_is_one_sentence():
    matte = matte_with(120, {800: 560})
    two = head_box.Body(body().face_box, None, body().points, 2)
    for frames, words in (
        ([(two, matte)], "2 bodies"),
        ([(head_box.Body(None, None, body().points), matte)], "face is missing"),
        ([(body(), np.zeros((H, W), bool))], "stands out"),
        ([], "every 25th"),
    ):
        with pytest.raises(UserError, match=words) as e:
            head_box.original_rule(frames, False, "me.mp4")
        assert "\n" not in str(e.value) and "me.mp4" in str(e.value)


@given(
    st.integers(-600, 2500), st.integers(-600, 2500), st.integers(2, 3000), st.integers(8, 1200), st.integers(8, 2000)
)
def test_a_clamped_box_is_even_square_inside_and_as_near_as_can_be(x, y, side, height, width):
    x0, y0, x1, y1 = head_box.clamp((x, y, x + side, y + side), height, width)
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert x1 - x0 == y1 - y0 and (x1 - x0) % 2 == 0
    if side % 2 == 0 and 0 <= x <= width - side and 0 <= y <= height - side:
        assert (x0, y0, x1, y1) == (x, y, x + side, y + side)
    assert x1 - x0 == min(side, height, width) // 2 * 2


# ---------------------------------------------------------------- the file of points


def test_points_of_json_and_npz_are_the_same(tmp_path):
    b = body()
    face_points, points = b.face_points.tolist(), b.points.tolist()
    faces = [{"box": [0, 0, 1, 1], "score": 0.2, "points": face_points}]
    faces += [{"box": list(b.face_box), "score": 0.8, "points": face_points}]
    row = {"frame": 25, "face": faces, "body": points}
    (tmp_path / "p.json").write_text(json.dumps({"frames": [{"frame": 0, "face": None, "body": None}, row]}))
    nothing = np.full_like(b.points, np.nan)
    np.savez(tmp_path / "p.npz", frame=[0, 25], face_box=[[np.nan] * 4, b.face_box],
             face_points=[np.full((5, 2), np.nan), b.face_points], body_points=[nothing, b.points])  # fmt: skip
    one, two = head_box.read_points(tmp_path / "p.json"), head_box.read_points(tmp_path / "p.npz")
    assert not one.only_first and not two.only_first
    for bodies in (one.bodies, two.bodies):
        assert bodies[0].face_box is None and bodies[0].points is None
        assert bodies[25].face_box == b.face_box and np.array_equal(bodies[25].points, b.points)


BAD_FRAMES = ('{"frame": 0, "face": {"box": [1]}}', '{"face": null, "body": null}', '{"frame": 0, "body": [[1]]}', "")


@pytest.mark.parametrize("text", ["", "[]", "{}", *[f'{{"frames": [{f}]}}' for f in BAD_FRAMES]])
def test_files_that_are_no_points_are_one_sentence(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match="--body_points") as e:
        head_box.read_points(tmp_path / "p.json")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="No such file"):
        head_box.read_points(tmp_path / "none.json")


# ---------------------------------------------------------------- our rule


def test_the_box_holds_head_hair_neck_and_shoulders():
    x, y, tall = 900, 300, 200
    lm = face(x, y, tall)
    reach = head_box.reaches(person(x, y, tall), lm)
    assert np.allclose(reach, 0.3, atol=0.03)
    x0, y0, x1, y1 = head_box.default_box(lm[None], H, W, reach[None])
    assert y0 < y - 0.8 * tall and y1 > y + tall  # above the hair; half a face below the chin
    assert x0 < x - 0.67 * tall and x1 > x + 0.67 * tall
    assert 0.3 < tall / (y1 - y0) < 0.5


def test_more_hair_makes_a_larger_box_but_not_without_bounds():
    x, y, tall = 900, 500, 160

    def side(hair):
        lm = face(x, y, tall)
        x0, _, x1, _ = head_box.default_box(lm[None], H, W, head_box.reaches(person(x, y, tall, hair), lm)[None])
        return x1 - x0

    assert side(0.2) <= side(0.5) < side(0.9) <= side(1.6) == side(2.4)


def test_a_raised_hand_and_flyaway_hair_change_nothing():
    x, y, tall = 700, 500, 160
    lm, plain = face(x, y, tall), person(x, y, tall)
    hand = plain.copy()
    hand[200:, x + 180 : x + 240] = True  # an arm beside the head, up from the shoulder
    strands = plain.copy()
    for k in range(20):
        strands[150 : y - 100, x - 100 + 10 * k] = True
    apart = plain.copy()
    apart[100:900, 1500:1700] = True  # somebody else
    for mask in (hand, strands, apart):
        assert np.abs(head_box.reaches(mask, lm) - head_box.reaches(plain, lm)).max() < 0.06


def test_a_hand_that_touches_the_head_in_some_looks_changes_nothing():
    x, y, tall = 700, 500, 160
    lm, plain = face(x, y, tall), person(x, y, tall)
    touching = plain.copy()
    touching[y - 60 : y + 20, x : x + 400] = True
    some = [plain] * 15 + [touching] * 5
    landmarks = np.stack([lm] * 20)
    with_hand = head_box.default_box(landmarks, H, W, np.array([head_box.reaches(m, lm) for m in some]))
    assert with_hand == head_box.default_box(landmarks, H, W, np.array([head_box.reaches(plain, lm)] * 20))


def test_the_box_covers_where_the_head_goes():
    landmarks = np.stack([face(x, 400, 150) for x in np.linspace(600, 800, 40)])
    x0, _, x1, _ = head_box.default_box(landmarks, H, W, np.full((40, 3), 0.3))
    assert x0 < 610 - 0.6 * 150 and x1 > 790 + 0.6 * 150


@given(st.integers(0, W), st.integers(0, H), st.floats(20, 1500))
def test_any_face_gives_a_legal_box(x, y, tall):
    x0, y0, x1, y1 = head_box.default_box(face(x, y, tall)[None], H, W)
    assert 0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H and x1 - x0 == y1 - y0 and (x1 - x0) % 2 == 0


def test_masks_without_a_person_still_give_the_face():
    lm = face(400, 400, 100)
    assert (head_box.reaches(np.zeros((H, W), bool), lm) <= 0.02).all()
    far_out = face(-500, -500, 100)
    assert np.isfinite(head_box.reaches(np.zeros((H, W), bool), far_out)).all()


@given(st.integers(200, 1200), st.integers(200, 2400))
def test_tiles_cover_the_picture_and_halves_of_faces_are_whole_in_another(height, width):
    for share in looks.TILES:
        side = round(share * min(height, width))
        level = [t for t in looks.tiles(height, width) if t[2] == side]
        if not level:
            continue
        covered = np.zeros((height // 8 + 1, width // 8 + 1), bool)
        for x, y, _ in level:
            assert 0 <= x <= width - side and 0 <= y <= height - side
            covered[y // 8 : (y + side) // 8 + 1, x // 8 : (x + side) // 8 + 1] = True
        assert covered.all()


@pytest.mark.heavy
def test_a_small_face_in_a_wide_picture_is_found(data_dir, models_dir, tmp_path):
    frame = next(video.read_frames(data_dir / "talking" / "may_portrait_512.mp4"))
    model = str(models_dir / "face_landmarker.task")
    wide = np.full((720, 1280, 3), 120, np.uint8)
    wide[100:260, 900:1060] = images.resize_area(frame, (160, 160))
    with pool(tmp_path / "log") as workers:
        alone = workers.submit(landmarker.detect, model, [frame]).result().landmarks[0, :, :2]
        assert not workers.submit(landmarker.detect, model, [wide]).result().found[0]  # it looks at 128 pixels
        found = workers.submit(looks.detect, model, wide).result()
        nobody = workers.submit(looks.detect, model, np.full((480, 640, 3), 90, np.uint8)).result()
    assert found.found[0] and not nobody.found[0]
    assert np.abs(found.landmarks[0, :, :2] - (alone * 160 / 512 + [900, 100])).mean() < 2


@pytest.mark.slow  # a whole run of the command; what it is made of is tested above and in preprocess_clip_test
def test_a_small_person_in_a_wide_picture_becomes_a_dataset_with_its_whole_frames(data_dir, models_dir, tmp_path):
    frames = list(video.read_frames(data_dir / "talking" / "may_portrait_512.mp4", 0, 60))
    sound = iter([0.1 * np.sin(np.arange(640) / 9).astype(np.float32)] * len(frames))
    with video.VideoWriter(tmp_path / "clip.mp4", 480, 854, audio=sound) as out:
        for f in frames:
            small = images.resize_area(f, (240, 240))
            out.write(cv2.copyMakeBorder(small, 60, 180, 400, 214, cv2.BORDER_REPLICATE))
    args = ["--video", str(tmp_path / "clip.mp4"), "--workdir", str(tmp_path / "W"), "--models_dir", str(models_dir)]
    assert main(args) == 0
    d = contract.Dataset(tmp_path / "W" / "dataset")
    x0, y0, x1, y1 = d.manifest["source"]["crop_px"]
    assert 340 < x0 < 430 and 20 < y0 < 70 and 610 < x1 < 700 and x1 - x0 == y1 - y0 == d.width, (x0, y0, x1, y1)
    assert d.manifest["source"]["full_size"] == [854, 480] and "background_trt" not in d.manifest["source"]
    assert "alpha_bytes" not in d.manifest["members"] and "full_alpha.mp4" not in d.manifest["files"]
    for k, full in enumerate(video.read_frames(d.path("full.mp4"))):
        if k % 20 == 0:
            crop = images.decode_rgb(d.frame_bytes("image_bytes", k))
            assert np.abs(full[y0:y1, x0:x1].astype(int) - crop).mean() < 2
    assert k == d.n_frames - 1 == 59
