"""Track files and recordings of other programs: what is read, what is said, and what is refused in a sentence."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tkjax.contract import BLENDSHAPES, UNIT_CM
from tkjax.errors import UserError
from tkjax.formats import head_pose, recordings, tracks

ARKIT = [n[0].upper() + n[1:] for n in BLENDSHAPES[1:]] + ["TongueOut"]
TURNS = ["HeadYaw", "HeadPitch", "HeadRoll"]
EYES = [f"{side}Eye{axis}" for side in ("Left", "Right") for axis in ("Yaw", "Pitch", "Roll")]


def timecode(frame: float, rate: int = 60, start_s: int = 0) -> str:
    """HH:MM:SS:FF.fff of a frame's number, on a clock of 24 hours."""
    s, f = divmod(frame, rate)
    s = int(s) + start_s
    return f"{s // 3600 % 24:02d}:{s // 60 % 60:02d}:{s % 60:02d}:{int(f):02d}.{round(1000 * (f % 1)):03d}"


def live_link(path, frames, rate=60, start_s=14 * 3600, blank=(), values=None):
    """A take of Live Link Face with these frames; blank: places of rows without a face."""
    names = [*ARKIT, *TURNS, *EYES]
    values = np.zeros((len(frames), 61)) if values is None else values
    lines = [",".join(["Timecode", "BlendShapeCount", *names])]
    for k, frame in enumerate(frames):
        cells = [""] * 61 if k in blank else [f"{v:.10f}" for v in values[k]]
        lines.append(",".join([timecode(frame, rate, start_s), "0" if k in blank else "61", *cells]))
    path.write_text("\n".join(lines) + "\n")
    return path


def take(n=180, seed=0):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.normal(0, 0.02, (n, 61)), 0)
    return np.clip(0.3 + steps, 0, 1)


# ---------------------------------------------------------------- Live Link Face


def test_a_take_of_live_link_face_has_the_blendshapes_of_mediapipe(tmp_path, capsys):
    values = take()
    track = tracks.read(live_link(tmp_path / "t.csv", np.arange(180), values=values), 25.0)
    for name in BLENDSHAPES[1:]:
        column = ARKIT.index(name[0].upper() + name[1:])
        np.testing.assert_allclose(track.columns([name])[:, 0], values[:, column], atol=1e-6)
    assert "_neutral" not in track.names and track.columns(["tongueOut"]) is not None
    turned = track.columns(head_pose.TURNS)
    np.testing.assert_allclose(turned, values[:, 52:55] * [1, -1, 1], atol=1e-6)
    closed = values[:, [ARKIT.index("EyeBlinkLeft"), ARKIT.index("EyeBlinkRight")]].mean(1)
    np.testing.assert_allclose(track.columns(["eye_closed"])[:, 0], closed, atol=1e-6)
    assert not any("Eye" in name and "Yaw" in name for name in track.names)
    said = capsys.readouterr().out
    assert "lacks _neutral" in said and "turns of single eyes" in said
    np.testing.assert_allclose(track.time_s - track.time_s[0], np.arange(180) / 60, atol=1e-9)


@given(
    rate=st.sampled_from([24, 25, 30, 60]), start=st.integers(0, 86399), first=st.floats(0, 50), seed=st.integers(0, 9)
)
def test_timecodes_are_seconds_also_over_midnight(rate, start, first, seed):
    steps = np.random.default_rng(seed).integers(1, 3, 5 * rate)
    frames = np.round(first, 3) + np.cumsum(steps)
    frames = np.concatenate([frames, frames[-1] + 1 + np.arange(2 * rate)])  # two whole seconds tell the rate
    got = recordings.timecodes([timecode(f, rate, start) for f in frames], "t.csv")
    np.testing.assert_allclose(got - got[0], (frames - frames[0]) / rate, atol=1e-4)


def test_a_take_too_short_to_tell_counts_60_frames_a_second():
    got = recordings.timecodes([f"00:00:00:{f:02d}.000" for f in range(20)], "t.csv")
    np.testing.assert_allclose(got, np.arange(20) / 60)


