"""What the command lines of this package share: a refusal is one sentence and exit code 2."""

import os
import sys
from collections.abc import Callable

from tkjax.errors import UserError, of_files, refuse
from tkjax.host import interrupts


def exit_code(work: Callable[[], object], mode: str = "") -> int:
    """Do the work; 0, or 2 with one sentence on standard error where the user can mend what stopped it, or 130 or 143
    after Ctrl-C or SIGTERM, which a program that started this one reports itself. mode: see `interrupts.sentence`."""
    with interrupts.caught():
        try:
            work()
            return 0
        except UserError as e:
            sentence = str(e)
        except OSError as e:
            sentence = of_files(e)
            if sentence is None:
                raise
        except KeyboardInterrupt as e:
            if "TKJAX_PARENT" not in os.environ:
                print(interrupts.sentence(e, mode), file=sys.stderr, flush=True)
            return interrupts.exit_code(e)
    refuse(sentence)
    return 2
