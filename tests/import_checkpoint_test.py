"""Checkpoints of the originals: what they draw once imported, what they are after export, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import original_checkpoints as originals
from tests.imported_checkpoint import run, without_a_child
from tests.originals_oracle import Original, loader_pose
from tkjax.app import importing
from tkjax.avatar import bundle
from tkjax.errors import UserError
from tkjax.originals import stand_in
from tkjax.render.image import final_clock
from tkjax.types import Batch, Render

torch = pytest.importorskip("torch")


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


@pytest.fixture(autouse=True)
def files_without_a_child(monkeypatch):
    without_a_child(monkeypatch)


# Each takes seconds to compile at full size: `make check` has one of either system.
QUICK = ("er-torso-ema", "rad-best")


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, id=k, marks=() if k in QUICK else pytest.mark.heavy) for k, c in CASES.items()],
)
def imported(request, tmp_path_factory):
    """(case, file as built, workdir, what the import printed)."""
    case = request.param
    folder = tmp_path_factory.mktemp("imported")
    file = originals.whole(case.state(), case.kind, frozen=case.frozen)
    originals.save(folder / "x.pth", file)
    said = run("import", source=folder / "x.pth", workdir=folder / "W", **({"weights": case.take} if case.take else {}))
    return case, file, folder / "W", said


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


@pytest.mark.heavy
def test_an_imported_avatar_draws_what_the_formulas_say(imported):
    """Sound, field, march, compositing and torso in float64 from the state dict: every pixel agrees to 1e-4."""
    case, file, workdir, _ = imported
    subject = bundle.load(workdir / "avatar")
    model = subject.model()
    variables = subject.variables(model)
    truth, info = Original(case.system, case.drawn(file)), subject.info
    batch, rows, columns, windows = view(info, rays=12)
    code = truth.audio(windows)
    clock = final_clock(1, "torso" if case.torso else "head")

    @jax.jit
    def draw(v, batch):  # op by op it would take several times as long
        heard = model._apply(v.params, "audio_code", batch.signals["sound"])
        return heard, model.render(v, batch, None, clock, False).replace(aux={}), model.maps(v, batch, clock)

    heard, out, maps = draw(variables, batch)
    np.testing.assert_allclose(heard[0], code, atol=1e-5)
    background = np.array([0.9, 0.5, 0.1])
    got = np.clip(np.asarray(out.rgb[0] + (1 - out.alpha[0]) * background, np.float64), 0, 1)
    eye = None if not case.eye else np.float32(0.2 if case.system == "rad_nerf" else 0.3)
    pose, sure = loader_pose(batch.cam_to_world[0]), 0
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


@pytest.mark.heavy
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
    out = jax.jit(model._over_torso)(variables, batch, head)
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


@pytest.mark.heavy
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


@pytest.mark.heavy
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


@pytest.mark.heavy
def test_the_export_imports_to_the_same_avatar(imported, exported, tmp_path):
    case, _, workdir, _ = imported
    flags = {"weights": case.take} if case.take else {}
    run("import", source=exported, workdir=tmp_path / "W", **flags)
    first, second = (bundle.load(w / "avatar") for w in (workdir, tmp_path / "W"))
    a, b = (bundle.arrays_of(s.variables(s.model())) for s in (first, second))
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.heavy
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


@pytest.fixture(scope="module")
def small():
    """An ER-NeRF head, to be spoilt."""
    return originals.state_dict("er_nerf", audio=29, rows=16)


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
