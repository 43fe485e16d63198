"""What the command lines of this package share: a refusal is one sentence and exit code 2."""

from collections.abc import Callable

from tkjax.errors import UserError, of_files, refuse


def exit_code(work: Callable[[], object]) -> int:
    """Do the work; 0, or 2 with one sentence on standard error where the user can mend what stopped it."""
    try:
        work()
        return 0
    except UserError as e:
        sentence = str(e)
    except OSError as e:
        sentence = of_files(e)
        if sentence is None:
            raise
    refuse(sentence)
    return 2
