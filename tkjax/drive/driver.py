"""What drives an avatar: how many frames, which poses, and the value of every signal that its system asks for.

A signal comes from sound, from the avatar's own track, from another dataset or avatar, from a file of named channels,
or from constants; expression also from sound, through the avatar's speech network where it has one. Edits change single
channels of whatever it comes from. Poses and blinks are the clip's own where nobody says otherwise. Whatever else a
system is driven by must be named: nothing is replayed in silence.
"""

import dataclasses
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from tkjax import contract, signals, voice
from tkjax.avatar import avatar_json, bundle
from tkjax.avatar.bundle import Avatar
from tkjax.drive import eyes, motion, sounds
from tkjax.errors import UserError
from tkjax.formats import head_pose, recordings, tracks
from tkjax.formats.tracks import Track
from tkjax.media import audio as media_audio
from tkjax.signals import EXPRESSION, SOUND, Signal, SignalInfo

OWN = "own"  # --drive=own: the avatar's own track
NATURAL = "natural"  # --blinks=natural: made of the clip's statistics
DERIVED = ("confidence", "gaze_x", "gaze_y")  # channels of a track that say again what others say
VIDEOS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
EYES = ("eye_closed", "eye_area")
LARGEST = 1e30  # of an edit's number; products of two stay finite in what float32 holds, or are refused


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
    """What somebody's recording drives with: named channels, and its sound where it has one. is_file: a track file, all
    of whose channels somebody means."""

    track: Track
    audio: Path | None = None
    features: Path | None = None
    is_file: bool = False


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
    blinks: str = OWN,
    gaze: str = OWN,
    seed: int = 0,
    pose: Path | str | None = None,
    smooth_window: int = 0,
    **moving,
) -> Driver:
    """The driver that a user describes.

    audio: a sound file; drive: `own`, a dataset, an avatar, a workdir, or a track file (`formats.tracks`); set, scale,
    offset: `channel=number,…`, in this order. The result lasts as long as the longest of audio and drive; without both
    as long as the longest of pose and eye; without those as long as the poses that are played. blinks, gaze: `natural`
    makes them anew from the statistics of the clip (`eyes`), by `seed`. pose: `track` moves the head as drive does;
    else it, smooth_window and **moving: see `motion.plan`.

    Raises:
      UserError: a signal that the system needs and nobody gives, a channel that is not there, a file that is wrong.
    """
    if fix_eye is not None and eye is not None:
        raise UserError("--fix_eye and --eye exclude each other; leave one out")
    if fix_eye is not None and not 0 <= fix_eye <= 1:
        raise UserError(f"--fix_eye={fix_eye:g} must lie between 0 (open) and 1 (closed)")
    if blinks == NATURAL and (fix_eye is not None or eye is not None):
        raise UserError(f"--blinks={NATURAL} and --{'eye' if fix_eye is None else 'fix_eye'} exclude each other")
    follows, fps = pose is not None and str(pose) == motion.TRACK, float(avatar.meta["fps"])
    if follows and drive is None:
        raise UserError(f"--pose={motion.TRACK} takes the head's motion from --drive; name a track there")
    moves = motion.plan(avatar, pose=None if follows else pose, smooth_window=smooth_window, **moving)
    uses = {use.name: use for use in avatar.model().signals()}
    hears, wanted = SOUND in uses, {name: avatar.info.signal(name) for name in uses if name != SOUND}
    if EYES[1] in wanted:  # areas of eyes follow blinks
        wanted[EYES[0]] = avatar.signals[EYES[0]].info
    edits = Edits.read(set, scale, offset)
    edits.check(wanted)
    unused = {"eye": eye, "fix_eye": fix_eye, "smooth_eye": smooth_eye or None} if EYES[0] not in wanted else {}
    unused |= {} if hears else {"features": features, "audio_kinds": audio_kinds, "smooth_lips": smooth_lips or None}
    for name in [name for name, value in unused.items() if value is not None]:
        print(f"--{name} is not used: nothing of the kind drives this avatar", flush=True)

    made = _made(avatar, wanted, blinks == NATURAL, gaze == NATURAL, seed)
    recorded = None if drive is None else _recorded(drive, avatar, moves.rows, fps, hears and audio is None)
    if recorded is not None and audio is None:
        audio, features = recorded.audio, features or recorded.features
    found = {} if recorded is None else _from_track(recorded, wanted, avatar, str(drive), follows)
    if follows:
        moves = motion.follow(avatar, moves, recorded.track, smooth_window)
    closed = None if eye is None else motion.read_blinks(eye)
    closed = closed if fix_eye is None else np.array([fix_eye], np.float32)
    tells = avatar.voice is not None and audio is not None and EXPRESSION in wanted.keys() - found.keys() and not hears
    sound = _sound(avatar, audio, features if hears else None, audio_kinds, smooth_lips, hears, tells, fps)
    named = [] if sound is None else [sound.n_frames]
    named += [len(recorded.track.values)] if found or follows else []
    paths = [len(moves.cam_to_world) if pose is not None else 0, len(closed) if eye is not None else 0]
    n = max(named or paths) or len(moves.rows)

    values = {name: motion.looped(track, n) for name, track in found.items()}
    if tells:
        values[EXPRESSION] = _told(avatar, sound, moves.rows, n)
    for name in wanted.keys() - values.keys() - {*EYES}:
        if name not in edits.touched(wanted) and name not in made:
            raise UserError(f"nothing gives the signal {name}, which this avatar is driven by; {_ways(wanted[name])}")
        values[name] = np.tile(rest(avatar, name), (n, 1))
    for name, parts in made.items():
        for columns, process in parts:
            drawn = process.frames(n)
            if name == EYES[0]:
                closed = drawn[:, 0]
            else:
                values[name][:, columns] = drawn
    if EYES[0] in wanted:
        values |= _eyes(avatar, moves.rows, closed, {} if str(drive) == OWN else found, smooth_eye, edits, n)
    out = {}
    for name in uses.keys() - {SOUND}:
        info = dataclasses.replace(wanted[name], rate_hz=fps, source=str(drive or OWN))
        edited = values[name] if name in EYES else edits.applied(info, values[name])
        out[name] = Signal(info, np.asarray(edited, np.float32))
        signals.check_finite(out[name], "this drive")
        _say_range(info, out[name].values)
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
    if os.path.isdir(path):
        folder, is_avatar = motion.folder_of(path, "--drive")
        if not is_avatar:
            return _dataset(folder, avatar, fps, with_sound)
        other = bundle.load(folder)
        kept = {n: (s, s.values[: other.n_train]) for n, s in other.signals.items()}
        return Recorded(_together(kept, float(other.meta["fps"]), str(path)).resampled(fps))
    if path.suffix.lower() in VIDEOS and os.path.isfile(path):
        raise UserError(
            f"--drive: {path} is a video; make a track of it first: --mode=track --video={path} --out=track.npz"
        )
    if not os.path.isfile(path):  # False too for words that no path can be
        hint = "; constants are given with --set" if "=" in str(path) else ""
        raise UserError(
            f"--drive: there is no file or folder {str(path)[:200]}; {OWN} names the avatar's own track{hint}"
        )
    try:
        return Recorded(tracks.read(path, fps).resampled(fps), is_file=True)
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
    """Signals with one step a frame as one track of `signal.channel`, without those whose channels have no names."""
    named = [(s.info, values) for s, values in parts.values() if s.info.names]
    names = [f"{info.name}.{channel}" for info, _ in named for channel in info.names]
    values = np.concatenate([v for _, v in named], 1) if named else np.zeros((1, 0), np.float32)
    return Track(tuple(names), values, np.arange(len(values)) / fps, where)


