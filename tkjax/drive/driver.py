"""What drives an avatar: how many frames, which poses, and the value of every signal that its system asks for.

A signal comes from sound, from the avatar's own track, from another dataset or avatar, from a file of named channels,
or from constants; edits change single channels of whatever it comes from. Poses and blinks are the clip's own where
nobody says otherwise. Whatever else a system is driven by must be named: nothing is replayed in silence.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tkjax import contract, signals
from tkjax.avatar import bundle
from tkjax.avatar.bundle import Avatar
from tkjax.drive import motion, sounds
from tkjax.errors import UserError
from tkjax.formats import tracks
from tkjax.formats.tracks import Track
from tkjax.signals import SOUND, Signal, SignalInfo

OWN = "own"  # --drive=own: the avatar's own track
EYES = ("eye_closed", "eye_area")


@dataclasses.dataclass(frozen=True)
class Driver:
    """n_frames of poses and signals. signals: one step a frame, n_frames long; sound streams beside them, None where
    nothing is heard. speaks: whether the system is driven by it."""

    n_frames: int
    motion: motion.Motion
    signals: Mapping[str, Signal]
    sound: sounds.Sound | None = None
    speaks: bool = True


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What somebody's recording drives with: named channels, and its sound where it has one."""

    track: Track
    audio: Path | None = None
    features: Path | None = None


def plan(
    avatar: Avatar,
    *,
    audio: Path | str | None = None,
    features: Path | str | None = None,
    audio_kinds: str | None = None,
    smooth_lips: bool = False,
    drive: Path | str | None = None,
    set: str | None = None,  # the flags' names
    scale: str | None = None,
    offset: str | None = None,
    eye: Path | str | None = None,
    fix_eye: float | int | None = None,
    smooth_eye: bool = False,
    pose: Path | str | None = None,
    **moving,
) -> Driver:
    """The driver that a user describes.

    audio: a sound file; drive: `own`, a dataset, an avatar, a workdir, or a track file (`formats.tracks`); set, scale,
    offset: `channel=number,…`, in this order. The result lasts as long as the longest of audio and drive; without both
    as long as the longest of pose and eye; without those as long as the poses that are played. pose and **moving: see
    `motion.plan`.

    Raises:
      UserError: a signal that the system needs and nobody gives, a channel that is not there, a file that is wrong.
    """
    if fix_eye is not None and eye is not None:
        raise UserError("--fix_eye and --eye exclude each other; leave one out")
    moves, fps = motion.plan(avatar, pose=pose, **moving), float(avatar.meta["fps"])
    uses = {use.name: use for use in avatar.model().signals()}
    hears, wanted = SOUND in uses, {name: avatar.info.signal(name) for name in uses if name != SOUND}
    if EYES[1] in wanted:  # areas of eyes follow blinks
        wanted[EYES[0]] = avatar.signals[EYES[0]].info

    recorded = None if drive is None else _recorded(drive, avatar, moves.rows, fps, hears and audio is None)
    if recorded is not None and audio is None:
        audio, features = recorded.audio, features or recorded.features
    blinks = None if eye is None else motion.read_blinks(eye)
    blinks = blinks if fix_eye is None else np.array([fix_eye], np.float32)
    sound = _sound(audio, features, audio_kinds, smooth_lips, fps)
    if hears and sound is None:
        raise UserError("nothing gives the sound that this avatar is driven by; name a sound file with --audio")
    if sound is not None and not hears:
        print("the avatar is not driven by sound: it is only added to the video", flush=True)
    named = [v for v in (sound and sound.n_frames, recorded and len(recorded.track.values)) if v]
    paths = [len(moves.cam_to_world) if pose is not None else 0, len(blinks) if eye is not None else 0]
    n = max(named or paths) or len(moves.rows)

    edits = Edits.read(set, scale, offset)
    edits.check(wanted)
    found = {} if recorded is None else _from_track(recorded.track, wanted, avatar, n, str(drive))
    for name in wanted.keys() - found.keys() - {*EYES}:
        if name not in edits.touched(wanted):
            raise UserError(f"nothing gives the signal {name}, which this avatar is driven by; {_ways(wanted[name])}")
        found[name] = np.tile(rest(avatar, name), (n, 1))
    if EYES[0] in wanted or EYES[1] in wanted:
        driven = blinks if blinks is not None else None if drive == OWN else found.get(EYES[0])
        found |= _eyes(avatar, moves.rows, driven, smooth_eye, edits, n)
    out = {}
    for name in uses.keys() - {SOUND}:
        info = dataclasses.replace(wanted[name], rate_hz=fps, source=str(drive or OWN))
        values = found[name] if name in EYES else edits.applied(info, found[name])
        _say_range(info, values)
        out[name] = Signal(info, np.asarray(values, np.float32))
    return Driver(n, moves, out, sound, hears)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", … {len(names)} in all" if len(names) > 6 else "")


