"""Files appear whole or not at all, several together or none, and what fails says what it is."""

import errno
import os

import pytest

from tkjax.errors import UserError
from tkjax.host import files


def test_a_write_replaces_and_leaves_no_part(tmp_path):
    path = tmp_path / "new" / "a.bin"
    files.write_atomic(path, b"one")
    files.write_atomic(path, "zwölf")
    assert path.read_bytes() == "zwölf".encode() and list(path.parent.iterdir()) == [path]


def test_a_place_that_is_none_is_one_sentence(tmp_path):
    files.write_atomic(tmp_path / "file", b"")
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "deep" / "below"):
        with pytest.raises(UserError, match=r"below: .*expected a place that can be written"):
            files.write_atomic(path, b"")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_ends_a_write_early_leaves_the_old_file_alone(tmp_path, stop):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(stop), files.whole(tmp_path / "a") as part:
        part.write_bytes(b"half")
        raise stop
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, UserError), (errno.EIO, UserError), (errno.EBADF, OSError)]
)
def test_only_failures_that_can_be_mended_become_sentences(tmp_path, monkeypatch, number, kind):
    def fails(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(kind, match=os.strerror(number)):
        files.write_atomic(tmp_path / "a", b"new")
    assert not list(tmp_path.iterdir())


def test_several_files_get_their_names_together(tmp_path):
    pairs = [(tmp_path / f"part{i}", tmp_path / f"file{i}") for i in range(3)]
    for part, _ in pairs:
        part.write_text("new")
    pairs[1][1].write_text("old")
    files.replace_all(pairs)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {f"file{i}": "new" for i in range(3)}


@pytest.mark.parametrize("links", [True, False])
def test_one_name_that_cannot_be_had_leaves_all_the_others_as_they_were(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    pairs = [(tmp_path / f"part{i}", tmp_path / f"file{i}") for i in range(3)]
    for part, _ in pairs:
        part.write_text("new")
    pairs[0][1].write_text("old")
    pairs[2][1].mkdir()
    with pytest.raises(UserError, match="file2 is a folder"):
        files.replace_all(pairs)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file0", "file2"]
    assert (tmp_path / "file0").read_text() == "old"


def test_a_lock_is_held_by_one_and_missing_locks_are_a_warning(tmp_path, monkeypatch):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    files.take_lock(first, tmp_path)
    with pytest.raises(BlockingIOError):
        files.take_lock(second, tmp_path)
    os.close(first)
    files.take_lock(second, tmp_path)

    def without(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", without)
    with pytest.warns(UserWarning, match="nothing keeps a second run out"):
        files.take_lock(second, tmp_path)
    os.close(second)


def test_what_is_put_in_its_place_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    (tmp_path / "part").mkdir()
    (tmp_path / "file.part").write_text("new")
    done, sync, replace = [], files.sync, os.replace
    monkeypatch.setattr(files, "sync", lambda path: (sync(path), done.append(("sync", path.name))))
    monkeypatch.setattr(os, "replace", lambda a, b: (replace(a, b), done.append(("name", b.name))))
    for part, path in (("part", "folder"), ("file.part", "file")):
        done.clear()
        files.put(tmp_path / part, tmp_path / path)
        assert done == [("sync", part), ("name", path), ("sync", tmp_path.name)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
