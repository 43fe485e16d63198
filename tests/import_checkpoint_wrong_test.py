"""Checkpoints that lack something, hold something unknown or wrong, and which of their weights are taken."""

from pathlib import Path

import numpy as np
import pytest

from tests import original_checkpoints as originals
from tests.imported_checkpoint import refused, run, without_a_child
from tkjax.app import exporting
from tkjax.avatar import bundle
from tkjax.errors import UserError
from tkjax.originals import layout, weights

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def files_without_a_child(monkeypatch):
    without_a_child(monkeypatch)


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


@pytest.mark.heavy
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
