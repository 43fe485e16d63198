"""What a run shows of itself."""

import subprocess
import sys

from tkjax import config

BOARD = """
import importlib.util, sys, threading
from pathlib import Path
from tkjax.train import progress

seen, asked, go = [], threading.Event(), threading.Event()

class Slow:  # TensorBoard's module is looked for while another thread looks for torch
    def find_spec(self, name, path=None, target=None):
        if name == "tensorboardX":
            asked.set()
            go.wait(1)  # a search holds the lock of imports: the other thread looks once this one is loading

def elsewhere():
    asked.wait(30)
    seen.append(importlib.util.find_spec("torch"))
    seen.append("torch" in sys.modules)
    go.set()

sys.meta_path.insert(0, Slow())
before = list(sys.meta_path)
other = threading.Thread(target=elsewhere)
other.start()
board = progress.open_board(Path(sys.argv[1]), 3)
other.join()
board.add_scalar("loss", 0.5, 4)
board.close()
assert seen[0] is not None and not seen[1], seen
assert sys.meta_path == before
assert "torch" not in sys.modules
"""


def test_the_board_keeps_torch_out_of_its_own_thread_only(tmp_path):
    """A stand-in for torch lies first on the path: other threads find it while tensorboardX is imported."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('jax and torch meet')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{BOARD}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "board")], cwd=config.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "board").glob("events*"))
