"""Frames and training steps a second of a trained head, back ends side by side in one run, against the roofline.

python benchmarks/head.py --workdir=W [--backends=cpu,reference] [--seconds=20] [--json=OUT]

W is a run of launch.py (avatar/ and its dataset): real cameras, real occupancy. Frames are drawn as --mode=render draws
them; steps are the trainer's own, from the trained parameters, with the config's frames and rays per step. The roofline
is that of the systems in FRAME_FLOP; of others only rates are told.
"""

import argparse
import datetime
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tkjax.app import environment, workflow
from tkjax.app.workdir import dataset_of
from tkjax.avatar import bundle
from tkjax.data.batches import make_loader
from tkjax.errors import UserError
from tkjax.ops import composite_packed, dispatch, field, march_packed
from tkjax.render.image import final_clock, picture, pixel_grid, render_image
from tkjax.train import devices
from tkjax.train.devices import AXIS
from tkjax.train.optim import optimiser
from tkjax.train.step import TrainState, check_terms, make_step

# Per sample of a picture: 23,184 and 28,352 multiply-adds (er-nerf dossier §10, rad-nerf dossier §10)
FRAME_FLOP = {"er_nerf": 46_368, "rad_nerf": 56_704}
# Per sample of a step: 24,368 and 28,352 multiply-adds forward, three times that with the backward pass
STEP_FLOP = {"er_nerf": 146_208, "rad_nerf": 170_112}


def interleaved(runs: dict, seconds: float) -> dict[str, list[float]]:
    """Seconds of repeated calls, taking turns, until every run has had its share of the time (at least 5 calls)."""
    times = {name: [] for name in runs}
    for call in runs.values():
        call()
    while any(len(t) < 5 or sum(t) < seconds / len(runs) for t in times.values()):
        for name, call in runs.items():
            if len(times[name]) >= 5 and sum(times[name]) >= seconds / len(runs):
                continue
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def matmul_rate() -> float:
    """GFLOP/s of a float32 product of two 2048 x 2048 matrices, the best of 7."""
    x = jnp.ones((2048, 2048))
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best = min(interleaved({"x": lambda: product(x, x).block_until_ready()}, 1.0)["x"])
    return 2 * 2048**3 / best / 1e9


def frame_run(subject, clip, index: int):
    """A call that draws a frame, to the end, and gives its picture."""
    model = subject.model()
    variables, clock = subject.variables(model), final_clock(subject.meta["step"])
    frame, hw = clip.frame_batch(index, "torso", model.signals()), (subject.info.height, subject.info.width)

    def call():
        image = render_image(model, variables, frame, hw, clock, subject.config.eval.chunk_rays)
        return picture(image, frame.background.reshape(*hw, 3)).block_until_ready()

    return call


def step_run(subject, clip):
    """A call that does one training step, and one that gives the metrics of the last."""
    model, config = subject.model(), subject.config
    stage = model.stages()[0]
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,), axis_types=(AxisType.Auto,))
    replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    variables = subject.variables(model)
    labels = model.labels(variables.params)
    trained = jax.tree.map(lambda group: group in stage.rates, labels)
    tx = optimiser(stage.rates, labels, stage.steps)
    frames = np.arange(*clip.train_range)
    n = stage.frames or 1
    load = make_loader(clip, frames, stage, config.seed, n, sharded, model.signals())
    batches = [devices.shard(load(i), sharded, n) for i in range(16)]
    sampler = stage.samplers[0]
    zeros = {k: jnp.zeros(2) for k in check_terms(model, stage, variables, {sampler: load(0)})}
    state = TrainState(
        step=jnp.int32(0), key=jax.random.key_data(jax.random.key(0)), params=variables.params, state=variables.state,
        opt=tx.init(variables.params), ema=variables.params if stage.ema else None, sums=zeros,
    )  # fmt: skip
    now = {"state": jax.tree.map(jnp.copy, devices.replicate(state, replicated)), "n": 0}
    step = make_step(model, stage, tx, trained, mesh)

    def call():
        now["state"] = step(now["state"], batches[now["n"] % len(batches)])
        now["n"] += 1
        now["state"].step.block_until_ready()

    def metrics():
        return {k: float(s / n) for k, (s, n) in now["state"].sums.items()}

    return call, metrics, n * stage.rays


