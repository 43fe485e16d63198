"""`--audio=own`: the clip's own sound under the frames that are played, so that they are reconstructed.

The originals take the sound from its begin whatever poses they play (ad-nerf dossier §6 "Reconstruction trap"), and
then the lips of held-out frames say other words.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tkjax import contract
from tkjax.avatar.bundle import Avatar, audio_spec
from tkjax.drive import motion
from tkjax.errors import UserError
from tkjax.media import audio

OWN = "own"
PLAYED = ("poses", "data_range")


def cut(subject: Avatar, dataset: Path, driving: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Arguments of `driver.plan` with the sound of the played frames, first to last, and its features, as files in
    `folder`. dataset: the one that the avatar was trained on; driving: further arguments, of which `poses` and
    `data_range` say what is played.

    Raises:
      UserError: the dataset is another one, or has no sound.
    """
    if driving.get("pose"):
        raise UserError("--audio=own is the sound of the clip's own poses; leave out --pose, or name a sound file")
    d = contract.Dataset(dataset)
    if contract.AUDIO not in d.manifest["files"]:
        raise UserError(f"--audio=own: {dataset} has no sound; give --audio a sound file")
    rows = motion.plan(subject, **{k: driving[k] for k in PLAYED if k in driving}).rows
    numbers = subject.numbers[rows]
    if np.any(np.diff(numbers) != 1):
        raise UserError("--audio=own: the frames that are played do not follow one another; choose some that do with "
                        "--data_range")  # fmt: skip
    if numbers[-1] >= d.n_frames or np.any(subject.cam_to_world[rows] != d.column("cam_to_world")[numbers]):
        raise UserError(f"--audio=own: the avatar was not trained on {dataset}; give --audio the sound file itself")
    first, end = int(numbers[0]), int(numbers[-1]) + 1
    per_frame = contract.AUDIO_HZ / d.fps
    own = audio.read_audio(d.path(contract.AUDIO))[round(first * per_frame) : round(end * per_frame)]
    if not len(own):
        raise UserError(f"--audio=own: the sound of {dataset} ends before frame {first}; give --audio a sound file")
    audio.write_wav(folder / "own.wav", own)
    out = {"audio": str(folder / "own.wav")}
    described = subject.meta["audio"]
    kinds = d.manifest["audio"]
    if described is None or described["kind"] not in kinds:
        return out
    features = d.audio_features(described["kind"])
    if audio_spec(features) != described:
        return out
    part = features.features[first * features.hop : end * features.hop]
    contract.save_audio_features(folder / "own.npz", **{**vars(features), "features": part})
    return {**out, "features": str(folder / "own.npz")}
