"""Sound: decode and resample any file, log-mel features, wav files (numpy and PyAV; no jax, no torch).

Time zero of a file is its first video frame where it has a moving picture, else its first sample, so
sample i of `read_audio` sounds at i / rate seconds after the first picture.

Log-mel features (kind `logmel`): 50 steps a second, step k is centred at 0.01 + k / 50 s and sees the 25 ms
(400 samples of 16 kHz, periodic Hann) around it, with zeros outside the clip. n samples give ceil(n / 320)
steps. Each of 80 triangles (Slaney's mel scale, 65-6000 Hz) sums the power spectrum, scaled so that a sine of
full scale is about 1, to E; the feature is ln(1 + G E / 1e-7) / 4: exactly 0 for digital silence, about 1.7 to 3
in the bands of speech. G brings the level of the speech so far to a reference (`media.level`), so that the same words
drive the same mouth whether they were recorded loud or soft. Extractor `tkjax-logmel-1`, in older datasets and
avatars, has G = 1. No statistics of a whole clip enter, so it streams bit for bit.
"""

import contextlib
import functools
import itertools
import logging
import math
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from tkjax.contract import AudioFeatures
from tkjax.errors import UserError
from tkjax.host.files import whole
from tkjax.media.intake import Intake, Scan
from tkjax.media.level import Level

RATE = 16000  # Hz, of everything that features are made from
HOP = 320  # samples between steps: 20 ms
WINDOW = 400  # samples under the Hann window: 25 ms
FFT = 1024  # zero padded, so that the narrowest triangle holds several bins
BANDS = 80
LOW_HZ, HIGH_HZ = 65.0, 6000.0
FLOOR = 1e-7  # power that counts as silence: -70 dB under a sine of full scale
SCALE = 0.25
RAW, LEVELLED = "tkjax-logmel-1", "tkjax-logmel-2"  # extractors: as loud as it is; at the reference level
LOGMEL = {
    "kind": "logmel",
    "rate_hz": RATE / HOP,
    "start_s": HOP / 2 / RATE,
    "extractor": LEVELLED,
    "window": 16,
    "hop": 2,
    "left": 8,
    "pad": 8,
}
_GAP_S = 0.1  # timestamps that stray further than this from the sample count are believed
_INTEGERS = ("u8", "s16", "s32", "s64")  # sample formats that cannot leave their range
_PADDING = 2048  # samples that an encoder may add to fill its last frame
_log = logging.getLogger("tkjax.media.audio")


# ---------------------------------------------------------------- decode


def open_media(path: str | Path) -> av.container.InputContainer:
    """An opened media file; the error is one sentence with the path and the reason."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}, expected a video or sound file")
    try:
        return av.open(str(path), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as e:
        raise UserError(f"{path}: not a media file that can be read ({_reason(e)}), expected video or sound") from e


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0].rstrip(".")


def moving_picture(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video stream that is not cover art."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def _zero_time(path: Path) -> Fraction | None:
    """When the first video frame shows, in seconds of the file's clock; None without a moving picture."""
    with open_media(path) as container:
        stream = moving_picture(container)
        if stream is None:
            return None
        try:
            frame = next(container.decode(stream), None)
        except (av.FFmpegError, OSError):
            return None  # whoever wants the pictures reports that they cannot be decoded
        return None if frame is None or frame.pts is None else frame.pts * frame.time_base


def sound_zero(path: str | Path) -> Fraction:
    """Time zero of a file with sound, in seconds of its own clock."""
    path = Path(path)
    zero = _zero_time(path)
    with open_media(path) as container:
        stream = _sound_track(container, path)
        if zero is not None:
            return zero
        try:
            head = next((f for f in _packets_decoded(container, stream, path) if f.samples), None)
        except (av.FFmpegError, OSError) as e:
            raise UserError(f"{path}: its sound cannot be decoded ({_reason(e)}), expected an undamaged file") from e
        if head is None:
            raise UserError(f"{path}: its sound track holds no sound, expected a file with sound")
        return Fraction(0) if head.pts is None else head.pts * head.time_base


def _packets_decoded(container: av.container.InputContainer, stream: av.AudioStream, path: Path) -> Iterator:
    """Decoded frames; packets that cannot be decoded are left out (their time stays silent) and reported once."""
    bad = 0
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except (av.InvalidDataError, av.error.PatchWelcomeError) as e:
            bad += 1
            if bad == 1:
                _log.warning("%s: a sound packet cannot be decoded (%s); silence stands in its place", path, _reason(e))


