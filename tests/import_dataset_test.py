"""Folders of the older projects become datasets: same cameras, same pictures, nothing shifts, holes are named."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.importers import dataset, folder_layout, frame_pictures, track_columns
from preprocess.importers.folder_layout import Notes
from tests import er_layout
from tests.imported_folder import SEQUENCE, N, assert_same_frames, copy, imported, windows
from tkjax import contract, signals
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.media import audio, images
from tkjax.signals import Use


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return er_layout.portrait(tmp_path_factory.mktemp("native") / "dataset", N)


@pytest.fixture(scope="module")
def whole(native, tmp_path_factory):
    """An ER-NeRF folder without holes, and its import."""
    root = tmp_path_factory.mktemp("er")
    folder = er_layout.export(native, root / "Obama", {"aud_ds.npy": windows()})
    return folder, contract.Dataset(dataset.run(folder, root / "w" / "dataset"))


# ---------------------------------------------------------------- whole folders


def test_the_round_trip_is_exact(native, whole):
    a, b = contract.Dataset(native), whole[1]
    for name in ("cam_to_world", "confidence", *contract.BOXES):
        np.testing.assert_allclose(a.column(name), b.column(name), atol=1e-5)
    np.testing.assert_allclose(a.column("landmarks_px"), b.column("landmarks_px"), atol=2e-6)
    np.testing.assert_allclose(a.column("eye_closed"), b.column("eye_closed"), atol=1e-6)
    assert a.intrinsics == b.intrinsics and a.manifest["split"] == b.manifest["split"]
    for i in range(N):
        assert a.frame_bytes("image_bytes", i) == b.frame_bytes("image_bytes", i)  # the raw frame's own bytes
        assert a.frame_bytes("torso_bytes", i) == b.frame_bytes("torso_bytes", i)
        labels = [images.decode_png(d.frame_bytes("label_bytes", i)) for d in (a, b)]
        np.testing.assert_array_equal(*labels)
    f = b.audio_features("deepspeech")
    np.testing.assert_array_equal(feature_arrays.to_windows(f, N), windows().astype(np.float32))
    pcm = [audio.read_audio(d.path("audio.wav")) for d in (a, b)]
    np.testing.assert_allclose(*pcm, atol=2e-4)
    assert len(pcm[1]) == N * 640 and "logmel" in b.manifest["audio"]


def test_the_loader_makes_the_targets_of_the_folder(whole, tmp_path):
    folder, d = whole
    clip = DatasetClip(d.root, tmp_path / "cache")
    for i in range(N):
        given = images.read_rgb(folder / f"gt_imgs/{i}.jpg")
        assert frame_pictures.psnr(clip.target(i), given) > 38


def test_the_second_import_changes_nothing_and_other_data_is_safe(whole, native, tmp_path, capsys):
    folder, d = whole
    before = (d.root / "manifest.json").read_bytes()
    dataset.run(folder, d.root)
    assert "unchanged" in capsys.readouterr().out and (d.root / "manifest.json").read_bytes() == before
    other = er_layout.export(er_layout.portrait(tmp_path / "n2", 12, seed=9), tmp_path / "other")
    with pytest.raises(UserError, match="of another source"):
        dataset.run(other, d.root)
    with pytest.raises(UserError, match="of another source"):
        dataset.run(folder, shutil.copytree(native, tmp_path / "preprocessed"))
    assert (d.root / "manifest.json").read_bytes() == before


def test_a_source_is_known_by_most_of_its_first_pictures(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    imported(folder, tmp_path)
    for name in ("ori_imgs/0.jpg", "ori_imgs/2.jpg"):
        (folder / name).unlink()
    d, text = imported(folder, tmp_path, capsys)  # no refusal
    assert "no raw frame: the target picture stands in for it: 0, 2" in text and d.column("confidence").all()


def test_a_folder_that_was_mended_is_imported_again(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/5.lms").unlink()
    d, _ = imported(folder, tmp_path, capsys)
    assert d.column("confidence")[5] == 0
    shutil.copy(whole[0] / "ori_imgs/5.lms", folder / "ori_imgs/5.lms")
    d, text = imported(folder, tmp_path, capsys)
    assert d.column("confidence").all() and "hole" not in text and "written" in text


@pytest.mark.parametrize("size", [(47, 41), (64, 33)])
def test_odd_sizes_keep_every_pixel(size, tmp_path):
    native = er_layout.portrait(tmp_path / "n", 4, *size)
    d, _ = imported(er_layout.export(native, tmp_path / "f"), tmp_path)
    assert (d.height, d.width) == size and d.intrinsics == contract.Dataset(native).intrinsics


# ---------------------------------------------------------------- recognition


@pytest.mark.heavy
@pytest.mark.parametrize("system", list(folder_layout.SYSTEMS))
def test_each_project_is_known_by_its_files(system, native, tmp_path, capsys):
    name = {"avatar_ernerf": "audio_feat.npy", "er_nerf": "aud_ds.npy"}.get(system, "aud.npy")
    folder = er_layout.export(native, tmp_path / "f", {name: windows()}, system)
    assert folder_layout.recognise(folder)[0] == system
    d, text = imported(folder, tmp_path, capsys)
    a = contract.Dataset(native)
    assert f"recognised: {folder_layout.SYSTEMS[system]} dataset, because of transforms_train.json" in text
    np.testing.assert_allclose(d.landmarks68(), a.landmarks68(), atol=3e-6)  # AD-NeRF's half pixel is undone
    np.testing.assert_allclose(d.intrinsics, a.intrinsics)
    assert ("moved by +0.5" in text) == (system in ("ad_nerf", "nerfblendshape"))
    kind = "hubert" if system == "avatar_ernerf" else "deepspeech"
    np.testing.assert_array_equal(feature_arrays.to_windows(d.audio_features(kind), N), windows().astype(np.float32))
    forced, text = imported(folder, tmp_path, capsys, system="rad_nerf")
    assert "--system=rad_nerf" in text and forced.manifest["source"]["layout"] == "rad_nerf"


def test_what_is_no_folder_of_theirs_is_one_sentence(tmp_path, capsys):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "none", tmp_path / "holiday.jpg"):
        assert dataset.main(["--source", str(path), "--workdir", str(tmp_path / "w")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match=r"transforms_train\.json.*found holiday\.jpg"):
        folder_layout.recognise(tmp_path)
    with pytest.raises(UserError, match="choose one of ad_nerf"):
        folder_layout.recognise(tmp_path, "nerf")
    assert not (tmp_path / "w").exists()


def test_files_that_are_not_used_are_counted(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "logs" / "a").mkdir(parents=True)
    for name in ("logs/a/1.txt", "logs/2.txt", "ori_imgs/99.jpg", "notes.md", "aud.npy"):
        (folder / name).write_bytes(b"1")
    np.save(folder / "aud_eo.npy", np.zeros((N, 16)))
    _, text = imported(folder, tmp_path, capsys)
    left = next(line for line in text.splitlines() if line.startswith("could not use"))
    for said in ("logs/*.txt (2)", "notes.md", "ori_imgs/*.jpg (1)", "aud.npy", "aud_eo.npy"):
        assert said in left
    assert "aud_eo.npy: has shape (14, 16), class labels" in text


# ---------------------------------------------------------------- holes


def test_holes_are_named_and_nothing_else_moves(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/2.lms").unlink()
    (folder / "ori_imgs/3.lms").write_text("1 2\n3 4\n")
    (folder / "ori_imgs/5.jpg").unlink()
    (folder / "gt_imgs/5.jpg").unlink()
    (folder / "parsing/7.png").unlink()
    (folder / "torso_imgs/8.png").write_bytes(b"no picture")
    (folder / "ori_imgs/9.jpg").write_bytes((folder / "ori_imgs/9.jpg").read_bytes()[:200])
    lines = (folder / "au.csv").read_text().splitlines()
    (folder / "au.csv").write_text("\n".join(lines[: 1 + 12]) + "\n")
    np.save(folder / "aud_ds.npy", windows()[:13])
    d, text = imported(folder, tmp_path, capsys)
    good = [0, 1, 4, 6, 10, 11]
    assert_same_frames(d, whole[1], good)
    assert_same_frames(d, whole[1], [8], but=("torso_bytes",))
    np.testing.assert_array_equal(np.flatnonzero(d.column("confidence") == 0), [2, 3, 5, 7])
    np.testing.assert_array_equal(np.flatnonzero(d.column("x_picture_missing")), [5])
    np.testing.assert_array_equal(d.column("cam_to_world"), whole[1].column("cam_to_world"))
    assert d.frame_bytes("image_bytes", 5) == d.frame_bytes("image_bytes", 4)
    holes = {line.split(": ", 1)[1].rsplit(": ", 1)[0]: line.rsplit(": ", 1)[1] for line in text.splitlines() if
             line.startswith("hole")}  # fmt: skip
    found = {next((k for k in holes if part in k), part): part for part in
             ("no .lms", "68 points", "no picture:", "no labels", "torso picture", "cannot be read or has",
              "au.csv has no row", "aud_ds.npy has no window", "stands in for it")}  # fmt: skip
    numbers = {part: holes.get(k, "").split(" (")[0] for k, part in found.items()}
    assert numbers == {
        "no .lms": "2-3", "68 points": "3", "no picture:": "5", "no labels": "7", "torso picture": "8",
        "cannot be read or has": "9", "au.csv has no row": "12-13", "aud_ds.npy has no window": "13",
        "stands in for it": "9",
    }  # fmt: skip


@given(lost=st.sets(st.integers(0, N - 1), max_size=N - 2))
def test_landmarks_of_other_frames_never_move(tmp_path_factory, lost):
    folder = tmp_path_factory.mktemp("lms")
    points = np.random.default_rng(len(lost)).uniform(0, 99, (N, 68, 2))
    for i in set(range(N)) - lost:
        np.savetxt(folder / f"{i}.lms", points[i], "%f")
    notes = Notes()
    out, found = track_columns.landmarks(folder_layout.numbered(folder, (".lms",)), np.arange(N), 0.0, notes)
    kept = sorted(set(range(N)) - lost)
    np.testing.assert_allclose(out[kept], points[kept], atol=1e-5)
    assert sorted(np.flatnonzero(~found)) == sorted(lost) and sum(map(len, notes.holes.values())) == len(lost)
    assert np.isfinite(out).all()


def test_numbers_with_gaps_in_any_order_keep_their_pictures(native, whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for part, drop in (("train", {4, 7}), ("val", set())):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        data["frames"] = [f for f in reversed(data["frames"]) if f["img_id"] not in drop]
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert_same_frames(d, whole[1], [i for i in range(N) if i not in (4, 7)])
    assert d.manifest["split"] == whole[1].manifest["split"]
    np.testing.assert_array_equal(np.flatnonzero(d.column("confidence") == 0), [4, 7])
    assert "not in the json: confidence 0, pose of the nearest frame: 4, 7 (2 frames)" in text


def test_a_clip_that_starts_late_keeps_its_sound(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for part in ("train", "val"):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        data["frames"] = [f for f in data["frames"] if f["img_id"] >= 3]
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert d.n_frames == N - 3 and "img_id 3-13 is frame 0-10" in text
    assert d.train_range == (0, whole[1].train_range[1] - 3)
    for name in ("cam_to_world", "landmarks_px", "eye_closed"):
        np.testing.assert_array_equal(d.column(name), whole[1].column(name)[3:])
    pcm = audio.read_audio(whole[1].path("audio.wav"))
    np.testing.assert_array_equal(audio.read_audio(d.path("audio.wav")), pcm[3 * 640 :])
    f = d.audio_features("deepspeech")
    np.testing.assert_array_equal(f.features, SEQUENCE[6 : 6 + len(f.features)])


@pytest.mark.heavy
@pytest.mark.parametrize("n", [N + 9, N + 2, N + 1, N, N - 1, N - 3])
def test_every_frame_hears_the_windows_that_the_original_gives_it(whole, tmp_path, n):
    """Of arrays of any length, cut from a longer one or whole; zeros where they have no window."""
    folder = copy(whole, tmp_path)
    sequence = np.random.default_rng(n).standard_normal((2 * N + 40, 29)).astype(np.float32)
    array = windows(sequence, n)
    np.save(folder / "aud_ds.npy", array)
    clip = DatasetClip(imported(folder, tmp_path)[0].root, tmp_path / "cache", audio_kind="deepspeech")
    padded = np.concatenate([np.zeros((4, 16, 29)), array, np.zeros((20, 16, 29))])
    for i, heard in enumerate(signals.windows(clip.signals["sound"], np.arange(N), Use("sound", before=4, after=3))):
        np.testing.assert_array_equal(heard, padded[i : i + 8].astype(np.float32), err_msg=f"frame {i}")


def test_aud_id_is_honoured(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    order = np.random.default_rng(1).permutation(N)
    for part in ("train", "val"):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        for frame in data["frames"]:
            frame["aud_id"] = int(order[frame["img_id"]])
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    f = d.audio_features("deepspeech")
    np.testing.assert_array_equal(feature_arrays.to_windows(f, N), windows()[order].astype(np.float32))
    pcm = audio.read_audio(whole[1].path("audio.wav")).reshape(N, 640)
    np.testing.assert_array_equal(audio.read_audio(d.path("audio.wav")).reshape(N, 640), pcm[order])
    assert "does not count up one by one" in text


def test_the_originals_shift_after_a_frame_without_landmarks_is_undone(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/4.lms").unlink()
    frames = []
    for part in ("train", "val"):
        frames += json.loads((folder / f"transforms_{part}.json").read_text())["frames"]
    rows = [f["transform_matrix"] for f in frames if f["img_id"] != 4]  # what the tracker had: one row fewer
    a = len(rows) * 10 // 11
    for part, (lo, hi) in (("train", (0, a)), ("val", (a, len(rows)))):
        path = folder / f"transforms_{part}.json"
        data = json.loads(path.read_text())
        data["frames"] = [{"img_id": i, "aud_id": i, "transform_matrix": rows[i]} for i in range(lo, hi)]
        path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert "stand too early from img_id 4 on" in text and d.n_frames == N
    assert_same_frames(d, whole[1], [i for i in range(N) if i != 4])
    assert d.column("confidence")[4] == 0


def test_a_lost_landmark_file_alone_shifts_nothing(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "ori_imgs/4.lms").unlink()
    for name in ("ori_imgs/13.jpg", "ori_imgs/13.lms", "gt_imgs/13.jpg"):  # as many .lms as the shifted case
        (folder / name).unlink()
    path = folder / "transforms_val.json"
    data = json.loads(path.read_text())
    data["frames"] = [f for f in data["frames"] if f["img_id"] < 12]
    path.write_text(json.dumps(data))
    path = folder / "transforms_train.json"
    d, text = imported(folder, tmp_path, capsys)
    assert "too early" not in text
    assert_same_frames(d, whole[1], [i for i in range(12) if i != 4])


def test_without_sound_or_arrays_there_is_nothing_to_train_on(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    (folder / "aud.wav").unlink()
    d, _ = imported(folder, tmp_path)
    assert set(d.manifest["audio"]) == {"deepspeech"} and "audio.wav" not in d.manifest["files"]
    np.save(folder / "aud_ds.npy", np.zeros((N, 1)))
    with pytest.raises(UserError, match=r"holds no sound .*class labels"):
        imported(folder, tmp_path)
    (folder / "aud_ds.npy").unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert d.manifest["audio"] == {} and "neither sound nor feature arrays" in text


def test_other_arrays_and_bad_numbers_are_taken_as_they_are(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    pairs = np.random.default_rng(0).standard_normal((N - 1, 2, 1024)).astype(np.float32)
    pairs[5] = np.nan
    np.save(folder / "aud_hu.npy", pairs)
    foreign = np.random.default_rng(1).standard_normal((N, 16, 44))  # windows that do not overlap consistently
    np.save(folder / "aud_eo.npy", foreign)
    np.save(folder / "aud.npy", windows())  # the name under which DeepSpeech is extracted
    np.save(folder / "Obama_mel.npy", np.ones((N, 8, 80)))
    d, text = imported(folder, tmp_path, capsys)
    assert set(d.manifest["audio"]) == {"logmel", "deepspeech", "wav2vec2", "hubert", "mel"}
    np.testing.assert_array_equal(
        feature_arrays.to_windows(d.audio_features("wav2vec2"), N), foreign.astype(np.float32)
    )
    hubert = feature_arrays.to_windows(d.audio_features("hubert"), N)
    np.testing.assert_array_equal(hubert[[0, 4, 6, N - 2]], pairs[[0, 4, 6, N - 2]])
    assert np.isfinite(hubert).all() and not hubert[N - 1].any()
    for said in (
        "aud_hu.npy is not finite here: the nearest steps instead: 5 (1 frame)",
        "aud_hu.npy has no window for these frames: zeros: 13",
        "window 0 does not begin with zeros",
        "aud.npy is a second deepspeech array",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d.update(focal_len=999.0), "one camera"),
        (lambda d: d.pop("frames"), "no list of frames"),
        (lambda d: d["frames"].append({"transform_matrix": []}), "img_id None"),
        (lambda d: d["frames"].append({"img_id": -1}), "img_id -1"),
        (lambda d: d["frames"].append({"img_id": "7"}), "img_id '7'"),
    ],
)
def test_broken_transforms_are_one_sentence(whole, tmp_path, capsys, change, part):
    folder = copy(whole, tmp_path)
    path = folder / "transforms_val.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert dataset.main(["--source", str(folder), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert part in error and "transforms_val.json" in error and error.count("\n") == 1


def test_poses_that_are_none_are_holes(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    path = folder / "transforms_train.json"
    data = json.loads(path.read_text())
    for frame in data["frames"]:
        if frame["img_id"] in (1, 6, 7):
            frame["transform_matrix"][frame["img_id"] % 3][0] = float("nan") if frame["img_id"] == 1 else 5.0
        if frame["img_id"] == 9:
            del frame["transform_matrix"]
    path.write_text(json.dumps(data))
    d, text = imported(folder, tmp_path, capsys)
    assert "no usable transform_matrix: 1, 6-7, 9 (4 frames)" in text
    np.testing.assert_array_equal(np.flatnonzero(d.column("confidence") == 0), [1, 6, 7, 9])
    assert_same_frames(d, whole[1], [0, 2, 3, 4, 5, 8, 10, 11, 12, 13])


def test_a_split_that_interleaves_is_said(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    both = [json.loads((folder / f"transforms_{p}.json").read_text()) for p in ("train", "val")]
    frames = both[0]["frames"] + both[1]["frames"]
    for data, part, odd in zip(both, ("train", "val"), (0, 1)):
        (folder / f"transforms_{part}.json").write_text(json.dumps({**data, "frames": frames[odd::2]}))
    d, text = imported(folder, tmp_path, capsys)
    assert "interleave" in text and d.train_range == (0, N * 10 // 11)
    (folder / "transforms_train.json").unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert "one part only" in text and d.n_frames == N - 1 and d.manifest["source"]["first_img_id"] == 1
