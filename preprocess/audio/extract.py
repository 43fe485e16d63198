"""Sound features: log-mel (no weights), wav2vec2 and HuBERT through transformers, as contract.AudioFeatures files.

`python -m preprocess.audio.extract --audio A --kind hubert=PATH --out X.npz`

Both networks see 400 samples (25 ms) of 16 kHz every 320 (20 ms): n samples give (n - 400) // 320 + 1 steps, step k
centred at (200 + 320 k) / 16000 s. wav2vec2: CTC logits (hidden states of a checkpoint without a CTC head), windows of
16 steps, hop 2, 8 zeros on both sides; HuBERT: last hidden state cut to an even number of steps, windows of 2 without
overlap (er-nerf.md §2; 10 s make 499 steps, 250 windows for wav2vec2 and 249 for HuBERT).

The sound is normalised with mean and variance of the whole file where the checkpoint asks for it (a first pass over
the file), then runs in blocks of 500 steps with 100 steps of context on both sides, so memory does not grow. A sound
of up to 600 steps (12 s) is one block, the undivided run itself; longer ones differ by what attention
draws from more than 2 s away, and, in checkpoints with a group norm over time (wav2vec2-base), by its statistics.

`--segments` extracts as RAD-NeRF (wav2vec2) and Avatar-ERNeRF (also HuBERT) do, for avatars that learnt from their
arrays: pieces of 10 + 50 + 10 steps of 20 ms, each normalised alone, of which the middle is kept; windows of 16.
"""

import argparse
import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.command import exit_code
from preprocess.workers import native
from tkjax.contract import AudioHeader, save_audio_features, save_audio_rows
from tkjax.errors import UserError
from tkjax.media import audio

RATE, HOP, KERNEL = 16000, 320, 400
BLOCK, CONTEXT = 500, 100  # steps
LEFT, MIDDLE, RIGHT = 10, 50, 10  # steps of a piece (rad-nerf.md §2.5, avatar-ernerf.md §2.4 task 6)
THREADS = 2  # fixed: sums depend on it in the last bits
START_S = KERNEL / 2 / RATE
WINDOWS = {
    "wav2vec2": {"window": 16, "hop": 2, "left": 8, "pad": 8},
    "hubert": {"window": 2, "hop": 2, "left": 0, "pad": 0},
}
KINDS = ("logmel", *WINDOWS)


def parse_kinds(text: str) -> dict[str, str]:
    """'logmel,wav2vec2=PATH,hubert=NAME' -> {kind: path or hub name}; UserError for anything else."""
    out = {}
    for part in (p.strip() for p in text.split(",")):
        kind, _, where = part.partition("=")
        if kind not in KINDS:
            raise UserError(f"sound feature {kind!r} is unknown; choose from logmel, wav2vec2=PATH and hubert=PATH")
        if bool(where) == (kind == "logmel"):
            raise UserError(f"sound feature {part!r} is not understood; write logmel, wav2vec2=PATH or hubert=PATH")
        if kind in out:
            raise UserError(f"sound feature {kind} is given twice; give it once")
        out[kind] = where
    return out


@dataclasses.dataclass
class Encoder:
    """A checkpoint ready to run: samples float32 [n] (normalised) -> features [steps, C]."""

    kind: str
    model: object
    normalise: bool
    identity: str

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            out = self.model(torch.from_numpy(samples)[None])
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0].float().numpy()


