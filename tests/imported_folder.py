"""An ER-NeRF folder and its import, as the tests of importers use them."""

import shutil

import numpy as np

from preprocess.importers import dataset
from tkjax import contract
from tkjax.formats import feature_arrays

N = 14
SEQUENCE = np.random.default_rng(5).standard_normal((2 * N, 29)).astype(np.float32)


def windows(sequence=SEQUENCE, n=N):
    f = contract.AudioFeatures("deepspeech", sequence, 50.0, 0.01, "x", 16, 2, 8, 8)
    return feature_arrays.to_windows(f, n).astype(np.float64)


def copy(whole, tmp_path):
    """The folder of `whole`, to be changed."""
    return shutil.copytree(whole[0], tmp_path / whole[0].name)


def imported(folder, tmp_path, capsys=None, **options):
    """(dataset, what was printed) of a folder."""
    d = contract.Dataset(dataset.run(folder, tmp_path / "w" / "dataset", **options))
    return d, capsys.readouterr().out if capsys else ""


def assert_same_frames(a, b, rows, but=()):
    """Frames `rows` of two datasets are equal in everything that a frame holds."""
    for name in a.manifest["members"]:
        if name.endswith("_bytes"):
            if name not in but:
                assert [a.frame_bytes(name, i) for i in rows] == [b.frame_bytes(name, i) for i in rows], name
        elif not name.endswith("_offsets") and name not in but:
            np.testing.assert_array_equal(a.column(name)[rows], b.column(name)[rows], err_msg=name)
