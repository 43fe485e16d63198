"""LPIPS against an independent torch version of it, and what the substitute claims to be."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from preprocess.weights import convert_lpips
from tkjax import perceptual
from tkjax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# torchvision's `features`: C<number>:<in>:<out>:<side>:<stride>:<pad>, P<side> (stride 2), T: compared by LPIPS
ALEX = "C0:3:64:11:4:2 T P3 C3:64:192:5:1:2 T P3 C6:192:384:3:1:1 T C8:384:256:3:1:1 T C10:256:256:3:1:1 T"
VGG = (
    "C0:3:64:3:1:1 C2:64:64:3:1:1 T P2 C5:64:128:3:1:1 C7:128:128:3:1:1 T P2 C10:128:256:3:1:1 C12:256:256:3:1:1 "
    "C14:256:256:3:1:1 T P2 C17:256:512:3:1:1 C19:512:512:3:1:1 C21:512:512:3:1:1 T P2 C24:512:512:3:1:1 "
    "C26:512:512:3:1:1 C28:512:512:3:1:1 T"
)
LAYERS = {"alex": ALEX, "vgg": VGG}
CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def states(trunk: str, seed: int = 0) -> tuple[dict, dict]:
    """Random state dicts with the published keys and shapes (and a classifier, which LPIPS does not use)."""
    make = torch.Generator().manual_seed(seed)
    features = {"classifier.1.weight": torch.zeros(2, 3)}
    for layer in LAYERS[trunk].split():
        if layer[0] == "C":
            number, n_in, n_out, side, _, _ = map(int, layer[1:].split(":"))
            weight = torch.randn(n_out, n_in, side, side, generator=make) * (2 / (n_in * side * side)) ** 0.5
            features[f"features.{number}.weight"] = weight
            features[f"features.{number}.bias"] = 0.1 * torch.randn(n_out, generator=make)
    linear = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1, generator=make) for k, c in enumerate(CHANNELS[trunk])}
    return features, linear


def oracle(trunk: str, features: dict, linear: dict, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """LPIPS in torch, float64, from the formula alone."""
    return oracle_torch(trunk, features, linear, torch.from_numpy(a), torch.from_numpy(b)).numpy()


def oracle_torch(trunk: str, features: dict, linear: dict, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def compared(x):
        x = (2 * x.double().permute(0, 3, 1, 2) - 1 - shift) / scale
        out = []
        for layer in LAYERS[trunk].split():
            if layer[0] == "C":
                number, _, _, _, stride, pad = map(int, layer[1:].split(":"))
                weight, bias = (features[f"features.{number}.{n}"].double() for n in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, stride, pad))
            elif layer[0] == "P":
                x = F.max_pool2d(x, int(layer[1:]), 2)
            else:
                out.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    total = 0
    for k, (y, z) in enumerate(zip(compared(a), compared(b))):
        total += F.conv2d((y - z) ** 2, linear[f"lin{k}.model.1.weight"].double()).mean((1, 2, 3))
    return total


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """trunk -> (trunk, state dicts, folder with both .pth files and the npz made of them)."""

    @functools.cache
    def make(trunk: str):
        folder = tmp_path_factory.mktemp(trunk)
        features, linear = states(trunk)
        torch.save(features, folder / "trunk.pth")
        torch.save(linear, folder / "linear.pth")
        arguments = [f"--trunk={folder / 'trunk.pth'}", f"--linear={folder / 'linear.pth'}"]
        assert convert_lpips.main([*arguments, f"--out={folder / f'lpips_{trunk}.npz'}"]) == 0
        return trunk, features, linear, folder

    return make


@pytest.fixture(params=["alex", pytest.param("vgg", marks=pytest.mark.heavy)])
def weights(request, made):
    return made(request.param)


@pytest.fixture
def alex(made):
    return made("alex")


def pictures(seed: int, *shape: int) -> np.ndarray:
    """Smooth colours with edges, in 0…1."""
    rng = np.random.default_rng(seed)
    x = gaussian_filter(rng.standard_normal((*shape, 3)), (0, 2, 2, 0)) * 4
    return (0.5 + 0.25 * np.tanh(x) + 0.15 * np.sign(x)).astype(np.float32).clip(0, 1)


@pytest.mark.heavy
def test_lpips_equals_the_formula_in_torch(weights):
    trunk, features, linear, folder = weights
    measure = perceptual.choose(f"lpips_{trunk}", folder)
    jitted = jax.jit(measure.__call__)
    for seed, (h, w) in enumerate([(45, 38)] if trunk == "vgg" else [(32, 32), (45, 38)]):  # VGG compiles slowly
        a, b = pictures(seed, 2, h, w), pictures(seed + 10, 2, h, w)
        expected = oracle(trunk, features, linear, a, b)
        np.testing.assert_allclose(jitted(a, b), expected, rtol=1e-5, atol=1e-5)
        assert (expected > 0.01).all()
    np.testing.assert_allclose(jitted(a, a), 0, atol=1e-9)
    np.testing.assert_allclose(jitted(a, b), jitted(b, a), rtol=1e-6)
    assert measure.name == f"lpips_{trunk}" and f"lpips_{trunk}.npz" in measure.describe


@pytest.mark.heavy
def test_small_pictures_are_padded_with_zeros_after_the_mapping(alex):
    trunk, features, linear, folder = alex
    jitted = jax.jit(perceptual.choose("lpips_alex", folder).__call__)
    for (h, w), pads in (((20, 32), ((6, 6), (0, 0))), ((31, 21), ((1, 1), (6, 6)))):  # dossier §11: 20->32, 31->33
        a, b = pictures(1, 1, h, w), pictures(2, 1, h, w)
        grown = [np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=0.5) for x in (a, b)]
        np.testing.assert_allclose(jitted(a, b), oracle(trunk, features, linear, *grown), rtol=1e-5, atol=1e-5)


@pytest.mark.heavy
def test_gradients_of_lpips_are_those_of_torch_and_finite_at_equality(alex):
    trunk, features, linear, folder = alex
    measure = perceptual.choose(f"lpips_{trunk}", folder)
    a, b = pictures(3, 1, 32, 32), pictures(4, 1, 32, 32)
    gradient = jax.jit(jax.grad(lambda x, y: measure(x, y).sum()))
    assert np.isfinite(gradient(a, a)).all()
    flat = np.full_like(a, 0.5)
    assert np.isfinite(gradient(flat, b)).all()
    x = torch.from_numpy(a).requires_grad_()
    oracle_torch(trunk, features, linear, x, torch.from_numpy(b)).sum().backward()
    np.testing.assert_allclose(gradient(a, b), x.grad.numpy(), atol=2e-4 * float(x.grad.abs().max()))


def test_a_dead_trunk_has_finite_gradients(tmp_path):
    """All features 0, where the norm has no derivative."""
    features, linear = states("alex")
    features = {k: torch.zeros_like(v) for k, v in features.items()}
    torch.save(features, tmp_path / "t.pth")
    torch.save(linear, tmp_path / "l.pth")
    _, arrays = convert_lpips.convert(tmp_path / "t.pth", tmp_path / "l.pth")
    np.savez(tmp_path / "lpips_alex.npz", **arrays)
    measure = perceptual.choose("auto", tmp_path)
    gradient = jax.jit(jax.grad(lambda x: measure(x, x * 0.5).sum()))(pictures(0, 1, 32, 32))
    assert np.isfinite(gradient).all()


# ---------------------------------------------------------------- choosing, refusing


def test_auto_takes_lpips_where_its_file_lies_and_else_the_substitute(weights, tmp_path, monkeypatch):
    trunk, _, _, folder = weights
    assert perceptual.choose("auto", tmp_path).name == "structure"
    monkeypatch.setenv("TKJAX_MODELS", str(folder))
    assert perceptual.choose("auto").name == ("lpips_alex" if trunk == "alex" else "structure")
    assert perceptual.choose("structure", folder).name == "structure"
    with pytest.raises(UserError, match=r"lpips_vgg\.npz in .*convert_lpips"):
        perceptual.choose("lpips_vgg", tmp_path)
    with pytest.raises(UserError, match=r"'vgg' is unknown.*lpips_vgg"):
        perceptual.choose("vgg")
    assert "in place of LPIPS" in perceptual.choose("structure").describe


def test_damaged_weights_are_refused_in_a_sentence(alex, tmp_path):
    _, _, _, folder = alex
    path = tmp_path / "lpips_alex.npz"
    whole = (folder / path.name).read_bytes()
    with np.load(folder / path.name) as file:
        arrays = dict(file)

    def refused(match):
        with pytest.raises(UserError, match=match):
            perceptual.choose("auto", tmp_path)

    path.write_bytes(whole[: len(whole) // 2])
    refused(r"lpips_alex\.npz is damaged")
    path.write_bytes(b"")
    refused("is damaged")
    np.savez(path, **{k: v for k, v in arrays.items() if k != "linear3"})
    refused("lacks 'linear3'")
    np.savez(path, **{**arrays, "linear3": arrays["linear3"][:-1]})
    refused(r"'linear3' is float32 \(255,\), expected float32 \(256,\)")
    np.savez(path, **{**arrays, "conv0_bias": np.full(64, np.nan, np.float32)})
    refused("holds NaN")
    np.savez(path, **{**arrays, "conv0_bias": np.array([{}] * 64, object)})
    refused("is damaged")


@pytest.mark.heavy
def test_the_converter_runs_alone_and_refuses_strangers_in_a_sentence(tmp_path):
    features, linear = states("alex")
    torch.save(features, tmp_path / "t.pth")
    torch.save(linear, tmp_path / "l.pth")

    def run(trunk="t.pth", line="l.pth", out="lpips_alex.npz"):
        command = [sys.executable, "-m", "preprocess.weights.convert_lpips", f"--trunk={tmp_path / trunk}"]
        command += [f"--linear={tmp_path / line}", f"--out={tmp_path / out}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stderr

    assert run()[0] == 0
    with np.load(tmp_path / "lpips_alex.npz") as file:
        assert {k: file[k].shape for k in perceptual.expected_shapes("alex")} == perceptual.expected_shapes("alex")
    (tmp_path / "lpips_alex.npz").unlink()
    (tmp_path / "rubbish.pth").write_bytes(b"not a file of weights")
    torch.save({**linear, "lin2.model.1.weight": torch.zeros(1, 5, 1, 1)}, tmp_path / "other.pth")
    code, sentence = run(out="weights.npz")
    assert code == 2 and "name the file lpips_alex.npz" in sentence
    for arguments, match in (
        ({"trunk": "rubbish.pth"}, "cannot be read as weights"),
        ({"trunk": "l.pth"}, "neither torchvision's AlexNet nor its VGG16"),
        ({"trunk": "none.pth"}, "there is no file"),
        ({"line": "t.pth"}, "lacks 'lin0.model.1.weight'"),
        ({"line": "other.pth"}, "(1, 5, 1, 1), expected (1, 384, 1, 1)"),
    ):
        names = {"trunk": "t.pth", "line": "l.pth", **arguments}
        with pytest.raises(UserError) as caught:
            convert_lpips.convert(tmp_path / names["trunk"], tmp_path / names["line"])
        assert match in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.npz"))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_no_pickled_code_runs(tmp_path, capsys):
    torch.save({"features.0.weight": Evil()}, tmp_path / "t.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        convert_lpips.convert(tmp_path / "t.pth", tmp_path / "t.pth")
    assert "code ran" not in capsys.readouterr().out


# ---------------------------------------------------------------- the substitute

measure = perceptual.choose("structure")
structure = jax.jit(measure.__call__)


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


@given(st.integers(0, 200), st.sampled_from([(32, 32), (20, 33), (47, 64), (1, 5)]))
def test_equal_pictures_have_no_distance_others_have_one_and_it_is_symmetric(seed, hw):
    a, b = pictures(seed, 2, *hw), pictures(seed + 1000, 2, *hw)
    np.testing.assert_allclose(structure(a, a), 0, atol=1e-6)
    value = np.asarray(structure(a, b))
    assert value.shape == (2,) and (value > 1e-3).all() and np.isfinite(value).all()
    np.testing.assert_allclose(value, structure(b, a), rtol=1e-5)


@given(st.integers(0, 200), st.sampled_from([(32, 32), (48, 40)]))
def test_it_grows_with_blur(seed, hw):
    a = pictures(seed, 1, *hw)
    values = [float(structure(blurred(a, sigma), a)[0]) for sigma in (0.4, 0.6, 0.8, 1.2, 1.8, 2.7, 4)]
    assert (np.diff(values) > 0).all() and values[-1] > 5 * values[0]


@given(st.integers(0, 200), st.floats(0.6, 3))
def test_it_sees_blur_more_than_a_shift_of_the_same_squared_error(seed, sigma):
    a = 0.1 + 0.8 * pictures(seed, 1, 40, 40)
    soft = blurred(a, sigma)
    shift = np.sqrt(np.mean((soft - a) ** 2))
    assert float(structure(soft, a)[0]) > 3 * float(structure(a + shift, a)[0])


@given(st.integers(0, 200))
def test_mirrored_transposed_and_recoloured_pairs_are_as_far_apart(seed):
    a, b = pictures(seed, 1, 36, 44), pictures(seed + 1, 1, 36, 44)
    value = float(structure(a, b)[0])
    for change in (
        lambda x: x[:, :, ::-1],
        lambda x: x[:, ::-1],
        lambda x: x.swapaxes(1, 2),
        lambda x: x[..., [2, 0, 1]],
    ):
        assert float(structure(change(a).copy(), change(b).copy())[0]) == pytest.approx(value, rel=1e-4)


@given(st.integers(0, 200), st.floats(-0.1, 0.1))
def test_a_common_shift_of_both_changes_the_luminance_factor_alone(seed, shift):
    a, b = (0.2 + 0.6 * pictures(seed + k, 1, 32, 32) for k in (0, 1))
    assert float(structure(a + shift, b + shift)[0]) == pytest.approx(float(structure(a, b)[0]), abs=0.02)


def test_gradients_are_finite_everywhere_also_at_equality_and_on_flat_pictures():
    gradient = jax.jit(jax.grad(lambda x, y: measure(x, y).sum()))
    a, b = pictures(0, 2, 33, 32), pictures(1, 2, 33, 32)
    for x, y in ((a, b), (a, a), (0 * a, b), (0 * a, 0 * a), (a, 0 * a + 1), (10 * a - 5, b)):
        assert np.isfinite(gradient(x, y)).all() and np.isfinite(structure(x, y)).all()
    np.testing.assert_allclose(gradient(a, a), 0, atol=2e-3)


def test_descending_it_sharpens_a_blurred_picture():
    a = jnp.asarray(pictures(5, 1, 32, 32))
    x = jnp.asarray(blurred(np.asarray(a), 1.5))
    step = jax.jit(lambda x: x - 0.5 * jax.grad(lambda x: measure(x, a).sum() + jnp.mean((x - a) ** 2))(x))
    before = float(jnp.mean((x - a) ** 2))
    for _ in range(200):
        x = step(x)
    assert float(jnp.mean((x - a) ** 2)) < 0.5 * before


def test_known_value_by_hand():
    """Flat pictures: no edges, contrast-structure 1; only the coarsest scale's luminance factor is left."""
    a, b = np.full((1, 32, 32, 3), 0.4, np.float32), np.full((1, 32, 32, 3), 0.6, np.float32)
    luminance = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert float(structure(a, b)[0]) == pytest.approx((1 - luminance) / 2 / 3, rel=1e-4)
    wave = np.zeros((1, 32, 32, 3), np.float32)
    wave[:, :, ::2] = 0.1  # columns alternate: the first scale sees edges of 0.1, the others are flat
    edges = 0.1 / 3
    c_s = 9e-4 / (np.mean([0, 0.1**2]) - 0.05**2 + 9e-4)  # against flat black: no covariance
    value = float(structure(wave, 0 * wave)[0])
    assert value == pytest.approx(edges + (1 - c_s) / 6 + (1 - 1e-4 / (0.05**2 + 1e-4)) / 6, rel=0.02)
