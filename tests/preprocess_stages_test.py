"""Stages resume by content, appear whole, and give the same bytes after a kill; helpers around them."""

import concurrent.futures
import fcntl
import itertools
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import chunks
from preprocess.faces.face_model import load_canonical, parse_geometry
from preprocess.resumable import Stages
from preprocess.tracking.landmarks import neighbours
from preprocess.tracking.track import MIN_BLINK_RANGE, calibrate_blink
from preprocess.workers import native
from tkjax.errors import UserError
from tkjax.host.model_files import find_model

ROOT = Path(__file__).resolve().parent.parent


def writer(log, text="out"):
    def stage(folder: Path) -> None:
        log.append(text)
        (folder / "a.txt").write_text(text)

    return stage


def module(tmp_path: Path, text: str) -> types.ModuleType:
    path = tmp_path / "made_up.py"
    path.write_text(text)
    m = types.ModuleType("made_up")
    m.__file__ = str(path)
    return m


def test_a_stage_runs_again_only_when_inputs_settings_or_code_change(tmp_path):
    log = []
    code = module(tmp_path, "x = 1")

    def run(settings=None, inputs=None, source=code, extra=None):
        with Stages(tmp_path / "p", extra or {}) as stages:
            return stages.run("s", writer(log), settings or {}, inputs or {}, [source])

    run()
    assert len(log) == 1
    run()
    assert len(log) == 1
    run(settings={"size": 2})
    assert len(log) == 2
    run(settings={"size": 2}, inputs={"frames": "abc"})
    assert len(log) == 3
    run(settings={"size": 2}, inputs={"frames": "abc"}, source=module(tmp_path, "x = 2"))
    assert len(log) == 4
    run(settings={"size": 2}, inputs={"frames": "abc"}, source=code, extra={"torch": "9"})
    assert len(log) == 5


def test_equal_output_has_an_equal_digest_whatever_the_settings(tmp_path):
    with Stages(tmp_path / "p", {}) as stages:
        a = stages.run("s", writer([]), {"k": 1}, {}, [])
        b = stages.run("s", writer([]), {"k": 2}, {}, [])
    assert a.digest == b.digest and a.key != b.key


def test_a_damaged_output_is_made_again(tmp_path):
    log = []
    for _ in range(2):
        with Stages(tmp_path / "p", {}) as stages:
            done = stages.run("s", writer(log), {}, {}, [])
        (done.path / "a.txt").write_text("touched")
    assert len(log) == 2


def test_a_failed_stage_leaves_the_old_output_and_its_chunks_are_kept(tmp_path):
    seen = []

    def failing(folder: Path) -> None:
        seen.append(sorted(p.name for p in folder.iterdir()))
        chunks.write_chunk(folder, len(seen) - 1, {"x": np.arange(3)})
        (folder / ".unfinished.part").write_text("")
        if len(seen) < 3:
            raise RuntimeError("killed")

    with Stages(tmp_path / "p", {}) as stages:
        old = stages.run("s", writer([]), {"v": 1}, {}, [])
        for _ in range(2):
            with pytest.raises(RuntimeError):
                stages.run("s", failing, {"v": 2}, {}, [])
            assert (old.path / "a.txt").read_text() == "out"
        stages.run("s", failing, {"v": 2}, {}, [])
    assert seen[2] == ["chunk-00000.npz", "chunk-00001.npz"]
    assert not list((tmp_path / "p").glob("*.partial-*")) and not (old.path / "a.txt").exists()


def test_what_a_refused_run_began_goes_and_nothing_else(tmp_path):
    root = tmp_path / "a" / "b" / "p"
    with Stages(root, {}) as stages:
        (root / "s.partial-x").mkdir()
        stages.take_back()
        assert not (tmp_path / "a").exists()
    with Stages(root, {}) as stages:
        kept = stages.run("s", writer([]), {}, {}, [])
    with Stages(root, {}) as stages:
        (root / "t.partial-x").mkdir()
        stages.take_back()
        assert (kept.path / "a.txt").exists() and not (root / "t.partial-x").exists()
    with pytest.raises(RuntimeError, match="needs the lock"):
        stages.take_back()


def test_a_run_that_waited_for_a_refused_one_keeps_what_it_begins(tmp_path):
    """The refused run holds the lock while it takes its folder back; the other then makes its own, under a lock that
    the next run finds."""
    root, order = tmp_path / "w" / "p", []

    def waiting():
        with Stages(root, {}) as stages:
            order.append("second")
            stages.run("s", writer([]), {}, {}, [])
            with open(root / ".lock", "w") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with Stages(root, {}) as stages:
            begun = pool.submit(waiting)
            time.sleep(0.3)
            (root / "s.partial-x").mkdir()
            order.append("first")
            stages.take_back()
        begun.result(timeout=30)
    assert order == ["first", "second"] and (root / "s" / "a.txt").exists()
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["p"]


