"""Speech to coefficients: a small causal network that moves a face from sound alone.

train(pcm, expression, names)         the network of a clip, in minutes on two cores
spoken(voice, blocks, n_frames)       coefficients of a sound, of the channels `voice.columns`
Stream(voice).push(pcm)               the same as it comes, at most 40 ms ahead of each frame
"""

from tkjax.voice.channels import mouth, opening
from tkjax.voice.speaker import Stream, Voice, shapes, spoken
from tkjax.voice.training import train

__all__ = ["Stream", "Voice", "mouth", "opening", "shapes", "spoken", "train"]
