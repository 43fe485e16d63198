"""The synthetic subject: a ray-marched head and shoulders that speaks, with everything about it known exactly.

make(out, seconds=12, size=256, seed=0, motion=1.0)      clip.mp4 and the truth as a dataset
pcm, tracks = speech(seed, seconds)                      sound and mouth shapes
perform(tracks, ...).frames()                            rendered frames without writing anything
true_opening(tracks, cam_to_world, ...)                  how open the mouth would look, frame by frame
mouth_opening(rgb, lips_box)                             the one measure of that, for any picture
"""

from tkjax.synthetic.make import make
from tkjax.synthetic.mouth import mouth_opening
from tkjax.synthetic.performance import (
    Performance,
    TrueOpening,
    correlation,
    measure_opening,
    perform,
    speak,
    true_opening,
)
from tkjax.synthetic.speech import speech

__all__ = [
    "Performance", "TrueOpening", "correlation", "make", "measure_opening", "mouth_opening", "perform", "speak",
    "speech", "true_opening",
]  # fmt: skip
