"""Landmarks, boxes and sound features of the contract."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tkjax import contract
from tkjax.contract import ContractError


def test_the_mesh_points_that_stand_for_the_68_are_distinct_and_where_they_should_be(data_dir):
    table = contract.LANDMARKS_478_TO_68
    assert len(table) == len(set(table)) == 68 and max(table) < 468
    mesh = np.load(data_dir / "face/canonical_face.npz")["vertices"]
    p = mesh[list(table)]
    assert p[36:42, 0].max() < 0 < p[42:48, 0].min(), "42-47 is the subject's left eye, on the right of the picture"
    assert p[30, 2] == p[:, 2].max() and p[8, 1] == p[:, 1].min(), "nose tip in front, chin lowest"
    assert (np.diff(p[1:16, 0]) > 0).all(), "the jaw runs from left to right of the picture"
    assert p[48, 0] < p[51, 0] < p[54, 0] and p[57, 1] < p[51, 1]


def test_blendshape_names_are_those_of_the_model(data_dir):
    assert (data_dir / "models/blendshape_labels.txt").read_text().split() == list(contract.BLENDSHAPES)
    assert contract.BLENDSHAPES.index("jawOpen") == 25 and len(contract.BLENDSHAPES) == 52


def test_the_lips_box_of_the_dossier():
    lm = np.full((1, 68, 2), 250.0)
    lm[0, 48:60] = 236, 315
    lm[0, 48], lm[0, 49], lm[0, 50], lm[0, 51] = (210.7, 315), (262.2, 315), (236, 300.1), (236, 330.9)
    x0, y0, x1, y1 = contract.boxes_from_landmarks68(lm, 512, 512)["lips_box_px"][0]
    assert (y0, y1, x0, x1) == (289, 341, 210, 262)


@given(seed=st.integers(0, 2**20), height=st.integers(1, 80), width=st.integers(1, 80))
def test_boxes_of_any_points_are_legal(seed, height, width):
    lm = np.random.default_rng(seed).uniform(-50, 130, (4, 68, 2))
    for box in contract.boxes_from_landmarks68(lm, height, width).values():
        x0, y0, x1, y1 = box.T
        assert box.dtype == np.int32
        assert ((x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)).all()


def test_landmarks_of_both_schemes_and_no_other():
    lm = np.random.default_rng(0).random((2, 478, 2))
    np.testing.assert_array_equal(contract.landmarks68(lm, "mediapipe478")[:, 30], lm[:, 4])
    np.testing.assert_array_equal(contract.landmarks68(lm[:, :68], "ibug68"), lm[:, :68])
    for bad, scheme in ((lm, "ibug68"), (lm, "dlib"), (lm[0], "mediapipe478")):
        with pytest.raises(ContractError):
            contract.landmarks68(bad, scheme)


@given(
    n=st.integers(1, 40), window=st.integers(1, 20), hop=st.integers(1, 4), left=st.integers(0, 20),
    frame=st.integers(-30, 60), seed=st.integers(0, 99),
)  # fmt: skip
def test_windows_are_slices_of_the_zero_padded_sequence(tmp_path_factory, n, window, hop, left, frame, seed):
    left = min(left, window)
    f = np.random.default_rng(seed).standard_normal((n, 2)).astype(np.float32)
    path = tmp_path_factory.mktemp("a") / "audio_any.npz"
    contract.save_audio_features(path, "any", f, 25 * hop, 0.01, "test", window, hop, left, left)
    a = contract.load_audio_features(path)
    assert (a.kind, a.rate_hz, a.start_s, a.extractor, a.pad) == ("any", 25.0 * hop, 0.01, "test", left)
    np.testing.assert_array_equal(a.features, f)
    padded = np.pad(f, ((500, 500), (0, 0)))
    first = 500 + hop * frame - left
    np.testing.assert_array_equal(a.window_at(frame), padded[first : first + window])


@given(n=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=6), rows=st.integers(1, 50))
def test_features_in_blocks_are_the_same_bytes_as_the_whole(tmp_path_factory, n, cuts, rows):
    folder = tmp_path_factory.mktemp("a")
    f = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    contract.save_audio_features(folder / "a.npz", "any", f, 50, 0.01, "test", 16, 2, 8, 8)
    header = contract.load_audio_features(folder / "a.npz").header
    contract.save_audio_rows(folder / "b.npz", header, np.split(f, sorted(min(c, n) for c in cuts)))
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    again, blocks = contract.stream_audio_features(folder / "b.npz", rows)
    blocks = list(blocks)
    assert again == header and [len(b) for b in blocks[:-1]] == [rows] * ((n - 1) // rows)
    np.testing.assert_array_equal(np.concatenate(blocks), f)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_feature_file_is_refused_or_whole(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("a") / "audio_any.npz"
    contract.save_audio_features(path, "any", np.ones((4, 3), np.float32), 50, 0.01, "test", 2, 2, 0, 0)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    for read in (contract.load_audio_features, lambda p: list(contract.stream_audio_features(p, 3)[1])):
        try:
            read(path)
        except ContractError as e:
            assert str(path) in str(e) and "\n" not in str(e)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate_hz", 0), ("rate_hz", 49.9), ("hop", 1),
     ("start_s", np.nan), ("window", 0), ("hop", 0), ("left", 3), ("pad", -1), ("extractor", ""),
     ("kind", "a/b"), ("features", np.zeros((0, 3), np.float32)), ("features", np.zeros((2, 3))),
     ("features", np.full((2, 3), np.inf, np.float32))],
)  # fmt: skip
def test_wrong_sound_features_are_not_written(tmp_path, field, value):
    good = {"kind": "any", "features": np.ones((4, 3), np.float32), "rate_hz": 50, "start_s": 0.0, "extractor": "t"}
    good |= {"window": 2, "hop": 2, "left": 0, "pad": 0}
    named = "rate_hz" if (field, value) == ("hop", 1) else field  # 50 steps a second are not 1 a frame
    with pytest.raises(ContractError, match=f"member {named}"):
        contract.save_audio_features(tmp_path / "a.npz", **{**good, field: value})
    assert not list(tmp_path.iterdir())
