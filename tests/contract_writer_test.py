"""A writer that fails says why, once; extra members may have any name."""

import numpy as np
import pytest

from tests.tiny_dataset import files_of, frames, plate, write_tiny, writer
from tkjax import contract


def test_a_failed_finish_inside_the_context_raises_its_own_error(tmp_path):
    root = tmp_path / "d"
    write_tiny(root, seed=1)
    before = files_of(root)
    with pytest.raises(contract.ContractError, match="no frame was added"), writer(root) as w:
        w.finish()
    assert files_of(root) == before


def test_an_extra_member_named_like_offsets_is_a_column(tmp_path):
    given = np.arange(3, dtype=np.int32)
    with writer(tmp_path / "d", extra_members={"x_time_offsets": ("int32", ())}) as w:
        w.add({**frames(3), "x_time_offsets": given})
        w.add_file("background.png", plate())
    np.testing.assert_array_equal(contract.Dataset(tmp_path / "d").column("x_time_offsets"), given)
