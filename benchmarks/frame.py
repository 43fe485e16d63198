"""What a whole frame costs beside its head: head alone, with the modelled torso, and pasted back, in one run.

python benchmarks/frame.py --workdir=W [--size=512] [--seconds=20] [--json=OUT]

W is a run of launch.py whose torso is trained: real cameras, real occupancy. The avatar is drawn at --size pixels a
side, whatever it was trained at, and goes back into a frame of 1280 x 720 (or the square itself, where that is larger).
Each call ends with 8-bit pixels in main memory; nothing overlaps, as it does in --mode=render.
"""

import argparse
import dataclasses
import datetime
import json
import statistics
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.head import interleaved
from tkjax.app import environment, workflow
from tkjax.app.workdir import dataset_of
from tkjax.avatar import bundle
from tkjax.errors import UserError
from tkjax.media.paste_back import Paster
from tkjax.ops import dispatch
from tkjax.render.image import final_clock, picture, render_image

FRAME_HW = (720, 1280)


@jax.jit
def finished(image, behind):
    """8-bit picture and the head's alpha."""
    return jnp.rint(255 * picture(image, behind)).astype(jnp.uint8), image.front[..., 0]


def resized(subject: bundle.Avatar, size: int) -> bundle.Avatar:
    """The avatar with pictures of `size` pixels on the longer side."""
    info = subject.info
    scale = size / max(info.height, info.width)
    hw = round(info.height * scale), round(info.width * scale)
    intrinsics = tuple(v * scale for v in info.intrinsics)
    return dataclasses.replace(
        subject, info=dataclasses.replace(info, height=hw[0], width=hw[1], intrinsics=intrinsics)
    )


def runs(workdir: Path, size: int) -> dict:
    """name -> call that draws one frame."""
    subject = resized(bundle.load(workdir / "avatar"), size)
    clip = workflow.open_clip(dataset_of(workdir), workdir, subject.config)
    if "torso" not in subject.stages:
        raise UserError(f"{workdir}: the torso is not trained; run launch.py --mode=train --stages=torso there")
    model, hw = subject.model(), (subject.info.height, subject.info.width)
    variables = subject.variables(model)
    index = sum(clip.train_range) // 2
    frame = clip.frame_batch(index, "plate", model.signals()).replace(
        intrinsics=np.asarray(subject.info.intrinsics, np.float32)[None]
    )
    frame = jax.tree.map(jnp.asarray, frame)
    plate = np.asarray(Image.fromarray(clip.plate).resize(hw[::-1]))
    label = np.asarray(Image.fromarray(clip.label(index)).resize(hw[::-1], Image.Resampling.NEAREST))
    behind = jnp.asarray(plate, jnp.float32) / 255
    full = tuple(max(a, b) for a, b in zip(FRAME_HW, hw))
    x0, y0 = (full[1] - hw[1]) // 2, (full[0] - hw[0]) // 2
    paster = Paster("blend", (x0, y0, x0 + hw[1], y0 + hw[0]), full, hw)
    base = np.asarray(Image.fromarray(clip.target(index)).resize(full[::-1]))

    def draw(stage: str):
        clock, chunk = final_clock(subject.meta["step"], stage), subject.config.eval.chunk_rays
        drawn = finished(render_image(model, variables, frame, hw, clock, chunk), behind)
        return tuple(np.asarray(v) for v in drawn)

    def paste():
        rgb, front = draw("torso")
        return paster(base, rgb, front, label)[0]

    return {"head": lambda: draw("head"), "head + torso": lambda: draw("torso"), "head + torso + paste-back": paste}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="a finished run of launch.py")
    parser.add_argument("--size", type=int, default=512, help="longer side of the drawn picture")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write the result there")
    args = parser.parse_args()
    environment.show_facts()
    try:
        times = interleaved(runs(args.workdir, args.size), args.seconds)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    typical = {name: statistics.median(t) for name, t in times.items()}
    for name, seconds in typical.items():
        ratio = seconds / typical["head"]
        print(f"{name:28}{1000 * seconds:8.1f} ms  {ratio:.3f} x head alone  ({len(times[name])} calls)")
    if args.json:
        result = {"date": datetime.date.today().isoformat(), "jax": jax.__version__, "size": args.size}
        result |= {"device": jax.devices()[0].device_kind, "kernels": dispatch.preferred(), "seconds": typical}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
