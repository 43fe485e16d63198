"""Checkpoints of the originals: what they draw once imported, what they are after export, and what is refused."""

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
from tests.originals_oracle import Original, loader_pose
from tkjax import config, contract
from tkjax.app import cli, exporting, importing, options
from tkjax.app.workdir import dataset_of
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.host import torch_side
from tkjax.media import audio
from tkjax.models import load_system
from tkjax.originals import layout, source, stand_in, weights
from tkjax.render.image import final_clock
from tkjax.types import Batch, Render

torch = pytest.importorskip("torch")
from preprocess.weights import checkpoint_file  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Case:
    system: str
    audio: int
    torso: bool = False
    kind: str = "rolling"
    take: str | None = None  # --weights
    frozen: bool = False  # the moving average lists the torso alone
    camera: bool = False
    eye: bool = True
    counts: str = ""

    def state(self) -> dict:
        return originals.state_dict(
            self.system, audio=self.audio, torso=self.torso, camera=self.camera, eye=self.eye, rows=10000
        )

    def drawn(self, file: dict) -> dict:
        """The state dict that pictures are of."""
        if self.kind == "rolling" and self.take != "raw":
            return originals.averaged(file, self.frozen)
        return file if self.kind == "bare" else file["model"]


CASES = {
    "er-torso-ema": Case("er_nerf", 29, torso=True, counts="head 587,989 parameters, torso 1,199,692 parameters"),
    "rad-torso-frozen": Case(
        "rad_nerf", 44, torso=True, frozen=True, counts="head 3,024,277 parameters, torso 1,207,424 parameters"
    ),
    "er-wide-raw": Case("er_nerf", 1024, take="raw", counts="head 683,509 parameters"),
    "rad-best": Case("rad_nerf", 29, kind="best", counts="head 3,022,837 parameters"),
    "er-bare-blind": Case("er_nerf", 44, kind="bare", camera=True, eye=False),
}


def run(mode: str, **flags) -> str:
    """A mode of launch.py in this process; what it printed."""
    flags = {k: str(v) if isinstance(v, Path) else v for k, v in flags.items()}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.run(options.Options(mode, flags, []))
    return out.getvalue()


@pytest.fixture(autouse=True)
def files_without_a_child(monkeypatch):
    """Starting PyTorch takes seconds: single tests read and write files in this process. Module fixtures do not."""

    def ask(module, arguments):
        assert module == source.MODULE
        with contextlib.redirect_stderr(io.StringIO()) as err:
            if checkpoint_file.main(arguments):
                raise UserError(err.getvalue().strip().removeprefix("error: "))

    monkeypatch.setattr(torch_side, "ask", ask)


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def imported(request, tmp_path_factory):
    """(case, file as built, workdir, what the import printed)."""
    case = request.param
    folder = tmp_path_factory.mktemp("imported")
    file = originals.whole(case.state(), case.kind, frozen=case.frozen)
    originals.save(folder / "x.pth", file)
    said = run("import", source=folder / "x.pth", workdir=folder / "W", **({"weights": case.take} if case.take else {}))
    return case, file, folder / "W", said


# ---------------------------------------------------------------- pictures


