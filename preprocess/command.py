"""What the command lines of this package share: a refusal is one sentence and exit code 2."""

import sys
from collections.abc import Callable

from tkjax.errors import UserError


def exit_code(work: Callable[[], object]) -> int:
    """Do the work; 0, or 2 with the sentence of a UserError on standard error."""
    try:
        work()
    except UserError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr, flush=True)
        return 2
    return 0
