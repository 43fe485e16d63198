"""Sound feature arrays of the originals, `aud*.npy` and `audio_feat.npy` [N, T, C], as the contract's sequences.

Window i of an original array belongs to video frame i (25 a second) and repeats steps of a 50 Hz sequence:
- T = 16: steps 2i - 8 … 2i + 7, zeros outside (DeepSpeech, wav2vec2, Avatar-ERNeRF's HuBERT; rad-nerf.md §2.5);
- T = 2: steps 2i, 2i + 1, no overlap (ER-NeRF's HuBERT, `aud_hu.npy`; er-nerf.md §2).
`from_windows` undoes that, after a check that neighbouring windows agree where they overlap. Windows of a cutter that
it does not know, or that disagree, are stored one behind the other (window = hop = T, left = 0): nothing is lost.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tkjax.contract import FPS, AudioFeatures
from tkjax.errors import UserError
from tkjax.signals import cut_windows

CUTS = {16: (2, 8), 2: (2, 0)}  # T -> hop, left of a cutter of the originals
RATE_HZ = 50.0
START_S = {"deepspeech": 0.01}  # centre of step 0; the networks on raw sound see 400 samples of 16 kHz
_START_S = 0.0125
# File names of the originals -> kind. aud.npy holds DeepSpeech (29) or wav2vec2 (32, 44) by its width.
KIND_OF_NAME = {"aud_ds": "deepspeech", "aud_eo": "wav2vec2", "aud_hu": "hubert", "audio_feat": "hubert"}
KIND_OF_WIDTH = {29: "deepspeech", 32: "wav2vec2", 44: "wav2vec2", 1024: "hubert", 80: "mel"}
EXTRACTOR = "array"  # what an array says of its extractor: nothing; only arrays have it
HOW = {
    "logmel": "leave --features out, log-mel is made from --audio",
    "deepspeech": "extract aud_ds.npy from this sound with the DeepSpeech step of the original project",
    "wav2vec2": "name the model with --audio_kinds=wav2vec2=PATH, or extract the array with the original project",
    "hubert": "name the model with --audio_kinds=hubert=PATH, or extract the array with the original project",
}
_BLOCK = 512  # windows read at once: arrays may be larger than memory


def is_array(path: str | Path) -> bool:
    """Whether a file is a .npy array (by its first bytes)."""
    try:
        with open(path, "rb") as f:
            return f.read(6) == b"\x93NUMPY"
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected a file of sound features") from e


def open_windows(path: str | Path) -> Float[np.ndarray, "N T C"]:
    """The windows of a .npy file, mapped, any float dtype; UserError for class labels and for anything else."""
    try:
        a = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}, expected an array of sound features") from e
    except (ValueError, EOFError) as e:
        raise UserError(f"{path}: is not a plain .npy array, expected sound features [windows, steps, width]") from e
    if not isinstance(a, np.ndarray):
        raise UserError(f"{path}: is an archive of arrays, expected one array [windows, steps, width]")
    if a.ndim == 2 and a.shape[1] in (1, *CUTS):
        raise UserError(
            f"{path}: has shape {a.shape}, class labels for an embedding (--emb), which no system here hears; "
            "extract feature windows [windows, 16, width] instead"
        )
    if a.ndim != 3 or 0 in a.shape or a.dtype.kind != "f":
        raise UserError(
            f"{path}: holds {a.dtype} of shape {a.shape}, expected floating point features [windows, steps, width]; "
            "class labels (rank 2) are not supported"
        )
    return a


def kind_of(name: str, width: int) -> str:
    """Kind by the file's name, else by the width, else the name itself ("foo.npy" -> "foo")."""
    stem = Path(name).stem
    known = next((k for prefix, k in KIND_OF_NAME.items() if stem == prefix or stem.endswith(f"_{prefix}")), None)
    return known or KIND_OF_WIDTH.get(width) or re.sub(r"[^A-Za-z0-9_-]", "_", stem) or "features"


def known_kind(name: str, width: int) -> str | None:
    """The kind where name or width tells it."""
    kind = kind_of(name, width)
    return kind if kind in {*KIND_OF_NAME.values(), *KIND_OF_WIDTH.values()} else None


def disagreement(windows: Float[np.ndarray, "N T C"]) -> int | None:
    """The first window that is not the continuation of the one before it, None where all are.

    Window 0 must begin with its zeros. Equal up to rounding: 1e-5 of the larger value, and not-a-number equals itself.
    """
    n, steps, _ = windows.shape
    hop, left = CUTS[steps]
    if left and not (np.asarray(windows[0, :left]) == 0).all():
        return 0
    for a in range(0, n - 1, _BLOCK):
        part = np.asarray(windows[a : a + _BLOCK + 1], np.float32)
        same = np.isclose(part[1:, : steps - hop], part[:-1, hop:], rtol=1e-5, atol=1e-6, equal_nan=True)
        same = same.reshape(len(same), -1).all(1)
        if not same.all():
            return a + 1 + int(np.argmin(same))
    return None


def _blocks(windows: np.ndarray) -> Iterator[np.ndarray]:
    for a in range(0, len(windows), _BLOCK):
        yield np.asarray(windows[a : a + _BLOCK], np.float32)


def _join(windows: np.ndarray, hop: int, left: int) -> Float[np.ndarray, "n C"]:
    """The sequence under overlapping windows: all of window 0 from step 0 on, then the last `hop` steps of each."""
    n, steps, width = windows.shape
    out = np.empty((hop * (n - 1) + steps - left, width), np.float32)
    out[: steps - left] = windows[0, left:]
    at = steps - left
    for block in _blocks(windows[1:]):
        rows = block[:, steps - hop :].reshape(-1, width)
        out[at : at + len(rows)] = rows
        at += len(rows)
    used = np.flatnonzero((out != 0).any(1))
    last = int(used[-1]) + 1 if len(used) else 0
    return out[: min(len(out), max(last, hop * n))]  # the zeros behind the last frame are not sound