@pytest.mark.heavy
def test_another_run_in_the_same_folder_waits(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from preprocess.resumable import Stages\n"
        "with Stages(Path(sys.argv[1]), {}):\n    print('in', time.time(), flush=True)\n    time.sleep(1.0)\n"
        "    print('out', time.time())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "p")], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    spans = []
    for r in runs:
        lines = dict(
            line.split() for line in r.communicate(timeout=60)[0].splitlines() if line.startswith(("in ", "out "))
        )
        spans.append((float(lines["in"]), float(lines["out"])))
    (_, end), (start, _) = sorted(spans)
    assert start >= end - 0.01


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from preprocess.workers import pool\n"
        "if __name__ == '__main__':\n"
        "    with pool(Path(sys.argv[1])) as p:\n"
        "        print(*{p.submit(os.getpid).result() for _ in range(8)}, flush=True)\n"
        "        time.sleep(60)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, env=env
    )
    children = [int(x) for x in parent.stdout.readline().split()]
    assert children
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(_alive(c) for c in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(c) for c in children)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@given(st.integers(1, 1000))
def test_chunks_tile_the_clip(n):
    spans = chunks.spans(n)
    assert spans[0][0] == 0 and spans[-1][1] == n
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=9))
def test_packed_pictures_survive(blobs):
    assert chunks.unpack(chunks.pack("image", blobs), "image") == blobs


@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_gaps_are_bridged_between_the_nearest_faces(found):
    found = np.array(found)
    before, after, share = neighbours(found)
    n = np.arange(len(found))
    assert found[before].all() and found[after].all() and ((0 <= share) & (share < 1)).all()
    assert (before[found] == n[found]).all() and (share[found] == 0).all()
    inside = (before < n) & (n < after)
    assert np.allclose((before + share * (after - before))[inside], n[inside])


def test_blink_is_0_when_open_and_1_when_closed_and_noise_is_not_stretched():
    blink = np.full(500, 0.12)
    blink[100:104], blink[300:303] = 0.7, 0.68
    closed, level_open, level_closed = calibrate_blink(blink, np.ones(500, bool))
    assert level_open == pytest.approx(0.12) and 0.6 < level_closed <= 0.7
    assert closed[0] == 0 and closed[101] == 1
    noise = 0.1 + 0.01 * np.random.default_rng(0).random(500)
    closed, level_open, level_closed = calibrate_blink(noise, np.ones(500, bool))
    assert level_closed - level_open == pytest.approx(MIN_BLINK_RANGE) and closed.max() < 0.05


def test_model_is_looked_for_in_order_and_a_given_folder_is_binding(tmp_path, monkeypatch):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
    (b / "face_landmarker.task").write_text("x")
    monkeypatch.setenv("TKJAX_MODELS", str(b))
    assert find_model()[0] == b / "face_landmarker.task"
    path, reason = find_model(a)
    assert path is None and str(a) in reason and "--models_dir" in reason
    monkeypatch.setenv("TKJAX_MODELS", str(a))
    monkeypatch.setenv("HOME", str(tmp_path))
    path, reason = find_model()
    assert path is None and str(a) in reason and ".cache/tkjax" in reason


def test_canonical_face_of_the_bundle_is_the_known_mesh(models_dir, data_dir):
    face = load_canonical(models_dir / "face_landmarker.task")
    known = np.load(data_dir / "face" / "canonical_face.npz")
    assert np.array_equal(face.vertices_cm.astype(np.float32), known["vertices"])
    assert np.array_equal(face.faces, known["faces"])


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_bundle_is_one_sentence(tmp_path, content):
    path = tmp_path / "face_landmarker.task"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable face landmarker bundle") as e:
        load_canonical(path)
    assert "\n" not in str(e.value)


@given(st.binary(max_size=60))
def test_random_bytes_are_no_geometry(data):
    with pytest.raises((ValueError, IndexError)):
        parse_geometry(data)


def test_a_missing_system_library_is_named():
    with pytest.raises(UserError, match=r"needs the system library libGL\.so\.1.*libgl1"):
        with native("OpenCV (cv2)"):
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    with pytest.raises(UserError, match=r"libfoo\.so\.3, which is not installed"):
        with native("mediapipe"):
            raise OSError("libfoo.so.3: cannot open shared object file: No such file or directory")
    with pytest.raises(UserError, match="needs the Python package mediapipe"):
        with native("mediapipe"):
            raise ModuleNotFoundError("No module named 'mediapipe'", name="mediapipe")
    with pytest.raises(ImportError):
        with native("cv2"):
            raise ImportError("something else")
