"""Sound in, frames out, chunk by chunk: what one chunk leaves to the next is the `Carry`, and nothing else.

Sound is decoded in blocks, features are made as it comes, a frame is drawn as soon as the features around it
are there, and the encoder takes it at once: memory does not grow with the length of the sound.
"""

import collections
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from tkjax import __version__, contract
from tkjax.avatar import bundle
from tkjax.drive import motion
from tkjax.drive.scene import Scene, bleed
from tkjax.errors import UserError
from tkjax.formats import feature_arrays
from tkjax.host import files, torch_side
from tkjax.media import audio, frame_folder
from tkjax.media.video import ALPHA_SUFFIXES, VideoWriter
from tkjax.render.map_pictures import Maps, render_maps
from tkjax.types import Batch

KEEP_LIPS = 0.35  # share of the last frame's sound in a smoothed one (er-nerf.md §6)
AHEAD = 2  # frames that are begun before the one that is handed on
BLOCK_S = 1.0  # seconds of sound decoded at once
MADE = ("logmel", "wav2vec2", "hubert")  # features that the child process makes (preprocess.audio.extract.KINDS)
BLOCK_ROWS = 64  # steps of features read at once
BLOCK_FRAMES = 4  # frames whose windows are cut at once: those of HuBERT take half a MB each
LENGTH_TOLERANCE_S = 0.5  # between a sound and its features: extractors pad or drop a window at the end


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
    """How windows are cut, and how many frames the sound lasts.

    heard: frames that have a window where that is known otherwise than by the sound's end: an array of the originals
    may end before the sound that its last windows reach into.
    """

    window: int
    hop: int
    left: int
    channels: int
    neighbours: int  # windows around a frame; its own has index neighbours // 2
    n_frames: int
    smooth_lips: bool = False
    heard: int | None = None


def start(spec: Spec) -> Carry:
    return Carry(0, 0, np.zeros((0, spec.channels), np.float32))


