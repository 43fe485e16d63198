"""How loud speech is, followed as it comes, so that features do not depend on the gain of a microphone (numpy only).

The level is the power that 90 % of the last 4 s of active sound stay below. A step of 20 ms is active when its power
between 200 and 4000 Hz (`media.audio` sums it) stands 10 dB out of the noise (the power that 10 % of the last 4 s stay
below) and lies within 30 dB of the level: a steady noise is never active, however loud, and through a pause the level
stays where it was, so noise between words is not pumped up. After 10 s without an active step whatever stands out of
the noise counts, and what was heard before does not: somebody else, more than 30 dB quieter, may have begun.

All of that looks at ratios of powers, so a gain of g dB moves the level by g dB and nothing else, but for absolute
numbers: power below `QUIET` is not heard as speech, the level is never below `LOWEST`, and it begins at `REFERENCE`.
From there each active step after the first five lets it down by 1.5 dB at most: the first syllables, whose height
nobody can know yet, are not blown up, nor is a breath before them. A step that towers above the level is brought down
to 10 dB above it: the first loud word after a soft one.
"""

import dataclasses
import math

import numpy as np

REFERENCE = 10**-1.4  # the level to which speech is brought: -14 dB under a sine of full scale, as broadcast speech has
QUIET = 10**-7.5  # -75 dB: under the noise of a quiet room and microphone
LOWEST = 10**-6.0  # -60 dB, where a recording's own noise lies: no more than 46 dB are added
MEMORY = 200  # steps of active sound that the level is drawn from, and of any sound for the noise: 4 s, several phrases
LOUD, STILL = 0.9, 0.1  # shares: stressed vowels lie above the one, gaps between words below the other
STANDS_OUT = 10.0  # 10 dB; the power of steady noise in 20 ms strays by 3 dB
WITHIN = 1e-3  # 30 dB: the weakest sounds of speech; what is quieter is breath and room
TOWERS = 10.0  # 10 dB; the loudest vowels of a speaker lie 4 to 7 dB above the level
RISE = 5  # active steps that say nothing of the level yet: a syllable grows out of silence in 0.1 s
FALL = 10**-0.15  # 1.5 dB an active step: speech that is 20 dB too soft is at the reference after 0.4 s
SETTLED = 40  # steps of active sound from which on the level gates what is active: 0.8 s
PATIENCE = 500  # steps without an active one after which a speaker's level is forgotten: 10 s


def _share(values: np.ndarray, share: float) -> float:
    """The order statistic that `share` of the values stay below: one of them, so a common factor stays a factor."""
    k = math.ceil(share * len(values)) - 1
    return float(np.partition(values, k)[k])


@dataclasses.dataclass
class Level:
    """State of one stream, all of it: `gain` takes the steps in order, one by one, and only looks back."""

    level: float = REFERENCE
    begun: float = REFERENCE  # the level before the first active step
    steps: int = 0
    active: int = 0  # active steps of the present speaker
    idle: int = 0  # steps since the last active one
    noise: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(MEMORY))
    speech: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(MEMORY))

    def gain(self, power: float) -> float:
        """Factor for the power spectrum of the next step: the reference over the level.

        power: of the step between 200 and 4000 Hz, relative to a sine of full scale.
        """
        self.noise[self.steps % MEMORY] = power
        self.steps += 1
        self.idle += 1
        if self.idle > PATIENCE:
            self.active, self.begun = 0, self.level
        if self._is_active(power):
            self.speech[self.active % MEMORY] = power
            self.active += 1
            self.idle = 0
            heard = _share(self.speech[: min(self.active, MEMORY)], LOUD)
            self.level = max(heard, LOWEST, self.begun * FALL ** max(0, self.active - RISE))
        return REFERENCE / max(self.level, power / TOWERS)

    def _is_active(self, power: float) -> bool:
        still = _share(self.noise[: min(self.steps, MEMORY)], STILL)
        return power > max(QUIET, STANDS_OUT * still, WITHIN * self.level if self.active >= SETTLED else 0.0)
