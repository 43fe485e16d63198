"""The sheet of an avatar's coefficients: its rows, its pictures against a formula, its layout, and what is refused."""

import dataclasses
import math
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from tests import tiny
from tests.stubs.config import stub_config
from tkjax.app import cli, options
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.data.frame_cache import over
from tkjax.drive import driver, sheet
from tkjax.errors import UserError
from tkjax.interface import initialise
from tkjax.models import load_system
from tkjax.types import ClipFacts

NAMES = ("jawOpen", "mouthPucker", "browInnerUp")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """make(config, **dataset) -> a workdir with an avatar that was not trained."""
    folder = tmp_path_factory.mktemp("sheet")

    def make(config, name, **dataset):
        (folder / name).mkdir()
        clip = DatasetClip(tiny.make_dataset(folder / name / "dataset", **dataset), folder / name / "cache")
        model = load_system(config.system)(config, clip.info)
        variables = initialise(model, jax.random.key(0))
        if "tables" in variables.params:
            variables.params["tables"] = 8 * variables.params["tables"]
        ranges = {s.info.name: s.info for s in clip.signals.values()}
        facts = ClipFacts(clip.cam_to_world, np.tile(clip.intrinsics, (clip.n_frames, 1)), ranges, {})
        variables = model.prepare(variables, facts)
        spec = bundle.audio_spec(clip.audio) if dataset.get("heard", True) else None
        bundle.save(folder / name / "avatar", config, variables, 4, clip, spec, {"statement": None})
        return folder / name

    return make


@pytest.fixture(scope="module")
def face(workdir):
    """A workdir whose avatar is driven by three coefficients, of which the last does not move in training."""
    values = np.tile(np.linspace(0, 1, 33, dtype=np.float32)[:, None], (1, 3)) * np.float32([0.5, 1, 0])
    return workdir(stub_config("expressive"), "face", names=NAMES, more={"expression": values}, heard=False)


def test_rows_are_the_channels_that_moved_with_their_range_in_training(face):
    rows, still = sheet.rows_of(bundle.load(face / "avatar"))
    assert [r.name for r in rows] == ["jawOpen", "mouthPucker"] and still == ["browInnerUp"]
    assert [(r.low, round(r.high, 4)) for r in rows] == [(0, round(0.5 * 29 / 32, 4)), (0, round(29 / 32, 4))]


def test_each_picture_is_the_face_with_one_channel_moved(face):
    avatar = bundle.load(face / "avatar")
    faces = sheet.Faces(avatar)
    variables, k = avatar.variables(avatar.model()), faces.track_frame
    formula = sys.modules[avatar.config.system].formula
    for row in sheet.rows_of(avatar)[0]:
        for share in sheet.STEPS:
            coefficients = driver.rest(avatar, "expression")
            coefficients[row.channel] = row.low + share * (row.high - row.low)
            rgb, alpha = formula(variables, avatar.info, avatar.config.model.side, coefficients)
            want = 255 * rgb + (1 - alpha) * over(avatar.torso(k), avatar.plate)
            assert np.abs(faces.draw(row, share) - want).max() < 0.51
    assert np.abs(faces.draw(row, 1.0).astype(int) - faces.draw(row, 0.0)).max() > 20


def test_the_command_draws_the_same_bytes_and_says_what_is_left_out(face, tmp_path, capsys):
    for name in ("a.png", "b.png"):
        cli.run(options.parse(["launch.py", "--mode=sheet", f"--workdir={face}", f"--out={tmp_path / name}"]))
    said = capsys.readouterr().out
    assert "1 of 3 channels are without a range in training, and left out: browInnerUp" in said
    assert "2 coefficients, marked as synthetic" in said
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert "Synthetic" in picture.text["comment"] and min(picture.size) > 200
        shown = np.asarray(picture)
    assert (shown[:4] == sheet.GROUND).all() and shown.std() > 5


@pytest.mark.heavy
def test_systems_without_expression_show_what_they_have(workdir, tmp_path):
    eyes = workdir(tiny.config(), "eyes")
    avatar = bundle.load(eyes / "avatar")
    assert [r.name for r in sheet.rows_of(avatar)[0]] == ["eye_closed"]
    assert sheet.draw(avatar, tmp_path / "eyes.png") == 1
    alone = workdir(stub_config("staged"), "alone")
    with pytest.raises(UserError, match="no coefficient drives this avatar"):
        sheet.draw(bundle.load(alone / "avatar"), tmp_path / "alone.png")


def test_other_names_than_a_pictures_are_refused_before_any_work(face, tmp_path):
    for out in ("sheet.mp4", "sheet"):
        with pytest.raises(UserError, match=r"name a \.png file"):
            cli.run(options.parse(["launch.py", "--mode=sheet", f"--workdir={face}", f"--out={tmp_path / out}"]))


@given(n=st.integers(1, 120), tile=st.integers(*sheet.TILE))
def test_the_sheet_is_about_as_wide_as_it_should_be(n, tile):
    columns = sheet.columns_for(n, tile)
    assert 1 <= columns <= n
    if n >= 12:
        down = math.ceil(n / columns)
        aspect = columns * (3 * tile + sheet.GAP) / (down * (tile + sheet.CAPTION + sheet.GAP))
        assert 0.5 * sheet.ASPECT < aspect < 2 * sheet.ASPECT


@given(
    rest=hnp.arrays(np.uint8, (24, 24, 3)),
    at=st.tuples(st.integers(8, 15), st.integers(8, 15)),
    by=st.integers(40, 120),
)
def test_what_differs_keeps_its_colours_and_the_rest_is_greyer(rest, at, by):
    picture = rest.copy()
    y, x = at
    spot = slice(y - 6, y + 7), slice(x - 6, x + 7)
    picture[spot] = np.where(picture[spot] < 128, picture[spot] + by, picture[spot] - by)
    out = sheet.emphasised(picture, rest)
    assert np.abs(out[y, x].astype(int) - picture[y, x]).max() <= 2
    grey = rest @ np.array([0.299, 0.587, 0.114])
    want = (1 - sheet.GREY) * rest[0, 0] + sheet.GREY * grey[0, 0]
    if max(abs(y), abs(x)) >= 14:
        np.testing.assert_allclose(out[0, 0], want, atol=3)
    np.testing.assert_allclose(
        sheet.emphasised(rest, rest), (1 - sheet.GREY) * rest + sheet.GREY * grey[..., None], atol=1
    )


def test_the_box_is_a_square_within_the_picture(face):
    avatar = bundle.load(face / "avatar")
    for box in ((0, 0, 20, 24), (4, 4, 12, 20), (30, 20, 32, 24), (0, 0, 1, 1)):
        faces = sheet.Faces(dataclasses.replace(avatar, face_box_px=np.tile(np.int32(box), (avatar.n_track, 1))))
        x0, y0, x1, y1 = faces.box
        h, w = avatar.info.height, avatar.info.width
        assert 0 <= x0 < x1 <= w and 0 <= y0 < y1 <= h
        assert (x1 - x0 == y1 - y0) or (x0, y0, x1, y1) == (0, 0, w, h)