def view(info, rays: int, seed: int = 0) -> tuple[Batch, np.ndarray, np.ndarray, np.ndarray]:
    """(batch of one frame seen from the side, its rows, columns, and audio [8,C,T] as the originals take it)."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(60, info.height - 60, rays), rng.integers(60, info.width - 60, rays)
    c, s = np.cos(0.2), np.sin(0.2)
    pose = np.array([[c, 0, s, 3.3 * s], [0, 1, 0, 0.05], [-s, 0, c, 3.3 * c], [0, 0, 0, 1]], np.float32)
    windows = rng.standard_normal((1, 8, info.signal("sound").window, info.signal("sound").channels)).astype(np.float32)
    batch = Batch(
        frame=jnp.array([7]),
        cam_to_world=jnp.asarray(pose)[None],
        intrinsics=jnp.asarray(info.intrinsics, jnp.float32)[None],
        pixels_px=jnp.asarray(np.stack([columns, rows], -1)[None] + 0.5, jnp.float32),
        background=jnp.ones((1, rays, 3)),
        signals={
            "sound": jnp.asarray(windows),
            "eye_closed": jnp.full((1, 1, 1, 1), 0.3, jnp.float32),
            "eye_area": jnp.full((1, 1, 1, 1), 0.2, jnp.float32),
        },
    )
    return batch, rows, columns, windows[0].transpose(0, 2, 1)


def test_an_imported_avatar_draws_what_the_formulas_say(imported):
    """Sound, field, march, compositing and torso in float64 from the state dict: every pixel agrees to 1e-4."""
    case, file, workdir, _ = imported
    subject = bundle.load(workdir / "avatar")
    model = subject.model()
    variables = subject.variables(model)
    truth, info = Original(case.system, case.drawn(file)), subject.info
    batch, rows, columns, windows = view(info, rays=12)
    code = truth.audio(windows)
    got = np.asarray(model._apply(variables.params, "audio_code", batch.signals["sound"]))[0]
    np.testing.assert_allclose(got, code, atol=1e-5)
    clock = final_clock(1, "torso" if case.torso else "head")
    out = model.render(variables, batch, None, clock, False)
    background = np.array([0.9, 0.5, 0.1])
    got = np.clip(np.asarray(out.rgb[0] + (1 - out.alpha[0]) * background, np.float64), 0, 1)
    eye = None if not case.eye else np.float32(0.2 if case.system == "rad_nerf" else 0.3)
    pose, sure = loader_pose(batch.cam_to_world[0]), 0
    maps = model.maps(variables, batch, clock)
    names = ("ambient",) if case.system == "rad_nerf" else ("audio_norm", "eye_weight", "uncertainty")
    for i, (row, column) in enumerate(zip(rows, columns)):
        hw = (info.height, info.width)
        want, unsure = truth.picture(pose, info.intrinsics, row, column, hw, code, eye, case.torso, background)
        if not unsure:
            np.testing.assert_allclose(got[i], want, atol=1e-4)
            for name, value in zip(names, truth.extras):
                if case.eye or name != "eye_weight":  # without a blink ours is 1/2 everywhere, and times 0
                    np.testing.assert_allclose(maps[name][0, i], value, rtol=1e-4, atol=1e-4)
            sure += 1
    assert sure >= 9 and np.std(got) > 0.02 and 0.1 < float(np.mean(out.alpha)) < 0.95
    assert (out.front is not None) == case.torso


def test_a_torso_that_hardly_shows_is_as_exact_as_the_rest(imported):
    """Behind a head that lets ever less through, the torso is in the picture to far below 1e-4, whatever is left out
    where it does not show; in float64 from the state dict."""
    case, file, workdir, _ = imported
    if not case.torso:
        pytest.skip("a file without a torso")
    subject = bundle.load(workdir / "avatar")
    model = subject.model()
    variables, info = subject.variables(model), subject.info
    through = np.geomspace(1e-6, 1, 120).astype(np.float32)
    batch, rows, columns, _ = view(info, rays=len(through))
    alpha = (1 - through)[None, :, None]
    head = Render(rgb=jnp.asarray(0.5 * alpha * np.ones(3, np.float32)), alpha=jnp.asarray(alpha), aux={})
    out = model._over_torso(variables, batch, head)
    truth, pose, seen = Original(case.system, case.drawn(file)), loader_pose(batch.cam_to_world[0]), 0
    for i, (row, column) in enumerate(zip(rows, columns)):
        colour, opaque, unsure = truth.torso(pose, row, column, info.height, info.width)
        if unsure:
            continue
        background = np.round(1 - colour)  # as different as it can be
        got = np.asarray(out.rgb[0, i] + (1 - out.alpha[0, i]) * background, np.float64)
        a = float(alpha[0, i, 0])
        want = 0.5 * a + (1 - a) * (opaque * colour + (1 - opaque) * background)
        np.testing.assert_allclose(got, want, atol=3e-5)
        seen += opaque > 0.2 and 1e-4 < through[i] < 1e-3
    assert seen >= 5  # where an 8-bit picture would show nothing of it


def test_the_import_says_what_it_recognised_took_and_left(imported):
    case, _, workdir, said = imported
    assert f"recognised: {'RAD-NeRF' if case.system == 'rad_nerf' else 'ER-NeRF'}, head" in said
    assert ("head and torso" in said) == case.torso
    assert case.counts in said
    if case.kind == "rolling":
        assert "optimizer" in said and "epoch 28, global_step 203616" in said
    subject = bundle.load(workdir / "avatar")
    params = bundle.arrays_of(subject.variables(subject.model()).params)
    ours = sum(v.size for k, v in params.items() if not k.startswith("torso/"))
    theirs = sum(int(np.prod(s)) for k, s in originals.shapes(
        case.system, case.audio, case.torso, case.camera, 10000, case.eye
    ).items() if originals.is_parameter(k) and not originals.is_torso(k))  # fmt: skip
    assert ours - theirs == (0 if case.eye else 36 * 16 + 16 + 64)  # the blink's part, all of it zero
    assert subject.config.model.picture_precision == "float32" and subject.config.model.picture_stop == 1e-4
    assert subject.stages[0] == "head" and (subject.stages[-1] == "torso") == case.torso


@pytest.fixture(scope="module")
def exported(imported):
    path = imported[2].parent / "y.pth"
    assert str(path) in run("export", workdir=imported[2], out=path)
    return path


def test_export_gives_every_tensor_back(imported, exported):
    case, file, _, _ = imported
    back = torch.load(exported, weights_only=True)
    want, got = (file, back) if case.kind == "bare" else (file["model"], back["model"])
    assert list(got) == list(want)
    for key, value in want.items():
        assert got[key].numpy().dtype == value.dtype, key
        np.testing.assert_array_equal(got[key].numpy(), value, err_msg=key)
    if case.kind == "bare":
        return
    kept = ("epoch", "global_step", "stats", "mean_count", "mean_density", "mean_density_torso")
    assert {k: back[k] for k in kept} == {k: file[k] for k in kept}
    assert ("ema" in back) == (case.kind == "rolling")
    if "ema" in back:
        assert len(back["ema"]["shadow_params"]) == len(file["ema"]["shadow_params"])
        for a, b in zip(back["ema"]["shadow_params"], file["ema"]["shadow_params"]):
            np.testing.assert_array_equal(a.numpy(), b)
        assert back["ema"]["decay"] == 0.95 and back["ema"]["num_updates"] == 20


def test_the_export_imports_to_the_same_avatar(imported, exported, tmp_path):
    case, _, workdir, _ = imported
    flags = {"weights": case.take} if case.take else {}
    run("import", source=exported, workdir=tmp_path / "W", **flags)
    first, second = (bundle.load(w / "avatar") for w in (workdir, tmp_path / "W"))
    a, b = (bundle.arrays_of(s.variables(s.model())) for s in (first, second))
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_an_exported_avatar_carries_its_own_numbers(tmp_path):
    """An avatar that changed after the import is exported as it is now, not as the file was."""
    case = CASES["rad-best"]
    originals.save(tmp_path / "x.pth", originals.whole(case.state(), "best"))
    run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W")
    subject = bundle.load(tmp_path / "W" / "avatar")
    variables = subject.variables(subject.model())
    moved = variables.replace(params=jax.tree.map(lambda x: x + 0.5, variables.params))
    spec = stand_in.sound(29, False)
    clip = stand_in.StandIn(spec)
    bundle.save(tmp_path / "W" / "avatar", subject.config, moved, 1, clip, spec, {"statement": None}, stages=["head"])
    run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")
    back = torch.load(tmp_path / "y.pth", weights_only=True)
    for key, value in case.state().items():
        if originals.is_parameter(key):
            np.testing.assert_array_equal(back["model"][key].numpy(), value + np.float32(0.5))
    np.testing.assert_array_equal(back["model"]["density_bitfield"].numpy(), case.state()["density_bitfield"])
    assert list(back["model"]) == list(case.state()) and "ema" not in back


def test_a_damaged_folder_of_the_import_is_one_sentence(small, tmp_path):
    originals.save(tmp_path / "x.pth", {"epoch": 1, "model": small})
    run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W")
    kept = tmp_path / "W" / importing.KEPT
    for path in sorted(kept.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=r"import is damaged \(\w+\); import the checkpoint again") as error:
            run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")
        assert "\n" not in str(error.value) and not (tmp_path / "y.pth").exists()
        path.write_bytes(whole)
    run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")


# ---------------------------------------------------------------- what is missing, unknown or wrong


def refused(tmp_path, file, message: str, **flags) -> str:
    """The one sentence with which an import ends; nothing is left in the workdir."""
    path = tmp_path / "x.pth"
    if isinstance(file, bytes):
        path.write_bytes(file)
    else:
        torch.save(originals.tensors(file), path)
    with pytest.raises(UserError, match=message) as error:
        run("import", source=path, workdir=tmp_path / "W", **flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "W").exists()
    return str(error.value)


@pytest.fixture(scope="module")
def small():
    """An ER-NeRF head, to be spoilt."""
    return originals.state_dict("er_nerf", audio=29, rows=16)


def test_missing_tensors_that_pictures_need_are_named_all_together(small, tmp_path):
    left = {k: v for k, v in small.items() if k not in ("sigma_net.net.1.weight", "audio_net.encoder_fc1.2.bias")}
    said = refused(tmp_path, {"epoch": 1, "model": {**left, "lip_net.weight": np.ones(2)}}, "lacks 2 tensors")
    assert "unknown: lip_net.weight" in said
    assert "sigma_net.net.1.weight" in said and "audio_net.encoder_fc1.2.bias" in said


def test_missing_tensors_that_no_picture_needs_and_unknown_ones_are_listed_and_the_latter_kept(small, tmp_path):
    left = {k: v for k, v in small.items() if k not in ("unc_net.net.1.weight", "step_counter", "density_grid")}
    left["lip_net.weight"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    originals.save(tmp_path / "x.pth", {"epoch": 1, "model": left})
    said = run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W")
    missing = next(line for line in said.splitlines() if line.startswith("missing"))
    assert all(name in missing for name in ("unc_net.net.1.weight", "step_counter", "density_grid"))
    assert "unknown, not used: lip_net.weight [2, 3]" in said
    run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")
    back = torch.load(tmp_path / "y.pth", weights_only=True)["model"]
    assert list(back) == list(left)
    np.testing.assert_array_equal(back["lip_net.weight"].numpy(), left["lip_net.weight"])


@pytest.mark.parametrize(
    "key, value, told",
    [
        ("color_net.net.0.weight", np.zeros((64, 83), np.float32), r"color_net.net.0.weight is \[64, 83\]"),
        ("encoder_yz.embeddings", np.zeros((163584, 2), np.float32), "encoder_yz.embeddings"),
        ("encoder_xz.offsets", np.arange(13, dtype=np.int32), "the levels in encoder_xz.offsets"),
        ("density_bitfield", np.zeros(2 * 262144, np.uint8), "--bound above 1"),
        ("aabb_infer", np.array([-2, -1, -2, 2, 1, 2], np.float32), "aabb_infer"),
        ("eye_att_net.net.1.weight", np.full((1, 16), np.nan, np.float32), "eye_att_net.net.1.weight holds numbers"),
        ("audio_net.encoder_conv.0.weight", np.zeros((32, 77, 3), np.float32), "width 77"),
    ],
)
def test_wrong_shapes_and_numbers_are_refused_by_name(small, tmp_path, key, value, told):
    refused(tmp_path, {"epoch": 1, "model": {**small, key: value}}, told)


def test_what_is_no_checkpoint_of_theirs_is_refused_in_one_sentence(small, tmp_path):
    refused(tmp_path, b"not a checkpoint at all", "not readable as a PyTorch checkpoint")
    refused(tmp_path, b"", "is no checkpoint")
    refused(tmp_path, np.zeros(3), "holds a Tensor")
    refused(tmp_path, {"a": 1, "b": "c"}, "has no 'model'")
    refused(tmp_path, {"layer1.0.conv1.weight": np.zeros((3, 3))}, "is no checkpoint of RAD-NeRF or ER-NeRF")
    network = {"network_fn_state_dict": {"pts_linears.0.weight": np.zeros((8, 127))}}
    refused(tmp_path, {"global_step": 3, **network}, "checkpoint of AD-NeRF; give it its name")
    refused(
        tmp_path,
        {"epoch": 1, "model": small},
        "encoder_ambient.embeddings.*keys are those of ER-NeRF",
        system="rad_nerf",
    )
    refused(tmp_path, {"epoch": 1, "model": small}, "not of ad_nerf", system="ad_nerf")


def test_objects_of_a_strangers_code_are_not_unpickled(small, tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    torch.save({"model": originals.tensors(small), "x": Evil()}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds more than numbers") as error:
        run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W")
    assert "\n" not in str(error.value) and not marker.exists()


def test_numbers_of_numpy_in_the_statistics_are_read(small, tmp_path):
    """The originals append numpy's float64 to their results."""
    file = originals.whole(small, "best")
    file["stats"]["results"] = [np.float64(-31.25), np.float32(2)]
    originals.save(tmp_path / "x.pth", file)
    run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W")
    run("export", workdir=tmp_path / "W", out=tmp_path / "y.pth")
    assert torch.load(tmp_path / "y.pth", weights_only=True)["stats"]["results"] == [-31.25, 2.0]


