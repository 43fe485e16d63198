"""Sound of an old folder: its wav (or its video's sound) cut to the frames, and its feature arrays as sequences."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from preprocess.importers.folder_layout import Notes
from tkjax.contract import AUDIO_HZ, FPS, AudioFeatures, save_audio_features
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.formats.transforms import read_json
from tkjax.media import audio

AHEAD = 3  # frames behind a frame whose windows it hears as well (data.AUDIO_WINDOWS, the originals' attention)
SAMPLES = round(AUDIO_HZ / FPS)  # of one frame
WAVS = ("aud.wav", "audio.wav")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
ARRAYS = ("aud_ds.npy", "aud_eo.npy", "aud_hu.npy", "aud.npy", "audio_feat.npy")


def sound_file(root: Path) -> Path | None:
    """The folder's sound: aud.wav, audio.wav, else a video that has some, the folder's own name first."""
    for name in WAVS:
        if (root / name).is_file():
            return root / name
    videos = [p for p in sorted(root.iterdir()) if p.suffix.lower() in VIDEOS and p.stem != "alpha" and p.is_file()]
    for path in sorted(videos, key=lambda p: p.stem != root.name):
        try:
            next(audio.stream_audio(path))
            return path
        except (UserError, StopIteration):
            continue
    return None


def sound_of_frames(path: Path, aud: Int[np.ndarray, " n"], ids: np.ndarray, notes: Notes) -> Float[np.ndarray, " m"]:
    """16 kHz sound of the frames, 640 samples each: those of frame aud_id of the file; silence where it has none."""
    pcm = audio.read_audio(path)
    have = max(1, -(-len(pcm) // SAMPLES))
    pieces = np.concatenate([pcm, np.zeros(have * SAMPLES - len(pcm), np.float32)]).reshape(have, SAMPLES)
    inside = (aud >= 0) & (aud < have)
    notes.hole(f"{path.name} does not reach these frames: silence", ids[~inside])
    return np.where(inside[:, None], pieces[np.where(inside, aud, 0)], np.float32(0)).reshape(-1)


def write_sound(pcm: np.ndarray, folder: Path) -> list[Path]:
    """audio.wav and audio_logmel.npz in `folder`."""
    audio.write_wav(folder / "audio.wav", pcm)
    f = audio.audio_features(folder / "audio.wav")
    return [folder / "audio.wav", _save(f, folder)]


def _save(f: AudioFeatures, folder: Path) -> Path:
    path = folder / f"audio_{f.kind}.npz"
    save_audio_features(path, f.kind, f.features, f.rate_hz, f.start_s, f.extractor, f.window, f.hop, f.left, f.pad)
    return path


def arrays(root: Path) -> list[Path]:
    """The folder's feature arrays, those with a telling name first."""
    named = [root / name for name in ARRAYS if (root / name).is_file()]
    others = [p for p in sorted(root.glob("*.npy")) if p not in named and p.stem.startswith(("aud", "audio"))]
    mel = [p for p in sorted(root.glob("*_mel.npy")) if p not in (*named, *others)]
    return [*named, *others, *mel]


def cut(f: AudioFeatures, windows: np.ndarray, aud: Int[np.ndarray, " n"], flat: bool) -> tuple[np.ndarray, bool]:
    """(rows for the frames, whether they still overlap): frame k hears window aud[k]; zeros where there is none.

    Overlapping windows stay a sequence while aud counts up one by one; in any other order each frame gets its
    own window behind the other. Windows that only the last frames' neighbourhood reaches are kept behind them.
    """
    n = len(aud)
    steady = (np.diff(aud) == 1).all() and int(aud[0]) >= -n  # farther away it hears nothing at all
    if steady:
        aud = np.concatenate([aud, aud[-1] + 1 + np.arange(AHEAD)])
    if steady and not flat:
        first, last = f.hop * int(aud[0]), f.hop * int(aud[-1]) - f.left + f.window
        rows = f.features[max(first, 0) : max(last, 0)]
        before = np.zeros((max(-first, 0), f.channels), np.float32)
        rows = np.concatenate([before, rows])
        return (rows if len(rows) else np.zeros((1, f.channels), np.float32)), True
    inside = (aud >= 0) & (aud < len(windows))
    out = np.zeros((len(aud), *windows.shape[1:]), np.float32)
    for k in np.flatnonzero(inside):
        out[k] = windows[int(aud[k])]
    return out.reshape(-1, windows.shape[2]), False


def take_array(
    path: Path,
    taken: dict[str, tuple[int, int]],
    aud: Int[np.ndarray, " n"],
    ids: np.ndarray,
    folder: Path,
    notes: Notes,
) -> Path | None:
    """audio_<kind>.npz of one array; None (and a word) where it is of no use. taken: kind -> (steps, width) so far."""
    try:
        windows = feature_arrays.open_windows(path)
    except UserError as e:
        notes.said.append(f"not used: {e}")
        return None
    n, steps, width = windows.shape
    kind = _kind(path, width)
    if taken.get(kind) == (steps, width):
        notes.said.append(f"not used: {path.name} is a second {kind} array of the same form")
        return None
    if kind in taken:
        kind = f"{kind}_{path.stem}"
    f, bad, note = feature_arrays.from_windows(windows, kind)
    early = not note and f.hop * n < len(f.features) and int(aud[-1]) + AHEAD >= n
    if early:  # as a sequence it would have windows behind its end, which are zeros for the originals
        note = "it ends before what its last windows hear, so the window of each frame is stored as it is"
    flat = bool(note)
    rows, overlapping = cut(f, windows, aud, flat)
    if not overlapping and not flat:
        note = "aud_id does not count up one by one, so the window of each frame is stored as it is"
    elif overlapping and int(aud[0]) > 0 and f.left:
        note = "what sounds before the first frame is not kept"
    hop, left, rate = (f.hop, f.left, f.rate_hz) if overlapping else (steps, 0, steps * FPS)
    feature_arrays.repair(rows)
    notes.hole(f"{path.name} has no window for these frames: zeros", ids[(aud < 0) | (aud >= n)])
    touched = {b // f.hop for b in bad}
    notes.hole(f"{path.name} is not finite here: the nearest steps instead", ids[np.isin(aud, list(touched))])
    text = f"{path.name}: {n} windows [{steps}, {width}] -> audio_{kind}.npz ({kind}, window {steps}/{hop}/{left})"
    notes.took.append(f"{text}; {note}" if note else text)
    notes.used.add(path)
    taken[kind] = (steps, width)
    return _save(AudioFeatures(kind, rows, rate, f.start_s, f.extractor, steps, hop, left, left), folder)


def _kind(path: Path, width: int) -> str:
    """Kind of an array; Avatar-ERNeRF's audio_feat.npy holds what model_data.json says (HuBERT where it is silent)."""
    said = path.parent / "model_data.json"
    if path.stem == "audio_feat" and said.is_file():
        model = re.sub(r"[^a-z0-9_-]", "_", str(read_json(said).get("afe_model_name") or "hubert").lower())
        return model
    return feature_arrays.kind_of(path.name, width)
