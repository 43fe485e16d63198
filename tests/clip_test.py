"""One description of a clip, which the dataset's, the importer's stand-in and the tests' double satisfy."""

import inspect
import typing

import pytest

from tests import tiny
from tests.stubs.clip import FakeClip
from tkjax.data.clip import Clip
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.originals import stand_in


def made(kind, folder):
    if kind == "dataset":
        return DatasetClip(tiny.make_dataset(folder / "dataset"), folder / "cache")
    return FakeClip() if kind == "double" else stand_in.StandIn(stand_in.sound(29, False))


@pytest.mark.parametrize("kind", ["dataset", "double", "stand-in"])
def test_every_clip_has_all_that_a_clip_has(kind, tmp_path):
    clip = made(kind, tmp_path)
    assert isinstance(clip, Clip)
    for name, value in vars(Clip).items():
        if inspect.isfunction(value) and not name.startswith("_") and kind != "stand-in":
            mine = list(inspect.signature(getattr(type(clip), name)).parameters)
            assert mine == list(inspect.signature(value).parameters), name
    for name in ("cam_to_world", "eye_closed", "confidence", "picture_missing", "eye_regions"):
        assert len(getattr(clip, name)) == clip.n_frames, name
    for name in typing.get_type_hints(Clip):
        if name == "landmarks68_px" and getattr(clip, name) is not None:
            assert len(getattr(clip, name)) == clip.n_frames, name
    first = int(clip.train_frames[0])
    for picture in (clip.target(first), clip.background(first), clip.plate):
        assert picture.shape == (clip.height, clip.width, 3)
    assert clip.label(first).shape == (clip.height, clip.width)
    assert clip.torso_rgba(first).shape == (clip.height, clip.width, 4)
    assert {"eye_closed", "eye_area"} <= set(clip.signals)
    for name, signal in clip.signals.items():
        assert signal.info == clip.info.signal(name) and signal.n_frames >= (clip.n_frames if kind != "stand-in" else 1)
        assert len(signal.info.low) == len(signal.info.high) == (signal.info.channels if kind != "stand-in" else 0)
    for values in (*clip.truth.values(), *clip.members.values()):
        assert len(values) == clip.n_frames


def test_nothing_can_be_learnt_from_a_stand_in(tmp_path):
    with pytest.raises(UserError, match="without its dataset"):
        made("stand-in", tmp_path).frame_batch(0)