# ---------------------------------------------------------------- which weights


def test_the_two_sets_of_weights(small, tmp_path):
    """raw and ema of one file differ; each is what the file holds."""
    file = originals.whole(small)
    originals.save(tmp_path / "x.pth", file)
    for take, want in ((None, originals.averaged(file)), ("ema", originals.averaged(file)), ("raw", file["model"])):
        run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W", **({"weights": take} if take else {}))
        subject = bundle.load(tmp_path / "W" / "avatar")
        params = subject.variables(subject.model()).params
        np.testing.assert_array_equal(params["density"]["kernel_1"], want["sigma_net.net.1.weight"].T)
        np.testing.assert_array_equal(params["planes"]["tables"][2], want["encoder_xz.embeddings"])


def test_a_file_written_after_an_evaluation_has_no_raw_weights(small, tmp_path):
    refused(tmp_path, originals.whole(small, "best"), "moving average only", weights="raw")


def test_a_moving_average_that_does_not_fit_is_said(small, tmp_path):
    file = originals.whole(small)
    file["ema"]["shadow_params"].pop(3)
    refused(tmp_path, file, "do not fit", weights="ema")
    originals.save(tmp_path / "x.pth", file)
    said = run("import", source=tmp_path / "x.pth", workdir=tmp_path / "W")
    assert "raw parameters, because its moving average lists" in said


