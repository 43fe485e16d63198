"""Imports and exports of checkpoints as a user asks for them, in the process of the test."""

import contextlib
import io
from pathlib import Path

import pytest

from tests import original_checkpoints as originals
from tkjax.app import cli, options
from tkjax.errors import UserError
from tkjax.host import torch_side
from tkjax.originals import source

torch = pytest.importorskip("torch")
from preprocess.weights import checkpoint_file  # noqa: E402


def run(mode: str, **flags) -> str:
    """A mode of launch.py in this process; what it printed."""
    flags = {k: str(v) if isinstance(v, Path) else v for k, v in flags.items()}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        cli.run(options.Options(mode, flags, []))
    return out.getvalue()


def without_a_child(monkeypatch) -> None:
    """Starting PyTorch takes seconds: single tests read and write files in this process. Module fixtures do not."""

    def ask(module, arguments):
        assert module == source.MODULE
        with contextlib.redirect_stderr(io.StringIO()) as err:
            if checkpoint_file.main(arguments):
                raise UserError(err.getvalue().strip().removeprefix("error: "))

    monkeypatch.setattr(torch_side, "ask", ask)


def refused(tmp_path, file, message: str, **flags) -> str:
    """The one sentence with which an import ends; nothing is left in the workdir."""
    path = tmp_path / "x.pth"
    if isinstance(file, bytes):
        path.write_bytes(file)
    else:
        torch.save(originals.tensors(file), path)
    with pytest.raises(UserError, match=message) as error:
        run("import", source=path, workdir=tmp_path / "W", **flags)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "W").exists()
    return str(error.value)