def test_dropped_frames_and_rows_without_a_face_lie_between_their_neighbours(tmp_path, capsys):
    n = 240
    ramp = np.tile(np.linspace(0, 1, n)[:, None], (1, 61))
    keep = np.array([k for k in range(n) if not 100 <= k < 130])
    path = live_link(tmp_path / "t.csv", keep, values=ramp[keep], blank=(10, 11))
    track = tracks.read(path, 25.0).resampled(25.0)
    want = np.interp(np.arange(len(track.values)) / 25, np.arange(n) / 60, ramp[:, 0])
    np.testing.assert_allclose(track.columns(["jawOpen"])[:, 0], want, atol=1e-5)
    assert len(track.values) == round((n - 1) / 60 * 25) + 1
    said = capsys.readouterr().out
    assert "2 rows without a face" in said and "gaps of dropped frames" in said


def test_a_time_that_comes_twice_counts_once(tmp_path, capsys):
    frames = [*range(70), 69, *range(70, 130)]
    track = tracks.read(live_link(tmp_path / "t.csv", frames, values=take(131)), 25.0)
    assert len(track.values) == 130 and "1 rows with a time that was there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda lines: [lines[0], *(row.replace(":", "-") for row in lines[1:])], "timecode"),
        (lambda lines: [lines[0], *reversed(lines[1:])], "backwards"),
        (
            lambda lines: [lines[0], *(f"{row.split(',')[0]},0{',' * 61}" for row in lines[1:])],
            "no row .* shows a face",
        ),
        (lambda lines: [lines[0], lines[1].replace(".3", ".x", 1), *lines[2:]], "no finite number"),
        (lambda lines: lines[:1], "first row"),
        (lambda lines: [lines[0], *(row.replace(":00.", ":99999.") for row in lines[1:])], "timecode"),
    ],
)
def test_a_take_that_is_damaged_is_a_sentence(tmp_path, change, word):
    path = live_link(tmp_path / "take.csv", np.arange(90), values=np.full((90, 61), 0.33))
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=word) as error:
        tracks.read(path, 25.0)
    assert "take.csv" in str(error.value) and "\n" not in str(error.value)


def test_other_spellings_of_blendshapes_are_mediapipes():
    pairs = {"eyeBlink_L": "eyeBlinkLeft", "MouthSmileRight": "mouthSmileRight", "browInnerUp": "browInnerUp"}
    assert {name: recordings.blendshape(name) for name in pairs} == pairs
    assert recordings.blendshape("exp64_00") == "exp64_00" and recordings.blendshape("TongueOut") == "tongueOut"


# ---------------------------------------------------------------- the head


@given(
    yaw=st.floats(-3, 3), pitch=st.floats(-1.4, 1.4), roll=st.floats(-3, 3),
    place=hnp.arrays(float, 3, elements=st.floats(-100, 100)),
)  # fmt: skip
def test_angles_and_places_go_to_cameras_and_back(yaw, pitch, roll, place):
    turns = np.array([[yaw, pitch, roll]])
    cameras = head_pose.cameras(head_pose.matrix(turns), place[None])
    np.testing.assert_allclose(cameras[0, :3, :3] @ cameras[0, :3, :3].T, np.eye(3), atol=1e-5)
    back = head_pose.of_cameras(cameras)
    np.testing.assert_allclose(head_pose.matrix(back[:, :3]), head_pose.matrix(turns), atol=1e-5)
    np.testing.assert_allclose(back[0, 3:], place, atol=1e-3)


@pytest.mark.parametrize(("k", "moves"), [(0, (1, 0)), (1, (0, -1)), (2, (0, 0))])
def test_yaw_turns_right_in_the_picture_pitch_down_and_roll_nowhere(k, moves):
    nose = head_pose.matrix(np.eye(3)[k : k + 1] * 0.3)[0] @ [0, 0, 1]
    np.testing.assert_array_equal(np.sign(np.round(nose[:2], 6)), moves)
    ear = head_pose.matrix(np.array([[0, 0, 0.3]]))[0] @ [1, 0, 0]
    assert ear[1] > 0  # counterclockwise


