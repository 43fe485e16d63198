"""The synthetic subject's truth: pictures, depth, labels and landmarks all come from one geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from tkjax import contract, synthetic
from tkjax.errors import UserError
from tkjax.media import video
from tkjax.media.images import decode_png, decode_rgb
from tkjax.synthetic import controls, landmarks, render, shape

SIZE = 96


@pytest.fixture(scope="module")
def clip():
    """Six frames far apart, with their speech's widest and a shut mouth, and a blink."""
    _, p = synthetic.speak(3, 6.0, size=SIZE)
    aperture = p.expression[:, contract.BLENDSHAPES.index("jawOpen")]
    keep = sorted({0, int(aperture.argmax()), int(p.eye_closed.argmax()), 60, 100, 149})
    p = p.take(keep)
    return p, list(p.frames())


def _points_of(p, i, frame):
    """(pixels with a depth, their 3-D points in head axes in cm) by the contract's camera alone."""
    v, u = np.nonzero(np.isfinite(frame["depth"]))
    z = frame["depth"][v, u].astype(np.float64)
    fx, fy, cx, cy = p.camera.intrinsics.astype(np.float64)
    cam = np.stack([(u + 0.5 - cx) / fx * z, -(v + 0.5 - cy) / fy * z, -z, np.ones_like(z)], 1)
    return (v, u), (cam @ p.cam_to_world[i].astype(np.float64).T)[:, :3] * contract.UNIT_CM


@pytest.mark.heavy
def test_depth_lies_on_the_surface(clip):
    p, frames = clip
    distance_to = jax.jit(shape.head)
    for i, frame in enumerate(frames):
        (v, u), points = _points_of(p, i, frame)
        head = frame["label"][v, u] == contract.LABEL_HEAD
        f = {k: jnp.asarray(x, jnp.float32) for k, x in p.poses[i].controls.items()}
        q = [jnp.asarray(points[head][:, j], jnp.float32) for j in range(3)]
        distance = np.abs(np.asarray(distance_to(*q, f)))
        assert np.percentile(distance, 99) < 0.06  # float16 keeps 1/512 unit = 0.05 cm of a depth above 2


@pytest.mark.heavy
def test_labels_depth_and_alpha_agree(clip):
    p, frames = clip
    plate = p.plate()
    for frame in frames:
        label = frame["label"]
        assert set(np.unique(label)) == {0, 1, 2, 3}
        assert np.array_equal(np.isfinite(frame["depth"]), label > 0)
        inside = (label == contract.LABEL_HEAD).mean()
        assert 0.12 < inside < 0.4
        # a pixel with no head in it shows the torso picture over the plate, to the bit
        a = frame["torso"][..., 3:] / 255.0
        behind = np.round(frame["torso"][..., :3] * a + plate * (1 - a))
        away = frame["alpha"] == 0
        assert np.array_equal(frame["rgb"][away], behind[away].astype(np.uint8))
        assert ((label == 1) & (frame["alpha"] == 0)).sum() == 0
        assert (frame["alpha"][label == 1] > 200).mean() > 0.9
        # neck and torso go on behind the head
        assert (frame["torso"][..., 3] > 0).sum() > (label > 1).sum() + 20


@pytest.mark.heavy
def test_landmarks_lie_on_the_regions_they_name(clip):
    p, frames = clip
    landmarks_px = p.landmarks_px()
    boxes = contract.boxes_from_landmarks68(landmarks_px, SIZE, SIZE)
    for i, frame in enumerate(frames):
        named = landmarks_px[i, 17:]  # all but the contour, which lies on the outline
        v, u = np.floor(named[:, 1]).astype(int), np.floor(named[:, 0]).astype(int)
        assert (frame["label"][v, u] == contract.LABEL_HEAD).all()
        # visible points: nose bridge and tip, eyes, lips lie at the depth of the picture
        world = p.landmarks_world()[i, 17:]
        camera = np.linalg.inv(p.cam_to_world[i])
        z = -(world @ camera[2, :3] + camera[2, 3])
        shown = frame["depth"][v, u].astype(np.float32)
        near = np.abs(z - shown) * contract.UNIT_CM
        assert np.median(near) < 0.25 and near[10:14].max() < 0.8
        x0, y0, x1, y1 = boxes["lips_box_px"][i]
        lips = np.floor(landmarks_px[i, 48:60])  # the box's rule halves whole pixels, so one may stick out
        assert x0 - 1 <= lips[:, 0].min() and lips[:, 0].max() <= x1 + 1
        assert y0 - 1 <= lips[:, 1].min() and lips[:, 1].max() <= y1 + 1


