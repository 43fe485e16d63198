"""Clips: the cache is true to the dataset, samples depend on their generator alone, memory stays flat."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_dataset import frames, rewrite_shard, write_tiny, writer
from tkjax import contract, samplers, signals
from tkjax.contract import AudioFeatures, ContractError, described
from tkjax.data import dataset_clip as clips
from tkjax.data import frame_cache, sampling
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.host import files
from tkjax.media import images
from tkjax.signals import Use

H, W, N = 20, 30, 70
SAMPLERS = ("rays", "focus", "close", "patch", "lips", "frame")
HEARS = Use("sound", before=4, after=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dataset"
    write_tiny(path, n=N, height=H, width=W)
    return path


@pytest.fixture(scope="module")
def clip(root) -> DatasetClip:
    return DatasetClip(root, root.parent / "cache")


@pytest.fixture(scope="module")
def small(root) -> DatasetClip:
    return DatasetClip(root, root.parent / "cache", size=15)


def generators(*seeds):
    return [np.random.default_rng(s) for s in seeds]


# ---------------------------------------------------------------- pictures


def test_the_cache_holds_the_frames_composed_by_the_hard_rule(root, clip):
    dataset = contract.Dataset(root)
    plate = images.decode_rgb((root / "background.png").read_bytes())
    np.testing.assert_array_equal(clip.plate, plate)
    for i in (0, 1, 63, 64, N - 1):
        rgb, torso, label = (
            images.decode_png(dataset.frame_bytes(f"{m}_bytes", i)) for m in ("image", "torso", "label")
        )
        np.testing.assert_array_equal(clip.label(i), label)
        np.testing.assert_array_equal(clip.target(i), np.where(label[..., None] == 0, plate, rgb))
        alpha = torso[..., 3:] / 255
        wanted = np.rint(alpha * torso[..., :3] + (1 - alpha) * plate)
        np.testing.assert_array_equal(clip.background(i, "torso"), wanted)
        np.testing.assert_array_equal(clip.background(i, "plate"), plate)
        np.testing.assert_array_equal(clip.torso_rgba(i), torso)


def test_smaller_pictures_are_area_means_of_the_full_composition_and_all_else_scales(clip, small):
    assert (small.height, small.width) == (10, 15)
    for i in (0, N - 1):
        for name in ("target", "background"):
            full = getattr(clip, name)(i).reshape(10, 2, 15, 2, 3).mean((1, 3))
            assert np.abs(getattr(small, name)(i) - full).max() <= 1
        np.testing.assert_array_equal(small.label(i), images.resize_majority(clip.label(i), (10, 15)))
    np.testing.assert_allclose(small.intrinsics, clip.intrinsics / 2)
    np.testing.assert_allclose(small.landmarks68_px, clip.landmarks68_px / 2)
    for name, box in small.boxes.items():
        x0, y0, x1, y1 = box.T
        assert ((x0 >= 0) & (x0 < x1) & (x1 <= 15) & (y0 >= 0) & (y0 < y1) & (y1 <= 10)).all()
        assert np.abs(box - clip.boxes[name] / 2).max() <= 1
    assert small.info.intrinsics == pytest.approx((15.0, 15.5, 7.5, 5.0))
    assert (small.info.signal("sound").channels, small.info.signal("sound").window) == (80, 16)
    assert sampling.training_size(100, 50, 0) == sampling.training_size(100, 50, 300) == (100, 50)
    assert sampling.training_size(450, 300, 256) == (256, 171)


def test_squares_stay_square_when_boxes_shrink():
    low = np.random.default_rng(0).integers(0, 400, (50, 2))
    boxes = np.concatenate([low, low + 73], 1)
    new = sampling.scale_boxes(boxes, (512, 512), (256, 256))
    assert (new[:, 2] - new[:, 0] == new[:, 3] - new[:, 1]).all()


def test_disk_host_and_device_give_the_same_numbers(root, small):
    jax = pytest.importorskip("jax")
    others = [DatasetClip(root, root.parent / "cache", size=15, preload=p) for p in ("host", "device")]
    for sampler in SAMPLERS:
        batches = [c.batch(np.array([3, 66]), generators(1, 2), sampler, 64, 4, "torso") for c in (small, *others)]
        for b in batches[1:]:
            jax.tree.map(np.testing.assert_array_equal, batches[0], b)
        assert all(isinstance(getattr(batches[2], name), jax.Array) for name in ("target", "label", "background"))


def test_a_device_that_is_too_small_leaves_the_rest_on_disk(root, small, monkeypatch, caplog):
    monkeypatch.setattr(clips, "_free_memory", lambda: N * 150 * 4)
    clip = DatasetClip(root, root.parent / "cache", size=15, preload="device")
    assert "background needs" in caplog.text
    a, b = (c.batch(np.array([5]), generators(1), "rays", 50, background="torso") for c in (clip, small))
    assert isinstance(a.target, jax.Array) and isinstance(a.background, np.ndarray)
    np.testing.assert_array_equal(np.asarray(a.background), b.background)
    monkeypatch.setattr(clips, "_free_memory", lambda: 10)
    assert isinstance(
        DatasetClip(root, root.parent / "cache", size=15, preload="host")._cache["target"], frame_cache.CachedArray
    )


# ---------------------------------------------------------------- batches


def tiles_of(clip, patch):
    """Tiles along a side of the square around the lips."""
    return round(clip.batch(np.array([0]), generators(0), "lips", 1, patch).target.shape[1] ** 0.5) // patch


@given(
    seed=st.integers(0, 2**16),
    chosen=st.lists(st.integers(0, N - 1), min_size=1, max_size=4),
    sampler=st.sampled_from(SAMPLERS),
    background=st.sampled_from(clips.BACKGROUNDS),
    patch=st.integers(1, 8),
)
def test_a_batch_holds_the_pixels_that_it_names(clip, seed, chosen, sampler, background, patch):
    asked = {"driven_by": (HEARS, *map(Use, ("expression", "eye_closed", "eye_area"))), "masks": ("face", "lips")}
    keys = generators(*range(seed, seed + len(chosen)))
    b = clip.batch(np.array(chosen), keys, sampler, 100, patch, background, truth=("lip_shape",), **asked)
    rays = {"rays": 100, "focus": 100, "close": 100, "frame": H * W, "patch": 100 // patch**2 * patch**2}
    rays["lips"] = (tiles_of(clip, patch) * patch) ** 2
    assert b.target.shape == (len(chosen), rays[sampler], 3) and b.target.dtype == np.float32
    assert b.image_hw == ((H, W) if sampler == "frame" else None)
    at = b.pixels_px - 0.5
    assert (at == np.floor(at)).all() and (at >= 0).all() and (at < [W, H]).all()
    for k, i in enumerate(chosen):
        column, row = at[k].astype(int).T
        np.testing.assert_array_equal(b.target[k], clip.target(i)[row, column] / np.float32(255))
        np.testing.assert_array_equal(b.background[k], clip.background(i, background)[row, column] / np.float32(255))
        np.testing.assert_array_equal(b.label[k], clip.label(i)[row, column])
        for found, name in ((b.masks["face"], "face_box_px"), (b.masks["lips"], "lips_box_px")):
            x0, y0, x1, y1 = clip.boxes[name][i]
            np.testing.assert_array_equal(found[k], (column >= x0) & (column < x1) & (row >= y0) & (row < y1))
    np.testing.assert_array_equal(b.frame, chosen)
    np.testing.assert_array_equal(b.cam_to_world, clip.cam_to_world[chosen])
    assert set(b.signals) == {"sound", "expression", "eye_closed", "eye_area"}
    for name in ("expression", "eye_closed", "eye_area"):
        np.testing.assert_array_equal(b.now(name), clip.signals[name].values[chosen])
    np.testing.assert_array_equal(b.truth["lip_shape"], clip.truth["lip_shape"][chosen])
    np.testing.assert_array_equal(b.intrinsics, np.tile(clip.intrinsics, (len(chosen), 1)))
    for k, i in enumerate(chosen):
        for w in range(8):
            heard = clip.audio.window_at(i + w - 4) if 0 <= i + w - 4 < clip.audio.n_windows else 0
            np.testing.assert_array_equal(b.signals["sound"][k, w], np.broadcast_to(heard, (16, 80)))


@pytest.mark.parametrize("sampler", ["focus", "close"])
def test_focus_draws_its_shares_from_lips_and_eyes(clip, sampler):
    rays = 960
    b = clip.batch(np.array([3]), generators(0), sampler, rays)
    column, row = (b.pixels_px[0] - 0.5).astype(int).T

    def inside(box, part):
        x0, y0, x1, y1 = box
        c, r = column[part], row[part]
        return np.all((c >= x0) & (c < x1) & (r >= y0) & (r < y1))

    lips, eye = rays // samplers.FOCUS[sampler], rays // samplers.FOCUS_EYES
    assert inside(clip.boxes["lips_box_px"][3], slice(0, lips))
    for k, name in enumerate(("eye_left_box_px", "eye_right_box_px")):
        x0, y0, x1, y1 = clip.eye_regions[3, k]
        assert inside((x0, y0, x1, y1), slice(lips + k * eye, lips + (k + 1) * eye))
        a0, b0, a1, b1 = clip.boxes[name][3]
        assert x0 <= a0 and y0 <= b0 and x1 >= a1 and y1 >= b1
        assert 0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_frame_of_a_batch_depends_on_its_own_generator_alone(clip, sampler):
    together = clip.batch(np.array([4, 9, 4]), generators(1, 2, 3), sampler, 64, 4)
    for k, (i, seed) in enumerate(((4, 1), (9, 2), (4, 3))):
        alone = clip.batch(np.array([i]), generators(seed), sampler, 64, 4)
        np.testing.assert_array_equal(together.pixels_px[k], alone.pixels_px[0])
        np.testing.assert_array_equal(together.target[k], alone.target[0])


def test_frame_batches_are_whole_pictures_in_row_order(clip):
    b = clip.frame_batch(7, "plate")
    assert b.image_hw == (H, W)
    np.testing.assert_array_equal(b.target.reshape(H, W, 3), clip.target(7) / np.float32(255))
    np.testing.assert_array_equal(b.pixels_px.reshape(H, W, 2)[2, 5], [5.5, 2.5])


def test_patches_are_whole_squares_anywhere_in_the_picture(clip):
    b = clip.batch(np.arange(40), generators(*range(40)), "patch", 50, 5)
    p = b.pixels_px.reshape(80, 5, 5, 2)
    np.testing.assert_array_equal(
        p - p[:, :1, :1], np.broadcast_to(np.indices((5, 5))[::-1].transpose(1, 2, 0), p.shape)
    )
    corner = p[:, 0, 0] - 0.5
    assert (corner.min(0) == 0).all() and (corner.max(0) == [W - 5, H - 5]).all()


def test_lips_tiles_cover_the_lips_box_of_every_training_frame_that_was_seen(tmp_path):
    n, size = 12, 64
    f = frames(n, size, size)
    rng = np.random.default_rng(0)
    low = rng.integers(0, 45, (n, 2))
    f["lips_box_px"] = np.concatenate([low, low + rng.integers(3, 19, (n, 1))], 1).astype(np.int32)
    f["confidence"][:] = 1
    f["confidence"][5] = 0
    f["lips_box_px"][5] = [0, 0, 64, 64]  # a wild guess where nothing was detected
    write_tiny(tmp_path / "a", n=n)
    with writer(tmp_path / "d", size, size) as w:
        w.add(f)
        w.add_file("background.png", images.encode_png(np.zeros((size, size, 3), np.uint8)))
        w.add_file("audio_logmel.npz", tmp_path / "a" / "audio_logmel.npz")
    clip = DatasetClip(tmp_path / "d", tmp_path / "cache")
    seen = [i for i in range(*clip.train_range) if i != 5]
    k = -(-int((f["lips_box_px"][seen, 2] - f["lips_box_px"][seen, 0]).max()) // 8)
    assert tiles_of(clip, 8) == k
    for i in range(*clip.train_range):
        b = clip.batch(np.array([i]), generators(0), "lips", 1, 8, masks=("lips",))
        x0, y0, x1, y1 = f["lips_box_px"][i]
        inside = b.pixels_px[0][b.masks["lips"][0]]
        assert len(np.unique(b.pixels_px[0], axis=0)) == (8 * k) ** 2
        if i != 5:
            assert len(inside) == (x1 - x0) * (y1 - y0)
        tiles = b.pixels_px.reshape(-1, 8, 8, 2)
        assert (tiles[:, 7, 7] - tiles[:, 0, 0] == 7).all()


def test_wrong_requests_are_refused_in_a_sentence(root, clip, tmp_path):
    g = generators(0)
    for call, words in (
        (
            lambda: clip.batch(np.array([0]), g, "pixels"),
            "rays, focus, close, lower_half, right_half, patch, lips, frame",
        ),
        (lambda: clip.batch(np.array([0]), g, background="green"), "torso, plate"),
        (lambda: clip.batch(np.array([0]), g, driven_by=[Use("gaze")]), "no signal 'gaze'"),
        (lambda: clip.batch(np.array([0]), g, masks=["nose"]), "face, lips"),
        (lambda: clip.batch(np.array([0, 1]), g), "one per frame"),
        (lambda: clip.batch(np.array([N]), g), f"0..{N - 1}"),
        (lambda: clip.batch(np.array([0]), g, "patch", 100, 32), "shorter side"),
        (lambda: clip.batch(np.array([0]), g, "patch", 10, 4), "patch² = 16"),
        (lambda: clip.batch(np.array([0]), g, "rays", 0), "at least 1"),
        (lambda: DatasetClip(root, tmp_path, preload="gpu"), "disk, host, device"),
        (lambda: DatasetClip(root, tmp_path, size=-1), "expected 0"),
        (lambda: DatasetClip(root, tmp_path, audio_kind="hubert"), "logmel"),
        (lambda: DatasetClip(tmp_path / "none", tmp_path), "manifest.json"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert words in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- sound


@given(
    n=st.integers(1, 60), window=st.integers(1, 18), hop=st.integers(1, 3), left=st.integers(0, 9),
    chosen=st.lists(st.integers(-3, 70), min_size=1, max_size=5), neighbours=st.sampled_from([1, 3, 8]),
)  # fmt: skip
def test_neighbouring_windows_are_the_windows_of_the_neighbours(n, window, hop, left, chosen, neighbours):
    f = np.random.default_rng(n).standard_normal((n, 2)).astype(np.float32)
    a = AudioFeatures("any", f, 50.0, 0.0, "test", window, hop, left, left)
    use = Use("sound", neighbours // 2, neighbours - 1 - neighbours // 2)
    got = signals.windows(described.of_sound(a), np.array(chosen), use)
    assert got.shape == (len(chosen), neighbours, window, 2) and got.dtype == np.float32
    for k, i in enumerate(chosen):
        for w in range(neighbours):
            j = i + w - neighbours // 2
            wanted = a.window_at(j) if 0 <= j < -(-n // hop) else np.zeros((window, 2))
            np.testing.assert_array_equal(got[k, w], wanted)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("member", "spoil", "words"),
    [
        ("image_bytes", lambda b: b[:-200] + bytes(200), None),
        ("torso_bytes", lambda b: b[:60] + bytes(len(b) - 60), "cannot be decoded"),
        ("label_bytes", lambda b: b[:45] + bytes(len(b) - 45), "cannot be decoded"),
        ("label_bytes", lambda b: images.encode_png(np.full((12, 16), 4, np.uint8)), "holds label 4, expected 0..3"),
    ],
)
def test_pictures_that_are_none_are_refused_with_shard_and_frame(tmp_path, member, spoil, words):
    write_tiny(tmp_path / "d", n=4)
    offsets = contract.offsets_of(member)

    def change(a):
        parts = [a[member][a[offsets][i] : a[offsets][i + 1]].tobytes() for i in range(4)]
        parts[2] = spoil(parts[2])
        a[member] = np.frombuffer(b"".join(parts), np.uint8)
        a[offsets] = np.cumsum([0, *map(len, parts)], dtype=np.int64)

    rewrite_shard(tmp_path / "d", change)
    if words is None:  # a jpeg whose end is lost may still decode; it never crashes
        DatasetClip(tmp_path / "d", tmp_path / "cache")
        return
    with pytest.raises(UserError) as error:
        DatasetClip(tmp_path / "d", tmp_path / "cache")
    text = str(error.value)
    assert words in text and f"member {member} of frame 2" in text and "shard-00000-" in text and "\n" not in text


@pytest.mark.parametrize("damage", ["truncate", "no marker", "other marker", "missing", "other shape"])
def test_a_damaged_cache_is_built_again(tmp_path, damage):
    write_tiny(tmp_path / "d", n=4)
    good = DatasetClip(tmp_path / "d", tmp_path / "cache").target(3)
    (folder,) = (tmp_path / "cache").iterdir()
    file = folder / "target.npy"
    if damage == "truncate":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "no marker":
        (folder / "complete.json").unlink()
    elif damage == "other marker":
        (folder / "complete.json").write_text("{}")
    elif damage == "missing":
        file.unlink()
    else:
        np.save(file, np.zeros((4, 16, 12, 3), np.uint8))
    again = DatasetClip(tmp_path / "d", tmp_path / "cache")
    np.testing.assert_array_equal(again.target(3), good)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_cache_is_kept_while_the_dataset_is_the_same_and_not_when_it_changed(tmp_path):
    write_tiny(tmp_path / "d", n=4)
    DatasetClip(tmp_path / "d", tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    before = (folder / "target.npy").stat().st_mtime_ns
    DatasetClip(tmp_path / "d", tmp_path / "cache")
    assert (folder / "target.npy").stat().st_mtime_ns == before
    write_tiny(tmp_path / "d", n=4, seed=1)
    DatasetClip(tmp_path / "d", tmp_path / "cache")
    (other,) = (tmp_path / "cache").iterdir()
    assert other.name != folder.name


def test_the_cache_holds_one_size_says_how_much_and_touches_nothing_else(tmp_path, caplog):
    write_tiny(tmp_path / "d", n=4)
    cache = tmp_path / "cache"
    (cache / "my photos").mkdir(parents=True)
    (cache / "notes.txt").write_text("mine")
    (cache / "0123456789abcdef-9x9-v1.part").mkdir()  # of an earlier version, cut short
    caplog.set_level("INFO", "tkjax.data.frame_cache")
    large = DatasetClip(tmp_path / "d", cache)
    before = [large.target(i) for i in range(2)]
    (old,) = (p for p in cache.iterdir() if p.name.endswith(f"-{large.height}x{large.width}-v{frame_cache._VERSION}"))
    small = DatasetClip(tmp_path / "d", cache, size=8)
    assert "4 decoded pictures of 8x6 in" in caplog.text and "removed from" in caplog.text
    assert not old.exists() and {p.name for p in cache.iterdir()} >= {"my photos", "notes.txt"}
    assert len(list(cache.iterdir())) == 3
    np.testing.assert_array_equal(large.target(1), before[1])  # who has it open reads on
    large.target(3), small.target(3)


@pytest.mark.parametrize("preload", ["disk", "host", "device"])
def test_a_flipped_bit_in_the_cache_is_noticed_and_the_next_run_decodes_anew(tmp_path, preload):
    write_tiny(tmp_path / "d", n=4)
    good = DatasetClip(tmp_path / "d", tmp_path / "cache").target(2)
    (folder,) = (tmp_path / "cache").iterdir()
    raw = bytearray((folder / "target.npy").read_bytes())
    raw[-good.nbytes - 1] ^= 4  # the last byte of frame 2
    (folder / "target.npy").write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"target\.npy: frame 2 is not as it was written.*run the command again"):
        DatasetClip(tmp_path / "d", tmp_path / "cache", preload=preload).target(2)
    np.testing.assert_array_equal(DatasetClip(tmp_path / "d", tmp_path / "cache").target(2), good)


def test_a_cache_without_locks_is_built_and_a_broken_disk_says_so(tmp_path, monkeypatch):
    write_tiny(tmp_path / "d", n=4)

    def fails(number):
        def flock(*args):
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(files.fcntl, "flock", fails(errno.EIO))
    with pytest.raises(UserError, match="cache: Input/output error"):
        DatasetClip(tmp_path / "d", tmp_path / "cache")
    monkeypatch.setattr(files.fcntl, "flock", fails(errno.EBADF))
    with pytest.raises(OSError, match="Bad file"):
        DatasetClip(tmp_path / "d", tmp_path / "cache")
    monkeypatch.setattr(files.fcntl, "flock", fails(errno.ENOLCK))
    with pytest.warns(UserWarning, match="nothing keeps a second run out"):
        DatasetClip(tmp_path / "d", tmp_path / "cache")


def test_a_build_that_was_cut_short_goes_on_where_it_was(tmp_path, monkeypatch):
    write_tiny(tmp_path / "d", n=150)
    wanted = DatasetClip(tmp_path / "d", tmp_path / "whole")
    decode, seen = frame_cache.decode_frame, []

    def counted(dataset, i, *rest):
        if len(seen) == 100:
            raise KeyboardInterrupt
        seen.append(i)
        return decode(dataset, i, *rest)

    monkeypatch.setattr(frame_cache, "decode_frame", counted)
    with pytest.raises(KeyboardInterrupt):
        DatasetClip(tmp_path / "d", tmp_path / "cache")
    monkeypatch.setattr(
        frame_cache, "decode_frame", lambda dataset, i, *rest: seen.append(-i) or decode(dataset, i, *rest)
    )
    clip = DatasetClip(tmp_path / "d", tmp_path / "cache")
    assert sorted(i for i in seen if i < 0) == sorted(range(-149, -63)), "the first 64 frames were there"
    for i in range(150):
        np.testing.assert_array_equal(clip.target(i), wanted.target(i))


def test_a_disk_that_is_too_small_is_reported_before_work_begins(tmp_path, monkeypatch):
    write_tiny(tmp_path / "d", n=4)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="decoded frames need"):
        DatasetClip(tmp_path / "d", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.heavy
def test_a_build_killed_at_random_moments_ends_true(tmp_path):
    write_tiny(tmp_path / "d", n=400, height=24, width=24)
    wanted = DatasetClip(tmp_path / "d", tmp_path / "whole")
    code = "import sys; from tkjax.data import dataset_clip as d; print('go', flush=True); d.DatasetClip(*sys.argv[1:])"
    for wait in (0.0, 0.05, 0.15):
        command = [sys.executable, "-c", code, str(tmp_path / "d"), str(tmp_path / "cache")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    clip = DatasetClip(tmp_path / "d", tmp_path / "cache")
    for i in range(0, 400, 7):
        np.testing.assert_array_equal(clip.target(i), wanted.target(i))


@pytest.mark.heavy
def test_memory_stays_flat_while_a_clip_is_cached_and_sampled(tmp_path):
    """Resident memory, mapped files included, grows by far less than the cache holds."""
    n, size = 1600, 160
    write_tiny(tmp_path / "d", n=n, height=size, width=size)
    code = """