def test_the_order_of_a_sorted_file_does_not_mix_up_its_average(small):
    """The average follows the order in which the network made its parameters, whatever a dictionary's order is."""
    sizes = layout.sizes("er_nerf", {k: v.shape for k, v in small.items()})
    tensors = layout.layout("er_nerf", sizes)
    shapes = {k: v.shape for k, v in small.items()}
    names = [k for k in small if originals.is_parameter(k)]
    shadow = [small[k].shape for k in names]
    assert weights.shadow_names(tensors, sorted(small), shapes, shadow) == names
    assert weights.shadow_names(tensors, list(small), shapes, shadow[:-1]) is None


# ---------------------------------------------------------------- occupancy


def test_occupancy_comes_from_the_bits_and_density_only_where_it_is_known():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, 128**3 // 8, np.uint8)
    density = rng.uniform(0, 30, (1, 128**3)).astype(np.float32)
    flags = np.unpackbits(bits, bitorder="little")
    for grid in (None, np.zeros_like(density)):
        arrays = {"density_bitfield": bits} | ({} if grid is None else {"density_grid": grid})
        state, _ = weights.occupancy(arrays)
        np.testing.assert_array_equal(state["bits"], bits)
        np.testing.assert_array_equal(state["density"] > weights.MAX_THRESHOLD, flags)
    state, _ = weights.occupancy({"density_bitfield": bits, "density_grid": density})
    np.testing.assert_array_equal(state["bits"], bits)
    np.testing.assert_array_equal(state["density"], density[0])
    state, _ = weights.occupancy({"density_grid": density})
    np.testing.assert_array_equal(np.unpackbits(state["bits"], bitorder="little"), density[0] > 10)


