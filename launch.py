"""tkjax's one command in the repository: `python launch.py --help` explains the modes. See `tkjax.app.command`."""

from tkjax.app.command import main, parse, refuse, start

__all__ = ["main", "parse", "refuse", "start"]

if __name__ == "__main__":
    start()