class _Converter:
    """Frames of any format -> float32 [1 or 2, n] at one rate; more channels become stereo; follows changes."""

    def __init__(self, rate: int):
        self.rate, self.key, self.resampler = rate, None, None

    def push(self, frame: av.AudioFrame) -> list[np.ndarray]:
        key = (frame.format.name, frame.layout.name, frame.sample_rate)
        out = []
        if key != self.key:
            out = self.flush()
            layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
            self.key, self.resampler = key, av.AudioResampler(format="fltp", layout=layout, rate=self.rate)
        frame.pts = None
        return out + [f.to_ndarray() for f in self.resampler.resample(frame)]

    def flush(self) -> list[np.ndarray]:
        if self.resampler is None:
            return []
        out, self.resampler, self.key = [f.to_ndarray() for f in self.resampler.resample(None)], None, None
        return out


def decode_audio(path: str | Path, rate: int | None, channels: int = 1) -> Iterator[np.ndarray]:
    """Blocks float32 [channels, n] of any length at `rate` Hz (None: the file's), from time zero on.

    channels 1 (the file's mixed) or 2. Samples at full scale reach 1; how those of other ranges, dead channels and
    channels in antiphase are taken is decided by a pass over the file (`media.intake`), and UserError says which sample
    is no number. Gaps in the file's timestamps become silence. Memory is constant.
    """
    path = Path(path)
    taken = intake_of(path)
    with _sound_of(path) as (source_hz, blocks):
        resample = None if rate in (None, source_hz) else _Converter(rate)
        for block in blocks:
            yield from _resampled(resample, taken.take(block, channels), source_hz)
        if resample is not None:
            yield from resample.flush()


def intake_of(path: str | Path) -> Intake:
    """How the samples of a file are taken; what is odd about them is logged, once for each file."""
    path = Path(path)
    with open_media(path) as container:
        stream = _sound_track(container, path)
        layout, kind = stream.layout, stream.format
        if layout.nb_channels == 1 and kind is not None and kind.name.rstrip("p") in _INTEGERS:
            return Intake()
    at = path.stat()
    return _scanned(path, at.st_size, at.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _scanned(path: Path, size: int, changed_ns: int) -> Intake:
    with _sound_of(path) as (source_hz, blocks):
        scan = Scan(path, source_hz)
        for block in blocks:
            scan.add(block)
    taken = scan.decide()
    if taken.note:
        _log.warning("%s: %s", path, taken.note)
    return taken


def _sound_track(container: av.container.InputContainer, path: Path) -> av.AudioStream:
    if not container.streams.audio:
        raise UserError(f"{path}: has no sound track, expected a file with sound")
    return container.streams.audio[0]


@contextlib.contextmanager
def _sound_of(path: Path) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
    """(rate, blocks [1 or 2, n]) of a file as decoded; failures of decoding are sentences."""
    with open_media(path) as container:
        try:
            yield _placed(container, _sound_track(container, path), path)
        except (av.FFmpegError, OSError) as e:
            raise UserError(f"{path}: its sound cannot be decoded ({_reason(e)}), expected an undamaged file") from e


def _placed(container, stream: av.AudioStream, path: Path) -> tuple[int, Iterator[np.ndarray]]:
    """(source rate, blocks at that rate from time zero on), sound laid where its timestamps say."""
    frames = (f for f in _packets_decoded(container, stream, path) if f.samples)
    head = next(frames, None)
    if head is None:
        raise UserError(f"{path}: its sound track holds no sound, expected a file with sound")
    source_hz = head.sample_rate
    zero = _zero_time(path)
    if zero is None:
        zero = 0 if head.pts is None else head.pts * head.time_base
    end = _end_time(container, stream)
    stop = None if end is None else round((end - zero) * source_hz)

    def blocks() -> Iterator[np.ndarray]:
        convert = _Converter(source_hz)
        done, started = 0, False  # samples placed so far
        for frame in itertools.chain([head], frames):
            at = done if frame.pts is None else round((frame.pts * frame.time_base - zero) * source_hz)
            for block in convert.push(frame):
                gap = at - done if not started or abs(at - done) > _GAP_S * source_hz else 0
                while gap > 0:  # silence before sound that starts late, or in a hole
                    silence = np.zeros((len(block), min(gap, source_hz)), np.float32)
                    gap -= silence.shape[1]
                    done += silence.shape[1]
                    yield silence
                at += block.shape[1]
                block = block[:, -gap:]  # without what lies before time zero, or is told twice
                if stop is not None and 0 < done + block.shape[1] - stop < _PADDING:
                    block = block[:, : max(stop - done, 0)]
                if block.shape[1]:
                    started = True
                    done += block.shape[1]
                    yield block
        yield from convert.flush()

    return source_hz, blocks()


def _end_time(container, stream: av.AudioStream) -> Fraction | None:
    """Where the sound ends by the file's word, which leaves out the filling of the last AAC frame."""
    if "mov" not in container.format.name.split(",") or stream.duration is None or stream.start_time is None:
        return None
    return (stream.start_time + stream.duration) * stream.time_base


def _resampled(resample: _Converter | None, block: np.ndarray, source_hz: int) -> list[np.ndarray]:
    if resample is None:
        return [block]
    layout = "mono" if len(block) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=layout)
    frame.sample_rate = source_hz
    return resample.push(frame)