def _ways(info: SignalInfo) -> str:
    if not info.names:
        return (
            "an older version kept no names of its channels: run --mode=train with the dataset again, which keeps what "
            "is trained, and then name a source with --drive"
        )
    first = info.names[min(len(info.names) - 1, 1)]
    return f"name a source with --drive (own, a dataset, an avatar, a csv or npz), or values with --set={first}=0.5"


# ---------------------------------------------------------------- sources


def _recorded(text: Path | str, avatar: Avatar, rows: Int[np.ndarray, " n"], fps: float, with_sound: bool) -> Recorded:
    """What --drive names. with_sound: also the sound of a dataset, and its features if the avatar hears such."""
    path = Path(text)
    if str(text) == OWN:
        return Recorded(_together({n: (s, s.values[rows]) for n, s in avatar.signals.items()}, fps, "own track"))
    if path.is_dir():
        folder, is_avatar = motion.folder_of(path, "--drive")
        if not is_avatar:
            return _dataset(folder, avatar, fps, with_sound)
        other = bundle.load(folder)
        kept = {n: (s, s.values[: other.n_train]) for n, s in other.signals.items()}
        return Recorded(_together(kept, float(other.meta["fps"]), str(path)).resampled(fps))
    if not path.is_file():
        raise UserError(f"--drive: there is no file or folder {path}; {OWN} names the avatar's own track")
    try:
        return Recorded(tracks.read(path, fps).resampled(fps))
    except UserError as error:
        raise UserError(f"--drive: {error}") from error


def _dataset(folder: Path, avatar: Avatar, fps: float, with_sound: bool) -> Recorded:
    d = contract.Dataset(folder)
    every = {n: (s, s.values) for n, s in d.signals().items()}
    track = _together(every, d.fps, str(folder)).resampled(fps)
    kind = (avatar.meta["audio"] or {}).get("kind")
    names = d.manifest["files"]
    if not with_sound or contract.AUDIO not in names:
        return Recorded(track)
    own = f"audio_{kind}.npz"
    same = own in names and d.manifest["audio"][kind].get("extractor") == avatar.meta["audio"].get("extractor")
    return Recorded(track, d.path(contract.AUDIO), d.path(own) if same else None)


def _together(parts: Mapping[str, tuple[Signal, np.ndarray]], fps: float, where: str) -> Track:
    """Signals with one step a frame as one track; those whose channels have no names are left out."""
    named = [(s.info.names, values) for s, values in parts.values() if s.info.names]
    names = [n for own, _ in named for n in own]
    values = np.concatenate([v for _, v in named], 1) if named else np.zeros((1, 0), np.float32)
    return Track(tuple(names), values, np.arange(len(values)) / fps, where)


def rest(avatar: Avatar, name: str) -> Float[np.ndarray, " C"]:
    """The value of a signal that nothing moves: the median over the training frames."""
    return np.median(avatar.signals[name].values[: avatar.n_train], 0).astype(np.float32)


def _from_track(
    track: Track, wanted: Mapping[str, SignalInfo], avatar: Avatar, n: int, source: str
) -> dict[str, Float[np.ndarray, "n C"]]:
    """The signals of which a track has channels; those channels that it lacks rest."""
    at = {name: k for k, name in enumerate(track.names)}
    out = {}
    for name, info in wanted.items():
        there = [k for k, channel in enumerate(info.names) if channel in at]
        if not there:
            continue
        values = np.tile(rest(avatar, name), (len(track.values), 1))
        values[:, there] = track.values[:, [at[info.names[k]] for k in there]]
        if len(there) < info.channels:
            print(
                f"--drive: {track.where} gives {len(there)} of the {info.channels} channels of {name}; the others rest "
                "at their median of the training frames",
                flush=True,
            )
        out[name] = motion.looped(values, n)
    channels = [channel for info in wanted.values() for channel in info.names]
    if not out and wanted:
        raise UserError(
            f"--drive={source}: none of its channels ({_some(track.names) or 'none'}) is one that this avatar is "
            f"driven by ({_some(channels) or 'their names are not kept by an older version'})"
        )
    return out


