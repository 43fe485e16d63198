"""The kernels know no system: names of systems stand in tkjax/ops and tkjax/fields only where a text says who needs
something, in docstrings and comments."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tkjax.models import systems

ROOT = Path(__file__).resolve().parents[2] / "tkjax"
NAMES = (*systems(), "ad_nerf", "nerf_blendshape", "dyntet")
FILES = sorted(
    path for room in ("ops", "fields") for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".h", ".cc")
)


def _docstrings(text: str) -> set[int]:
    """The lines on which docstrings begin."""
    tree = ast.walk(ast.parse(text))
    holders = (node for node in tree if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef))
    return {node.body[0].lineno for node in holders if ast.get_docstring(node) is not None}


def code_of(path: Path, text: str) -> str:
    """A source without comments and docstrings, in lower case and without what separates words."""
    if path.suffix == ".py":
        skip = _docstrings(text)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kept = [
            t.string
            for t in tokens
            if t.type != tokenize.COMMENT and not (t.string[:3] == '"""' and t.start[0] in skip)
        ]
        text = " ".join(kept)
    else:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"[-_]", "", f"{path.name} {text}".lower())


@pytest.mark.heavy
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_kernel_names_a_system(path):
    found = [name for name in NAMES if name.replace("_", "") in code_of(path, path.read_text())]
    assert not found


def test_a_name_in_code_would_be_found_and_one_in_a_docstring_is_not():
    python, header = Path("a.py"), Path("a.h")
    assert "ernerf" in code_of(python, 'x = "er_nerf_head"') and "ernerf" in code_of(Path("er_nerf_head.py"), "x = 1")
    assert "ernerf" not in code_of(python, '"""For ER-NeRF."""\nx = 1  # er_nerf')
    assert "radnerf" in code_of(header, "int rad_nerf;") and "radnerf" not in code_of(header, "int x;  // rad_nerf")