def _matching(name: str, known: Mapping[str, SignalInfo], flag: str) -> dict[str, list[int]]:
    """The signals, and their channels, that a name means: a signal, a channel, or `signal.channel`. UserError where it
    means channels of several signals."""
    out: dict[str, list[int]] = {}
    for info in known.values():
        whole = list(range(info.channels)) if name == info.name else []
        some = [k for k, c in enumerate(info.names) if name in (c, f"{info.name}.{c}")]
        if whole or some:
            out[info.name] = whole or some
    if len(out) > 1:
        ways = " or ".join(f"{s}.{known[s].names[k[0]]}" for s, k in out.items() if known[s].names)
        raise UserError(f"{flag}: {name} is a channel of several signals; write {ways}")
    return out


def rest(avatar: Avatar, name: str) -> Float[np.ndarray, " C"]:
    """The value of a signal that nothing moves: the median over the training frames."""
    return np.median(avatar.signals[name].values[: avatar.n_train], 0).astype(np.float32)


def _named(track: Track, wanted: Mapping[str, SignalInfo], source: str) -> Track:
    """Rows without names as the channels of the one signal that has as many."""
    n = track.values.shape[1]
    fitting = [info for info in wanted.values() if info.channels == n and info.names]
    if not track.plain:
        return track
    if len(fitting) != 1:
        sizes = ", ".join(f"{info.name} {info.channels}" for info in wanted.values()) or "it has no signals"
        many = "more than one" if fitting else "no"
        raise UserError(
            f"--drive={source}: its rows of {n} numbers have no names and fit {many} signal of this avatar (channels: "
            f"{sizes}); give it a header with names"
        )
    info = fitting[0]
    print(f"--drive: {source}: rows without names are taken as {info.name}: {_some(info.names)}", flush=True)
    names = tuple(f"{info.name}.{channel}" for channel in info.names)
    return dataclasses.replace(track, names=names, plain=False)


