"""The part `response` of a report: what a trained model does when its signals change, how its lips and eyes follow.

In two steps, because the face tracker answers at the end: `responding_to` draws what is not drawn anyhow and shows it
to the `Watch`; `add_curves` fills in what needs the finished watch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tkjax.measure import curves, probe
from tkjax.measure.probe import Actor
from tkjax.measure.watch import Watch, spread

TRAIN_TRUE, TRAIN_DRAWN = 150, 32  # training frames whose truth is measured, and those of them that are drawn


def responding_to(
    watch: Watch, actor: Actor, frames: Int[np.ndarray, " n"], train: Int[np.ndarray, " m"]
) -> dict[str, Any]:
    """Drive test and still head of a model; silence and a sample of training frames go to `watch`. frames: held-out
    ones, train: training ones. What is None has its sentence in `reasons`."""
    clip = actor.clip
    for i in spread(train, TRAIN_TRUE).tolist():
        watch.add("train_true", i, clip.target(i))
    for i in spread(train, TRAIN_DRAWN).tolist():
        watch.add("train_target", i, clip.target(i))
        watch.add("train", i, actor(i)[0])
    quiet, unknown = probe.silence(clip, actor.model)
    for i in frames[: probe.SILENT_FRAMES].tolist() if quiet is not None else ():
        watch.add("silence", i, actor(i, quiet)[0])
    moved, why = probe.drive_test(actor, train)
    return {
        "lips": dict.fromkeys(curves.KEYS),
        "eyes": dict.fromkeys(curves.KEYS),
        "drive_test": moved,
        "still_px": probe.still_px(actor, train),
        "silence_motion": None,
        "reasons": curves.flat("drive_test", why) | ({"silence_motion": unknown} if unknown else {}),
    }


def add_curves(out: dict[str, Any], watch: Watch, rows: Sequence[str], baselines: Sequence[str]) -> None:
    """Fill in lips and eyes: those of the first of `rows` as the model's own, beside them those of all `rows` and
    `baselines`, of a sample of training frames, and in silence."""
    of = {source: watch.respond(source, "train_true") for source in (*rows, *baselines)}
    values, why = of[rows[0]]
    out |= values
    out["reasons"] |= why
    out["closures"] = watch.closures(rows[0], "train_true")
    out["measured_by"] = watch.measured_by
    out["rows"] = {source: of[source][0] for source in rows}
    out["baselines"] = {source: of[source][0] for source in baselines}
    out["train_sample"] = {k: _of_training(watch, k) for k in curves.CURVES if not watch.doubt(k)}
    if "silence_motion" not in out["reasons"]:
        out["silence_motion"], reason = watch.silence("silence", "train_true")
        out["reasons"] |= {"silence_motion": reason} if reason else {}
    out["curves"] = watch.shown(rows[0])


def _of_training(watch: Watch, kind: str) -> dict[str, float]:
    """What needs no frames in a row: whether the model has learnt what it was shown."""
    true, drawn = watch.curve("train_target", kind), watch.curve("train", kind)
    return {"sd_ratio": curves.sd_ratio(true, drawn), "correlation": curves.pearson(true, drawn)}
