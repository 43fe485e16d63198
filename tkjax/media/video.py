"""Video in and out through PyAV: pictures as they are meant to be seen, sound in step with them.

Reading turns pictures by the file's display matrix, makes pixels square, and converts with the file's colour
matrix (BT.601 below 720 lines, BT.709 from there, where the file does not say) to full-range rgb uint8; HDR and wide
gamuts are mapped (`hdr`). A file's alpha channel is taken to be straight.
Writing is H.264 (yuv420p, BT.709) and AAC at 48 kHz; with an alpha channel ProRes 4444 (.mov) or VP9 and Opus (.webm),
both with straight alpha. All of it in constant memory.
"""

import dataclasses
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import Float, UInt8

from tkjax.errors import UserError
from tkjax.host import files
from tkjax.media import hdr
from tkjax.media.audio import RATE, decode_audio, moving_picture, open_media, resample_blocks

AUDIO_OUT_HZ = 48000  # one AAC frame then lasts 21 ms, less than a picture
_JITTER_S = Fraction(1, 2000)  # timestamps are rounded to ticks; a frame this little late is on time
ALPHA_SUFFIXES = (".mov", ".webm")  # files that can hold an alpha channel
_COLOURS = {Colorspace.ITU709, Colorspace.ITU601, Colorspace.FCC, Colorspace.SMPTE240M, Colorspace.BT2020}
CLEAR = 250  # alpha below this is no noise of a codec
_log = logging.getLogger("tkjax.media.video")


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a file holds; sizes as seen (turned, square pixels), rotation in degrees clockwise to be seen upright.

    colours: what is mapped to ordinary ones, "PQ", "HLG", "BT.2020" or "P3", else "". alpha: whether at least a
    hundredth of the first picture is transparent.
    """

    width: int
    height: int
    fps: float
    n_frames: int
    duration_s: float
    rotation: int
    has_audio: bool
    colours: str = ""
    alpha: bool = False


# ---------------------------------------------------------------- reading


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    stream = moving_picture(container)
    if stream is None:
        raise UserError(f"{path}: has no moving picture, expected a video")
    stream.thread_type = "AUTO"
    return stream


def _decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    """The stream's decoder; of VP8 and VP9 with a second picture for alpha the one that knows it."""
    name, told = stream.codec_context.name, {k.lower(): v for k, v in stream.metadata.items()}
    if told.get("alpha_mode") != "1" or name not in ("vp8", "vp9"):
        return stream.codec_context
    try:
        return av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[name], "r")
    except (av.FFmpegError, ValueError):  # this build of FFmpeg lacks it
        return stream.codec_context