def _sound(audio, features, kinds, smooth_lips: bool, fps: float) -> sounds.Sound | None:
    if audio is not None:
        n = sounds.sound_frames(audio, fps)
        return sounds.Sound(Path(audio), n, None if features is None else Path(features), kinds, smooth_lips)
    for name, given in (("features", features), ("audio_kinds", kinds)):
        if given:
            raise UserError(f"--{name} describes a sound; name it with --audio")
    return None


def _eyes(
    avatar: Avatar, rows: Int[np.ndarray, " m"], named: np.ndarray | None, smooth: bool, edits: "Edits", n: int
) -> dict[str, Float[np.ndarray, "n 1"]]:
    """Blinks and areas of eyes, n frames: as named (a loop), else the clip's own; edited blinks have their areas."""
    closed, areas = (avatar.signals[name].values[rows, 0] for name in EYES)
    if named is not None:
        closed = named.reshape(-1)
        areas = _areas(avatar, closed)
    if smooth:
        closed, areas = motion.smooth_eyes(closed), motion.smooth_eyes(areas)
    info = {name: avatar.signals[name].info for name in EYES}
    blinks = edits.applied(info[EYES[0]], motion.looped(closed, n)[:, None])
    if edits.touched({EYES[0]: info[EYES[0]]}):
        areas = _areas(avatar, blinks[:, 0])
    return {EYES[0]: blinks, EYES[1]: edits.applied(info[EYES[1]], motion.looped(areas, n)[:, None])}


def _areas(avatar: Avatar, blinks: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Blinks as areas of this person's eyes."""
    if not avatar.has_eye_area:
        return signals.OPEN_EYES * (1.0 - blinks)
    return motion.areas_of_blinks(blinks, avatar.signals[EYES[1]].values[: avatar.n_train, 0])


# ---------------------------------------------------------------- edits


@dataclasses.dataclass(frozen=True)
class Edits:
    """Constants, factors and shifts by channel (or by signal, for all of its channels), in this order."""

    set: Mapping[str, float]
    scale: Mapping[str, float]
    offset: Mapping[str, float]

    @classmethod
    def read(cls, set: str | None, scale: str | None, offset: str | None) -> "Edits":
        parts = (("set", set), ("scale", scale), ("offset", offset))
        return cls(*(_pairs(text, flag) for flag, text in parts))

    def _names(self) -> list[str]:
        return [*self.set, *self.scale, *self.offset]

    def touched(self, known: Mapping[str, SignalInfo]) -> set[str]:
        """Which of the signals are changed."""
        return {name for name, info in known.items() if {name, *info.names} & {*self._names()}}

    def check(self, known: Mapping[str, SignalInfo]) -> None:
        """UserError for a name that is no channel, with the nearest that are."""
        channels = list(dict.fromkeys([*(c for info in known.values() for c in info.names), *known]))
        for flag in ("set", "scale", "offset"):
            for name in getattr(self, flag):
                if name not in channels:
                    near = difflib.get_close_matches(name, channels, 3)
                    what = f"did you mean {', '.join(near)}?" if near else f"it has {_some(channels) or 'none'}"
                    raise UserError(f"--{flag}: {name} is no channel that drives this avatar; {what}")

    def applied(self, info: SignalInfo, values: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
        """The values with these changes."""
        out = np.array(values, np.float32)

        def columns(name: str) -> list[int]:
            return (
                list(range(info.channels)) if name == info.name else [k for k, c in enumerate(info.names) if c == name]
            )

        for name, number in self.set.items():
            out[:, columns(name)] = number
        for name, number in self.scale.items():
            out[:, columns(name)] *= np.float32(number)
        for name, number in self.offset.items():
            out[:, columns(name)] += np.float32(number)
        return out


def _pairs(text: str | None, flag: str) -> dict[str, float]:
    """`jawOpen=0.6,mouthPucker=0.2` as numbers by name."""
    out: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, eq, number = (p.strip() for p in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not eq or not name or not math.isfinite(value):
            raise UserError(f"--{flag}={text}: {part.strip()!r} is not channel=number, such as jawOpen=0.6")
        out[name] = value
    return out


def _say_range(info: SignalInfo, values: Float[np.ndarray, "n C"]) -> None:
    """A line where a signal leaves what training has shown."""
    far = np.flatnonzero(signals.outside(info, values))
    if not len(far):
        return
    k = far[0]
    name = info.names[k] if info.names else f"channel {k}"
    more = f" and {len(far) - 1} more channels of {info.name} leave" if len(far) > 1 else " leaves"
    print(
        f"{name}{more} what training has shown ({info.low[k]:.3g} to {info.high[k]:.3g}; here {values[:, k].min():.3g} "
        f"to {values[:, k].max():.3g}): pictures may break there",
        flush=True,
    )
