"""Imported checkpoints with a dataset, on to rendering and training; avatars that were trained here go out."""

import contextlib
import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import original_checkpoints as originals
from tests import tiny, tiny_dataset
from tests.imported_checkpoint import refused, run, without_a_child
from tests.originals_oracle import loader_pose
from tkjax import config, contract
from tkjax.app import cli, importing, options
from tkjax.app.workdir import dataset_of
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.originals import layout, source, stand_in

pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def files_without_a_child(monkeypatch):
    without_a_child(monkeypatch)


@pytest.fixture(scope="module")
def small():
    """An ER-NeRF head, to be spoilt."""
    return originals.state_dict("er_nerf", audio=29, rows=16)


# ---------------------------------------------------------------- with a dataset, and on to rendering


def dataset(root: Path, width: int) -> Path:
    """Eleven tiny frames that hear features of a width."""
    kind = "wav2vec2" if width == 44 else "deepspeech"
    rows = np.random.default_rng(0).standard_normal((22, width)).astype(np.float32)
    path = root.parent / f"audio_{kind}.npz"
    contract.save_audio_features(path, kind, rows, 50.0, 0.01, f"array-{kind}", 16, 2, 8, 8)
    with tiny_dataset.writer(root, 24, 32) as out:
        out.add(tiny_dataset.frames(11, 24, 32))
        out.add_file("background.png", tiny_dataset.plate(24, 32))
        out.add_file(f"audio_{kind}.npz", path)
    return root


@pytest.mark.heavy
def test_a_dataset_gives_cameras_plate_and_torso(small, tmp_path):
    root = dataset(tmp_path / "dataset", 29)
    originals.save(tmp_path / "x.pth", originals.whole(small, "best"))
    said = run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W", dataset=root)
    assert f"dataset: {root}, 11 frames" in said
    subject = bundle.load(tmp_path / "W" / "avatar")
    truth = contract.Dataset(root)
    assert (subject.info.height, subject.info.width, subject.n_train) == (24, 32, 10)
    np.testing.assert_array_equal(subject.cam_to_world[:10], truth.column("cam_to_world")[:10])
    assert subject.meta["audio"]["kind"] == "deepspeech"
    assert dataset_of(tmp_path / "W") == root

    sound = tmp_path / "a.wav"
    audio.write_wav(sound, tiny.sound(0.4))
    features = dataclasses.replace(truth.audio_features("deepspeech"), features=np.ones((20, 29), np.float32))
    np.save(tmp_path / "aud_ds.npy", feature_arrays.to_windows(features))
    flags = {"audio": sound, "out": tmp_path / "frames", "features": tmp_path / "aud_ds.npy"}
    run("render", workdir=tmp_path / "W", **flags)
    assert len(list((tmp_path / "frames").glob("*.png"))) == 10


@pytest.mark.heavy
def test_training_goes_on_under_an_imported_head(small, tmp_path):
    """The head's stage counts as finished; the torso's two steps leave the head as it was imported."""
    file = originals.whole(small)
    originals.save(tmp_path / "x.pth", file)
    workdir, root = tmp_path / "W", dataset(tmp_path / "dataset", 29)
    run("import", source=tmp_path / "x.pth", workdir=workdir, dataset=root)
    run("import", source=tmp_path / "x.pth", workdir=workdir)  # again, with the dataset that the workdir knows
    before = bundle.load(workdir / "avatar")
    assert before.stages == ("head", "lips")  # 203616 steps are more than the head's
    a = bundle.arrays_of(before.variables(before.model()).params)
    few = {"train.torso.steps": "2", "train.torso.rays": "32", "train.torso.ema_every": "1", "train.preview_every": "0"}
    few = [*few.items(), ("model.chunk", "64")]
    opts = options.Options("train", {"workdir": str(workdir), "stages": ("torso",), "consent": "a test"}, few)
    with contextlib.redirect_stdout(io.StringIO()):
        cli.run(opts)
    after = bundle.load(workdir / "avatar")
    assert after.stages == ("head", "lips", "torso")
    b = bundle.arrays_of(after.variables(after.model()).params)
    same = {k for k in a if np.array_equal(a[k], b[k])}
    assert {k for k in a if not k.startswith("torso/")} <= same and "torso/colour/kernel_0" not in same
    np.testing.assert_array_equal(b["density/kernel_1"], originals.averaged(file)["sigma_net.net.1.weight"].T)
    with pytest.raises(UserError, match="holds a training run"):
        run("import", source=tmp_path / "x.pth", workdir=workdir)


def test_a_dataset_with_other_sound_is_refused_with_both_named(small, tmp_path):
    root = dataset(tmp_path / "dataset", 44)
    said = refused(tmp_path, originals.whole(small, "best"), "deepspeech", dataset=root)
    assert "deepspeech (29)" in said and "wav2vec2 (44)" in said


def test_a_dataset_longer_than_the_frame_codes_is_refused(tmp_path):
    root = dataset(tmp_path / "dataset", 29)
    model = originals.state_dict("er_nerf", audio=29, rows=8)
    refused(tmp_path, originals.whole(model, "best"), "has 11 frames, but the checkpoint codes for 8", dataset=root)


