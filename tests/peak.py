"""Peak memory of a child process, for tests that show that memory stays flat."""

import subprocess
import sys
from pathlib import Path

from tkjax import config

can_be_read = Path("/proc/self/status").is_file()  # Linux


def resident_mb(code: str) -> float:
    """The most main memory that Python had, running this at the root of the repository."""
    code += "\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) / 1024