def _meant(name: str, wanted: Mapping[str, SignalInfo], source: str) -> dict[str, list[int]]:
    """The one channel that a name of a track means; a blendshape also where the avatar spells it in another way."""
    found = {s: k for s, k in _matching(name, wanted, f"--drive={source}").items() if len(k) == 1}
    if not found:
        for info in wanted.values():
            alike = [k for k, c in enumerate(info.names) if recordings.blendshape(c) == name]
            found |= {info.name: alike} if len(alike) == 1 else {}
    return found


def _from_track(
    recorded: Recorded, wanted: Mapping[str, SignalInfo], avatar: Avatar, source: str, follows: bool = False
) -> dict[str, Float[np.ndarray, "m C"]]:
    """The signals of which a recording has channels; those channels that it lacks rest. `signal.channel` goes to the
    signal of this name; where that has no such channel, to the one signal that has it. follows: the head moves with the
    track, so that it need not drive anything else."""
    track, out, given, idle = _named(recorded.track, wanted, source), {}, {}, []
    for column, full in enumerate(track.names):
        parts = full.partition(".")
        exact = parts[0] in wanted and parts[2] in wanted[parts[0]].names
        meant = {parts[0]: [wanted[parts[0]].names.index(parts[2])]} if exact else {}
        for name in [] if exact else dict.fromkeys((full, parts[2] or full)):
            meant = meant or _meant(name, wanted, source)
        for s, k in meant.items():
            if exact or k[0] not in given.get(s, {}):
                given.setdefault(s, {})[k[0]] = column
        idle += [] if meant else [full]
    for name, columns in given.items():
        values = np.tile(rest(avatar, name), (len(track.values), 1))
        values[:, list(columns)] = track.values[:, list(columns.values())]
        if len(columns) < wanted[name].channels:
            others = [c for k, c in enumerate(wanted[name].names) if k not in columns]
            print(
                f"--drive: {track.where} gives {len(columns)} of the {wanted[name].channels} channels of {name}; the "
                f"others rest at their median of the training frames ({_some(others)})",
                flush=True,
            )
        out[name] = values
    if not out and not follows and (wanted or recorded.audio is None):
        channels = [channel for info in wanted.values() for channel in info.names]
        raise UserError(
            f"--drive={source}: none of its channels ({_some(track.names) or 'none'}) is one that this avatar is "
            f"driven by ({_some(channels) or 'it has none with a name'})"
        )
    heads = [name for name in idle if name in head_pose.CHANNELS]
    idle = [name for name in idle if name not in (*heads, *DERIVED)]
    if {*head_pose.TURNS} <= {*heads} and recorded.is_file and not follows:
        print(
            f"--drive: {source}: its head also moves, which --pose={motion.TRACK} would play; the poses are the clip's "
            "own",
            flush=True,
        )
    if idle and recorded.is_file:
        print(f"--drive: {source}: {_some(idle)} drive nothing in this avatar", flush=True)
    return out


def _told(avatar: Avatar, sound: sounds.Sound, rows: Int[np.ndarray, " m"], n: int) -> Float[np.ndarray, "n C"]:
    """n frames of expression: the mouth of the speech network, the other channels (brows, lids, gaze) of the clip."""
    values = np.array(motion.looped(avatar.signals[EXPRESSION].values[rows], n))
    blocks = media_audio.stream_audio(sound.path, block=int(sounds.BLOCK_S * contract.AUDIO_HZ))
    values[:, list(avatar.voice.columns)] = voice.spoken(avatar.voice, blocks, n)
    return values


def _sound(
    avatar: Avatar, audio, features, kinds, smooth_lips: bool, hears: bool, tells: bool, fps: float
) -> sounds.Sound | None:
    if audio is None:
        for name, given in (("features", features), ("audio_kinds", kinds)):
            if given and hears:
                raise UserError(f"--{name} describes a sound; name it with --audio")
        if hears:
            raise UserError("nothing gives the sound that this avatar is driven by; name a sound file with --audio")
        return None
    if tells:
        print("the avatar's speech network makes the expression of the sound", flush=True)
    elif not hears:
        print("the avatar is not driven by sound: it is only added to the video", flush=True)
    elif not {*avatar_json.OF_SOUND} <= {*(avatar.meta["audio"] or {})}:
        raise UserError(f"{avatar.folder}: the avatar does not say how the sound that it hears is described")
    n = sounds.sound_frames(audio, fps)
    return sounds.Sound(Path(audio), n, None if features is None else Path(features), kinds, smooth_lips)