def measure(workdir: Path, backends: list[str], seconds: float) -> dict:
    subject = bundle.load(workdir / "avatar")
    clip = workflow.open_clip(dataset_of(workdir), workdir, subject.config)
    first, last = clip.train_range
    frames, steps, rows = {}, {}, []
    for name in backends:
        with dispatch.use(name):
            frames[name] = frame_run(subject, clip, (first + last) // 2)
            steps[name] = step_run(subject, clip)
            frames[name](), steps[name][0]()  # compiled with this back end
    pictures = {name: np.asarray(call()) for name, call in frames.items()}
    steps_off = 255 * np.abs(pictures[backends[0]] - pictures[backends[-1]]).max(-1)
    ceiling = matmul_rate()
    for what, runs in (("frame", frames), ("step", {k: v[0] for k, v in steps.items()})):
        for name, times in interleaved(runs, seconds).items():
            # a refresh comes every few steps: the mean is what a run lasts
            typical = statistics.median(times) if what == "frame" else statistics.fmean(times)
            rows.append({"what": what, "backend": name, "per_second": 1 / typical, "calls": len(times)})
    rays, samples = steps[backends[0]][2], steps[backends[0]][1]()["samples_per_ray"]
    system, kept = subject.config.system, None
    if system in FRAME_FLOP:
        kept = pictured(subject, clip, (first + last) // 2)
        flop = {"step": rays * samples * STEP_FLOP[system], "frame": kept * FRAME_FLOP[system]}
    for row in rows:
        known = kept is not None
        row["roofline_per_second"] = ceiling * 1e9 / flop[row["what"]] if known else None
        row["share_of_roofline"] = row["per_second"] / row["roofline_per_second"] if known else None
        others = [r for r in rows if r["what"] == row["what"] and r["backend"] == "reference"]
        row["ratio_to_reference"] = row["per_second"] / others[0]["per_second"] if others else None
    return {
        "date": datetime.date.today().isoformat(), "jax": jax.__version__, "device": jax.devices()[0].device_kind,
        "kernels": dispatch.preferred(), "size": [subject.info.height, subject.info.width], "matmul_gflops": ceiling,
        "rays_per_step": rays, "samples_per_ray_in_training": samples, "samples_per_frame": kept, "rows": rows,
        "largest_difference_of_255": float(steps_off.max()), "pixels_within_1_of_255": float(np.mean(steps_off <= 1)),
    }  # fmt: skip


def pictured(subject, clip, index: int) -> float:
    """Samples of the frame up to the one at which each ray ends: what no renderer can leave out."""
    model = subject.model()
    variables, m = subject.variables(model), subject.config.model
    hw = (subject.info.height, subject.info.width)
    frame = clip.frame_batch(index, "torso", model.signals()).replace(pixels_px=pixel_grid(*hw)[None])
    rays_o, rays_d, _ = model._rays(variables.params, frame)
    values = model._frame_values(variables.params, frame, None, False)
    noise, capacity = jnp.zeros(len(rays_o)), len(rays_o) * m.samples
    kept = march_packed(rays_o, rays_d, variables.state["bits"], noise, capacity=capacity, **model._marching())
    points = rays_o[kept.ray] + kept.t[:, None] * rays_d[kept.ray]
    rows = {name: (v, None) for name, v in values.items()}
    sigma = field(model.program.select("sigma"), points, rows, variables.params, total=kept.total)
    ones = jnp.ones((capacity, 1))
    sums = composite_packed(sigma[:, 0], kept.t, m.dt, kept.offset, kept.count, ones, ones, stop=m.picture_stop)
    return float(jnp.sum(sums.plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="a finished run of launch.py")
    parser.add_argument("--backends", default="cpu,reference", help="names, separated by commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring frames, and again of steps")
    parser.add_argument("--json", type=Path, help="write the result there")
    args = parser.parse_args()
    environment.show_facts()
    try:
        result = measure(args.workdir, args.backends.split(","), args.seconds)
    except (UserError, ValueError) as error:
        parser.error(str(error))
    for row in result["rows"]:
        ratio = "" if row["ratio_to_reference"] is None else f", {row['ratio_to_reference']:.1f} x reference"
        share = row["share_of_roofline"]
        share = "" if share is None else f", {share:.0%} of the roofline of {row['roofline_per_second']:.1f}/s"
        print(f"{row['what']:6}{row['backend']:11}{row['per_second']:8.2f} /s  ({row['calls']} calls){share}{ratio}")
    kept = result["samples_per_frame"]
    print(
        ("" if kept is None else f"{kept / np.prod(result['size']):.2f} samples a pixel, ")
        + f"{result['samples_per_ray_in_training']:.2f} a ray in training, matmul {result['matmul_gflops']:.0f} GFLOP/s"
    )
    print(
        f"first against last back end: {result['pixels_within_1_of_255']:.2%} of the pixels within 1/255, "
        f"largest difference {result['largest_difference_of_255']:.2f}/255"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