def load_encoder(kind: str, where: str) -> Encoder:
    """The checkpoint at a local path or hub name; UserError in one sentence when it cannot be had or does not fit."""
    with native("transformers"):
        import torch
        import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(THREADS)
    local = Path(where).expanduser()
    name = str(local) if local.exists() else where
    if not local.exists() and (where.startswith(("/", ".", "~")) or where.count("/") > 1):
        raise UserError(
            f"{kind} checkpoint {where} does not exist; give a local folder or a hub name such as owner/model"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        family = {"wav2vec2": "wav2vec2", "hubert": "hubert"}[kind]
        if config.model_type != family:
            raise ValueError(f"it holds a {config.model_type} model")
        ctc = kind == "wav2vec2" and any("ForCTC" in a for a in config.architectures or ())
        model = (transformers.AutoModelForCTC if ctc else transformers.AutoModel).from_pretrained(
            name, dtype=torch.float32
        )
        strides, kernels = list(config.conv_stride), list(config.conv_kernel)
        if int(np.prod(strides)) != HOP or _receptive(kernels, strides) != KERNEL:
            raise ValueError(f"it sees {_receptive(kernels, strides)} samples every {int(np.prod(strides))}")
        normalise = _asks_for_normalising(transformers, name)
    except (
        Exception
    ) as e:  # transformers raises many kinds; each is the same to the user: this checkpoint cannot be used
        reason = " ".join(str(e).split())[:160].rstrip(".")
        raise UserError(
            f"{kind} checkpoint {where} cannot be used ({reason}); give a local folder or a hub name of a {kind} "
            f"model with {KERNEL} samples a step every {HOP}"
        ) from e
    model.eval()
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    head = "logits" if ctc else "hidden"
    return Encoder(kind, model, normalise, f"{kind}-{head}-{config.hidden_size}-{digest.hexdigest()[:16]}")


def _receptive(kernels: list[int], strides: list[int]) -> int:
    """Samples that one step sees."""
    size, jump = 1, 1
    for k, s in zip(kernels, strides, strict=True):
        size += (k - 1) * jump
        jump *= s
    return size


def _asks_for_normalising(transformers, name: str) -> bool:
    """Whether the checkpoint's feature extractor normalises; True, as the library does, where it has none."""
    try:
        return bool(transformers.Wav2Vec2FeatureExtractor.from_pretrained(name).do_normalize)
    except OSError:
        return True


def steps_of(n_samples: int) -> int:
    return max(0, (n_samples - KERNEL) // HOP + 1)


def blocks(n_steps: int) -> list[tuple[int, int, int, int]]:
    """(first step computed, last + 1, first kept, last + 1) for each run of the network; kept ranges tile all."""
    if n_steps <= BLOCK + CONTEXT:
        return [(0, n_steps, 0, n_steps)] if n_steps else []
    out = []
    for a in range(0, n_steps, BLOCK):
        b = min(a + BLOCK, n_steps)
        out.append((max(a - CONTEXT, 0), min(b + CONTEXT, n_steps), a, b))
    return out


class _Window:
    """Samples of a stream by position; what lies before the last position asked for is dropped."""

    def __init__(self, stream: Iterator[np.ndarray]):
        self.stream, self.start, self.held = stream, 0, np.zeros(0, np.float32)

    def take(self, a: int, b: int) -> np.ndarray:
        parts, end = [self.held[a - self.start :]], self.start + len(self.held)
        while end < b:
            block = next(self.stream)
            parts.append(block)
            end += len(block)
        self.held, self.start = np.concatenate(parts), a
        return self.held[: b - a]


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a first pass over a sound tells: its samples at 16 kHz, their mean, and one over their deviation."""

    samples: int
    mean: float
    scale: float


def _facts(path: str | Path) -> _Facts:
    count, total, squares = 0, 0.0, 0.0
    for block in audio.stream_audio(path, RATE, RATE):
        count += len(block)
        total += float(block.sum(dtype=np.float64))
        squares += float((block.astype(np.float64) ** 2).sum())
    mean = total / count
    return _Facts(count, mean, 1 / float(np.sqrt(squares / count - mean**2 + 1e-7)))


def _too_short(path: str | Path, samples: int, kind: str) -> UserError:
    return UserError(
        f"{path} holds {samples} samples at 16 kHz, too few for {kind} features; at least 0.1 s are needed"
    )


def encoded(encoder: Encoder, path: str | Path) -> tuple[int, Iterator[np.ndarray]]:
    """(steps, blocks [k, C] of the features) of a sound file; UserError when it is shorter than one step (two for
    HuBERT)."""
    facts = _facts(path)
    n = steps_of(facts.samples)
    if encoder.kind == "hubert":
        n -= n % 2
    if n <= 0:
        raise _too_short(path, facts.samples, encoder.kind)
    mean, scale = (facts.mean, facts.scale) if encoder.normalise else (0.0, 1.0)

    def run() -> Iterator[np.ndarray]:
        window = _Window(audio.stream_audio(path, RATE, RATE))
        for first, last, keep, end in blocks(n):
            samples = window.take(first * HOP, (last - 1) * HOP + KERNEL)
            features = encoder(((samples - mean) * scale).astype(np.float32))
            yield features[keep - first : end - first].copy()

    return n, run()


def encode(encoder: Encoder, path: str | Path) -> np.ndarray:
    """The same as one array [steps, C]."""
    return np.concatenate(list(encoded(encoder, path)[1]))


def encoded_segments(encoder: Encoder, path: str | Path) -> tuple[int, Iterator[np.ndarray]]:
    """(steps, blocks [k, C]) as the originals stream them: T pieces of 320 samples give T - 1 steps.

    LEFT silent pieces stand in front. Whenever LEFT + MIDDLE + RIGHT pieces are there, the network sees them, its
    steps LEFT … LEFT + MIDDLE - 1 are kept and the last LEFT + RIGHT pieces stay; at the end it sees what is left and
    all from step LEFT on are kept.
    """
    count = _facts(path).samples
    if steps_of(count) < 1:
        raise _too_short(path, count, encoder.kind)

    def see(samples: np.ndarray) -> np.ndarray:
        if encoder.normalise:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return encoder(samples.astype(np.float32))

    def run() -> Iterator[np.ndarray]:
        held = np.zeros(LEFT * HOP, np.float32)
        for piece in audio.stream_audio(path, RATE, HOP):
            held = np.concatenate([held, piece])
            if len(held) == (LEFT + MIDDLE + RIGHT) * HOP:
                yield see(held)[LEFT : LEFT + MIDDLE].copy()
                held = held[-(LEFT + RIGHT) * HOP :]
        yield see(held)[LEFT:]

    return steps_of(count), run()


def encode_segments(encoder: Encoder, path: str | Path) -> np.ndarray:
    """The same as one array [steps, C]."""
    return np.concatenate(list(encoded_segments(encoder, path)[1]))


def write_features(path: str | Path, kind: str, where: str, out: Path, segments: bool = False) -> None:
    """Write the features of a sound file to `out` (contract's audio_<kind>.npz), whole or not at all."""
    if kind == "logmel":
        f = audio.audio_features(path)
        save_audio_features(out, kind, f.features, f.rate_hz, f.start_s, f.extractor, f.window, f.hop, f.left, f.pad)
        return
    encoder = load_encoder(kind, where)
    n, rows = (encoded_segments if segments else encoded)(encoder, path)
    head = next(rows)
    cut = WINDOWS["wav2vec2" if segments else kind]
    identity = f"{encoder.identity}-segments" if segments else encoder.identity
    header = AudioHeader(kind, RATE / HOP, START_S, identity, **cut, steps=n, channels=head.shape[1])
    save_audio_rows(out, header, itertools.chain([head], rows))


def audio_stage(folder: Path, wav: Path, kinds: dict[str, str]) -> None:
    """Stage: audio_<kind>.npz for each kind; those that are there stay."""
    for kind, where in kinds.items():
        out = folder / f"audio_{kind}.npz"
        if not out.exists():
            write_features(wav, kind, where, out)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0, or 2 with one sentence on standard error."""
    parser = argparse.ArgumentParser("preprocess.audio.extract", description="Features of a sound file for tkjax.")
    parser.add_argument("--audio", required=True, help="wav, mp3, m4a, mp4: anything PyAV reads")
    parser.add_argument("--kind", required=True, help="logmel, wav2vec2=PATH or hubert=PATH (local folder or hub name)")
    parser.add_argument("--out", required=True, help="the npz file to write")
    parser.add_argument(
        "--segments", action="store_true", help="in pieces as RAD-NeRF and Avatar-ERNeRF, windows of 16"
    )
    args = parser.parse_args(argv)

    def work() -> None:
        kinds = parse_kinds(args.kind)
        if len(kinds) != 1:
            raise UserError(f"--kind={args.kind} names {len(kinds)} kinds; give one")
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        [(kind, where)] = kinds.items()
        write_features(args.audio, kind, where, Path(args.out), args.segments)

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
