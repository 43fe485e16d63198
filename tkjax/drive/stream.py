"""An avatar and its driver in, frames out.

A frame is drawn as soon as what drives it is there, and the encoder takes it at once: of sound (`sounds`) and pictures
only what is at work is in memory, of other signals their numbers for all frames. Each frame depends on the sound's
carry and its own number alone.
"""

import collections
import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from tkjax import __version__, signals
from tkjax.avatar import bundle
from tkjax.drive import sounds
from tkjax.drive.driver import Driver
from tkjax.drive.scene import Scene, bleed
from tkjax.errors import UserError
from tkjax.host import files
from tkjax.media import frame_folder
from tkjax.media.video import ALPHA_SUFFIXES, VideoWriter
from tkjax.render.map_pictures import Maps, render_maps
from tkjax.signals import SOUND
from tkjax.types import Batch

AHEAD = 2  # frames that are begun before the one that is handed on
BLOCK_FRAMES = 64  # whose windows of plain signals are cut at once


# ---------------------------------------------------------------- one frame


Frame = tuple[np.ndarray, dict[str, np.ndarray]]  # a picture, uint8 RGB or RGBA, and its maps by name


def driven(
    scene: Scene, driver: Driver, chunks: Iterable[np.ndarray]
) -> Iterator[dict[str, Float[np.ndarray, "W T C"]]]:
    """The windows of every signal that the system asks for, frame by frame. chunks: rows of sound features."""
    uses = scene.model.signals()
    still = [use for use in uses if use.name != SOUND]
    hear = [use for use in uses if use.name == SOUND]
    heard: Iterable = itertools.repeat(None, driver.n_frames)
    if hear:
        heard = sounds.windows(sounds.spec_of(driver.sound, scene.subject, hear[0], driver.n_frames), chunks)
    block: dict[str, np.ndarray] = {}
    for i, windows in enumerate(heard):
        if i % BLOCK_FRAMES == 0:
            some = np.arange(i, min(i + BLOCK_FRAMES, driver.n_frames))
            block = {use.name: signals.windows(driver.signals[use.name], some, use) for use in still}
        own = {name: values[i % BLOCK_FRAMES] for name, values in block.items()}
        yield {**own, SOUND: windows} if hear else own


def frames(
    scene: Scene, driver: Driver, feature_chunks: Iterable[np.ndarray], maps: Maps | None = None
) -> Iterator[Frame]:
    """All frames in order. Loads the model once.

    The device draws one frame while another thread finishes the one before (pastes it back, gives it its background)
    and the caller encodes the one before that.
    """
    variables = scene.subject.variables(scene.model)
    waiting: collections.deque[Future] = collections.deque()
    with ThreadPoolExecutor(1) as pool:
        for i, windows in enumerate(driven(scene, driver, feature_chunks)):
            k = scene.plan.track_frame(i)
            behind, torso = scene.behind(k)
            batch = frame_batch(scene, i, windows, behind)
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
    scene: Scene, i: int, windows: Mapping[str, Float[np.ndarray, "W T C"]], behind: UInt8[np.ndarray, "h w 3"]
) -> Batch:
    """What the model is given for output frame i."""
    subject, plan = scene.subject, scene.plan
    return Batch(
        frame=jnp.asarray([subject.frame_number(plan.track_frame(i))], jnp.int32),
        cam_to_world=jnp.asarray(plan.pose(i), jnp.float32)[None],
        intrinsics=jnp.asarray(plan.intrinsics, jnp.float32)[None],
        pixels_px=jnp.zeros((1, 0, 2), jnp.float32),
        background=jnp.asarray(behind, jnp.float32).reshape(1, -1, 3) / 255,
        signals={name: jnp.asarray(values, jnp.float32)[None] for name, values in windows.items()},
    )


def _finish(scene: Scene, maps: Maps | None, drawn, k: int, values: dict) -> Frame:
    return scene.finish(drawn, k), maps.pictures(values) if values or (maps and maps.names) else {}


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


def write_videos(out: Path | str, pictures: Iterable[Frame], scene: Scene, sound: Path | None) -> None:
    """OUT, with its sound if there is one, and OUT_<map>.mp4 without for each map; all of them or none."""
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
    driver: Driver,
    out: Path | str,
    *,
    visible_mark: bool = False,
    paste_back: str | None = None,
    alpha: bool = False,
    maps: Sequence[str] = (),
    torso: str | None = None,
    on_frame=None,
) -> int:
    """Draw the driven avatar into `out`: a video, with sound if it is driven with any, or a folder of PNG files; the
    number of frames.

    paste_back, alpha, torso: see `Scene`; with alpha `out` is .mov, .webm or a folder. maps: some of maps.MAPS, written
    beside `out`. on_frame(i, picture), if given, sees every frame before it is written.
    """
    check_out(out, alpha, maps)
    scene = Scene(subject, driver.motion, torso=torso, paste_back=paste_back, alpha=alpha)
    maps_, n, sound = Maps(maps), driver.n_frames, driver.sound
    with contextlib.closing(subject), tempfile.TemporaryDirectory(prefix="tkjax-") as folder:
        rows: Iterable[np.ndarray] = ()
        if sound is not None and driver.speaks:
            seconds = sound.n_frames / subject.meta["fps"]
            rows = sounds.feature_chunks(sound.path, seconds, subject, sound.features, sound.kinds, Path(folder))
        pictures = _finished(frames(scene, driver, rows, maps_), n, visible_mark, on_frame)
        if is_video(out):
            write_videos(out, pictures, scene, None if sound is None else sound.path)
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
