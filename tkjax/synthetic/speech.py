"""Synthesised speech with the mouth that makes it: one phoneme sequence drives both sound and shape.

Sound: additive harmonics of a gliding f0, weighted by three formant resonances, plus shaped noise.
Mouth: dominance functions (Cohen and Massaro 1993), track(t) = sum_i D_i(t) T_i / sum_i D_i(t) with
D_i = a_i exp(-(|t - c_i| / s_i)^1.5); lip closures of b, p, m are a gate on top so that they are complete.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

SAMPLE_RATE = 16000  # Hz
FPS = 25.0
CONTROL_RATE = 200  # Hz, rate at which formants, amplitudes and mouth targets are laid out

MOUTH = ("jaw", "pucker", "funnel", "stretch", "smile", "upper_up", "lower_down", "roll", "tongue")


@dataclasses.dataclass(frozen=True)
class Phoneme:
    """One sound. Formants in Hz, gains 0…1, durations in seconds, mouth targets 0…1 (default 0)."""

    formants: tuple[int, int, int]
    seconds: float
    voice: float = 0.0  # gain of the harmonics
    noise: float = 0.0  # gain of the noise
    noise_hz: tuple[int, int] = (3000, 1500)  # centre and width of the noise band
    closure: bool = False  # the lips are shut
    stop: bool = False  # silent hold, then a burst
    dominance: float = 1.0
    mouth: tuple[tuple[str, float], ...] = ()


def _m(**kw):
    return tuple(kw.items())


PHONEMES = {
    "a": Phoneme((760, 1220, 2550), 0.17, 1.0, mouth=_m(jaw=0.72, stretch=0.05)),
    "ae": Phoneme((680, 1720, 2450), 0.16, 0.95, mouth=_m(jaw=0.58, stretch=0.35, upper_up=0.25, lower_down=0.2)),
    "e": Phoneme((540, 1860, 2500), 0.14, 0.85, mouth=_m(jaw=0.42, stretch=0.35, upper_up=0.2, lower_down=0.2)),
    "i": Phoneme(
        (290, 2300, 3000), 0.13, 0.6, mouth=_m(jaw=0.2, stretch=0.6, smile=0.35, upper_up=0.2, lower_down=0.2)
    ),
    "o": Phoneme((470, 880, 2450), 0.16, 0.85, mouth=_m(jaw=0.46, pucker=0.35, funnel=0.45)),
    "u": Phoneme((310, 850, 2300), 0.14, 0.6, mouth=_m(jaw=0.2, pucker=0.85, funnel=0.3)),
    "@": Phoneme((500, 1480, 2500), 0.09, 0.7, mouth=_m(jaw=0.32)),
    "m": Phoneme((250, 1050, 2200), 0.1, 0.32, closure=True, dominance=1.6, mouth=_m(jaw=0.08)),
    "b": Phoneme((230, 900, 2200), 0.1, 0.0, closure=True, stop=True, dominance=1.6, mouth=_m(jaw=0.09)),
    "p": Phoneme((230, 900, 2200), 0.11, 0.0, 0.25, (1200, 900), True, True, 1.6, _m(jaw=0.09)),
    "f": Phoneme(
        (350, 1200, 2300), 0.11, 0.0, 0.3, (5000, 3000), dominance=1.4, mouth=_m(jaw=0.1, roll=0.9, upper_up=0.3)
    ),
    "v": Phoneme(
        (300, 1150, 2250), 0.09, 0.3, 0.15, (4500, 3000), dominance=1.4, mouth=_m(jaw=0.1, roll=0.8, upper_up=0.2)
    ),
    "s": Phoneme(
        (320, 1700, 2600),
        0.11,
        0.0,
        0.55,
        (6000, 1500),
        dominance=1.3,
        mouth=_m(jaw=0.1, stretch=0.35, lower_down=0.35, upper_up=0.15),
    ),
    "sh": Phoneme(
        (320, 1700, 2500), 0.12, 0.0, 0.6, (3200, 1300), dominance=1.3, mouth=_m(jaw=0.13, funnel=0.7, pucker=0.25)
    ),
    "z": Phoneme(
        (300, 1700, 2600), 0.1, 0.25, 0.3, (5800, 1500), dominance=1.2, mouth=_m(jaw=0.1, stretch=0.3, lower_down=0.3)
    ),
    "t": Phoneme(
        (330, 1750, 2650), 0.09, 0.0, 0.4, (4200, 2200), stop=True, mouth=_m(jaw=0.14, stretch=0.15, tongue=1.0)
    ),
    "d": Phoneme(
        (280, 1700, 2650), 0.08, 0.12, 0.15, (3800, 2200), stop=True, mouth=_m(jaw=0.16, stretch=0.15, tongue=1.0)
    ),
    "n": Phoneme((260, 1550, 2500), 0.09, 0.35, mouth=_m(jaw=0.18, stretch=0.1, tongue=1.0)),
    "l": Phoneme((340, 1250, 2750), 0.08, 0.5, mouth=_m(jaw=0.25, tongue=1.0)),
    "r": Phoneme((350, 1150, 1650), 0.09, 0.5, mouth=_m(jaw=0.2, pucker=0.35, funnel=0.2)),
    "w": Phoneme((300, 650, 2200), 0.08, 0.45, mouth=_m(jaw=0.1, pucker=0.95)),
    "k": Phoneme((300, 1900, 2350), 0.09, 0.0, 0.35, (2000, 1000), stop=True, dominance=0.6, mouth=_m(jaw=0.24)),
    "g": Phoneme((280, 1850, 2300), 0.08, 0.1, 0.15, (1900, 1000), stop=True, dominance=0.6, mouth=_m(jaw=0.24)),
    "_": Phoneme((500, 1500, 2500), 0.3, closure=True, dominance=0.8, mouth=_m(jaw=0.02)),
}
VOWELS = ("a", "ae", "e", "i", "o", "u", "@")
ONSETS = ("m", "b", "p", "f", "v", "s", "sh", "z", "t", "d", "n", "l", "r", "w", "k", "g", "")
_ONSET_WEIGHTS = np.array([2, 2, 1.6, 1, 1, 1.2, 1, 0.6, 1.2, 1.2, 1, 1.2, 0.8, 1.2, 1, 0.8, 0.8])


def _sequence(rng: np.random.Generator, seconds: float) -> list[tuple[str, float, float, float]]:
    """(phoneme, start s, seconds, gain): phrases of 4-10 syllables between pauses, silent at both ends."""
    out, t = [], 0.0

    def push(name, length, gain=1.0):
        nonlocal t
        length = min(length, seconds - t)
        if length > 0:
            out.append((name, t, length, gain))
            t += length

    push("_", min(0.3, 0.1 * seconds) + 0.1 * rng.random())
    while t < seconds - 0.35:
        rate = rng.uniform(0.95, 1.35)  # slower than hurried speech, so that 25 frames a second see it
        for _ in range(rng.integers(4, 11)):
            stress = 1.25 if rng.random() < 0.4 else rng.uniform(0.8, 1.0)
            onset = rng.choice(ONSETS, p=_ONSET_WEIGHTS / _ONSET_WEIGHTS.sum())
            vowel = rng.choice(VOWELS, p=[0.24, 0.14, 0.15, 0.13, 0.14, 0.12, 0.08])
            if onset:
                push(str(onset), PHONEMES[str(onset)].seconds * rate, min(stress, 1.0))
            push(str(vowel), PHONEMES[str(vowel)].seconds * rate * stress, 0.8 * min(stress, 1.15))
            if rng.random() < 0.22:
                coda = str(rng.choice(["n", "s", "t", "m", "l", "k"]))
                push(coda, PHONEMES[coda].seconds * rate, 0.8)
            if t > seconds - 0.35:
                break
        push("_", rng.uniform(0.25, 0.7))
    push("_", seconds - t)
    return out


def _smooth(x, width):
    """Centred Hann smoothing over `width` control steps along axis 0, edges held."""
    width = max(int(width) | 1, 3)
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    padded = np.pad(x, [(width // 2, width // 2)] + [(0, 0)] * (x.ndim - 1), mode="edge")
    if x.ndim == 1:
        return np.convolve(padded, kernel, "valid")
    return np.stack([np.convolve(padded[:, j], kernel, "valid") for j in range(x.shape[1])], 1)


def _controls(sequence, seconds, rng):
    """Sound and mouth at CONTROL_RATE: formants [m,3], voice, noise [m], noise_hz [m,2], mouth [m,9], closed [m]."""
    m = int(np.ceil(seconds * CONTROL_RATE)) + 2
    t = np.arange(m) / CONTROL_RATE
    formants = np.zeros((m, 3))
    voice, noise, closed = np.zeros(m), np.zeros(m), np.zeros(m)
    noise_hz = np.tile([3000.0, 1500.0], (m, 1))
    total, mouth = np.full(m, 1e-9), np.zeros((m, len(MOUTH)))
    for name, start, length, gain in sequence:
        ph = PHONEMES[name]
        a, b = round(start * CONTROL_RATE), round((start + length) * CONTROL_RATE)
        b = max(b, a + 1)
        if name == "_":
            b = m if start + length > seconds - 1e-6 else b
        formants[a:b] = ph.formants
        if ph.stop:
            burst = a + int(0.72 * (b - a))
            voice[a:burst] = 0.0
            noise[burst:b] = ph.noise * gain
        else:
            voice[a:b] = ph.voice * gain
            noise[a:b] = ph.noise * gain
        noise_hz[a:b] = ph.noise_hz
        # lips meet shortly before the silence starts and part at the burst
        if ph.closure and length > 0:
            shut = b if not ph.stop else a + int(0.78 * (b - a))
            closed[max(a - 3, 0) : shut] = 1.0
        # mouth targets; long sounds are spread over several centres so that they hold
        target = np.array([dict(ph.mouth).get(k, 0.0) for k in MOUTH])
        target[0] *= 0.75 + 0.25 * gain if ph.voice > 0.5 else 1.0
        pieces = max(1, round(length / 0.16))
        for i in range(pieces):
            c, half = start + length * (i + 0.5) / pieces, 0.5 * length / pieces
            near = slice(max(int((c - 0.5) * CONTROL_RATE), 0), int((c + 0.5) * CONTROL_RATE) + 1)
            d = ph.dominance * np.exp(-((np.abs(t[near] - c) / (0.62 * half + 0.018)) ** 1.5))
            total[near] += d
            mouth[near] += d[:, None] * target
    mouth /= total[:, None]
    return {
        "formants": _smooth(formants, 0.06 * CONTROL_RATE),
        "voice": _smooth(voice, 0.035 * CONTROL_RATE),
        "noise": _smooth(noise, 0.02 * CONTROL_RATE),
        "noise_hz": noise_hz,
        "mouth": _smooth(mouth, 0.05 * CONTROL_RATE),
        "closed": _smooth(closed, 0.05 * CONTROL_RATE),
        "shut": closed,
    }


def _pitch(rng, m):
    """f0 [m] in Hz: a slow drift around the speaker's own pitch plus a little tremor."""
    base = rng.uniform(105, 190)
    t = np.arange(m) / CONTROL_RATE
    drift = sum(a * np.sin(2 * np.pi * (f * t + rng.random())) for f, a in ((0.31, 0.09), (0.83, 0.06), (2.1, 0.03)))
    return base * (1 + drift + 0.008 * np.sin(2 * np.pi * 5.3 * t))


