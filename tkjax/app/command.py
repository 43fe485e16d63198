"""tkjax's one command, `tkjax` where it is installed and launch.py in the repository: `--help` explains the modes.

Exit code 0 on success, 2 with one line for anything that the user can mend, 130 and 143 when it was interrupted or
terminated, 1 for a bug.
"""

import sys

from absl import app, flags, logging

from tkjax.app import environment, options
from tkjax.errors import UserError, of_files
from tkjax.host import interrupts


def refuse(message: object) -> None:
    """One line on the error stream, exit code 2."""
    sys.stdout.flush()
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str]) -> options.Options:
    """Read our flags; absl's own set stays at its defaults."""
    flags.FLAGS(argv[:1])
    if any(a in ("--help", "-h", "-help", "--helpfull", "--helpshort") for a in argv[1:]):
        mode = next((a.partition("=")[2] for a in argv if a.startswith("--mode=")), None)
        print(options.help_text(mode))
        sys.exit(0)
    try:
        return options.parse(argv)
    except UserError as error:
        refuse(error)


def main(opts: options.Options) -> None:
    environment.prepare()
    logging.set_verbosity(logging.WARNING)  # libraries that log every file they write
    environment.show_facts()
    with interrupts.caught():
        try:
            from tkjax.app import cli  # only now: it brings jax

            cli.run(opts)
        except UserError as error:
            refuse(error)
        except OSError as error:
            sentence = of_files(error)
            if sentence is None:
                raise
            refuse(sentence)
        except KeyboardInterrupt as error:
            print(interrupts.sentence(error, opts.mode), file=sys.stderr)
            sys.exit(interrupts.exit_code(error))


def start() -> None:
    """The installed command."""
    app.run(main, flags_parser=parse)
