"""NeRFBlendShape's folders and checkpoints: what they become, what they draw, and how they go back."""

import contextlib
import io
import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from preprocess.importers import dataset, folder_layout
from tests import er_layout, oracle, tiny
from tests import nerfblendshape_oracle as literal
from tkjax import contract
from tkjax.app import cli, options
from tkjax.avatar import bundle
from tkjax.data.dataset_clip import DatasetClip
from tkjax.errors import UserError
from tkjax.formats.facewarehouse import FACEWAREHOUSE
from tkjax.host import torch_side
from tkjax.originals import source, tables
from tkjax.render.image import final_clock
from tkjax.types import Batch

torch = pytest.importorskip("torch")
from preprocess.weights import checkpoint_file  # noqa: E402

N, K = 14, 3
ENTRIES = [4913, 12167] + 14 * [16384]
WIDTHS = {"sigma_net": (64, 64, 64, 64, 64, 65), "color_net": (80, 64, 3)}


def run(mode: str, **flags) -> str:
    """A mode of launch.py in this process; what it printed."""
    flags = {k: str(v) if isinstance(v, Path) else v for k, v in flags.items()}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.run(options.Options(mode, flags, []))
    return out.getvalue()


# ---------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """(the folder as released, with one json of all frames and 478 points; the dataset that it was made of)."""
    root = tmp_path_factory.mktemp("folder")
    native = er_layout.portrait(root / "n", N)
    made = er_layout.export(native, root / "id1", system="nerfblendshape")
    parts = [json.loads((made / f"transforms_{name}.json").read_text()) for name in ("train", "val")]
    whole = parts[0] | {"frames": parts[1]["frames"] + parts[0]["frames"]}
    (made / "transforms.json").write_text(json.dumps(whole))
    for name in ("transforms_train.json", "transforms_val.json", "aud.wav"):
        (made / name).unlink()
    for i in range(N):
        points = np.zeros((478, 2))
        points[list(contract.LANDMARKS_478_TO_68)] = np.loadtxt(made / f"ori_imgs/{i}.lms")
        np.savetxt(made / f"ori_imgs/{i}.lms", points, "%f")
    values = np.array([er_layout.coefficients(i) for i in range(N)])
    (made / "max_46.txt").write_text("\n".join(map(str, values.max(0))) + "\n")
    (made / "min_46.txt").write_text("\n".join(map(str, values.min(0) - 0.2)) + "\n")
    return made, native


def test_a_folder_becomes_a_dataset(folder, tmp_path, capsys):
    made, native = folder
    assert folder_layout.recognise(made)[0] == "nerfblendshape"
    d = contract.Dataset(dataset.run(made, tmp_path / "dataset"))
    said, a = capsys.readouterr().out, contract.Dataset(native)
    assert "recognised: NeRFBlendShape dataset, because of transforms.json" in said and "moved by +0.5" in said
    assert "46 coefficients -> expression" in said and "holding out the last 500" in said
    assert "max_46.txt: the range of the training frames" in said
    assert "min_46.txt is not the range of the training frames, which counts" in said
    np.testing.assert_allclose(d.column("cam_to_world"), a.column("cam_to_world"), atol=1e-6)
    np.testing.assert_allclose(d.intrinsics, a.intrinsics)
    np.testing.assert_allclose(d.landmarks68(), a.landmarks68(), atol=3e-6)
    want = np.array([er_layout.coefficients(i) for i in range(N)], np.float32)
    np.testing.assert_array_equal(d.column("expression"), want)
    clip = DatasetClip(d.root, tmp_path / "cache")
    drive = clip.info.signal("expression")
    assert drive.names == FACEWAREHOUSE and drive.names[21] == "jawOpen" and len(FACEWAREHOUSE) == 46
    train = want[clip.train_frames]
    np.testing.assert_array_equal(drive.high, train.max(0))  # what get_max.py writes
    np.testing.assert_array_equal(drive.low, train.min(0))
    for name in ("image_bytes", "label_bytes"):
        assert [d.frame_bytes(name, i) for i in range(N)] == [a.frame_bytes(name, i) for i in range(N)]


