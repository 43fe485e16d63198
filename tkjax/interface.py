"""The seam between systems and everything else: what a Model is, and a Stage of its training.

A system is one module `tkjax/models/<name>.py` with a class `Model(config, info)`; trainer, renderer
and evaluator know nothing else about it. `tkjax.models.load_system` finds it.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from tkjax.types import Batch, Clock, PyTree, Render, SubjectInfo, Variables

Weight = float | Callable[[jax.Array], jax.Array]  # a constant, or a function of progress in 0…1


@dataclasses.dataclass(frozen=True)
class Rate:
    """Learning rate of one parameter group: lr * final_factor ** progress, AdamW with `decay`."""

    lr: float
    final_factor: float = 1.0
    decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8

    def scaled(self, factor: float, final_factor: float) -> "Rate":
        """The same group, starting at `factor` of this rate."""
        return dataclasses.replace(self, lr=self.lr * factor, final_factor=final_factor)


@dataclasses.dataclass(frozen=True)
class Ema:
    """Moving average of the parameters, every `every` steps, with decay min(decay, (1+n)/(10+n))."""

    decay: float = 0.95
    every: int = 1000


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training as data.

    samplers: cycle over steps of `rays` (uniform with replacement), `focus` (a sixth of them in
      the lips box), `close` (a quarter), `patch` (square patches),
      `lips` (pixels of the lips box) or `frame` (every pixel). rays: pixels per frame and step.
    rates: group name -> Rate; groups without a rate are frozen. weights: term -> Weight; a term
      without a weight is an error. background: what stands behind the model, `torso` (true torso over plate) or
      `plate`. target: what it is compared with, the whole `frame`, or the `torso` (the true torso over the plate).
    frames: in the global batch of a step, at least (the next multiple of the devices), 0 for `train.frames`.
    rare: frames with closed eyes, and those with wide open mouths, are repeated until each are at least this share of
      what a step sees (`batches.shown_more`), 0 for as often as they come.
    optional: later stages can be trained without it.
    refresh_every: steps between calls of Model.refresh, 0 for never. seed: another one gives the stage other random
      numbers, so that it can be repeated from one saved stage before it.
    """

    name: str
    steps: int
    rays: int
    rates: Mapping[str, Rate]
    weights: Mapping[str, Weight]
    samplers: tuple[str, ...] = ("rays",)
    patch: int = 32
    background: str = "torso"
    target: str = "frame"
    frames: int = 0
    rare: float = 0.0
    optional: bool = False
    refresh_every: int = 0
    seed: int = 0
    ema: Ema | None = Ema()


class Model:
    """A talking-portrait system. Subclasses override what differs; instances hold only constants."""

    def __init__(self, config: ConfigDict, info: SubjectInfo):
        self.config, self.info = config, info

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables."""
        raise NotImplementedError

    def prepare(self, variables: Variables, cam_to_world, intrinsics) -> Variables:
        """Once before training: what the training cameras (numpy [n,4,4], [n,4]) see. Default: identity."""
        del cam_to_world, intrinsics
        return variables

    def render(self, variables: Variables, batch: Batch, key: jax.Array | None, clock: Clock, train: bool) -> Render:
        """Draw the batch's pixels without its background. key None means deterministic; what is drawn at random for a
        frame hangs on `frame_keys`, never on its place in the batch, so that any split over devices draws the same."""
        raise NotImplementedError

    def loss_terms(
        self, variables: Variables, render: Render, batch: Batch, key: jax.Array, clock: Clock
    ) -> dict[str, jax.Array]:
        """Scalars by name, unweighted; each a mean over the batch's frames."""
        raise NotImplementedError

    def refresh(self, variables: Variables, batch: Batch, key: jax.Array, clock: Clock) -> Variables:
        """Update `state` (never params) on schedule; must not depend on the device it runs on."""
        del batch, key, clock
        return variables

    def labels(self, params: PyTree) -> PyTree:
        """A tree like params with the name of each leaf's parameter group."""
        return jax.tree.map(lambda _: "all", params)

    def parts(self, params: PyTree) -> dict[str, PyTree]:
        """The parameters by what they draw, for counting them."""
        return {"all": params}

    def maps(self, variables: Variables, batch: Batch, clock: Clock) -> dict[str, jax.Array]:
        """Pictures [B,R] of what the model knows beside colour (depth, uncertainty, …), by name; none by default."""
        del variables, batch, clock
        return {}

    def stages(self) -> tuple[Stage, ...]:
        """Stages in order, from self.config."""
        raise NotImplementedError


def frame_keys(key: jax.Array, batch: Batch, use: int) -> jax.Array:
    """One key [B] per frame and use, from the frame's number: any split of frames over devices draws the same."""
    return jax.vmap(lambda frame: jax.random.fold_in(jax.random.fold_in(key, use), frame))(batch.frame)


def initialise(model: Model, key: jax.Array) -> Variables:
    """`model.init`, compiled. The optimiser of the compiler works at level 1: the same bits in half of the time (6.5 s
    instead of 12.8 for a small RAD-NeRF), nearly all of which goes into code that draws random numbers once."""
    return jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 1})(key)