def repair(features: Float[np.ndarray, "n C"]) -> list[int]:
    """Replace non-finite steps by the nearest finite one, in place; the numbers of those steps."""
    good = np.isfinite(features).all(1)
    if good.all():
        return []
    bad = np.flatnonzero(~good)
    kept = np.flatnonzero(good)
    if len(kept):
        right = np.clip(np.searchsorted(kept, bad), 0, len(kept) - 1)
        left = np.clip(right - 1, 0, len(kept) - 1)
        nearer = np.where(np.abs(kept[left] - bad) <= np.abs(kept[right] - bad), kept[left], kept[right])
        features[bad] = features[nearer]
    else:
        features[bad] = 0
    return bad.tolist()


def from_windows(
    windows: Float[np.ndarray, "N T C"], kind: str, *, flat: bool = False, like: Mapping[str, Any] | None = None
) -> tuple[AudioFeatures, list[int], str]:
    """(sequence, its repaired steps, a note or "") of an original array.

    flat: one window behind the other without looking. like: a description (`AudioFeatures.describe`) whose window,
    hop and left are kept where they can be: an avatar that learnt windows one behind the other gets them so.
    """
    steps = windows.shape[1]
    note, cut = "", CUTS.get(steps)
    if like and like["window"] == steps and like["hop"] == steps:
        flat = True
    if flat or cut is None:
        note = "" if flat else f"windows of {steps} steps are of no known cutter and are stored as they are"
        cut = None
    elif (odd := disagreement(windows)) is not None:
        where = "window 0 does not begin with zeros" if odd == 0 else f"window {odd} does not continue window {odd - 1}"
        note, cut = f"{where}, so the windows are stored as they are (window = hop = {steps})", None
    if cut is None:
        features = np.concatenate([b.reshape(-1, b.shape[2]) for b in _blocks(windows)])
        hop, left, rate = steps, 0, steps * FPS
    else:
        hop, left = cut
        features, rate = _join(windows, hop, left), RATE_HZ
    bad = repair(features)
    start = START_S.get(kind, _START_S)
    pad = left
    return AudioFeatures(kind, features, rate, start, f"{EXTRACTOR}-{kind}", steps, hop, left, pad), bad, note


def to_windows(features: AudioFeatures, n: int | None = None) -> Float[np.ndarray, "N T C"]:
    """The original's array of the first n frames (default: all that the sound lasts)."""
    f = features
    return cut_windows(f.features, np.arange(f.n_windows if n is None else n), f.window, f.hop, f.left)


def load_features(path: str | Path, wanted: Mapping[str, Any]) -> AudioFeatures:
    """Features of an original array for an avatar that hears `wanted` (its meta["audio"])."""
    windows = open_windows(path)
    _, steps, width = windows.shape
    kind = known_kind(Path(path).name, width)
    if kind is None and (width, steps) == (wanted["channels"], wanted["window"]):
        kind = wanted["kind"]  # a name and a width that tell nothing: the shape fits
    kind = kind or kind_of(Path(path).name, width)
    if width == wanted["channels"] and by_name_only_differs(kind, wanted["kind"]):
        kind = wanted["kind"]
    features, bad, _ = from_windows(windows, kind, like=wanted)
    if len(bad) == len(features.features):
        raise UserError(f"{path}: holds no finite number, expected sound features; extract them again")
    if bad:
        which = f"{len(bad)} of {len(features.features)} steps are not finite (the first is {bad[0]})"
        print(f"{path}: {which}; the nearest finite step stands in for each", flush=True)
    return features


def by_name_only_differs(kind: str, wanted: str) -> bool:
    """Whether a kind is the wanted one under a longer name (`hubert_avatar`, `wav2vec2_32`: a second of its kind)."""
    return wanted != kind and wanted.split("_")[0] == kind


def in_segments(wanted: Mapping[str, Any]) -> bool:
    """Whether an avatar learnt from an original's array of windows of 16: new sound is then extracted as there."""
    return str(wanted["extractor"]).startswith(f"{EXTRACTOR}-") and wanted["window"] == 16


def describe(spec: Mapping[str, Any]) -> str:
    """`deepspeech features of width 29, window 16/2/8`."""
    return f"{spec['kind']} features of width {spec['channels']}, window {spec['window']}/{spec['hop']}/{spec['left']}"


def check_match(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str | Path) -> None:
    """New sound must be described as the training sound was, else UserError with both and the way out.

    Compared: kind, width, window, rate, and the extractor where both sides know theirs (arrays do not).
    """
    main = [k for k in ("kind", "channels", "window", "hop", "left") if found[k] != wanted[k]]
    how = HOW.get(wanted["kind"], f"extract {wanted['kind']} features as for the training")
    if main:
        raise UserError(
            f"{path} holds {describe(found)}, but the avatar was trained with {describe(wanted)}: {how}, or train an "
            f"avatar on {found['kind']} features (--config.data.audio_kind={found['kind']})"
        )
    unknown = any(str(s["extractor"]).startswith(f"{EXTRACTOR}-") for s in (found, wanted))
    for name in [k for k in wanted if k not in ("pad", "extractor") or not unknown]:
        if found[name] != wanted[name]:
            raise UserError(
                f"{path}: {name} of the sound features is {found[name]}, but the avatar was trained with "
                f"{wanted[name]}; make {wanted['kind']} features with {wanted['extractor']}, or {how}"
            )