@pytest.mark.heavy
def test_lids_and_lips_of_the_landmarks_follow_the_expression():
    look = controls.looks(0)

    def points(**expression):
        return landmarks.landmarks_head([controls.frame_controls(expression, np.zeros(2), look)])[0]

    rest, shut, wide = points(), points(eyeBlinkLeft=1, eyeBlinkRight=1), points(jawOpen=0.7)
    for eye, upper, lower in ((slice(36, 42), (37, 38), (41, 40)), (slice(42, 48), (43, 44), (47, 46))):
        assert all(rest[u, 1] - rest[w, 1] > 0.5 for u, w in zip(upper, lower))
        assert all(abs(shut[u, 1] - shut[w, 1]) < 0.1 for u, w in zip(upper, lower))
        assert np.allclose(wide[eye], rest[eye], atol=0.05)
    assert wide[8, 1] < rest[8, 1] - 1.0  # the chin falls
    assert wide[62, 1] - wide[66, 1] > 1.2 and abs(rest[62, 1] - rest[66, 1]) < 0.05
    assert np.allclose(wide[27:31], rest[27:31], atol=0.02)
    half = points(mouthPucker=0.9)
    assert half[54, 0] - half[48, 0] < rest[54, 0] - rest[48, 0] - 1.0
    mirrored = rest[[16 - i for i in range(17)]] * [-1, 1, 1]
    assert np.allclose(rest[:17], mirrored, atol=1e-3)


def test_moving_flesh_and_resting_it_again_is_the_identity():
    f = controls.frame_controls({"jawOpen": 0.6, "mouthStretchLeft": 0.5}, np.zeros(2), controls.looks(1))
    f = {k: jnp.asarray(v, jnp.float32) for k, v in f.items()}
    rest = jnp.asarray(landmarks._CONTOUR, jnp.float32)
    moved = landmarks._moved(rest, f)
    again = jnp.stack(shape.to_rest(moved[:, 0], moved[:, 1], moved[:, 2], f), -1)
    assert float(jnp.abs(again - rest).max()) < 1e-2


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [0, 2, 5])
def test_sphere_tracing_finds_what_tiny_steps_find(seed):
    look = controls.looks(seed)
    expression = {"jawOpen": 0.6, "mouthStretchLeft": 0.3, "eyeBlinkLeft": 0.4}
    camera = render.portrait_camera(64, 64)
    view = render._View(
        camera, render.Pose(np.eye(4), controls.frame_controls(expression, np.zeros(2), look), np.zeros(3))
    )
    rng = np.random.default_rng(seed)
    d, t = view.head_hits(camera.directions(rng.uniform([14, 2], [50, 54], (400, 2))))
    steps = np.arange(62.0, 105.0, 0.03, dtype=np.float32)
    p = view.head.origin[:, None, None] + d.T[:, None, :] * steps[None, :, None]
    inside = np.asarray(render._distance(view.head.f.vector, p, view.head.f.layout, "head")) < 0
    first = np.where(inside.any(0), steps[inside.argmax(0)], np.nan)
    assert (np.isfinite(first) == np.isfinite(t)).mean() > 0.98
    both = np.isfinite(first) & np.isfinite(t)
    assert both.sum() > 150 and (np.abs(first - t)[both] < 0.15).mean() > 0.98


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(8))
def test_the_head_lies_inside_its_bound(seed):
    rng = np.random.default_rng(seed)
    expression = {"jawOpen": rng.uniform(), "mouthPucker": rng.uniform(), "mouthSmileLeft": rng.uniform()}
    f = controls.frame_controls(expression, np.zeros(2), controls.looks(seed))
    centre, radii = shape.bound(f)
    way = rng.normal(size=(4000, 3))
    p = centre + radii * way / np.linalg.norm(way, axis=1, keepdims=True)
    p = p[p[:, 1] > -16]
    f = {k: jnp.asarray(v, jnp.float32) for k, v in f.items()}
    d = jax.jit(shape.head)(*(jnp.asarray(p[:, i], jnp.float32) for i in range(3)), f)
    assert float(d.min()) > 0


def test_the_rigid_points_of_the_canonical_face_lie_near_the_skin(data_dir):
    with np.load(data_dir / "face" / "canonical_face.npz", allow_pickle=False) as face:
        rigid = face["vertices"][face["procrustes_ids"]]
    look = {**controls.looks(0), "narrow": 1.0, "traits": np.zeros(5)}
    f = {k: jnp.asarray(v, jnp.float32) for k, v in controls.frame_controls({}, np.zeros(2), look).items()}
    d = np.abs(np.asarray(shape.rest_skin(*(jnp.asarray(rigid[:, i]) for i in range(3)), f)))
    assert d.mean() < 0.1 and d.max() < 0.4  # cm


@pytest.mark.heavy
def test_opening_measured_on_true_frames_follows_the_jaw():
    _, p = synthetic.speak(8, 6.0, size=128)
    p = p.take(range(0, 150, 3))
    opening, boxes = synthetic.measure_opening(p, smooth=False)
    jaw, close = (p.expression[:, contract.BLENDSHAPES.index(k)] for k in ("jawOpen", "mouthClose"))
    correlation = synthetic.correlation(opening, jaw - close)
    print(f"mouth opening on true frames against the lip aperture: r = {correlation:.3f}")
    assert correlation > 0.9
    assert opening[(jaw - close) < 0.01].max() < 0.05 < 0.15 < opening.max()
    assert boxes.shape == (50, 4)


