"""What decoded samples are before anybody believes them: their range, their channels, whether they are numbers.

One pass over a file (`Scan`) decides how all of it is read (`Intake`), for features and for the sound of a rendered
video alike. Integer samples of one channel need no such pass.

- Not a number or infinite: refused with its time.
- Peak above 1: floating point may go over full scale. Up to 8 (18 dB) the sound is divided by its peak. Above, samples
  are taken as counts of 16, 24 or 32 bit and divided by that full scale; but where hardly any sample is above 1, the
  few are damage, and the file is refused, as it is above 2³¹.
- Two channels: their mean is heard. Where one is 40 dB below the other it is dead, and the live one is heard alone;
  where the mean has less than a tenth of the channels' mean power they cancel (antiphase), and half their difference is
  heard.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tkjax.errors import UserError

OVER = 8.0
FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)
DAMAGE = 0.01  # share of the sounding samples: of counts nearly all are above 1
SOUNDS = 1e-6  # under one count of 16 bit
DEAD = 1e-4  # -40 dB: crosstalk
CANCEL = 0.1  # of the power; uncorrelated channels keep half of it


@dataclasses.dataclass(frozen=True)
class Intake:
    """scale: factor of every sample. left, right: weights in the mix to one channel. note: what is out of the ordinary,
    a clause for a person, or ""."""

    scale: float = 1.0
    left: float = 0.5
    right: float = 0.5
    note: str = ""

    def take(self, block: Float[np.ndarray, "c n"], channels: int) -> Float[np.ndarray, "d n"]:
        """Samples as decoded, one or two channels -> 1 (mixed) or 2 at their scale."""
        block = block if self.scale == 1 else block * np.float32(self.scale)
        if channels == 2:
            return np.broadcast_to(block, (2, block.shape[1]))
        if len(block) == 1:
            return block
        if self.left == self.right == 0.5:
            return block.mean(0, keepdims=True)
        return (np.float32(self.left) * block[:1] + np.float32(self.right) * block[1:]).astype(np.float32, copy=False)


class Scan:
    """Sums over a file's blocks, in constant memory."""

    def __init__(self, path: Path, rate: int):
        self._path, self._rate = path, rate
        self._n = self._over = self._sounding = 0
        self._peak, self._peak_at = 0.0, 0
        self._sums, self._products = np.zeros(2), np.zeros((2, 2))

    def add(self, block: Float[np.ndarray, "c n"]) -> None:
        """The next samples, one or two channels; UserError where one is not finite."""
        if not block.shape[1]:
            return
        good = np.isfinite(block).all(0)
        if not good.all():
            at = int(np.argmin(good))
            what, time = "not a number" if np.isnan(block[:, at]).any() else "infinite", (self._n + at) / self._rate
            raise UserError(
                f"{self._path}: the sample at {time:.3f} s is {what}, expected finite numbers from -1 to 1; export the "
                "sound again"
            )
        size = np.abs(block).max(0)
        at = int(size.argmax())
        if size[at] > self._peak:
            self._peak, self._peak_at = float(size[at]), self._n + at
        self._over += int((size > 1).sum())
        self._sounding += int((size > SOUNDS).sum())
        self._n += block.shape[1]
        both = np.broadcast_to(block, (2, block.shape[1])).astype(np.float64)
        self._sums += both.sum(1)
        self._products += both @ both.T

    def decide(self) -> Intake:
        """How the file is to be read; UserError where its samples are beyond any full scale."""
        scale, said = self._scale()
        left, right, mixed = self._mix()
        return Intake(scale, left, right, "; ".join(s for s in (said, mixed) if s))

    def _scale(self) -> tuple[float, str]:
        peak = self._peak
        if peak <= 1:
            return 1.0, ""
        if peak <= OVER:
            return 1 / peak, f"its samples reach {peak:.2f}, so all are divided by that" if peak > 1.5 else ""
        full = next((f for f in FULL_SCALES if peak <= f), None)
        if full is None or self._over < DAMAGE * self._sounding:
            raise UserError(
                f"{self._path}: the sample at {self._peak_at / self._rate:.3f} s is {peak:g}, expected -1 to 1; export "
                "the sound again"
            )
        bits = round(math.log2(full)) + 1
        return 1 / full, f"its samples reach {peak:.0f}, so they are taken as counts of {bits} bit"

    def _mix(self) -> tuple[float, float, str]:
        n = max(self._n, 1)
        (ll, lr), (_, rr) = self._products / n - np.outer(self._sums, self._sums) / n**2
        if min(ll, rr) <= DEAD * max(ll, rr):
            if max(ll, rr) <= 0:
                return 0.5, 0.5, ""
            live, dead = ("left", "right") if ll > rr else ("right", "left")
            weights = (1.0, 0.0) if ll > rr else (0.0, 1.0)
            return *weights, f"its {dead} channel is silent, so the {live} one is heard alone"
        if (ll + rr + 2 * lr) / 4 < CANCEL * (ll + rr) / 2:
            return 0.5, -0.5, "its channels cancel each other (antiphase), so half their difference is heard"
        return 0.5, 0.5, ""