def test_the_last_frames_are_held_out_and_heads_stand_in_for_frames(folder, tmp_path, capsys, monkeypatch):
    made, _ = folder
    monkeypatch.setattr(folder_layout, "HELD_OUT", 4)
    moved = made.parent / "without"
    if not moved.exists():
        import shutil

        shutil.copytree(made, moved)
        (moved / "ori_imgs/5.jpg").unlink()
    d = contract.Dataset(dataset.run(moved, tmp_path / "dataset"))
    assert tuple(d.train_range) == (0, N - 4) and tuple(d.heldout_range) == (N - 4, N)
    assert (
        "no frame in ori_imgs: the head over the background (head_imgs) stands in for it: 5" in capsys.readouterr().out
    )
    assert d.column("confidence").all()


def test_coefficients_of_two_lengths_are_one_sentence(folder, tmp_path):
    made, _ = folder
    data = json.loads((made / "transforms.json").read_text())
    whole = (made / "transforms.json").read_text()
    data["frames"][2]["exp_ori"] = [0.1] * 45
    (made / "transforms.json").write_text(json.dumps(data))
    try:
        with pytest.raises(UserError, match="exp_ori has 45 numbers in frame"):
            dataset.run(made, tmp_path / "dataset")
    finally:
        (made / "transforms.json").write_text(whole)


# ---------------------------------------------------------------- checkpoints


