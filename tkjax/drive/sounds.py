"""From a sound to what a model hears at each frame, chunk by chunk: one chunk leaves the `Carry` to the next.

Sound is decoded in blocks, features are made as it comes, and a frame's windows are cut as soon as the features around
it are there: memory does not grow with the length of the sound.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tkjax import contract, signals
from tkjax.avatar import bundle
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.host import torch_side
from tkjax.media import audio
from tkjax.signals import Signal, SignalInfo, Use

KEEP_LIPS = 0.35  # share of the last frame's sound in a smoothed one (er-nerf.md §6)
BLOCK_S = 1.0  # seconds of sound decoded at once
MADE = ("logmel", "wav2vec2", "hubert")  # features that the child process makes (preprocess.audio.extract.KINDS)
BLOCK_ROWS = 64  # steps of features read at once
BLOCK_FRAMES = 4  # frames whose windows are cut at once: those of HuBERT take half a MB each
LENGTH_TOLERANCE_S = 0.5  # between a sound and its features: extractors pad or drop a window at the end


@dataclasses.dataclass(frozen=True)
class Sound:
    """A sound to speak: its file, the frames that it lasts, ready features or None, --audio_kinds, and whether what is
    heard is smoothed from frame to frame."""

    path: Path
    n_frames: int
    features: Path | None = None
    kinds: str | None = None
    smooth_lips: bool = False


@dataclasses.dataclass(frozen=True)
class Carry:
    """State between chunks.

    frame: the next frame to draw. rows: features [m,C] that frames to come still need; first_row: the number
    of rows[0] in the whole sound, a multiple of hop. lips: the smoothed windows of the last frame, or None.
    """

    frame: int
    first_row: int
    rows: Float[np.ndarray, "m C"]
    lips: Float[np.ndarray, "W T C"] | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """How windows are cut, and for how many frames.

    info, use: of the sound as the avatar describes it and its system asks for it. heard: frames that have a window
    where that is known otherwise than by the sound's end: an array of the originals may end before the sound that its
    last windows reach into.
    """

    info: SignalInfo
    use: Use
    n_frames: int
    smooth_lips: bool = False
    heard: int | None = None


def start(spec: Spec) -> Carry:
    return Carry(0, 0, np.zeros((0, spec.info.channels), np.float32))


def window(spec: Spec, carry: Carry, frame: int, end: int | None) -> Float[np.ndarray, "W T C"]:
    """The windows of one frame, cut as in training. end: number of the sound's steps, None while it goes on."""
    known = [n for n in (spec.heard, None if end is None else -(-end // spec.info.hop)) if n is not None]
    part = Signal(spec.info, carry.rows)
    last = min(known) if known else frame + spec.use.after + 1
    return signals.windows(part, np.array([frame]), spec.use, carry.first_row, last)[0]


def advance(
    spec: Spec, carry: Carry, rows: Float[np.ndarray, "k C"], ended: bool
) -> tuple[Carry, Float[np.ndarray, "n W T C"]]:
    """Take new feature rows; the windows of every frame that can now be drawn, and what is left over.

    A frame can be drawn when its last neighbour's window is complete, or the sound has ended. Smoothed lips:
    a_t = 0.35 a_{t-1} + 0.65 a_t. The original smooths the audio code inside its network; the seam knows no
    such code, so the same filter acts on the sound features that lead to it, for every system alike.
    """
    carry = dataclasses.replace(carry, rows=np.concatenate([carry.rows, rows.astype(np.float32)]))
    info, behind, ahead = spec.info, spec.use.before, spec.use.after
    have, out, frame, lips = carry.first_row + len(carry.rows), [], carry.frame, carry.lips
    while frame < spec.n_frames:
        if not ended and info.hop * (frame + ahead) + max(info.window - info.left, 1) > have:
            break
        windows = window(spec, carry, frame, have if ended else None)
        if spec.smooth_lips:
            lips = windows if lips is None else KEEP_LIPS * lips + (1 - KEEP_LIPS) * windows
            windows = lips
        out.append(windows)
        frame += 1
    needed = max(0, info.hop * max(0, frame - behind) - info.left)
    drop = max(0, needed // info.hop * info.hop - carry.first_row)
    carry = Carry(frame, carry.first_row + drop, carry.rows[drop:].copy(), lips)
    shape = (0, spec.use.neighbours, info.window, info.channels)
    return carry, np.stack(out) if out else np.zeros(shape, np.float32)


def windows(spec: Spec, chunks: Iterable[np.ndarray]) -> Iterator[Float[np.ndarray, "W T C"]]:
    """The audio input of every frame, from feature rows in chunks of any size; memory is that of a chunk."""
    carry = start(spec)
    empty = np.zeros((0, spec.info.channels), np.float32)
    some = BLOCK_FRAMES * spec.info.hop
    for rows in chunks:
        for a in range(0, len(rows), some):
            carry, ready = advance(spec, carry, rows[a : a + some], False)
            yield from ready
    yield from advance(spec, carry, empty, True)[1]


# ---------------------------------------------------------------- sound


def sound_frames(path: Path | str, fps: float) -> int:
    """Frames that a sound lasts, to the nearest and at least 1. Decodes it once, block by block."""
    if not Path(path).is_file():
        raise UserError(f"--audio: there is no file {path}")
    if feature_arrays.is_array(path):  # what the originals take as --aud
        raise UserError(f"--audio: {path} holds features; give them with --features, and the sound with --audio")
    n = sum(len(block) for block in audio.stream_audio(path, contract.AUDIO_HZ, int(BLOCK_S * contract.AUDIO_HZ)))
    if n == 0:
        raise UserError(f"--audio: {path} holds no sound")
    return max(1, round(n / contract.AUDIO_HZ * fps))


def check_features(features: contract.AudioHeader, subject: bundle.Avatar, path: Path | str) -> None:
    """New sound must be described as the training sound was; UserError names both and the way out."""
    feature_arrays.check_match(bundle.audio_spec(features), subject.meta["audio"], path)


def check_length(features: contract.AudioHeader, seconds: float, path: Path | str) -> None:
    """Ready features must be those of this sound, as far as its length tells."""
    lasts = features.start_s + features.steps / features.rate_hz
    if abs(lasts - seconds) > LENGTH_TOLERANCE_S:
        raise UserError(
            f"{path}: the features last {lasts:.2f} s, but the sound {seconds:.2f} s; give the features of --audio"
        )


def _child_features(path: Path | str, subject: bundle.Avatar, kinds: str | None, folder: Path) -> Path:
    """Features that need PyTorch come from the same child process as in preprocessing: their file in `folder`."""
    kind = subject.meta["audio"]["kind"]
    chosen = _named(kinds).get(kind)
    if chosen is None:
        other = f", not {', '.join(_named(kinds))}" if _named(kinds) else ""
        raise UserError(f"the avatar hears {kind} features{other}: {_way_out(subject.meta['audio'])}")
    out = folder / f"audio_{kind}.npz"
    arguments = ["--audio", str(path), "--kind", chosen, "--out", str(out)]
    if feature_arrays.in_segments(subject.meta["audio"]):
        arguments.append("--segments")
    torch_side.run("preprocess.audio.extract", arguments)
    return out


def _named(kinds: str | None) -> dict[str, str]:
    """{kind: its part} of --audio_kinds; UserError for kinds that nothing here makes."""
    parts = {part.partition("=")[0].strip(): part.strip() for part in (kinds or "").split(",") if part.strip()}
    for name in parts:
        if name not in MADE:
            raise UserError(f"--audio_kinds={kinds}: {name} is unknown, expected some of {', '.join(MADE)}")
    return parts


def unheard(kinds: str | None, heard: str, given: bool) -> str:
    """One sentence where --audio_kinds makes no difference to an avatar that hears `heard` features; else "". given:
    whether ready features are."""
    names = _named(kinds)
    if names and given:
        return f"--audio_kinds={kinds} is not used: --features gives what the avatar hears"
    if names and heard not in names:
        return (
            f"--audio_kinds={kinds} is not used: the avatar hears {heard} features, which are made from --audio alone"
        )
    return ""


def _way_out(spec: dict) -> str:
    """How somebody gets features of a kind that is not made from --audio alone."""
    kind, extractor = spec["kind"], str(spec["extractor"])
    if kind not in ("wav2vec2", "hubert"):
        how = feature_arrays.HOW.get(kind, f"extract {kind} features from this sound as for the training")
        return f"{how}, and give them with --features"
    model = "the model" if extractor.startswith(f"{feature_arrays.EXTRACTOR}-") else f"the model {extractor}"
    return f"name {model} with --audio_kinds={kind}=PATH, or give ready features with --features"


def feature_chunks(
    path: Path | str,
    seconds: float,
    subject: bundle.Avatar,
    features_path: Path | None,
    kinds: str | None,
    folder: Path,
) -> Iterator[np.ndarray]:
    """Feature rows of the sound, in order: log-mel as it is decoded, other kinds from a file or the child process.

    Files are read as the rows are asked for, so memory does not grow; an array of the originals is joined first.
    """
    wanted = subject.meta["audio"]
    word = unheard(kinds, wanted["kind"], features_path is not None)
    if features_path is None and wanted["kind"] == "logmel":
        if word:
            print(word, flush=True)
        return _logmel_chunks(path, audio.LogMel(wanted["extractor"]))
    if features_path is not None and feature_arrays.is_array(features_path):  # the originals' aud*.npy
        features = feature_arrays.load_features(features_path, wanted)
        header, chunks = features.header, iter([features.features])
    else:
        file = features_path or _child_features(path, subject, kinds, folder)
        header, chunks = contract.stream_audio_features(file, BLOCK_ROWS)
    check_features(header, subject, features_path or path)
    if features_path is not None:
        if word:
            print(word, flush=True)
        check_length(header, seconds, features_path)
    return chunks


def _logmel_chunks(path: Path | str, mel: audio.LogMel) -> Iterator[np.ndarray]:
    for block in audio.stream_audio(path, contract.AUDIO_HZ, int(BLOCK_S * contract.AUDIO_HZ)):
        yield mel.push(block)
    yield mel.flush()


def spec_of(sound: Sound, subject: bundle.Avatar, use: Use, n_frames: int) -> Spec:
    """How the windows of a sound are cut for an avatar, for so many frames."""
    heard, described = None, subject.meta["audio"]
    if sound.features is not None and feature_arrays.is_array(sound.features):
        heard = len(feature_arrays.open_windows(sound.features))
    cut = {k: described[k] for k in ("channels", "rate_hz", "window", "hop", "left", "kind")}
    return Spec(SignalInfo(use.name, **cut), use, n_frames, sound.smooth_lips, heard)