def test_a_head_that_follows_its_own_motion_stays_where_it_was():
    rng = np.random.default_rng(0)
    turns = rng.normal(0, 0.15, (200, 3))
    place = np.array([0, 0, -3.3 * UNIT_CM]) + rng.normal(0, 2, (200, 3))
    own = head_pose.cameras(head_pose.matrix(turns), place)
    channels = head_pose.of_cameras(own)
    np.testing.assert_allclose(head_pose.moved(own, channels[:, :3], channels[:, 3:]), own, atol=1e-4)


def test_somebody_elses_motion_turns_about_the_own_usual_pose():
    own = head_pose.cameras(head_pose.matrix(np.tile([[0.2, 0.1, 0.0]], (9, 1))), np.tile([[1.0, 2, -80]], (9, 1)))
    swing = np.stack([np.linspace(-0.3, 0.3, 31), np.full(31, 0.4), np.zeros(31)], 1)
    moved = head_pose.moved(own, swing, None)
    np.testing.assert_allclose(moved[15], own[0], atol=1e-5)
    got = head_pose.of_cameras(moved)
    assert np.ptp(got[:, 0]) == pytest.approx(0.6, abs=0.05)
    np.testing.assert_allclose(got[:, 3:], np.tile([[1.0, 2, -80]], (31, 1)), atol=1e-3)


# ---------------------------------------------------------------- OpenFace, 3DMM


def test_openface_gives_blinks_and_the_heads_pose(tmp_path):
    lines = [
        "frame, face_id, timestamp, confidence, success, pose_Tx, pose_Ty, pose_Tz, pose_Rx, pose_Ry, pose_Rz, AU45_r"
    ]
    for k in range(20):
        good = 0 if k == 5 else 1
        lines.append(
            f"{k + 1}, 0, {k / 25:.3f}, 0.98, {good}, 10, {-20 + k}, 600, 0.1, {0.02 * k:.3f}, 0, {0.1 * k:.2f}"
        )
    (tmp_path / "o.csv").write_text("\n".join(lines))
    track = tracks.read(tmp_path / "o.csv", 25.0).resampled(25.0)
    k = np.arange(20)
    np.testing.assert_allclose(track.columns(["eye_closed"])[:, 0], np.clip(0.05 * k, 0, 1), atol=1e-6)
    np.testing.assert_allclose(
        track.columns(head_pose.PLACES), np.stack([1 + 0 * k, 2 - 0.1 * k, -60 + 0 * k], 1), atol=1e-5
    )
    turns = track.columns(head_pose.TURNS)
    assert turns[0, 1] == pytest.approx(0.1, abs=1e-6) and turns[-1, 0] < -0.3  # x as it is, y turned round


def test_the_excerpt_of_openface_is_read(data_dir):
    track = tracks.read(data_dir / "au" / "openface_au_excerpt.csv", 25.0)
    assert track.values.shape[0] == 30 and track.columns(["eye_closed"]).max() == pytest.approx(1.73 / 2, abs=1e-6)


def test_sadtalkers_array_is_named_by_place(data_dir):
    track = tracks.read(data_dir / "coeffs" / "sing_0000_1199.npy", 25.0)
    raw = np.load(data_dir / "coeffs" / "sing_0000_1199.npy")
    assert track.values.shape[0] == 1200
    np.testing.assert_array_equal(track.columns(recordings.names_of("exp", 64)), raw[:, 80:144])
    assert np.ptp(track.columns(head_pose.TURNS)) == 0 or np.ptp(track.columns(head_pose.TURNS), 0).max() < 1e-6