def _synthesise(c, f0, n, rng):
    """PCM [n]: harmonics of f0 under the formant envelope plus noise in its band, block by block."""
    out = np.zeros(n)
    bandwidths = np.array([80.0, 100.0, 140.0])
    phase0 = 0.0
    block = SAMPLE_RATE
    hop = SAMPLE_RATE // CONTROL_RATE
    ctrl_t = np.arange(len(f0)) * hop
    for a in range(0, n, block):
        b = min(a + block, n)
        s = np.arange(a, b)
        f0_s = np.interp(s, ctrl_t, f0)
        phase = phase0 + np.cumsum(f0_s) / SAMPLE_RATE
        phase0 = phase[-1] % 1.0
        k0, k1 = a // hop, min(b // hop + 2, len(f0))
        kt = ctrl_t[k0:k1]
        voice = np.interp(s, kt, c["voice"][k0:k1])
        acc = np.zeros(b - a)
        if voice.max() > 1e-4:
            fm, f0_k = c["formants"][k0:k1], f0[k0:k1]
            for h in range(1, int(min(5500 / f0_k.min(), 52)) + 1):
                f = h * f0_k
                # |H| of three resonators in parallel, with a -6 dB/octave source-and-lips slope
                gain = sum(
                    g / np.sqrt((1 - (f / fm[:, j]) ** 2) ** 2 + (bandwidths[j] * f / fm[:, j] ** 2) ** 2)
                    for j, g in enumerate((1.0, 0.55, 0.3))
                )
                gain = gain * (150.0 / (150.0 + f)) * (f < 6000)
                acc += np.interp(s, kt, gain) * np.sin(2 * np.pi * h * phase)
        out[a:b] = 0.16 * voice * acc
    # noise: 20 ms Hann frames, 50 % overlap, coloured in the frequency domain
    size, step = 320, 160
    freq = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    window = np.hanning(size + 1)[:-1]
    noise = rng.standard_normal(n + 2 * size)
    for a in range(-step, n, step):
        k = min(max((a + step) // hop, 0), len(f0) - 1)
        gain = c["noise"][k]
        if gain < 1e-4:
            continue
        centre, width = c["noise_hz"][k]
        shaped = np.fft.irfft(
            np.fft.rfft(noise[a + size : a + 2 * size] * window) * np.exp(-(((freq - centre) / width) ** 2)), size
        )
        lo, hi = max(a, 0), min(a + size, n)
        out[lo:hi] += 0.22 * gain * shaped[lo - a : hi - a]
    return out


def speech(seed: int, seconds: float | int) -> tuple[Float[np.ndarray, " S"], dict[str, Float[np.ndarray, " n"]]]:
    """Sound and mouth of `seconds` of babble; the same seed gives the same bits.

    Returns pcm float32 [round(seconds * 16000)] in -1…1 at 16 kHz, and tracks at 25 frames a second
    (frame i is the instant i / 25 s), each float32 [round(seconds * 25)] in 0…1: the mouth shapes of
    MediaPipe (`jawOpen`, `mouthClose`, `mouthPucker`, `mouthFunnel`, `mouthStretchLeft`, …), `tongue`
    (tip raised), `envelope` (RMS of the sound around the frame, relative to its maximum) and
    `closure` (1 while the lips are shut).
    """
    if not np.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"seconds is {seconds}; it must be a positive number.")
    n, frames = round(seconds * SAMPLE_RATE), max(round(seconds * FPS), 1)
    rng = np.random.default_rng([int(seed), 101])
    c = _controls(_sequence(rng, seconds), seconds, rng)
    f0 = _pitch(rng, len(c["voice"]))
    pcm = _synthesise(c, f0, n, rng)
    pcm = np.tanh(0.9 * pcm / (np.percentile(np.abs(pcm), 99.5) + 1e-9)) * 0.6
    at = np.minimum(np.round(np.arange(frames) * CONTROL_RATE / FPS).astype(int), len(c["closed"]) - 1)
    mouth = dict(zip(MOUTH, c["mouth"][at].T))
    closed = c["closed"][at]
    gate = np.maximum(closed, c["shut"][at])
    tracks = {
        "jawOpen": mouth["jaw"],
        "mouthClose": gate * mouth["jaw"],
        "mouthPressLeft": 0.4 * gate * (mouth["jaw"] > 0.04),
        "mouthPucker": mouth["pucker"],
        "mouthFunnel": mouth["funnel"],
        "mouthStretchLeft": mouth["stretch"],
        "mouthSmileLeft": mouth["smile"],
        "mouthUpperUpLeft": mouth["upper_up"] * (1 - gate),
        "mouthLowerDownLeft": mouth["lower_down"] * (1 - gate),
        "mouthRollLower": mouth["roll"] * (1 - gate),
    }
    for name in [k for k in tracks if k.endswith("Left")]:
        tracks[name[:-4] + "Right"] = tracks[name]
    tracks["tongue"] = mouth["tongue"] * (1 - gate)
    power = np.convolve(pcm**2, np.ones(640) / 640, "same")
    rms = np.sqrt(np.maximum(power[np.minimum((np.arange(frames) * 640), n - 1)], 0))
    tracks["envelope"] = rms / max(rms.max(), 1e-9)
    tracks["closure"] = gate
    return pcm.astype(np.float32), {k: np.clip(v, 0, 1).astype(np.float32) for k, v in tracks.items()}