def _decoded(path: Path, alpha: bool = False) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
    """(time, length, frame) in the order of display; times in seconds of the file's clock, never falling. alpha:
    frames keep their alpha channel."""
    with open_media(path) as container:
        stream = _video_stream(container, path)
        decoder = _decoder(stream) if alpha else stream.codec_context
        step = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
        time, bad = None, 0
        try:
            for packet in container.demux(stream):
                try:
                    frames = decoder.decode(packet if packet.size else None)
                except (av.InvalidDataError, av.error.PatchWelcomeError) as e:
                    bad += 1
                    if bad == 1:
                        _log.warning("%s: a picture cannot be decoded (%s); the one before it stays", path, _reason(e))
                    continue
                for frame in frames:
                    if time is None and int(frame.colorspace) in hdr.UNREADABLE:
                        raise UserError(
                            f"{path}: its colours are {hdr.UNREADABLE[int(frame.colorspace)]}, which cannot be read "
                            "here; export the clip as ordinary (SDR, BT.709) or HLG video"
                        )
                    told = None if frame.pts is None else frame.pts * (frame.time_base or stream.time_base)
                    following = Fraction(0) if time is None else time + step
                    time = following if told is None else told if time is None else max(told, time)
                    length = frame.duration * (frame.time_base or stream.time_base) if frame.duration else step
                    yield time, length, frame
        except (av.FFmpegError, OSError) as e:
            raise UserError(
                f"{path}: its pictures cannot be decoded ({_reason(e)}), expected an undamaged video"
            ) from e
        if time is None:
            raise UserError(f"{path}: no picture in it can be decoded, expected an undamaged video")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0].rstrip(".")


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(swap axes, then flip x, then flip y) of the display matrix (x, y) -> (a x + c y, b x + d y)."""
    for side in frame.side_data:
        if side.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(side, np.int32)[:5].tolist()
            if abs(b) > abs(a):
                return True, c < 0, b < 0
            return False, a < 0, d < 0
    return False, False, False


def _rotation(orientation: tuple[bool, bool, bool]) -> int:
    """Degrees clockwise; mirrored matrices count as their turn."""
    swap, flip_x, flip_y = orientation
    return (90 if flip_x else 270) if swap else (180 if flip_x and flip_y else 0)


def _kind(frame: av.VideoFrame) -> str:
    """What has to be mapped to ordinary colours (`hdr.kind`)."""
    return hdr.kind(int(frame.color_trc), int(frame.color_primaries))


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(c.is_alpha for c in frame.format.components)


def to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """The picture of a frame as it is meant to be seen; HDR and wide gamuts mapped as `hdr` says."""
    if not _kind(frame):
        return _upright(frame, _converted(frame, "rgb24"))
    picture = hdr.to_sdr(_converted(frame, "rgb48le"), int(frame.color_trc), int(frame.color_primaries))
    return _upright(frame, picture)


def to_rgba(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 4"]:
    """The same with its alpha channel, straight; opaque where the frame has none."""
    alpha = _converted(frame, "rgba")[..., 3:]
    return np.concatenate([to_rgb(frame), _upright(frame, alpha)], -1)


def _converted(frame: av.VideoFrame, form: str) -> np.ndarray:
    """The pixels in a full-range rgb format, square, not yet turned."""
    width = frame.width
    aspect = getattr(frame, "sample_aspect_ratio", None)
    if aspect and abs(aspect - 1) > 0.01:
        width = max(1, round(width * aspect))
    name = frame.format.name
    options = {}
    if name.startswith(("yuv", "nv", "p0")):
        told = frame.colorspace
        space = told if told in _COLOURS else Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
        if told not in _COLOURS and _kind(frame) in ("PQ", "HLG", "BT.2020"):
            space = Colorspace.BT2020
        full = name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
        options = {"src_colorspace": space, "src_color_range": ColorRange.JPEG if full else ColorRange.MPEG}
        options |= {"dst_colorspace": space, "dst_color_range": ColorRange.JPEG}
    return frame.reformat(width=width, height=frame.height, format=form, **options).to_ndarray()


def _upright(frame: av.VideoFrame, picture: np.ndarray) -> np.ndarray:
    """The pixels turned as the display matrix says."""
    swap, flip_x, flip_y = _orientation(frame)
    if swap:
        picture = picture.transpose(1, 0, 2)
    if flip_x:
        picture = picture[:, ::-1]
    if flip_y:
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def probe(path: str | Path) -> VideoInfo:
    """Facts about a video; the first picture is decoded, the rest only counted."""
    path = Path(path)
    first = next(_decoded(path))[2]
    height, width = to_rgb(first).shape[:2]
    with open_media(path) as container:
        stream = _video_stream(container, path)
        n_frames = stream.frames or sum(p.size > 0 for p in container.demux(stream))
        fps = stream.average_rate or stream.guessed_rate
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / av.time_base
        else:
            duration = n_frames / float(fps or 25)
        fps = float(fps) if fps else n_frames / duration
        rotation = _rotation(_orientation(first))
        sound, colours = bool(container.streams.audio), _kind(first)
        return VideoInfo(width, height, fps, n_frames, duration, rotation, sound, colours, _shows_alpha(path))


def _shows_alpha(path: Path) -> bool:
    first = next(_decoded(path, alpha=True))[2]
    return _has_alpha(first) and bool((to_rgba(first)[..., 3] < CLEAR).mean() > 0.01)


def read_frames(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Frames start … stop-1 of the file (stop None: to the end), each once, whatever their timestamps."""
    for i, (_, _, frame) in enumerate(_decoded(Path(path))):
        if stop is not None and i >= stop:
            return
        if i >= start:
            yield to_rgb(frame)