def resample_blocks(blocks: Iterable[Float[np.ndarray, " n"]], rate: int, to: int) -> Iterator[np.ndarray]:
    """Mono blocks at `rate` Hz -> blocks float32 [1, n] at `to` Hz, as if they were one sound."""
    convert = None if rate == to else _Converter(to)
    for block in blocks:
        if len(block):
            yield from _resampled(convert, np.asarray(block, np.float32)[None], rate)
    if convert is not None:
        yield from convert.flush()


def stream_audio(path: str | Path, rate: int = RATE, block: int = RATE) -> Iterator[Float[np.ndarray, " n"]]:
    """Mono float32 blocks of `block` samples (the last may be shorter) in -1..1; memory is constant."""
    if block < 1:
        raise ValueError(f"block is {block}, expected at least 1 sample")
    kept, size = [], 0
    for part in decode_audio(path, rate):
        kept.append(part[0])
        size += part.shape[1]
        if size >= block:
            whole = np.concatenate(kept)
            for i in range(0, size - block + 1, block):
                yield np.clip(whole[i : i + block], -1, 1)
            kept, size = [whole[size - size % block :]], size % block
    if size:
        yield np.clip(np.concatenate(kept), -1, 1)


def read_audio(path: str | Path, rate: int = RATE) -> Float[np.ndarray, " n"]:
    """A whole sound track: mono float32 in -1..1 at `rate` Hz, from time zero on."""
    parts = list(stream_audio(path, rate))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def write_wav(path: str | Path, pcm: Float[np.ndarray, " n"] | Iterable[np.ndarray], rate: int = RATE) -> None:
    """16-bit mono wav, whole or not at all. pcm float in -1..1 (clipped): an array, or an iterable of arrays."""
    with whole(path) as part, wave.open(str(part), "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(rate)
        for block in [pcm] if isinstance(pcm, np.ndarray) else pcm:
            if block.ndim != 1 or block.dtype.kind != "f":
                raise ValueError(f"sound is {block.dtype} {block.shape}, expected float samples [n] in -1..1")
            w.writeframes(np.clip(np.rint(block * 32768.0), -32768, 32767).astype("<i2").tobytes())


# ---------------------------------------------------------------- log-mel


def _mel_points() -> np.ndarray:
    """[BANDS + 2] corner frequencies in Hz, equally spaced on Slaney's scale (linear to 1 kHz, then log)."""
    per_mel, knee, step = 200.0 / 3, 15.0, math.log(6.4) / 27

    def mel(hz: float) -> float:
        return hz / per_mel if hz < 1000 else knee + math.log(hz / 1000) / step

    m = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), BANDS + 2)
    return np.where(m < knee, m * per_mel, 1000 * np.exp(np.maximum(m - knee, 0) * step))


_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
_POINTS = _mel_points()
_BIN_HZ = RATE / FFT
_BINS = np.arange(math.ceil(_POINTS[0] / _BIN_HZ), math.ceil(_POINTS[-1] / _BIN_HZ))
_SEGMENT = np.searchsorted(_POINTS, _BINS * _BIN_HZ, "right") - 1  # between which corners each bin lies
_STARTS = np.searchsorted(_SEGMENT, np.arange(BANDS + 1))
# A sine of full scale has power (Σw / 2)² in its bin and spreads over FFT·Σw² / (Σw)² bins.
_RISE = (_BINS * _BIN_HZ - _POINTS[_SEGMENT]) / np.diff(_POINTS)[_SEGMENT]
_POWER_SCALE = 1 / ((_HANN.sum() / 2) ** 2 * FFT * (_HANN**2).sum() / _HANN.sum() ** 2)