def windows_of(spec: Spec, carry: Carry, frames: Sequence[int], end: int | None) -> Float[np.ndarray, "W T C"]:
    """The windows of frames, zeros outside the sound.

    end: number of the sound's steps, None while it goes on. As in training, a window before the first frame
    or behind the last (ceil(end / hop) of them, or spec.heard) is all zeros.
    """
    ends = [spec.heard, None if end is None else -(-end // spec.hop)]
    heard = min((n for n in ends if n is not None), default=max(frames) + 1)
    return contract.cut_windows(carry.rows, np.array(frames), spec.window, spec.hop, spec.left, carry.first_row, heard)


def advance(
    spec: Spec, carry: Carry, rows: Float[np.ndarray, "k C"], ended: bool
) -> tuple[Carry, Float[np.ndarray, "n W T C"]]:
    """Take new feature rows; the windows of every frame that can now be drawn, and what is left over.

    A frame can be drawn when its last neighbour's window is complete, or the sound has ended. Smoothed lips:
    a_t = 0.35 a_{t-1} + 0.65 a_t. The original smooths the audio code inside its network; the seam knows no
    such code, so the same filter acts on the sound features that lead to it, for every system alike.
    """
    carry = dataclasses.replace(carry, rows=np.concatenate([carry.rows, rows.astype(np.float32)]))
    behind, ahead = spec.neighbours // 2, spec.neighbours - spec.neighbours // 2 - 1
    have, out, frame, lips = carry.first_row + len(carry.rows), [], carry.frame, carry.lips
    while frame < spec.n_frames:
        if not ended and spec.hop * (frame + ahead) + max(spec.window - spec.left, 1) > have:
            break
        around = range(frame - behind, frame + ahead + 1)
        windows = windows_of(spec, carry, around, have if ended else None)
        if spec.smooth_lips:
            lips = windows if lips is None else KEEP_LIPS * lips + (1 - KEEP_LIPS) * windows
            windows = lips
        out.append(windows)
        frame += 1
    needed = max(0, spec.hop * max(0, frame - behind) - spec.left)
    drop = max(0, needed // spec.hop * spec.hop - carry.first_row)
    carry = Carry(frame, carry.first_row + drop, carry.rows[drop:].copy(), lips)
    shape = (0, spec.neighbours, spec.window, spec.channels)
    return carry, np.stack(out) if out else np.zeros(shape, np.float32)


def windows(spec: Spec, chunks: Iterable[np.ndarray]) -> Iterator[Float[np.ndarray, "W T C"]]:
    """The audio input of every frame, from feature rows in chunks of any size; memory is that of a chunk."""
    carry = start(spec)
    empty = np.zeros((0, spec.channels), np.float32)
    some = BLOCK_FRAMES * spec.hop
    for rows in chunks:
        for a in range(0, len(rows), some):
            carry, ready = advance(spec, carry, rows[a : a + some], False)
            yield from ready
    yield from advance(spec, carry, empty, True)[1]


# ---------------------------------------------------------------- one frame


Frame = tuple[np.ndarray, dict[str, np.ndarray]]  # a picture, uint8 RGB or RGBA, and its maps by name


def frames(scene: Scene, spec: Spec, feature_chunks: Iterable[np.ndarray], maps: Maps | None = None) -> Iterator[Frame]:
    """All frames in order. Loads the model once; each frame depends on the carry and its index alone.

    The device draws one frame while another thread finishes the one before (pastes it back, gives it its background)
    and the caller encodes the one before that.
    """
    variables = scene.subject.variables(scene.model)
    waiting: collections.deque[Future] = collections.deque()
    with ThreadPoolExecutor(1) as pool:
        for i, audio_windows in enumerate(windows(spec, feature_chunks)):
            k = scene.plan.track_frame(i)
            behind, torso = scene.behind(k)
            batch = frame_batch(scene, i, audio_windows, behind)
            drawn = scene.start(variables, batch, behind, torso)
            values = {}
            if maps is not None and maps.names:
                hw, chunk = behind.shape[:2], scene.subject.config.eval.chunk_rays
                values = render_maps(scene.model, variables, batch, hw, scene.clock, chunk)
            waiting.append(pool.submit(_finish, scene, maps, drawn, k, values))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def frame_batch(
    scene: Scene, i: int, audio_windows: Float[np.ndarray, "W T C"], behind: UInt8[np.ndarray, "h w 3"]
) -> Batch:
    """What the model is given for output frame i."""
    subject, plan = scene.subject, scene.plan
    k, area = plan.track_frame(i), plan.area(i)
    return Batch(
        frame=jnp.asarray([subject.frame_number(k)], jnp.int32),
        cam_to_world=jnp.asarray(plan.pose(i), jnp.float32)[None],
        intrinsics=jnp.asarray(plan.intrinsics, jnp.float32)[None],
        pixels_px=jnp.zeros((1, 0, 2), jnp.float32),
        background=jnp.asarray(behind, jnp.float32).reshape(1, -1, 3) / 255,
        audio=jnp.asarray(audio_windows)[None],
        expression=jnp.asarray(subject.expression[k], jnp.float32)[None],
        eye_closed=jnp.asarray([plan.eye(i)], jnp.float32),
        eye_area=None if area is None else jnp.asarray([area], jnp.float32),
    )


def _finish(scene: Scene, maps: Maps | None, drawn, k: int, values: dict) -> Frame:
    return scene.finish(drawn, k), maps.pictures(values) if values or (maps and maps.names) else {}


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


# ---------------------------------------------------------------- where frames go


def mark(subject: bundle.Avatar) -> dict[str, str]:
    """What every rendered file says about itself."""
    text = f"Synthetic: rendered by tkjax {__version__}, avatar {subject.id}. Not a recording of a real event."
    return {"comment": text, "description": text, "title": "Synthetic talking portrait"}


def watermark(rgb: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W C"]:
    """The word SYNTHETIC in the lower right corner, on a dark ground."""
    picture_ = Image.fromarray(rgb)
    font = ImageFont.load_default(max(10, rgb.shape[0] // 20))
    pen = ImageDraw.Draw(picture_, "RGBA")
    x0, y0, x1, y1 = pen.textbbox((0, 0), "SYNTHETIC", font=font)
    w, h, pad = x1 - x0, y1 - y0, max(2, rgb.shape[0] // 80)
    x, y = rgb.shape[1] - w - 2 * pad, rgb.shape[0] - h - 2 * pad
    pen.rectangle((x, y, rgb.shape[1], rgb.shape[0]), fill=(0, 0, 0, 140))
    pen.text((x + pad - x0, y + pad - y0), "SYNTHETIC", font=font, fill=(255, 255, 255, 230))
    return np.asarray(picture_)


def is_video(out: Path | str, alpha: bool = False) -> bool:
    return Path(out).suffix.lower() in (ALPHA_SUFFIXES if alpha else (".mp4", ".mov", ".m4v", ".webm"))


def check_out(out: Path | str, alpha: bool = False, maps: Sequence[str] = ()) -> None:
    """Refuse a destination that cannot be written or that is not ours to replace, before any work. maps: those that
    will lie beside it."""
    out = Path(out)
    if alpha and is_video(out) and not is_video(out, alpha):
        raise UserError(
            f"--out={out} cannot hold an alpha channel; name a .mov (ProRes 4444) or .webm (VP9) file, or a folder for "
            "PNG files"
        )
    if is_video(out):
        for path in (out, *(map_path(out, name) for name in maps)):
            if path.is_dir():
                raise UserError(f"--out={out}: {path} is a folder; name a file in it")
    elif out.suffix and not out.is_dir():
        raise UserError(f"--out={out}: write an .mp4 file, or a folder (a name without a suffix) for PNG files")
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; name a folder for PNG files, or an .mp4 file")
    elif out.is_dir():
        frame_folder.proven(out.resolve(), out)


def write_pngs(out: Path | str, pictures: Iterable[Frame], subject: bundle.Avatar) -> None:
    """000000.png … with the mark in their text chunks, maps in folders of their names; see `frame_folder`."""
    facts = {"fps": subject.meta["fps"], "avatar": subject.id}
    with frame_folder.new(out, facts, mark(subject)) as add:
        for n, (rgb, maps) in enumerate(pictures):
            add(f"{n:06d}.png", rgb)
            for name, picture in maps.items():
                add(f"{name}/{n:06d}.png", picture)


def map_path(out: Path, name: str) -> Path:
    """Where a map goes: OUT_<name>.mp4 beside a video, OUT/<name> in a folder of PNG files."""
    return out.with_name(f"{out.stem}_{name}.mp4") if is_video(out) else out / name


def write_videos(out: Path | str, pictures: Iterable[Frame], scene: Scene, sound: Path | str) -> None:
    """OUT with sound, and OUT_<map>.mp4 without for each map; all of them or none."""
    out, fps, text = Path(out), scene.subject.meta["fps"], mark(scene.subject)
    with contextlib.ExitStack() as stack:
        main = VideoWriter(out, *scene.hw, fps=fps, audio=sound, metadata=text, alpha=scene.alpha)
        writers = {"": stack.enter_context(main)}
        for rgb, maps in pictures:
            main.write(bleed(rgb) if scene.alpha else rgb)
            for name, picture in maps.items():
                if name not in writers:
                    writer = VideoWriter(map_path(out, name), *picture.shape[:2], fps=fps, metadata=text)
                    writers[name] = stack.enter_context(writer)
                writers[name].write(picture)
        files.replace_all([(writer.finish(), writer.path) for writer in writers.values()])


def render(
    subject: bundle.Avatar,
    sound: Path | str,
    out: Path | str,
    plan: motion.Drive,
    *,
    features: Path | None = None,
    audio_kinds: str | None = None,
    smooth_lips: bool = False,
    visible_mark: bool = False,
    paste_back: str | None = None,
    alpha: bool = False,
    maps: Sequence[str] = (),
    torso: str | None = None,
    on_frame=None,
) -> int:
    """Draw the avatar speaking `sound` into `out`: a video with sound, or a folder of PNG files; the number of frames.

    paste_back, alpha, torso: see `Scene`; with alpha `out` is .mov, .webm or a folder. maps: some of maps.MAPS, written
    beside `out`. on_frame(i, picture), if given, sees every frame before it is written.
    """
    check_out(out, alpha, maps)
    scene, maps_ = Scene(subject, plan, torso=torso, paste_back=paste_back, alpha=alpha), Maps(maps)
    fps, spoken = subject.meta["fps"], subject.meta["audio"]
    n = sound_frames(sound, fps)
    cut, heard = (spoken[k] for k in ("window", "hop", "left", "channels")), None
    if features is not None and feature_arrays.is_array(features):
        heard = len(feature_arrays.open_windows(features))
    spec = Spec(*cut, subject.info.audio_windows, n, smooth_lips, heard)
    with contextlib.closing(subject), tempfile.TemporaryDirectory(prefix="tkjax-") as folder:
        rows = feature_chunks(sound, n / fps, subject, features, audio_kinds, Path(folder))
        pictures = _finished(frames(scene, spec, rows, maps_), n, visible_mark, on_frame)
        if is_video(out):
            write_videos(out, pictures, scene, sound)
        else:
            write_pngs(out, pictures, subject)
    return n


def _finished(pictures: Iterable[Frame], n: int, visible_mark: bool, on_frame) -> Iterator[Frame]:
    """Frames with progress (frames/s, time left), the visible mark and the caller's look at them."""
    for i, (rgb, maps) in enumerate(tqdm(pictures, total=n, desc="render", unit="frame", mininterval=0.5)):
        if visible_mark:
            rgb = watermark(rgb)
        if on_frame is not None:
            on_frame(i, rgb)
        yield rgb, maps