def _made(
    avatar: Avatar, wanted: Mapping[str, SignalInfo], blinks: bool, gaze: bool, seed: int
) -> dict[str, list[tuple[list[int], "eyes.Process"]]]:
    """(columns, what makes them) by signal of the blinks and the gaze that are not taken from anywhere."""
    clip = eyes.Clip.of(avatar.signals, tuple(wanted), avatar.numbers[: avatar.n_train], float(avatar.meta["fps"]))
    out: dict[str, list] = {}
    for flag, asked, learn in (("blinks", blinks, eyes.blinks), ("gaze", gaze, eyes.gaze)):
        if not asked:
            continue
        parts = learn(clip, seed)
        if not parts:
            print(f"--{flag} is not used: no channel of this avatar is one of the kind", flush=True)
        for name, columns, process in parts:
            out.setdefault(name, []).append((columns, process))
            print(f"--{flag}: {name}: {process.about}", flush=True)
    return out


def _eyes(
    avatar: Avatar, rows: Int[np.ndarray, " m"], blinks: np.ndarray | None, found: Mapping[str, np.ndarray],
    smooth: bool, edits: "Edits", n: int,
) -> dict[str, Float[np.ndarray, "n 1"]]:  # fmt: skip
    """Blinks and areas of eyes, n frames: of --eye or --fix_eye, else of a recording (blinks before areas), else the
    clip's own; edited blinks have their areas."""
    closed, areas = (avatar.signals[name].values[rows, 0] for name in EYES)
    if blinks is None and EYES[0] not in found and EYES[1] in found:
        areas = found[EYES[1]][:, 0]
    elif blinks is not None or EYES[0] in found:
        closed = (found[EYES[0]] if blinks is None else blinks).reshape(-1)
        areas = _areas(avatar, closed)
    if smooth:
        closed, areas = motion.smooth_eyes(closed), motion.smooth_eyes(areas)
    info = {name: avatar.signals[name].info for name in EYES}
    shown = edits.applied(info[EYES[0]], motion.looped(closed, n)[:, None])
    if edits.touched({EYES[0]: info[EYES[0]]}):
        areas = _areas(avatar, shown[:, 0])
    return {EYES[0]: shown, EYES[1]: edits.applied(info[EYES[1]], motion.looped(areas, n)[:, None])}


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
        return {s for name in self._names() for s in _matching(name, known, "edit")}

    def check(self, known: Mapping[str, SignalInfo]) -> None:
        """UserError for a name that is no channel, with the nearest that are, or one of several signals."""
        channels = list(dict.fromkeys([*(c for info in known.values() for c in info.names), *known]))
        for flag in ("set", "scale", "offset"):
            for name in getattr(self, flag):
                if not _matching(name, known, f"--{flag}"):
                    near = difflib.get_close_matches(name, channels, 3)
                    what = f"did you mean {', '.join(near)}?" if near else f"it has {_some(channels) or 'none'}"
                    raise UserError(f"--{flag}: {name} is no channel that drives this avatar; {what}")

    def applied(self, info: SignalInfo, values: Float[np.ndarray, "n C"]) -> Float[np.ndarray, "n C"]:
        """The values with these changes."""
        out = np.array(values, np.float32)

        def columns(name: str) -> list[int]:
            return _matching(name, {info.name: info}, "edit").get(info.name, [])

        for name, number in self.set.items():
            out[:, columns(name)] = number
        for name, number in self.scale.items():
            out[:, columns(name)] *= np.float32(number)
        for name, number in self.offset.items():
            out[:, columns(name)] += np.float32(number)
        return out


def _pairs(text: str | None, flag: str) -> dict[str, float]:
    """`jawOpen=0.6,mouthPucker=0.2` as numbers by name; the last = of a part divides."""
    out: dict[str, float] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, eq, number = (p.strip() for p in part.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not eq or not name or not abs(value) <= LARGEST:  # not a number included
            raise UserError(f"--{flag}={text}: {part.strip()!r} is not channel=number, such as jawOpen=0.6")
        if name in out:
            raise UserError(f"--{flag}={text}: {name} is given twice")
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