@pytest.mark.heavy
def test_true_opening_in_given_poses_is_what_the_performance_shows():
    _, tracks = synthetic.speech(4, 1.0)
    tracks = {k: v[::5] for k, v in tracks.items()}
    p = synthetic.perform(tracks, seed=4, subject_seed=1, size=SIZE)
    shown, _ = synthetic.measure_opening(p)
    again = synthetic.true_opening(tracks, p.cam_to_world, subject_seed=1, size=SIZE, seed=4)
    assert np.abs(again.sharp - shown).max() < 0.02
    assert again.opening.mean() == pytest.approx(again.sharp.mean(), abs=1e-6)
    assert np.array_equal(again.boxes, p.boxes()["lips_box_px"])


@pytest.mark.slow  # 14 s: of the measure, not of an avatar
def test_blur_moves_the_count_of_dark_pixels_but_not_the_linear_opening():
    _, tracks = synthetic.speech(6, 2.0)
    p = synthetic.perform({k: v[::2] for k, v in tracks.items()}, seed=6, size=256)
    truth = synthetic.true_opening({k: v[::2] for k, v in tracks.items()}, p.cam_to_world, seed=6, size=256)
    around = truth.boxes + np.array([-8, -8, 8, 8])
    pictures = [Image.fromarray(f["rgb"]) for f in p.frames(around)]
    boxes = [(8, 8, 8 + b[2] - b[0], 8 + b[3] - b[1]) for b in truth.boxes]

    def means(change):
        changed = [np.asarray(change(picture)) for picture in pictures]
        linear = [truth.measure(c, box) for c, box in zip(changed, boxes)]
        return np.mean(linear), np.mean([synthetic.mouth_opening(c, box) for c, box in zip(changed, boxes)]), linear

    sharp, counted, curve = means(lambda picture: picture)
    assert np.corrcoef(curve, truth.sharp)[0, 1] > 0.95
    for sigma in (0.5, 0.7, 1.0):
        linear, few, blurred = means(lambda picture, sigma=sigma: picture.filter(ImageFilter.GaussianBlur(sigma)))
        assert linear / sharp == pytest.approx(1, abs=0.02)
        assert np.corrcoef(curve, blurred)[0, 1] > 0.99
        assert few / counted < 1 - 0.13 * sigma
    cast = np.array([3, -3, 2])  # on skin and mouth alike
    assert means(lambda picture: np.clip(np.asarray(picture) + cast, 0, 255).astype(np.uint8))[
        0
    ] / sharp == pytest.approx(1, abs=0.05)
    half = {k: 0.5 * v[::2] if k == "jawOpen" else v[::2] for k, v in tracks.items()}
    shut = [f["rgb"] for f in synthetic.perform(half, seed=6, size=256, cam_to_world=p.cam_to_world).frames(around)]
    linear, counted_shut = (
        np.mean([f(c, b) for c, b in zip(shut, boxes)]) for f in (truth.measure, synthetic.mouth_opening)
    )
    assert linear / sharp == pytest.approx(counted_shut / counted, abs=0.1) and linear / sharp < 0.75


@pytest.mark.heavy
def test_a_box_of_a_frame_is_the_same_pixels_as_the_whole(clip):
    p, frames = clip
    x0, y0, x1, y1 = p.boxes()["face_box_px"][1]
    part = next(p.take([1]).frames([(x0, y0, x1, y1)], workers=1))
    difference = np.abs(part["rgb"].astype(int) - frames[1]["rgb"][y0:y1, x0:x1].astype(int))
    assert np.percentile(difference[1:-1, 1:-1], 99.5) <= 1


@pytest.mark.heavy
def test_make_writes_a_clip_with_sound_and_a_dataset_twice_the_same(tmp_path):
    a = synthetic.make(tmp_path / "a", seconds=0.32, size=48, seed=9, progress=False)
    b = synthetic.make(tmp_path / "b", seconds=0.32, size=48, seed=9, progress=False)
    manifest = contract.validate(a)
    assert manifest["files"] == contract.validate(b)["files"]  # every file's sha256
    assert manifest["n_frames"] == 8 and manifest["landmark_scheme"] == "ibug68"
    assert {"depth", "alpha_bytes"} <= set(manifest["members"])
    info = video.probe(tmp_path / "a" / "clip.mp4")
    assert (info.n_frames, info.width, info.height, info.has_audio) == (8, 48, 48, True)
    data = contract.Dataset(a)
    rgb = decode_rgb(data.frame_bytes("image_bytes", 5))
    label = decode_png(data.frame_bytes("label_bytes", 5))
    assert rgb.shape == (48, 48, 3) and set(np.unique(label)) <= {0, 1, 2, 3}
    assert data.column("expression").shape == (8, 52) and (data.column("confidence") == 1).all()


def test_bad_options_are_one_sentence(tmp_path):
    for bad in ({"seconds": 0}, {"size": 7}, {"motion": -1}):
        with pytest.raises(UserError, match=next(iter(bad))):
            synthetic.make(tmp_path, **bad)