def packed(rng, widths, half):
    """A network as the original writes it, and its kernels [in, out] in float64."""
    layers, kernels = [], []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        rows = -(-b // 16) * 16 if i == len(widths) - 2 else b
        w = (rng.uniform(-1, 1, (rows, a)) * 1.5 / np.sqrt(a)).astype(np.float16 if half else np.float32)
        if rows == 80:
            w[0] = np.abs(w[0]) * 60  # densities that are opaque within a head
        layers.append(w)
        kernels.append(w[:b].T.astype(np.float64))
    return np.concatenate([w.reshape(-1) for w in layers]), kernels


def checkpoint(half=False, seed=0, coefficients=K):
    """(file as nested dicts of arrays, networks by name)."""
    rng = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    shape = (sum(ENTRIES), 4)
    nets = {name: packed(rng, widths, half) for name, widths in WIDTHS.items()}
    grid = np.zeros((129, 129, 129), np.float32)
    grid[:90] = rng.uniform(20, 60, (90, 129, 129))
    grid[90:] = rng.uniform(0, 5, (39, 129, 129))
    model = {
        "density_grid": grid.reshape(-1),
        "step_counter": rng.integers(0, 99, (16, 2)).astype(np.int32),
        "encoder.embeddings": (0.3 * rng.standard_normal((coefficients, *shape))).astype(kind),
        "encoder.embeddings_mean": (0.5 * rng.standard_normal((1, *shape))).astype(kind),
        "encoder.offsets": np.cumsum([0, *ENTRIES]).astype(np.int32),
        "sigma_net.params": nets["sigma_net"][0],
        "encoder_dir.params": np.zeros(0, kind),
        "color_net.params": nets["color_net"][0],
    }
    file = {"epoch": 9, "global_step": 20000, "mean_count": 7, "mean_density": 27.5, "model": model}
    file |= {"optimizer": {"state": {}, "param_groups": [{"lr": 0.001}]}, "scaler": {"scale": 65536.0}}
    return file, {name: kernels for name, (_, kernels) in nets.items()}


def save(path, file):
    from tests.original_checkpoints import tensors

    torch.save(tensors(file), path)


@pytest.fixture(autouse=True)
def files_without_a_child(monkeypatch):
    def ask(module, arguments):
        assert module == source.MODULE
        with contextlib.redirect_stderr(io.StringIO()) as err:
            if checkpoint_file.main(arguments):
                raise UserError(err.getvalue().strip().removeprefix("error: "))

    monkeypatch.setattr(torch_side, "ask", ask)


HIGH, LOW = [0.7, 0.5, 0.3], [0.0, 0.05, -0.2]


@pytest.fixture(scope="module", params=[False, True], ids=["single", "half"])
def imported(request, tmp_path_factory):
    """(file, networks, workdir, what was printed): the checkpoint in a folder of the subject, with its ranges."""
    root = tmp_path_factory.mktemp("id1")
    file, nets = checkpoint(request.param)
    (root / "checkpoints").mkdir()
    for name, values in (("max", HIGH), ("min", LOW)):
        (root / f"{name}_{K}.txt").write_text("".join(f"{v}\n" for v in values))
    path = root / "checkpoints/ngp_20000.pth.tar"
    save(path, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_side, "ask", lambda module, arguments: checkpoint_file.main(arguments))
        said = run("import", source=path, workdir=root / "W")
    return file, nets, root / "W", said


def test_the_import_says_what_it_took(imported):
    _, _, workdir, said = imported
    count = (K + 1) * 246_456 * 4 + 25_856
    assert "recognised: NeRFBlendShape, head (epoch 9, global_step 20000)" in said
    assert f"{count:,} parameters, a neutral and {K} coefficients" in said
    assert "129^3 vertices from density grid, above 10" in said and f"max_{K}.txt and min_{K}.txt" in said
    assert "not used: step_counter, optimizer, scaler" in said
    assert tuple(bundle.load(workdir / "avatar").stages) == ("head",)


@pytest.mark.heavy
def test_field_and_pictures_are_those_of_the_file(imported):
    """Coefficients, tables, networks, vertices, march, compositing in float64: field 2e-5 relative, pictures 4e-5."""
    from tkjax.ops import field, sh_encode

    file, nets, workdir, _ = imported
    subject = bundle.load(workdir / "avatar")
    model = subject.model()
    variables, state = subject.variables(model), file["model"]
    values = [0.9, 0.2, -0.1]
    ends = [np.concatenate([[1.0], np.float16(v)]) for v in (LOW, HIGH)]
    weights = literal.clamped(values, *ends)
    every = np.concatenate([state["encoder.embeddings_mean"], state["encoder.embeddings"]])
    table = literal.blended(every, weights)
    params = {ours: {f"kernel_{i}": k for i, k in enumerate(nets[theirs])}
              for ours, theirs in (("sigma", "sigma_net"), ("colour", "color_net"))}  # fmt: skip

    rng, bound = np.random.default_rng(3), 0.06
    points = rng.uniform(-bound, bound, (16, 3)).astype(np.float32)
    d = rng.normal(size=(16, 3)).astype(np.float32)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    own = model._params(variables.params, jnp.asarray(table, jnp.float32))
    rows = {"sh": (sh_encode(jnp.asarray(d), 4), jnp.arange(16, dtype=jnp.int32))}
    out = np.asarray(field(model.program, jnp.asarray(points), rows, own))
    want = [literal.field(tables.SPEC, params, table, x, v, bound) for x, v in zip(points, np.float64(d))]
    want = np.array([[sigma, *rgb] for sigma, rgb in want])
    assert (np.abs(out - want) / np.abs(want).max(0)).max() < 2e-5 and want[:, 0].max() > 15

    matrix = np.eye(4)
    matrix[:3, 3] = 0.004, 0.01, 0.36
    pixels, background = rng.integers(150, 360, (8, 2)), np.array([0.2, 0.5, 0.9])
    pose = matrix.copy()
    pose[:3, 3] *= 4
    batch = Batch(
        frame=jnp.array([0]), cam_to_world=jnp.asarray(pose, jnp.float32)[None],
        intrinsics=jnp.asarray(subject.info.intrinsics, jnp.float32)[None],
        pixels_px=jnp.asarray(pixels[None] + 0.5, jnp.float32), background=jnp.ones((1, 8, 3)),
        signals={"expression": jnp.asarray(values, jnp.float32)[None, None, None]},
    )  # fmt: skip
    render = model.render(variables, batch, None, final_clock(), False)
    bits = np.packbits(state["density_grid"] > 10, bitorder="little")
    dt = 2 * np.sqrt(3) / 2048 * bound
    march = dict(side=128, box=(-bound,) * 3 + (bound,) * 3, bound=bound, dt=dt, dt_max=2 * bound / 128,
                 dt_gamma=1 / 128, t_min=0.05, samples=1024, cell="vertex")  # fmt: skip
    compared = 0
    for k, (column, row) in enumerate(pixels):
        o, way = literal.ray(matrix, (600.0, 600.0), (256.0, 256.0), column, row)
        rgb, alpha, close = literal.colour(tables.SPEC, params, table, o, way, bits, background, 1e-2, **march)
        if close:
            continue
        ours = np.asarray(render.rgb[0, k]) + (1 - float(render.alpha[0, k, 0])) * background
        np.testing.assert_allclose(ours, rgb, atol=4e-5)
        compared += alpha > 0.3
    assert compared > 2


@pytest.mark.heavy
def test_export_gives_every_tensor_back(imported):
    file, _, workdir, _ = imported
    path = workdir.parent / "back.pth.tar"
    assert "NeRFBlendShape" in run("export", workdir=workdir, out=path)
    back = torch.load(path, weights_only=True)
    assert list(back["model"]) == list(file["model"])
    for key, value in file["model"].items():
        found = back["model"][key].numpy()
        assert found.dtype == value.dtype, key
        np.testing.assert_array_equal(found, value, err_msg=key)
    assert {k: back[k] for k in ("epoch", "global_step", "mean_density")} == {
        k: file[k] for k in ("epoch", "global_step", "mean_density")
    }
    run("import", source=path, workdir=workdir.parent / "again")
    first, second = (bundle.load(w / "avatar") for w in (workdir, workdir.parent / "again"))
    a, b = (bundle.arrays_of(s.variables(s.model())) for s in (first, second))
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_packed_network_goes_both_ways():
    rng = np.random.default_rng(0)
    widths = (80, 64, 3)
    vector = rng.standard_normal(80 * 64 + 16 * 64).astype(np.float32)
    kernels = tables.unpack(vector, widths)
    assert [k.shape for k in kernels] == [(80, 64), (64, 3)]
    assert kernels[0][5, 7] == vector[7 * 80 + 5] and kernels[1][9, 2] == vector[80 * 64 + 2 * 64 + 9]
    np.testing.assert_array_equal(tables.pack(kernels, vector), vector)
    assert not tables.pack(kernels, None)[-13 * 64 :].any()


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"color_net.params": np.zeros(5312, np.float32)}, r"color_net.params is \[5312\], not \[6144\]"),
        ({"encoder.offsets": np.arange(17, dtype=np.int32)}, "the levels of its tables begin at"),
        ({"sigma_net.params": None}, "lacks sigma_net.params"),
        ({"encoder.embeddings_mean": np.full((1, sum(ENTRIES), 4), np.nan, np.float32)}, "not finite"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changed, said, tmp_path):
    file, _ = checkpoint(coefficients=1)
    file["model"] = {k: v for k, v in (file["model"] | changed).items() if v is not None}
    save(tmp_path / "x.pth.tar", file)
    with pytest.raises(UserError, match=said) as error:
        run("import", source=tmp_path / "x.pth.tar", workdir=tmp_path / "W")
    assert "\n" not in str(error.value) and not (tmp_path / "W").exists()