import json, re, sys
import numpy as np
from tkjax.data.dataset_clip import DatasetClip
import tkjax.types
def memory(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
start = memory("VmRSS")
clip = DatasetClip(sys.argv[1], sys.argv[2])
for i in range(0, clip.n_frames, 4):
    clip.batch(np.arange(i, i + 4), [np.random.default_rng(i)] * 4, "rays", 512)
print(json.dumps([start, memory("VmHWM")]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "d"), str(tmp_path / "cache")], capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    start, peak = json.loads(done.stdout)
    cached = n * size**2 * 7 / 2**20
    assert cached > 250 and peak - start < 110, f"{start:.0f} MB grew to {peak:.0f} MB with {cached:.0f} MB cached"


def test_a_dataset_that_breaks_the_contract_does_not_become_a_clip(tmp_path):
    write_tiny(tmp_path / "d", n=4)
    shard = next((tmp_path / "d").glob("shard*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ContractError, match=shard.name):
        DatasetClip(tmp_path / "d", tmp_path / "cache")


def test_every_alpha_over_every_colour_is_rounded_to_nearest():
    alpha, colour = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgba = np.stack([colour, colour, colour, alpha], -1)
    for under in (0, 1, 100, 255):
        plate = np.full((256, 256, 3), under, np.uint8)
        exact = (alpha[..., None] / 255.0) * rgba[..., :3] + (1 - alpha[..., None] / 255.0) * plate
        np.testing.assert_array_equal(frame_cache.over(rgba, plate), np.rint(exact))


def test_a_torso_in_front_shows_nothing_where_the_frame_shows_the_head():
    rng = np.random.default_rng(0)
    rgba, label = rng.integers(1, 256, (6, 7, 4), np.uint8), rng.integers(0, 4, (6, 7), np.uint8)
    cut = frame_cache.in_front(rgba, label)
    head = label == contract.LABEL_HEAD
    assert not cut[head].any() and np.array_equal(cut[~head], rgba[~head]) and rgba.all()