@pytest.mark.parametrize(
    "width, forced, kind, window",
    [
        (29, None, "deepspeech", (16, 2, 8)),
        (44, None, "wav2vec2", (16, 2, 8)),
        (32, None, "wav2vec2", (16, 2, 8)),
        (1024, None, "hubert", (2, 2, 0)),
        (1024, "avatar_ernerf", "hubert", (16, 2, 8)),
        (768, None, "hubert", (16, 2, 8)),
    ],
)
def test_the_sound_is_told_by_its_width(width, forced, kind, window):
    shapes = originals.shapes("er_nerf", audio=width, rows=16)
    sizes = layout.sizes("er_nerf", shapes)
    found = source.Recognised("er_nerf", sizes, layout.layout("er_nerf", sizes), [], [], None)
    spec = stand_in.sound(sizes.audio, importing._name(found, forced) == "avatar_ernerf")
    assert (spec["kind"], spec["channels"]) == (kind, width)
    assert (spec["window"], spec["hop"], spec["left"]) == window
    assert (importing._name(found, forced) == "avatar_ernerf") == (window == (16, 2, 8) and kind == "hubert")


def test_without_a_dataset_the_camera_is_the_originals_viewer():
    clip = stand_in.StandIn(stand_in.sound(29, False))
    assert (clip.info.height, clip.info.width) == (450, 450)
    assert clip.info.intrinsics == pytest.approx((1200.0, 1200.0, 225.0, 225.0), abs=0.5)
    pose = loader_pose(clip.cam_to_world[0])
    np.testing.assert_allclose(pose[:, 3], [0, 3.35, 0], atol=1e-6)
    np.testing.assert_allclose(pose[:, 2], [0, -1, 0], atol=1e-6)  # it looks at the head


# ---------------------------------------------------------------- avatars that were trained here


@pytest.mark.heavy
def test_only_avatars_with_the_originals_shapes_are_exported(tmp_path):
    spec = stand_in.sound(29, False)
    clip = stand_in.StandIn(spec)
    for changes, told in (
        ({"model.grid_finest": "500"}, "the avatar's grid planes"),
        ({"model.code_dim": "5"}, None),
        ({"model.torso_finest": "512"}, None),
    ):
        overrides = [("model.code_rows", "16"), ("model.occupancy_side", "32"), *changes.items()]
        resolved = config.load("configs/er_nerf.py:full", overrides)
        save_fresh(tmp_path / "W", resolved, clip, spec)
        if told:
            with pytest.raises(UserError, match=told):
                run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")
            continue
        whole = "model.torso_finest" not in changes
        said = run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")
        assert ("the torso is left out: its grid has" in said) != whole
        said = run("import", source=tmp_path / "y.pth", workdir=tmp_path / "again")
        assert ("head and torso" in said) == whole
        first, second = (bundle.load(tmp_path / w / "avatar") for w in ("W", "again"))
        a, b = (bundle.arrays_of(s.variables(s.model()).params) for s in (first, second))
        for key in a:
            if whole or not key.startswith("torso/"):
                np.testing.assert_array_equal(a[key], b[key], err_msg=key)
    with pytest.raises(UserError, match=r"ends with \.pth"):
        run("export", workdir=tmp_path / "W", out=tmp_path / "y.zip")


def save_fresh(workdir: Path, resolved, clip, spec) -> None:
    """An avatar with random numbers, all stages finished."""
    model = load_system(resolved.system)(resolved, clip.info)
    template = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.integers(0, 2, x.shape), x.dtype), template)
    bundle.save(workdir / "avatar", resolved, variables, 1, clip, spec, {"statement": None})


def test_avatars_of_other_systems_are_not_exported(tmp_path):
    clip = DatasetClip(tiny.make_dataset(tmp_path / "dataset"), tmp_path / "cache")
    resolved = tiny.config()
    model = load_system(resolved.system)(resolved, clip.info)
    spec = bundle.audio_spec(clip.audio)
    bundle.save(tmp_path / "W" / "avatar", resolved, model.init(jax.random.key(0)), 4, clip, spec, {})
    with pytest.raises(UserError, match=r"avatar of tests\.tiny"):
        run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")


def test_folders_of_checkpoints_and_finished_runs_are_refused(tmp_path):
    (tmp_path / "ws" / "checkpoints").mkdir(parents=True)
    (tmp_path / "ws" / "checkpoints" / "ngp.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"import one of its files, such as .*ngp.pth"):
        run("import", source=tmp_path / "ws", workdir=tmp_path / "W")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        run("import", source=tmp_path / "none", workdir=tmp_path / "W")
    (tmp_path / "W" / "checkpoints").mkdir(parents=True)
    (tmp_path / "W" / "checkpoints" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="holds a training run"):
        run("import", source=tmp_path / "ws" / "checkpoints" / "ngp.pth", workdir=tmp_path / "W")