@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_a_cube_of_another_side_keeps_its_place_in_space(side):
    rng = np.random.default_rng(side)
    density = rng.uniform(0, 30, side**3).astype(np.float32)
    bits = np.packbits(density > 20, bitorder="little")
    got, got_bits = exporting.resample(density, bits, side)
    for x, y, z in rng.uniform(0, 1, (50, 3)):
        theirs = morton(*(int(v * 128) for v in (x, y, z)))
        if side <= 128:
            ours = density[morton(*(int(v * side) for v in (x, y, z)))]
        else:
            corner = [int(v * 128) * (side // 128) for v in (x, y, z)]
            ours = max(density[morton(*(c + d for c, d in zip(corner, e)))] for e in np.ndindex(2, 2, 2))
        assert got[theirs] == ours
        assert (got_bits[theirs // 8] >> (theirs % 8) & 1) == (ours > 20)


def morton(x, y, z):
    return sum(((v >> bit) & 1) << (3 * bit + axis) for bit in range(10) for axis, v in enumerate((x, y, z)))


# ---------------------------------------------------------------- known values


def test_parameter_counts_and_offsets_are_the_dossiers():
    counts = {}
    for system, width, dim in (("rad_nerf", 44, 64), ("rad_nerf", 29, 64), ("er_nerf", 29, 32), ("er_nerf", 44, 32)):
        tensors = layout.layout(system, layout.Sizes(width, dim, torso=True))
        counts[system, width] = layout.count(tensors, False), layout.count(tensors, True)
        want = originals.shapes(system, width, torso=True)
        assert {t.key: t.shape for t in tensors} == want and [t.key for t in tensors] == list(want)
    assert counts["rad_nerf", 44] == (3_024_277, 1_207_424) and counts["rad_nerf", 29][0] == 3_022_837
    assert counts["er_nerf", 29] == (587_989, 1_199_692) and counts["er_nerf", 44][0] == 589_429
    assert layout.count(layout.layout("er_nerf", layout.Sizes(1024, 32)), False) == 683_509
    assert layout.offsets("encoder.offsets")[-1] == 903_480 and layout.offsets("encoder_xy.offsets")[1] == 4232


def test_every_parameter_of_ours_comes_from_one_tensor():
    """Between our parameters and theirs nothing is left over and nothing is used twice."""
    for system, dim in (("rad_nerf", 64), ("er_nerf", 32)):
        tensors = layout.layout(system, layout.Sizes(29, dim, torso=True, cameras=True))
        used = [(t.path, t.form if t.form.startswith("plane") else "") for t in tensors if t.path]
        assert len(used) == len(set(used)) == sum(t.parameter for t in tensors)


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