@pytest.mark.parametrize("width", [70, 73, 257])
def test_mat_files_of_coefficients(tmp_path, width):
    scipy_io = pytest.importorskip("scipy.io")
    rows = np.random.default_rng(0).normal(0, 0.1, (30, width)).astype(np.float32)
    scipy_io.savemat(tmp_path / "a.mat", {"coeff_3dmm": rows, "other": "text"})
    track = tracks.read(tmp_path / "a.mat", 25.0)
    first = 80 if width == 257 else 0
    np.testing.assert_array_equal(track.columns(recordings.names_of("exp", 64)), rows[:, first : first + 64])
    assert track.columns(head_pose.CHANNELS) is not None


def test_deep3ds_parts_are_a_track_too(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(0)
    parts = {"exp": (9, 64), "angle": (9, 3), "trans": (9, 3), "gamma": (9, 27)}
    arrays = {name: rng.normal(0, 0.1, shape) for name, shape in parts.items()}
    scipy_io.savemat(tmp_path / "a.mat", arrays)
    track = tracks.read(tmp_path / "a.mat", 25.0)
    np.testing.assert_allclose(track.columns(head_pose.PLACES)[:, 2], 10 * (arrays["trans"][:, 2] - 10), rtol=1e-5)
    scipy_io.savemat(tmp_path / "b.mat", {"exp": np.zeros((9, 50))})
    with pytest.raises(UserError, match=r"b\.mat: holds exp, expected coeff_3dmm"):
        tracks.read(tmp_path / "b.mat", 25.0)


def test_a_mat_without_scipy_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(UserError, match=r"a\.mat.*scipy.*install"):
        tracks.read(tmp_path / "a.mat", 25.0)


# ---------------------------------------------------------------- files


@settings(max_examples=20)
@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.floats(-2, 2, width=32)
    ),
    suffix=st.sampled_from([".npz", ".csv"]),
)
def test_what_is_written_is_read_back(tmp_path_factory, values, suffix):
    path = tmp_path_factory.mktemp("t") / f"t{suffix}"
    names = [f"c{k}" for k in range(values.shape[1])]
    path.write_bytes(tracks.encode(suffix, names, values, 25.0))
    track = tracks.read(path, 60.0)
    assert track.names == tuple(names) and tracks.encode(suffix, names, values, 25.0) == path.read_bytes()
    np.testing.assert_allclose(track.values, values, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(track.time_s, np.arange(len(values)) / 25, atol=1e-5)


def test_rows_without_names_are_plain(tmp_path):
    rows = np.random.default_rng(0).uniform(0, 1, (12, 3)).round(4)
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", fmt="%.4f")
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", anything=rows)
    for name in ("a.csv", "a.npy", "a.npz"):
        track = tracks.read(tmp_path / name, 25.0)
        assert track.plain and track.columns(["0"]) is None
        np.testing.assert_allclose(track.values, rows, atol=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".npy", ".mat"])
@settings(max_examples=15)
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_track_are_a_sentence(tmp_path_factory, suffix, data):
    path = tmp_path_factory.mktemp("t") / f"any{suffix}"
    path.write_bytes(data)
    try:
        tracks.read(path, 25.0)
    except UserError as error:
        assert f"any{suffix}" in str(error) and "\n" not in str(error)


def test_damaged_mats_and_pickles_and_arrays_longer_than_their_file_are_refused(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    scipy_io.savemat(tmp_path / "whole.mat", {"coeff_3dmm": np.random.default_rng(0).normal(size=(50, 70))})
    whole = (tmp_path / "whole.mat").read_bytes()
    for cut in (130, 200, len(whole) // 2):
        (tmp_path / "cut.mat").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"cut\.mat"):
            tracks.read(tmp_path / "cut.mat", 25.0)
    np.save(tmp_path / "p.npy", np.array([[{}]], object), allow_pickle=True)
    np.save(tmp_path / "n.npy", np.full((4, 3), np.nan))
    np.save(tmp_path / "long.npy", np.zeros((1000, 70)))
    os.truncate(tmp_path / "long.npy", 4000)
    for name in ("p.npy", "n.npy", "long.npy", "absent.npy", "absent.mat", "absent.csv"):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            tracks.read(tmp_path / name, 25.0)
