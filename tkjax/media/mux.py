"""One video's pictures with one sound: what `--mode=mux` does.

A stream goes over as it is where the result's kind of file holds its codec and its times are told; else it is decoded
and encoded anew: pictures as `video` reads them (upright, square pixels, mapped HDR) at the video's mean rate, sound at
48 kHz. Time zero is the first picture of the video, and of the sound its own time zero (`media.audio`). The shorter of
both decides the end: to the sample where sound is encoded, to a packet where it is copied; pictures that begin before
the end stay. All of it in constant memory.
"""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tkjax.errors import UserError
from tkjax.host import files
from tkjax.media.audio import decode_audio, moving_picture, open_media, sound_zero
from tkjax.media.video import AUDIO_OUT_HZ, coded, read_frames_at_fps

COPY, AUTO = "copy", "auto"
CRF = 18  # ad-nerf dossier §6: libx264, aac, crf 18, yuv420p
CRF_MOST = 63
# Encoders by the result's suffix; libx264 and aac where it names none.
ENCODERS = {".webm": ("libvpx-vp9", "libopus"), ".avi": ("libx264", "libmp3lame")}
# mp4 can hold more than this, but players show and sound no more of it.
PLAYED_IN_MP4 = {
    "video": {"h264", "hevc", "av1", "vp9", "mpeg4"},
    "audio": {"aac", "mp3", "opus", "ac3", "eac3", "flac", "alac"},
}
WITH_CRF = ("libx264", "libx265", "libvpx-vp9", "libvpx", "libaom-av1", "libsvtav1")
BITS_PER_PIXEL = 0.25  # of encoders without a constant rate factor
SOUND_BITS = 96000  # a second and channel, as `VideoWriter`
RATE_LIMITS = Fraction(1), Fraction(240)  # pictures a second of an encoded stream
EARLY_S = Fraction(1, 1000)  # a picture that begins this little before the end is not shown
Timed = tuple[float, av.Packet]


@dataclasses.dataclass(frozen=True)
class Muxed:
    """What was made: seconds, and how each stream came in (`copied h264`, `encoded by aac`)."""

    seconds: float
    video: str
    sound: str


@dataclasses.dataclass(frozen=True)
class _Track:
    """One stream of a file. zero: in seconds of the file's clock, its length in seconds from there. starts: of its
    packets in the order of the file, empty where times are missing. decode: when each is decoded, in ticks of the file,
    where the file leaves some of that out."""

    path: Path
    codec: str
    zero: Fraction
    seconds: Fraction
    starts: tuple[Fraction, ...]
    decode: tuple[int, ...] = ()

    @property
    def told(self) -> bool:
        return bool(self.starts)


def mux(
    video: str | Path, sound: str | Path, out: str | Path, *, vcodec: str = AUTO, acodec: str = AUTO, crf: int = CRF
) -> Muxed:
    """Write the pictures of `video` with the sound of `sound` to `out`, whole or not at all.

    vcodec, acodec: `auto`, `copy`, or an encoder of FFmpeg. crf: quality of encoded pictures, 0 (best) to 63.

    Raises:
      UserError: a file has no pictures or no sound, `out` is one of the two or no file that can be written, an encoder
        is unknown, or `copy` is asked for where the result cannot hold the stream.
    """
    video, sound, out = Path(video), Path(sound), Path(out)
    pictures, heard = _pictures(video), _heard(sound)
    _keep(out, video, sound)
    seconds = min(pictures.seconds, heard.seconds)
    if seconds <= 0:
        raise UserError(f"{sound}: its sound has no length, expected at least one picture's")
    encoders = ENCODERS.get(out.suffix.lower(), ("libx264", "aac"))
    with files.whole(out, out.suffix, expected="a path as out.mp4") as part:
        allowed = _allowed(out, part)
        how_v = _way("--vcodec", vcodec, "video", pictures, encoders[0], allowed, out)
        how_a = _way("--acodec", acodec, "audio", heard, encoders[1], allowed, out)
        # a stream that looked fit may still be refused: then it is encoded, unless `copy` was asked for
        ways_v = [how_v, *([encoders[0]] if how_v == COPY and vcodec == AUTO else [])]
        ways_a = [how_a, *([encoders[1]] if how_a == COPY and acodec == AUTO else [])]
        refusal = None
        for how_v, how_a in itertools.product(ways_v, ways_a):
            try:
                _write(part, out, pictures, heard, how_v, how_a, seconds, crf)
                break
            except (av.FFmpegError, ValueError) as error:
                refusal = refusal or (error, how_v, how_a)
        else:
            error, how_v, how_a = refusal
            raise UserError(
                f"--out={out} cannot be written with {_said(how_v, pictures)} pictures and {_said(how_a, heard)} "
                f"sound ({_reason(error)}); leave --vcodec and --acodec out"
            ) from error
    return Muxed(float(seconds), _said(how_v, pictures), _said(how_a, heard))