def read_frames_at_fps(
    path: str | Path, fps: float | int | Fraction = 25, alpha: bool = False
) -> Iterator[UInt8[np.ndarray, "H W C"]]:
    """Constant rate by timestamps: frame k is the one on show k / fps seconds after the first appeared.

    RGB, with alpha straight RGBA. Frames of the file are repeated or left out as needed; the last is held for its own
    length. `read_audio` has the same time zero.
    """
    convert = to_rgba if alpha else to_rgb
    step = 1 / Fraction(fps).limit_denominator(100000)
    k, zero, shown, end = 0, None, None, None
    rgb = None
    for time, length, frame in _decoded(Path(path), alpha):
        if zero is None:
            zero = time
        late = min(frame.time_base / 2, _JITTER_S) if frame.time_base else _JITTER_S
        while k * step + late < time - zero:
            rgb = convert(shown) if rgb is None else rgb
            yield rgb
            k += 1
        shown, end, rgb = frame, time + length - zero, None
    while k * step + _JITTER_S < end:
        rgb = convert(shown) if rgb is None else rgb
        yield rgb
        k += 1


# ---------------------------------------------------------------- writing


def coded(rgb: UInt8[np.ndarray, "H W C"], form: str) -> av.VideoFrame:
    """A full-range rgb picture (rgba: with alpha) in an encoder's pixel format, limited range and BT.709; odd sizes are
    padded by one repeated row or column."""
    height, width = rgb.shape[:2]
    if height % 2 or width % 2:
        rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgba" if rgb.shape[2] == 4 else "rgb24")
    return frame.reformat(
        format=form,
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )


