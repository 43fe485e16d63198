"""What one coefficient of a trained avatar moves: how open the mouth is, and how much each part of the face changes.

python benchmarks/coefficient.py --workdir=W [--channel=jawOpen] [--steps=6] [--frames=3] [--json=OUT]

W is a run of launch.py whose system is driven by a signal with that channel. In the poses of some training frames with
a detected face the channel goes from 0 to 1, all others stay at 0; the system clamps as it does. `opening` is the
share of the lips' box (widened downwards by half) that looks like the inside of a mouth; the changes are mean absolute
differences from the picture at 0, levels of 255, of the lips' box, both eyes, and the face above the lower face.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tkjax.app import environment, workflow
from tkjax.app.workdir import dataset_of
from tkjax.avatar import bundle
from tkjax.errors import UserError
from tkjax.measure import layers, probe
from tkjax.synthetic.mouth import mouth_opening


def find(info, channel: str) -> tuple[str, int]:
    """(signal, number) of a channel; UserError where there is none."""
    for signal in info.signals:
        if channel in signal.names:
            return signal.name, signal.names.index(channel)
    raise UserError(f"no signal of the avatar has a channel {channel!r}")


def measure(workdir: Path, channel: str, steps: int, frames: int) -> dict:
    subject = bundle.load(workdir / "avatar")
    clip = workflow.open_clip(dataset_of(workdir), workdir, subject.config)
    model = subject.model()
    name, k = find(clip.info, channel)
    actor = probe.Actor(
        clip, model, subject.variables(model), subject.meta["step"], layers.combinations(model, subject.stages)[0],
        subject.config.eval.chunk_rays,
    )  # fmt: skip
    train = clip.train_frames[np.asarray(clip.confidence)[clip.train_frames] > 0]
    places = train[np.linspace(0, len(train) - 1, frames + 2).round().astype(int)[1:-1]]
    values, rows = np.linspace(0, 1, steps), []
    for i in places.tolist():
        x0, y0, x1, y1 = (int(v) for v in clip.boxes["lips_box_px"][i])
        box = (x0, y0, x1, y1 + (y1 - y0) // 2)
        parts = probe.regions(clip, i)
        parts = {"lips": parts["lips"], "eyes": parts["eyes"], "upper_face": parts["face"] & ~parts["lower_face"]}
        pictures = []
        for value in values:
            window = np.zeros((1, 1, 1, clip.info.signal(name).channels), np.float32)
            window[..., k] = value
            pictures.append(actor(i, {name: window})[0])
        moved = [probe.difference(p, pictures[0]) for p in pictures]
        rows.append({
            "frame": i,
            "opening": [mouth_opening(p, box) for p in pictures],
            "change": {part: [float(m[mask].mean()) for m in moved] for part, mask in parts.items()},
        })  # fmt: skip
    opening = np.mean([r["opening"] for r in rows], 0)
    change = {part: np.mean([r["change"][part] for r in rows], 0) for part in rows[0]["change"]}
    return {"channel": channel, "values": values.tolist(), "opening": opening.tolist(),
            "change": {part: v.tolist() for part, v in change.items()}, "frames": rows}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--channel", default="jawOpen")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    environment.prepare()
    out = measure(args.workdir, args.channel, args.steps, args.frames)
    print(f"{args.channel:>12} {'opening':>8} " + " ".join(f"{part:>10}" for part in out["change"]))
    for j, value in enumerate(out["values"]):
        print(f"{value:12.2f} {out['opening'][j]:8.4f} " + " ".join(f"{v[j]:10.2f}" for v in out["change"].values()))
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