def _said(how: str, track: _Track) -> str:
    return f"copied {track.codec}" if how == COPY else f"encoded by {how}"


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0].rstrip(".")


def _keep(out: Path, video: Path, sound: Path) -> None:
    for path, what in ((video, "the video"), (sound, "the sound")):
        if out.exists() and out.samefile(path):
            raise UserError(f"--out={out} is {what} itself; name another file, so that it stays")
    if out.is_dir():
        raise UserError(f"--out={out} is a folder, expected a file such as out.mp4")
    if not out.suffix:
        raise UserError(f"--out={out} has no suffix that says what kind of file it is, expected a path as out.mp4")


def _pictures(path: Path) -> _Track:
    with open_media(path) as container:
        stream = moving_picture(container)
        if stream is None:
            raise UserError(f"{path}: has no moving picture, expected a video")
        return _track(path, container, stream, None)


def _heard(path: Path) -> _Track:
    zero = sound_zero(path)
    with open_media(path) as container:
        return _track(path, container, container.streams.audio[0], zero)


def _track(path: Path, container: av.container.InputContainer, stream: av.stream.Stream, zero) -> _Track:
    """A pass over the packets, none of which is decoded."""
    tick, times, ordered = stream.time_base, [], True
    try:
        for packet in container.demux(stream):
            if packet.size:
                ordered &= packet.dts is not None
                times.append((packet.pts, packet.duration or 0))
    except av.FFmpegError as error:
        raise UserError(f"{path}: cannot be read to its end ({_reason(error)}), expected an undamaged file") from error
    if not times:
        raise UserError(f"{path}: its {stream.type} stream is empty, expected some of it")
    codec = stream.codec_context.codec.canonical_name
    if any(at is None for at, _ in times):
        known = (stream.duration or 0) * tick or Fraction(container.duration or 0, av.time_base)
        return _Track(path, codec, Fraction(0), known or len(times) / _rate(stream), ())
    order = sorted(times)
    steps = sorted(b - a for (a, _), (b, _) in itertools.pairwise(order))
    last = order[-1][1] or (steps[len(steps) // 2] if steps else 0)
    first = order[0][0] * tick if zero is None else zero
    end = max(order[-1][0] + last, *(p + d for p, d in order)) * tick
    late = max(a - b for (a, _), (b, _) in zip(order, times))  # so that none is decoded after it is shown
    decode = () if ordered else tuple(at - late for at, _ in order)
    return _Track(path, codec, first, end - first, tuple(at * tick - first for at, _ in times), decode)


def _rate(stream: av.VideoStream) -> Fraction:
    low, high = RATE_LIMITS
    return min(max(Fraction(stream.average_rate or stream.guessed_rate or 25), low), high)


def _allowed(out: Path, part: Path) -> set[str]:
    """Codecs that a file of this kind holds and players take from it."""
    try:
        with av.open(str(part), "w") as container:
            known = set(container.supported_codecs)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(
            f"--out={out}: {out.suffix} is no kind of video file that can be written ({_reason(error)}), expected a "
            "path as out.mp4"
        ) from error
    if out.suffix.lower() in (".mp4", ".m4v"):
        known &= PLAYED_IN_MP4["video"] | PLAYED_IN_MP4["audio"]
    return known


def _way(flag: str, asked: str, kind: str, track: _Track, default: str, allowed: set[str], out: Path) -> str:
    """COPY or the name of an encoder."""
    if asked == AUTO:
        return COPY if track.told and track.codec in allowed else default
    if asked == COPY:
        if not track.told:
            raise UserError(f"{flag}=copy: {track.path} does not tell the times of its {kind}; leave {flag} out")
        return COPY
    try:
        codec = av.Codec(asked, "w")
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{flag}={asked} is no encoder of this FFmpeg; name another, copy, or leave it out") from error
    if codec.type != kind:
        raise UserError(f"{flag}={asked} encodes {codec.type}, expected an encoder of {kind}")
    return asked


def _write(
    part: Path, out: Path, pictures: _Track, heard: _Track, how_v: str, how_a: str, end: Fraction, crf: int
) -> None:
    options = {"movflags": "+faststart+use_metadata_tags"} if out.suffix.lower() in (".mp4", ".m4v", ".mov") else {}
    with open_media(pictures.path) as v, open_media(heard.path) as a, av.open(str(part), "w", options=options) as made:
        made.metadata.update(v.metadata)  # what a file says of its origin goes on
        for name in ("encoder", "major_brand", "minor_version", "compatible_brands"):
            made.metadata.pop(name, None)
        picture, sound = moving_picture(v), a.streams.audio[0]
        if how_v == COPY:
            shown = _copied(v, picture, made, pictures, _whole_until(pictures.starts, end))
        else:
            shown = _encoded_pictures(made, how_v, picture, pictures.path, end, crf)
        if how_a == COPY:
            told = _copied(a, sound, made, heard, lambda k, at, length: at < end and at + length >= 0)
        else:
            told = _encoded_sound(made, how_a, min(2, sound.layout.nb_channels), heard.path, end)
        for _, packet in heapq.merge(shown, told, key=lambda timed: timed[0]):
            made.mux(packet)


def _whole_until(starts: tuple[Fraction, ...], end: Fraction) -> Callable[[int, Fraction, Fraction], bool]:
    """Which packets stay: all up to the last in the file's order that shows before the end; later pictures between
    them may be what it is made from."""
    last = max((k for k, at in enumerate(starts) if at < end - EARLY_S), default=0)
    return lambda k, at, length: k <= last


def _copied(
    source: av.container.InputContainer, stream: av.stream.Stream, made: av.container.OutputContainer, track: _Track,
    stays: Callable[[int, Fraction, Fraction], bool],
) -> Iterator[Timed]:  # fmt: skip
    """The packets that stay, moved to time zero. Adds the stream at once, the packets when they are asked for."""
    added = made.add_stream_from_template(stream, opaque=True)
    tick = stream.time_base
    shift = round(track.zero / tick)

    def packets() -> Iterator[Timed]:
        k = 0
        for packet in source.demux(stream):
            if not packet.size:
                continue
            at, length = packet.pts * tick - track.zero, (packet.duration or 0) * tick
            if stays(k, at, length):
                packet.stream = added
                at_decoder = track.decode[k] if track.decode else packet.dts
                packet.pts, packet.dts = packet.pts - shift, at_decoder - shift
                yield float(packet.dts * tick), packet
            k += 1

    return packets()


def _encoded_pictures(
    made: av.container.OutputContainer, encoder: str, source: av.VideoStream, path: Path, end: Fraction, crf: int
) -> Iterator[Timed]:  # fmt: skip
    rate = _rate(source).limit_denominator(100000)
    frames = read_frames_at_fps(path, rate)
    first = next(frames)
    stream = made.add_stream(encoder, rate=rate)
    height, width = (side + side % 2 for side in first.shape[:2])
    stream.height, stream.width = height, width
    formats = [f.name for f in stream.codec_context.codec.video_formats or ()]
    stream.pix_fmt = "yuv420p" if "yuv420p" in formats or not formats else formats[0]
    if encoder in WITH_CRF:
        stream.codec_context.options = {"crf": str(crf)} | ({"b": "0"} if encoder.startswith("libvpx") else {})
        if encoder.startswith("libvpx"):
            stream.codec_context.options |= {"deadline": "good", "cpu-used": "5", "row-mt": "1"}
    else:
        stream.bit_rate = int(BITS_PER_PIXEL * width * height * rate)
    stream.codec_context.time_base = 1 / rate
    stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1  # BT.709, limited
    stream.codec_context.color_primaries = stream.codec_context.color_trc = 1

    def packets() -> Iterator[Timed]:
        for k, rgb in enumerate(_from(first, frames)):
            if k and k / rate >= end - EARLY_S:
                break
            frame = coded(rgb, stream.pix_fmt)
            frame.pts, frame.time_base = k, 1 / rate
            yield from _timed(stream.encode(frame))
        yield from _timed(stream.encode(None))

    return packets()


def _from(first: np.ndarray, rest: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from rest


def _encoded_sound(
    made: av.container.OutputContainer, encoder: str, channels: int, path: Path, end: Fraction
) -> Iterator[Timed]:
    layout = "mono" if channels == 1 else "stereo"
    stream = made.add_stream(encoder, rate=AUDIO_OUT_HZ, layout=layout, bit_rate=SOUND_BITS * channels)
    most = round(end * AUDIO_OUT_HZ)

    def packets() -> Iterator[Timed]:
        done = 0
        for block in decode_audio(path, AUDIO_OUT_HZ, channels):
            block = np.ascontiguousarray(np.clip(block[:, : most - done], -1, 1), np.float32)
            if not block.shape[1]:
                break
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = AUDIO_OUT_HZ, done, Fraction(1, AUDIO_OUT_HZ)
            done += block.shape[1]
            yield from _timed(stream.encode(frame))
        yield from _timed(stream.encode(None))

    return packets()


def _timed(packets: list[av.Packet]) -> Iterator[Timed]:
    for packet in packets:
        yield float((packet.dts if packet.dts is not None else packet.pts or 0) * packet.time_base), packet
