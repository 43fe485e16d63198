"""Pictures of the older projects' folders: none shifts, and every way to store them is read."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from preprocess.importers import dataset, frame_pictures
from tests import er_layout
from tests.imported_folder import N, assert_same_frames, copy, imported, windows
from tkjax import contract
from tkjax.errors import UserError
from tkjax.media import audio, images


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return er_layout.portrait(tmp_path_factory.mktemp("native") / "dataset", N)


@pytest.fixture(scope="module")
def whole(native, tmp_path_factory):
    """An ER-NeRF folder without holes, and its import."""
    root = tmp_path_factory.mktemp("er")
    folder = er_layout.export(native, root / "Obama", {"aud_ds.npy": windows()})
    return folder, contract.Dataset(dataset.run(folder, root / "w" / "dataset"))


def from_one(folder):
    """Every picture and landmark file with a number one higher, as ffmpeg counts."""
    for sub in ("ori_imgs", "gt_imgs", "torso_imgs", "parsing"):
        for path in sorted((folder / sub).iterdir(), key=lambda p: -int(p.stem)):
            path.rename(path.with_stem(str(int(path.stem) + 1)))


@pytest.mark.parametrize("still", [False, True])
def test_pictures_from_1_and_poses_from_0_keep_their_sound(whole, tmp_path, capsys, still):
    folder = copy(whole, tmp_path)
    if still:  # landmarks that do not move say nothing: the count does
        for path in (folder / "ori_imgs").glob("*.lms"):
            path.write_bytes((folder / "ori_imgs/3.lms").read_bytes())
    from_one(folder)
    d, text = imported(folder, tmp_path, capsys)
    assert "picture k is img_id k - 1 (" + ("by their count" if still else "its poses fit") in text
    np.testing.assert_array_equal(d.column("cam_to_world"), whole[1].column("cam_to_world"))
    np.testing.assert_array_equal(d.column("eye_closed"), whole[1].column("eye_closed"))
    np.testing.assert_array_equal(
        audio.read_audio(d.path(contract.AUDIO)), audio.read_audio(whole[1].path(contract.AUDIO))
    )
    assert [d.frame_bytes("image_bytes", i) for i in range(N)] == [
        whole[1].frame_bytes("image_bytes", i) for i in range(N)
    ]


def test_a_lost_first_picture_is_no_numbering_from_1(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for sub in ("ori_imgs", "gt_imgs", "torso_imgs", "parsing"):
        for path in (folder / sub).glob("0.*"):
            path.unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert "picture 0 is missing, the others have the json's numbers" in text
    np.testing.assert_array_equal(d.column("cam_to_world"), whole[1].column("cam_to_world")[1:])
    np.testing.assert_array_equal(
        audio.read_audio(d.path(contract.AUDIO)), audio.read_audio(whole[1].path(contract.AUDIO))[640:]
    )


def test_colour_maps_in_the_other_order_and_size_are_read(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for path in (folder / "parsing").iterdir():
        bgr = cv2.imread(str(path))
        big = cv2.resize(bgr, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(path), big[..., ::-1])
    d, text = imported(folder, tmp_path, capsys)
    assert "red-green-blue order" in text
    assert_same_frames(d, whole[1], list(range(N)))


def test_points_on_the_clothes_alone_do_not_swap_the_colours(whole):
    rgb = images.read_rgb(whole[0] / "parsing/0.png")
    below = np.argwhere(frame_pictures.labels_of_colours(rgb) == contract.LABEL_TORSO)[:68, ::-1].astype(float)
    assert len(below) == 68 and not frame_pictures.is_swapped([(rgb, below)])
    assert not frame_pictures.is_swapped([])


def test_other_targets_than_frame_parsing_and_plate_are_named(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    for i in (3, 4, 8):
        rgb = images.read_rgb(folder / f"gt_imgs/{i}.jpg")
        (folder / f"gt_imgs/{i}.jpg").write_bytes(images.encode_jpeg(255 - rgb))
    _, text = imported(folder, tmp_path, capsys)
    assert "the targets in gt_imgs differ from frame + parsing + plate at 3-4, 8" in text


def test_frames_that_are_no_baseline_jpeg_are_encoded_again(whole, tmp_path):
    folder = copy(whole, tmp_path)
    rgb = images.read_rgb(folder / "ori_imgs/1.jpg")
    (folder / "ori_imgs/1.jpg").unlink()
    (folder / "ori_imgs/1.png").write_bytes(images.encode_png(rgb))
    other = Image.fromarray(images.read_rgb(folder / "ori_imgs/2.jpg"))
    other.save(folder / "ori_imgs/2.jpg", quality=97, progressive=True, subsampling=0)
    d, _ = imported(folder, tmp_path)
    for i in (1, 2):
        data = d.frame_bytes("image_bytes", i)
        assert data != whole[1].frame_bytes("image_bytes", i)
        before = images.decode_rgb(whole[1].frame_bytes("image_bytes", i))
        assert frame_pictures.psnr(images.decode_rgb(data), before) > 34
    assert_same_frames(d, whole[1], [0, *range(3, N)])


def test_frames_of_16_bits_and_turned_ones_are_what_they_show(whole, tmp_path):
    folder = copy(whole, tmp_path)
    shown = {i: images.read_rgb(folder / f"ori_imgs/{i}.jpg") for i in (1, 2)}
    for i in shown:
        (folder / f"ori_imgs/{i}.jpg").unlink()
    Image.fromarray(shown[1][..., 0].astype(np.uint16) * 257).save(folder / "ori_imgs/1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(shown[2])).save(folder / "ori_imgs/2.jpg", quality=97, subsampling=0, exif=exif)
    d, _ = imported(folder, tmp_path)
    for i, expected in ((1, np.repeat(shown[1][..., :1], 3, -1)), (2, shown[2])):
        assert frame_pictures.psnr(images.decode_rgb(d.frame_bytes("image_bytes", i)), expected) > 34
    assert_same_frames(d, whole[1], [0, *range(3, N)])


def test_without_torso_pictures_and_plate_both_are_made(whole, tmp_path, capsys):
    folder = copy(whole, tmp_path)
    shutil.rmtree(folder / "torso_imgs")
    (folder / "bc.jpg").unlink()
    d, text = imported(folder, tmp_path, capsys)
    assert "no bc.jpg" in text and "torso picture" not in text
    rgba = images.decode_png(d.frame_bytes("torso_bytes", 0))
    label = images.decode_png(d.frame_bytes("label_bytes", 0))
    assert (rgba[label == contract.LABEL_TORSO][:, 3] == 255).all()
    plate, true = (images.decode_png(x.path("background.png").read_bytes()) for x in (d, whole[1]))
    assert frame_pictures.psnr(plate[:10], true[:10]) > 30


def test_no_parsing_at_all_is_refused(whole, tmp_path):
    folder = copy(whole, tmp_path)
    shutil.rmtree(folder / "parsing")
    with pytest.raises(UserError, match="parsing step"):
        dataset.run(folder, tmp_path / "w" / "dataset")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("swapped", [False, True])
def test_every_colour_of_the_map_has_its_label(swapped):
    bgr = er_layout.COLOURS_BGR[None]
    rgb = bgr if swapped else bgr[..., ::-1]
    np.testing.assert_array_equal(frame_pictures.labels_of_colours(np.ascontiguousarray(rgb), swapped), [[0, 1, 2, 3]])
    near = np.clip(rgb.astype(int) + np.random.default_rng(0).integers(-60, 60, rgb.shape), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(frame_pictures.labels_of_colours(near, swapped), [[0, 1, 2, 3]])
