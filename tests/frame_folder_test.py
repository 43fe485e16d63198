"""A folder of frames replaces what this program wrote, byte for byte, and nothing else whatever is in it."""

import json
import os
import shutil

import numpy as np
import pytest

from tkjax.errors import UserError
from tkjax.media import frame_folder

PICTURE = np.full((4, 6, 3), 7, np.uint8)


def render(out, n=3, maps=("depth",)):
    with frame_folder.new(out, {"fps": 25}, {"comment": "synthetic"}) as add:
        for i in range(n):
            add(f"{i:06d}.png", PICTURE + i)
            for name in maps:
                add(f"{name}/{i:06d}.png", PICTURE)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_ours_is_replaced_whole(tmp_path):
    render(tmp_path / "out", 5)
    render(tmp_path / "out", 2, maps=())
    assert sorted(tree(tmp_path / "out")) == ["000000.png", "000001.png", "frames.json"]
    mark = json.loads((tmp_path / "out" / "frames.json").read_text())
    assert mark["frames"] == 2 and mark["fps"] == 25 and sorted(mark["files"]) == ["000000.png", "000001.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_frames_that_were_taken_out_are_not_missed(tmp_path):
    render(tmp_path / "out")
    (tmp_path / "out" / "000001.png").unlink()
    shutil.rmtree(tmp_path / "out" / "depth")
    render(tmp_path / "out", 1)
    assert len(tree(tmp_path / "out")) == 3


def a_file(out):
    (out / "notes.txt").write_text("mine")


def a_changed_frame(out):
    (out / "000001.png").write_bytes((out / "000001.png").read_bytes()[:-1] + b"x")


def a_frame_of_the_same_kind(out):
    shutil.copy(out / "000001.png", out / "000009.png")


def a_file_among_the_maps(out):
    (out / "depth" / "notes.txt").write_text("mine")


def an_empty_folder(out):
    (out / "empty").mkdir()


def a_link_to_a_file(out):
    shutil.move(out / "000001.png", out.parent / "elsewhere.png")
    (out / "000001.png").symlink_to(out.parent / "elsewhere.png")


def a_link_to_a_folder(out):
    shutil.move(out / "depth", out.parent / "elsewhere")
    (out / "depth").symlink_to(out.parent / "elsewhere", target_is_directory=True)


def no_mark(out):
    (out / "frames.json").unlink()


def another_mark(out):
    (out / "frames.json").write_text('{"frames": [{"file_path": "000000"}]}')


def the_mark_of_earlier_versions(out):
    (out / "frames.json").write_text('{"frames": 3, "fps": 25.0, "avatar": "x", "comment": "Synthetic: rendered"}')


def a_deep_mark(out):
    (out / "frames.json").write_text("[" * 200000)


def a_mark_that_names_others(out):
    (out.parent / "victim.png").write_bytes(b"v")
    mark = json.loads((out / "frames.json").read_text())
    mark["files"]["../victim.png"] = mark["files"]["000000.png"]
    (out / "frames.json").write_text(json.dumps(mark))


SPOILT = [
    a_file, a_changed_frame, a_frame_of_the_same_kind, a_file_among_the_maps, an_empty_folder, a_link_to_a_file,
    a_link_to_a_folder, no_mark, another_mark, the_mark_of_earlier_versions, a_deep_mark, a_mark_that_names_others,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_what_is_not_ours_is_refused_in_a_sentence_and_stays(tmp_path, spoil):
    render(tmp_path / "out")
    spoil(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"--out=.*name a new or empty folder") as error:
        frame_folder.proven(tmp_path / "out")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="name a new or empty folder"):
        render(tmp_path / "out")
    assert tree(tmp_path) == before


def test_what_somebody_adds_while_frames_are_drawn_stays(tmp_path):
    render(tmp_path / "out", 2)
    with pytest.raises(UserError, match=r"notes\.txt"), frame_folder.new(tmp_path / "out", {}, {}) as add:
        add("000000.png", PICTURE)
        a_file(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").is_file() and (tmp_path / "out" / "000001.png").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_whatever_ends_the_drawing_early_leaves_what_was_there(tmp_path, stop):
    render(tmp_path / "out", 2)
    before = tree(tmp_path)
    with pytest.raises(stop), frame_folder.new(tmp_path / "out", {}, {}) as add:
        add("000000.png", PICTURE)
        raise stop
    assert tree(tmp_path) == before and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_is_followed_to_the_folder_it_names(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    for n in (2, 1):
        render(tmp_path / "out", n, maps=())
    assert os.readlink(tmp_path / "out") == "real" and len(tree(tmp_path / "real")) == 2
