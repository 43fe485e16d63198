"""FID: the network is pytorch-fid's, the distance is the formula, and without weights it says which file it needs."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax import config
from tkjax.measure import fid


def normal(n: int, mean, scale, seed: int) -> np.ndarray:
    """n samples whose mean and covariance are exactly mean and diag(scale²)."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(x, rowvar=False))).T)
    return x * scale + mean


@given(seed=st.integers(0, 10**6), f=st.integers(1, 5))
def test_of_two_normal_sets_it_is_the_closed_form(seed, f):
    rng = np.random.default_rng(seed)
    (m, v), (s, t) = rng.normal(0, 2, (2, f)), rng.uniform(0.2, 2, (2, f))
    a, b = normal(40, m, s, seed), normal(60, v, t, seed + 1)
    expected = np.sum((m - v) ** 2) + np.sum((s - t) ** 2)  # diagonal covariances commute
    assert fid.distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    turn = np.linalg.qr(rng.normal(size=(f, f)))[0]
    assert fid.distance(a @ turn, b @ turn) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert fid.distance(a, b) == pytest.approx(fid.distance(b, a), rel=1e-6, abs=1e-6)
    assert fid.distance(a, a[::-1]) == pytest.approx(0, abs=1e-6)


def test_fewer_pictures_than_features_and_fewer_than_two():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 20))
    assert np.isfinite(fid.distance(a, b)) and fid.distance(a, a) == pytest.approx(0, abs=1e-6)
    assert np.isnan(fid.distance(a[:1], b))


def test_without_weights_the_reason_names_the_file(tmp_path):
    found, reason = fid.open_fid(str(tmp_path))
    assert found is None and fid.WEIGHTS in reason and str(tmp_path) in reason and "\n" not in reason


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with weights of few channels in the published file's form, pictures, and what PyTorch makes of them."""
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, "-m", "tests.fid_oracle", str(folder)], cwd=config.ROOT, check=True)
    return folder


@pytest.mark.heavy
def test_the_network_gives_the_features_of_pytorch(published):
    pictures, expected = np.load(published / "pictures.npy"), np.load(published / "features.npy")
    before = "torch" in sys.modules  # an earlier test of the same process may have needed it
    measure, reason = fid.open_fid(str(published))
    assert reason == "" and len(fid.CONVOLUTIONS) == 94
    weights = fid.read_weights(published / fid.WEIGHTS)
    assert weights.keys() == {
        f"{n}.{p}" for n in fid.CONVOLUTIONS for p in ("conv.weight", *(f"bn.{v}" for v in fid.OF_NORM))
    }
    for k, picture in enumerate(pictures):
        measure.add("model", picture, pictures[(k + 1) % 6])
        measure.add("model again", picture, pictures[k])
    found = measure.features(pictures[:4])
    apart = float(np.abs(expected[0] - expected[1]).max())
    assert np.abs(found - expected[:4]).max() < 1e-3 * apart
    for a, b in zip(pictures[:3], pictures[3:], strict=True):
        measure.add("halves", a, b)
    values = measure.values()
    assert values["model"] == pytest.approx(0, abs=1e-4 * apart**2), "the same pictures in another order"
    assert values["model again"] == pytest.approx(0, abs=1e-4 * apart**2)
    assert values["halves"] == pytest.approx(fid.distance(expected[:3], expected[3:]), rel=1e-2)
    assert jax.default_backend()  # jax and torch never meet: the file was opened elsewhere
    assert ("torch" in sys.modules) == before


@pytest.mark.heavy
def test_another_file_is_refused_by_name(published, tmp_path):
    (tmp_path / fid.WEIGHTS).write_bytes(b"no weights")
    found, reason = fid.open_fid(str(tmp_path))
    assert found is None and reason.startswith("not computed: ") and fid.WEIGHTS in reason