class VideoWriter:
    """Write frames with sound to a video file, whole or not at all.

    Context manager: frames go to a temporary file beside `path`, which takes the name at the end; an exception
    leaves what was there. Odd sizes are padded by one repeated row or column. `audio` is a sound or video file,
    mono samples in -1..1 at `audio_hz`, or an iterable of such blocks; it is read in step with the pictures, and
    cut or filled with silence to their length. metadata: title, comment and any other keys. alpha: frames are
    straight RGBA, and the file is .mov or .webm. gop: at most so many frames from one that stands alone to the next,
    for files that are read in any order.
    """

    def __init__(
        self,
        path: str | Path,
        height: int,
        width: int,
        fps: float | int | Fraction = 25,
        audio: str | Path | np.ndarray | Iterable[Float[np.ndarray, " n"]] | None = None,
        metadata: Mapping[str, str] | None = None,
        crf: int = 18,
        audio_hz: int = RATE,
        alpha: bool = False,
        gop: int | None = None,
    ):
        if alpha and Path(path).suffix.lower() not in ALPHA_SUFFIXES:
            raise UserError(f"{path} cannot hold an alpha channel; name a .mov (ProRes 4444) or .webm (VP9) file")
        if height < 1 or width < 1:
            raise UserError(f"video {path} would have {width}x{height} pixels, expected at least 1x1")
        self.path, self.height, self.width = Path(path), height, width
        self._channels = 4 if alpha else 3
        self.fps = Fraction(fps).limit_denominator(100000)
        self.n_frames = 0
        self._samples = 0
        self._kept: np.ndarray | None = None
        self._audio, channels = _audio_blocks(audio, audio_hz)
        if self._audio is not None:
            self._kept = next(self._audio, np.zeros((channels, 0), np.float32))  # a bad file fails here, early
        self._part = files.hidden(self.path, "part", self.path.suffix)
        self._container = self._open(metadata or {}, crf, channels, gop)

    def _codecs(self, crf: int) -> tuple[str, str, dict[str, str], str]:
        """Codec, pixel format and options of the pictures; codec of the sound."""
        alpha = self._channels == 4
        if self.path.suffix.lower() == ".webm":
            options = {"crf": str(crf), "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"}
            return "libvpx-vp9", "yuva420p" if alpha else "yuv420p", options, "libopus"
        if alpha:
            return "prores_ks", "yuva444p10le", {"profile": "4444", "alpha_bits": "16"}, "aac"
        return "libx264", "yuv420p", {"crf": str(crf), "preset": "fast"}, "aac"

    def _open(self, metadata, crf: int, channels: int, gop: int | None) -> av.container.OutputContainer:
        container = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            mp4 = self.path.suffix.lower() != ".webm"
            container = av.open(
                str(self._part), "w", options={"movflags": "+faststart+use_metadata_tags"} if mp4 else {}
            )
            container.metadata.update({str(k): str(v) for k, v in metadata.items()})
            codec, self._format, options, sound = self._codecs(crf)
            if gop is not None:
                options |= {"g": str(gop), "keyint_min": str(gop), "threads": "2"}  # the bytes depend on the threads
            v = container.add_stream(codec, rate=self.fps, options=options)
            v.height, v.width = self.height + self.height % 2, self.width + self.width % 2
            v.pix_fmt = self._format
            if self._channels == 4:
                v.metadata["alpha_mode"] = "1"
            v.codec_context.time_base = 1 / self.fps
            v.codec_context.colorspace = Colorspace.ITU709
            v.codec_context.color_range = ColorRange.MPEG
            v.codec_context.color_primaries = v.codec_context.color_trc = 1  # BT.709
            self._video = v
            if self._audio is not None:
                layout = "mono" if channels == 1 else "stereo"
                self._sound = container.add_stream(sound, rate=AUDIO_OUT_HZ, layout=layout, bit_rate=96000 * channels)
            container.start_encoding()
            return container
        except (av.FFmpegError, OSError, ValueError) as e:
            if container is not None:
                container.close()
            self._part.unlink(missing_ok=True)
            raise UserError(
                f"{self.path}: cannot be written as video ({_reason(e)}), expected a path as out.mp4"
            ) from e

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()

    def write(self, rgb: UInt8[np.ndarray, "H W C"]) -> None:
        """Append one frame: RGB, or straight RGBA where the file has an alpha channel."""
        if rgb.dtype != np.uint8 or rgb.shape != (self.height, self.width, self._channels):
            expected = f"uint8 ({self.height}, {self.width}, {self._channels})"
            raise ValueError(f"frame {self.n_frames} of {self.path} is {rgb.dtype} {rgb.shape}, expected {expected}")
        frame = coded(rgb, self._format)
        frame.pts, frame.time_base = self.n_frames, 1 / self.fps
        self._guard(lambda: self._container.mux(self._video.encode(frame)))
        self.n_frames += 1
        self._write_sound()

    def _guard(self, action) -> None:
        try:
            action()
        except (av.FFmpegError, OSError) as e:
            self._discard()
            raise UserError(f"{self.path}: cannot be written ({_reason(e)}), expected room on the disk") from e

    def _write_sound(self) -> None:
        """Sound up to the end of the last picture."""
        if self._audio is None:
            return
        until = round(self.n_frames * AUDIO_OUT_HZ / self.fps)
        while self._samples < until:
            if self._kept.shape[1] == 0:
                following = next(self._audio, None)
                silence = np.zeros((len(self._kept), until - self._samples), np.float32)
                self._kept = silence if following is None else following
                continue
            block, self._kept = np.split(self._kept, [until - self._samples], axis=1)
            layout = "mono" if len(block) == 1 else "stereo"
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = AUDIO_OUT_HZ, self._samples, Fraction(1, AUDIO_OUT_HZ)
            self._guard(lambda frame=frame: self._container.mux(self._sound.encode(frame)))
            self._samples += block.shape[1]

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self._container is not None:
            files.replace_all([(self.finish(), self.path)])

    def finish(self) -> Path:
        """Complete the file under its temporary name, for a caller that renames several together; that name."""
        if self.n_frames == 0:
            self._discard()
            raise UserError(f"{self.path}: no frame was written, expected at least one")
        self._guard(lambda: self._container.mux(self._video.encode(None)))
        if self._audio is not None:
            self._guard(lambda: self._container.mux(self._sound.encode(None)))
        self._guard(self._container.close)
        self._container = None
        if self._audio is not None:
            self._audio.close()  # it may hold more sound than there are pictures
        self._guard(lambda: files.sync(self._part))
        return self._part

    def _discard(self) -> None:
        """Leave nothing behind."""
        if self._audio is not None:
            self._audio.close()
        if self._container is not None:
            container, self._container = self._container, None
            try:
                container.close()
            except (av.FFmpegError, OSError) as e:
                _log.debug("%s: closing the unfinished file: %s", self.path, e)
        self._part.unlink(missing_ok=True)


def _audio_blocks(audio, audio_hz: int) -> tuple[Generator | None, int]:
    """Blocks float32 [channels, n] at the output's rate, and the number of channels."""
    if audio is None:
        return None, 0
    if isinstance(audio, str | Path):
        with open_media(audio) as container:
            if not container.streams.audio:
                raise UserError(f"{audio}: has no sound track, expected a file with sound")
            channels = min(2, container.streams.audio[0].layout.nb_channels)
        return decode_audio(audio, AUDIO_OUT_HZ, channels), channels
    if isinstance(audio, np.ndarray):
        parts = (audio[i : i + audio_hz] for i in range(0, len(audio), audio_hz))
        return resample_blocks(parts, audio_hz, AUDIO_OUT_HZ), 1
    return resample_blocks(audio, audio_hz, AUDIO_OUT_HZ), 1
