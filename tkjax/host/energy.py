"""Energy of the machine's processors by their own counters (RAPL, `/sys/class/powercap`). Standard library only."""

import re
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
PACKAGE = re.compile(r"intel-rapl:\d+")  # whole packages; their parts (intel-rapl:0:0) are inside them
JOULES_PER_WH = 3600.0


class Meter:
    """Energy since it was made. The counters wrap about once an hour, so `look` at them more often than that."""

    def __init__(self, root: Path = POWERCAP):
        self.reason, self._joules = "", 0.0
        self._last: dict[Path, int] = {}
        self._range: dict[Path, int] = {}
        packages = [p for p in sorted(root.glob("*")) if PACKAGE.fullmatch(p.name)] if root.is_dir() else []
        try:
            for package in packages:
                self._last[package] = self._read(package / "energy_uj")
                self._range[package] = self._read(package / "max_energy_range_uj")
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or "no number"
            self._last, self.reason = {}, f"the energy counters in {root} cannot be read ({said})"
        if not packages:
            self.reason = f"this machine has no energy counters in {root}"

    @staticmethod
    def _read(path: Path) -> int:
        return int(path.read_text())

    def look(self) -> None:
        """Take what the counters have gained."""
        try:
            for package, before in self._last.items():
                now = self._read(package / "energy_uj")
                gained = now - before if now >= before else now - before + self._range[package]
                self._joules += gained / 1e6
                self._last[package] = now
        except (OSError, ValueError) as error:
            self._last, self.reason = {}, f"an energy counter could not be read any more ({error})"

    def watt_hours(self) -> float | None:
        """Of all packages so far; None where `reason` says why it is not known."""
        self.look()
        return None if self.reason else self._joules / JOULES_PER_WH