_SPEECH_HZ = 200.0, 4000.0  # where the level is measured: without rumble, hum and the hiss of s
SPEECH = slice(*np.searchsorted(_POINTS[1:-1], _SPEECH_HZ))  # the bands with these centres


def _power(samples: np.ndarray, n: int) -> np.ndarray:
    """E of the first n steps of samples that begin 40 before the first hop: [n, BANDS]."""
    out = np.empty((n, BANDS))
    for a in range(0, n, 64):
        b = min(a + 64, n)
        frames = np.lib.stride_tricks.sliding_window_view(samples[a * HOP : (b - 1) * HOP + WINDOW], WINDOW)[::HOP]
        spectrum = np.fft.rfft(frames * _HANN, FFT)[:, _BINS]
        power = (spectrum.real**2 + spectrum.imag**2) * _POWER_SCALE
        rising = np.add.reduceat(power * _RISE, _STARTS, axis=1)
        falling = np.add.reduceat(power * (1 - _RISE), _STARTS, axis=1)
        out[a:b] = rising[:, :-1] + falling[:, 1:]
    return out


class LogMel:
    """Streaming log-mel: the steps that `push` and `flush` return, joined, equal `logmel` of the joined pcm."""

    def __init__(self, extractor: str = LEVELLED):
        if extractor not in (RAW, LEVELLED):
            raise UserError(
                f"log-mel features of the extractor {extractor!r} are not made here, expected {LEVELLED} or {RAW}; "
                "give ready features with --features"
            )
        self._levelled = extractor == LEVELLED
        self._reset()

    def _reset(self) -> None:
        self._kept = np.zeros((WINDOW - HOP) // 2)
        self._pushed = self._given = 0
        self._level = Level() if self._levelled else None

    def push(self, pcm: Float[np.ndarray, " n"]) -> Float[np.ndarray, "k 80"]:
        """Take samples (any number) at 16 kHz; give the steps that they complete."""
        self._kept = np.concatenate([self._kept, np.asarray(pcm, np.float64)])
        self._pushed += len(pcm)
        return self._give(max(0, (len(self._kept) - WINDOW) // HOP + 1))

    def flush(self) -> Float[np.ndarray, "k 80"]:
        """The last steps, with silence behind the end; afterwards a new clip may begin."""
        left = -(-self._pushed // HOP) - self._given
        missing = max(0, (left - 1) * HOP + WINDOW - len(self._kept))
        self._kept = np.concatenate([self._kept, np.zeros(missing)])
        out = self._give(left)
        self._reset()
        return out

    def _give(self, n: int) -> np.ndarray:
        n = max(n, 0)
        power = _power(self._kept, n)
        if self._level is not None:
            power *= np.array([self._level.gain(math.fsum(row[SPEECH])) for row in power]).reshape(n, 1)
        self._kept = self._kept[n * HOP :]
        self._given += n
        return (SCALE * np.log1p(power / FLOOR)).astype(np.float32)


def logmel(pcm: Float[np.ndarray, " n"], extractor: str = LEVELLED) -> Float[np.ndarray, "k 80"]:
    """Log-mel features of a whole clip at 16 kHz: [ceil(n / 320), 80]."""
    stream = LogMel(extractor)
    return np.concatenate([stream.push(pcm), stream.flush()])


def power_of(steps: Float[np.ndarray, "k 80"]) -> Float[np.ndarray, " k"]:
    """Power between 200 and 4000 Hz that log-mel steps say, relative to a sine of full scale."""
    return FLOOR * np.expm1(steps[:, SPEECH].astype(np.float64) / SCALE).sum(1)


def speech_power(path: str | Path) -> Float[np.ndarray, " k"]:
    """Power between 200 and 4000 Hz of each step of a file, relative to a sine of full scale."""
    stream = LogMel(RAW)
    parts = [stream.push(block) for block in stream_audio(path)]
    return power_of(np.concatenate([*parts, stream.flush()]))


def logmel_features(features: Float[np.ndarray, "k 80"]) -> AudioFeatures:
    """Log-mel steps with the facts that belong to them."""
    return AudioFeatures(features=features, **LOGMEL)


def audio_features(path: str | Path, kind: str = "logmel") -> AudioFeatures:
    """Features of a sound file. Only `logmel` is made here; other kinds come from preprocessing."""
    if kind != "logmel":
        raise UserError(
            f"sound features of kind {kind!r} are not made here, expected logmel or a file of preprocess.audio.extract"
        )
    stream = LogMel()
    parts = [stream.push(block) for block in stream_audio(path)]
    return logmel_features(np.concatenate([*parts, stream.flush()]))