def test_ranges_that_are_no_numbers_are_one_sentence(tmp_path):
    (tmp_path / "max_2.txt").write_text("0.5\nhalf\n")
    (tmp_path / "min_2.txt").write_text("0\n0\n")
    with pytest.raises(UserError, match=r"max_2.txt holds 0 numbers, expected 2"):
        tables.ranges(tmp_path / "x.pth.tar", 2)
    (tmp_path / "max_2.txt").write_text("0.5\n-0.25\n")
    with pytest.raises(UserError, match="above its largest"):
        tables.ranges(tmp_path / "x.pth.tar", 2)


def test_vertices_take_the_densest_cell_around_them():
    side = 2
    cells = np.zeros(8, np.float32)
    cells[oracle.morton(1, 0, 1)] = 7.0
    cube = tables.vertices_of(cells, side).reshape(129, 129, 129)
    assert cube[64:, :65, 64:].min() == 7.0 and cube[:64].max() == 0 and cube[:, 65:].max() == 0


@pytest.mark.heavy
def test_an_imported_head_is_driven_and_an_own_one_goes_back(tmp_path):
    """A checkpoint without a dataset draws a csv of coefficients; with one that does not fit it says so."""
    file, _ = checkpoint(coefficients=2)
    save(tmp_path / "x.pth.tar", file)
    small = tiny.make_dataset(tmp_path / "d", names=("jawOpen",))
    with pytest.raises(UserError, match="driven by 2 coefficients, but the dataset has 1"):
        run("import", source=tmp_path / "x.pth.tar", workdir=tmp_path / "W", dataset=small)
    said = run("import", source=tmp_path / "x.pth.tar", workdir=tmp_path / "W")
    assert "ranges of the coefficients from nothing: 0 to 1" in said and "no dataset" in said
