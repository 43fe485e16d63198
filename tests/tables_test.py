"""Tables of blinks: each row at the frame that it names, whatever else the table holds or lacks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax.errors import UserError
from tkjax.formats import tables

BLINK = {6: 2.0, 7: 1.0}  # AU45_r of frames from 0, open elsewhere


def openface(path, frames, *, rate=25.0, face=lambda k: 0, success=lambda k: 1, value=BLINK.get, extra="", first=1):
    rows = ["frame, face_id, timestamp, confidence, success, AU45_r, AU45_c"]
    rows += [
        f"{k + first}, {face(k)}, {k / rate:.3f}, 0.98, {success(k)}, {value(k) or 0.0:.2f}, 0{extra}" for k in frames
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def blinks(path):
    return tables.filled(tables.read_blinks(path), path)[0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "au.csv"


TRUE = np.array([BLINK.get(k, 0.0) / 2 for k in range(12)])


def test_a_whole_table_says_nothing(path):
    column = tables.read_blinks(openface(path, range(12)))
    assert not column.notes and not column.lost
    np.testing.assert_array_equal(blinks(path), TRUE)
    openface(path, range(12), first=0)  # counted from 0
    np.testing.assert_array_equal(blinks(path), TRUE)


@given(st.sets(st.integers(0, 10), max_size=5).map(lambda s: s - set(BLINK)))
def test_lost_rows_shift_nothing_and_are_named(tmp_path_factory, lost):
    path = openface(tmp_path_factory.mktemp("t") / "au.csv", [k for k in range(12) if k not in lost])
    column = tables.read_blinks(path)
    values, made_up = tables.filled(column, path)
    there = [k for k in range(12) if k not in lost]
    np.testing.assert_array_equal(values[there], TRUE[there])
    assert len(values) == 12
    assert bool(lost) == bool(made_up) and (not lost or tables.ranges(lost) in made_up)
    assert bool(lost) == ("rows are missing" in " ".join(column.notes))


def test_rows_in_any_order_go_to_their_frame(path):
    openface(path, reversed(range(12)))
    np.testing.assert_array_equal(blinks(path), TRUE)


def test_a_failed_tracker_holds_no_measure(path):
    openface(path, range(12), success=lambda k: int(k not in (5, 8)), value=lambda k: 2.0 if k in (6, 7) else 0.0)
    column = tables.read_blinks(path)
    assert column.failed == (5, 8) and 5 not in column.values
    values, made_up = tables.filled(column, path)
    assert "5, 8" in made_up and values[5] == 0.5 and values[8] == 0.5


def test_one_of_several_faces_counts_and_is_named(path):
    shut = openface(path, range(12), face=lambda k: 1, value=lambda k: 2.0).read_text().splitlines()
    mine = openface(path, range(12)).read_text().splitlines()
    mixed = [mine[0], *(row for pair in zip(mine[1:], shut[1:]) for row in pair)]
    path.write_text("\n".join(mixed))
    assert any("2 faces; face_id 0 counts" in n for n in tables.read_blinks(path).notes)
    np.testing.assert_array_equal(blinks(path), TRUE)
    path.write_text("\n".join([mixed[0], *(row for k, row in enumerate(mixed[1:]) if k not in (4, 10))]))
    assert any("face_id 1 counts, with 12 rows" in n for n in tables.read_blinks(path).notes)  # the more complete one
    path.write_text("\n".join(r.replace(", 1, ", ", ", 1).replace(", 0, ", ", ", 1) for r in mixed))
    path.write_text("frame, AU45_r\n" + "".join(f"{k}, 0\n{k}, 2\n" for k in range(1, 9)))
    with pytest.raises(UserError, match="16 rows for 8 frames and no face_id"):
        tables.read_blinks(path)


def test_a_person_who_was_lost_and_found_is_one(path):
    openface(path, range(12), face=lambda k: int(k > 4))
    assert any("one person" in n for n in tables.read_blinks(path).notes)
    np.testing.assert_array_equal(blinks(path), TRUE)


@pytest.mark.parametrize("rate", [24, 30, 29.97, 50, 60])
def test_a_table_of_another_rate_is_played_at_25(path, rate):
    def soft(k):
        return 1 + np.sin(2 * np.pi * 1.1 * k / rate)

    openface(path, range(round(8 * rate)), rate=rate, value=soft)
    assert any(f"{rate:.4g} frames a second: interpolated to 25" in n for n in tables.read_blinks(path).notes)
    values = blinks(path)
    assert abs(len(values) - 200) <= 1
    expected = (1 + np.sin(2 * np.pi * 1.1 * np.arange(len(values)) / 25)) / 2
    assert np.abs(values - expected)[:-1].max() < 0.02


def test_timestamps_that_say_nothing_are_left_alone_and_other_units_are_refused(path):
    openface(path, range(12), rate=1e12)  # OpenFace on a folder of pictures: all 0
    np.testing.assert_array_equal(blinks(path), TRUE)
    openface(path, range(12), rate=25 / 1000)
    with pytest.raises(UserError, match=r"0\.025 frames a second, expected seconds"):
        tables.read_blinks(path)


def test_timestamps_alone_place_the_rows(path):
    openface(path, [0, 1, 2, 3, 6, 7, 8, 9, 10, 11])
    rows = [row.split(", ") for row in path.read_text().splitlines()]
    path.write_text("\n".join(",".join(r[2:]) for r in rows))
    values, made_up = tables.filled(tables.read_blinks(path), path)
    np.testing.assert_allclose(values[6:], TRUE[6:], atol=1e-9)
    assert "4-5" in made_up


def test_a_cut_table_starts_at_its_first_row(path):
    openface(path, range(30, 42), value=lambda k: BLINK.get(k - 30))
    np.testing.assert_array_equal(blinks(path), TRUE)
    assert any("its first row, number 31, is frame 0" in n for n in tables.read_blinks(path).notes)


def test_pictures_by_number(path):
    for first in (0, 1):
        rows = "".join(f"{k + first},{BLINK.get(k, 0) / 2}\n" for k in range(12) if k != 3)
        path.write_text("img_id,eye_closed\n" + rows)
        np.testing.assert_array_equal(blinks(path), TRUE)
    assert sorted(tables.read_blinks(path, 13).values) == [1, 2, 3, *range(5, 13)]  # the import: as they are called


COLUMN = "".join(f"{v}\n" for v in TRUE)


@pytest.mark.parametrize(
    "data",
    [
        COLUMN.encode(),
        ("\ufeff" + COLUMN).encode(),
        ("\ufeff" + COLUMN).encode("utf-16-le"),
        ("eye\r\n" + COLUMN.replace("\n", "\r\n")).encode(),
        ('\ufeff"eye"\n' + COLUMN).encode(),
        ("frame;blink\n" + "".join(f"{k + 1};{str(v).replace('.', ',')}\n" for k, v in enumerate(TRUE))).encode(),
        ("frame\tblink\n" + "".join(f"{k}\t{v}\n" for k, v in enumerate(TRUE))).encode(),
        ("\n\n" + COLUMN + "\n \n").encode(),
        ("\ufeffframe,  AU45_r \n" + "".join(f"{k + 1},  {2 * v}\n" for k, v in enumerate(TRUE))).encode(),
    ],
)
def test_marks_blanks_and_other_separators_change_nothing(path, data):
    path.write_bytes(data)
    np.testing.assert_array_equal(blinks(path), TRUE)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\x00", b"\x80\x81", b"a\nb\n", b"1,2\n3,4\n", b"frame,AU06_r\n1,2\n", b"nan\n", b"frame,AU45_r\n",
     b"frame,AU45_r\n1,0\n500,0\n", b"face_id,frame,AU45_r\nx,1,0\ny,1,0\n", b'"' + b"a" * 200000, b"1\n1;2\n,\n"],
)  # fmt: skip
def test_other_files_are_one_sentence_with_the_name(path, data):
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"au\.csv") as error:
        blinks(path)
    assert "\n" not in str(error.value)


@given(
    st.binary(max_size=200)
    | st.text(alphabet="0123456789.,;\n\t eNnaAU45_rframeimg_idtimestampsuccessface", max_size=120)
)
def test_any_bytes_are_a_table_or_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("t") / "x.csv"
    path.write_bytes(data if isinstance(data, bytes) else ("frame,AU45_r,success,timestamp\n" + data).encode())
    try:
        values = blinks(path)
    except UserError as error:
        assert "x.csv" in str(error)
    else:
        assert values.ndim == 1 and np.isfinite(values[values == values]).all()
