"""A dataset is written anew while others read it, and a write may stop anywhere: always one whole generation."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.tiny_dataset import assert_equal, files_of, frames, plate, sentence, write_tiny, writer
from tkjax import contract
from tkjax.contract import ContractError, Dataset, validate


def test_a_reader_keeps_its_generation_until_the_write_after_next(tmp_path):
    root = tmp_path / "d"
    write_tiny(root, n=5, seed=1)
    old, plate_old = Dataset(root), (root / "background.png").read_bytes()
    write_tiny(root, n=70, seed=2)
    new = Dataset(root)
    assert_equal(old, frames(5, seed=1))
    assert old.path("background.png").read_bytes() == plate_old == plate(seed=1)
    assert old.path("qa/note.txt").read_bytes() == b"seed 1"
    assert new.path("qa/note.txt").read_bytes() == b"seed 2" == (root / "qa/note.txt").read_bytes()
    old.audio_features("logmel")
    write_tiny(root, n=1, seed=3, sound=False)
    with pytest.raises(ContractError, match="no such file"):
        old.frame_bytes("image_bytes", 0)
    assert_equal(new, frames(70, seed=2))
    write_tiny(root, n=1, seed=1, sound=False)
    (root / "stray.txt").write_text("x")
    write_tiny(root, n=2, seed=1, sound=False)
    write_tiny(root, n=2, seed=1, sound=False)
    named = {*validate(root)["files"], "manifest.json"}
    assert set(files_of(root)) == named
    assert not [p for p in root.rglob("*") if p.is_dir() and p.name != "qa"]


def test_an_exception_while_writing_leaves_the_old_dataset(tmp_path):
    root = tmp_path / "d"
    write_tiny(root, seed=1)
    before = files_of(root)
    with pytest.raises(ZeroDivisionError), writer(root) as w:
        w.add(frames(70))
        w.add_file("background.png", plate(seed=2))
        1 / 0  # noqa: B018
    assert files_of(root) == before


def test_a_full_disk_is_one_sentence_and_leaves_the_old_dataset(tmp_path, monkeypatch):
    root = tmp_path / "d"
    write_tiny(root, seed=1)
    before = files_of(root)

    def full(*args):
        raise OSError(28, "No space left on device")

    for n in (3, 70):
        monkeypatch.setattr(contract, "write_npz", full)
        with pytest.raises(ContractError, match="No space left on device") as error:
            write_tiny(root, n=n, seed=2, sound=False)
        monkeypatch.undo()
        assert str(root) in sentence(error)
        assert files_of(root) == before


@pytest.mark.heavy
def test_a_reader_that_opens_while_others_write_sees_one_generation(tmp_path):
    root = tmp_path / "d"
    write_tiny(root, n=3, seed=0, sound=False)
    code = (
        "import sys, time; sys.path.insert(0, '.')\n"
        "from tests.tiny_dataset import write_tiny\n"
        "print('ready', flush=True)\n"
        "for i in range(15): write_tiny(sys.argv[1], n=3, seed=i % 7, sound=False), time.sleep(0.03)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
    assert child.stdout.readline()
    seen = set()
    while child.poll() is None:
        dataset = Dataset(root)
        try:
            note, background = (dataset.path(name).read_bytes() for name in ("qa/note.txt", "background.png"))
        except FileNotFoundError:  # two writes began meanwhile: this generation is gone
            continue
        if Dataset(root, verify=False).digest == dataset.digest:
            assert background == plate(seed=int(note.split()[1]))
            seen.add(note)
    child.stdout.close()
    assert child.returncode == 0 and len(seen) > 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "clean_up", [pytest.param(False, id="killed"), pytest.param(True, id="interrupted", marks=pytest.mark.heavy)]
)
@pytest.mark.parametrize("first_write", [False, True], ids=["over an old one", "into nothing"])
def test_a_write_that_stops_at_any_system_call_leaves_the_old_or_the_new_dataset(
    tmp_path, monkeypatch, clean_up, first_write
):
    calls = ("replace", "rename", "link", "fsync", "unlink", "rmdir", "mkdir")
    originals = {name: getattr(os, name) for name in calls} | {"fsync": lambda fd: None}
    if not clean_up:
        monkeypatch.setattr(contract.DatasetWriter, "_abandon", lambda self: self._unlock())

    def stop_at(k: int, after: bool):
        counter = [0]

        def wrap(name):
            def call(*args, **kwargs):
                counter[0] += 1
                if counter[0] == k and not after:
                    raise Killed
                stop = counter[0] == k
                try:
                    return originals[name](*args, **kwargs)
                finally:
                    if stop:
                        raise Killed

            return call

        for name in calls:
            monkeypatch.setattr(os, name, wrap(name))

    seen = set()
    for k in range(1, 200):
        root = tmp_path / f"d{k}"
        if not first_write:
            write_tiny(root, n=3, seed=1, sound=False)
            opened = Dataset(root)
        stopped = False
        stop_at(k, after=bool(k % 2))
        try:
            write_tiny(root, n=5, seed=2, sound=False)
        except Killed:
            stopped = True
        finally:
            for name in calls:
                monkeypatch.setattr(os, name, originals[name])
        try:
            dataset = Dataset(root)
        except ContractError as e:
            assert first_write and "manifest.json" in str(e)
            seen.add("none")
        else:
            seed = int(dataset.path("qa/note.txt").read_bytes().split()[1])
            assert_equal(dataset, frames(dataset.n_frames, seed=seed))
            assert dataset.path("background.png").read_bytes() == plate(seed=seed)
            seen.add(seed)
        if not first_write:
            assert_equal(opened, frames(3, seed=1))
            assert opened.path("background.png").read_bytes() == plate(seed=1)
        write_tiny(root, n=2, seed=3, sound=False)
        write_tiny(root, n=2, seed=3, sound=False)
        assert set(files_of(root)) == {*validate(root)["files"], "manifest.json"}
        if not stopped:
            break
    assert not stopped and k > 10
    assert seen == ({"none", 2} if first_write else {1, 2})


@pytest.mark.heavy
def test_a_write_killed_at_a_random_moment_leaves_a_readable_dataset(tmp_path):
    root = tmp_path / "d"
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.tiny_dataset import write_tiny\n"
        "print('ready', flush=True)\n"
        "for i in range(10**6): write_tiny(sys.argv[1], n=66, seed=i % 7, sound=False)"
    )
    write_tiny(root, n=66, seed=0, sound=False)
    rng, seen = random.Random(5), set()
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
        assert child.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        dataset = Dataset(root)
        seed = int(dataset.path("qa/note.txt").read_bytes().split()[1])
        assert_equal(dataset, frames(66, seed=seed))
        seen.add(seed)
    write_tiny(root, n=1, sound=False)
