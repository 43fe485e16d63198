"""The seam between systems and everything else: what a Model is, and a Stage of its training.

A system is one module `tkjax/models/<name>.py` with a class `Model(config, info)`; trainer, renderer
and evaluator know nothing else about it. `tkjax.models.load_system` finds it.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from ml_collections import ConfigDict

from tkjax.signals import Use
from tkjax.types import Batch, ClipFacts, Clock, PyTree, Render, SubjectInfo, Variables

Weight = float | Callable[[jax.Array], jax.Array]  # a constant, or a function of progress in 0…1


@dataclasses.dataclass(frozen=True)
class Rate:
    """Learning rate of one parameter group, AdamW with `decay`. At step s of a stage of n steps it is

      max(lr * final_factor ** (s / n) * product of the factors whose step is at most s, floor * lr),

    and 0 before `joins`: constant, exponential, by steps, with a floor, or of a group that joins later (it does not
    move before, nor does its optimiser count). `drops`: (step, factor) pairs.
    """

    lr: float
    final_factor: float = 1.0
    decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    drops: tuple[tuple[int, float], ...] = ()
    floor: float = 0.0
    joins: int = 0

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

    samplers: names of `tkjax.samplers`, in turn over the steps. rays: pixels per frame and step, patch: the side of
      patches, where the sampler takes them.
    rates: group name -> Rate; groups without a rate are frozen. weights: term -> Weight; a term
      without a weight is an error. background: what stands behind the model, `torso` (true torso over plate), the
      `plate`, `white` or `black`. target: what it is compared with, the whole `frame`, the `torso` (the true torso over
      the plate), or the `head` (its pixels over `background`).
    masks: boxes whose pixels a loss must know (`face`, `lips`, `eye_left`, `eye_right`, `lower_face`). truth: measures
      of the frame that a loss compares with (`lip_shape`).
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
    masks: tuple[str, ...] = ()
    truth: tuple[str, ...] = ()
    frames: int = 0
    rare: float = 0.0
    optional: bool = False
    refresh_every: int = 0
    seed: int = 0
    ema: Ema | None = Ema()


class Model:
    """A talking-portrait system. Subclasses override what differs; instances hold only constants.

    torso_in_front: a torso that is given, not drawn by the model, lies over the head instead of under it.
    """

    torso_in_front = False

    def __init__(self, config: ConfigDict, info: SubjectInfo):
        self.config, self.info = config, info

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables."""
        raise NotImplementedError

    def signals(self) -> tuple[Use, ...]:
        """What the system is driven by beside the camera; none by default."""
        return ()

    def prepare(self, variables: Variables, facts: ClipFacts) -> Variables:
        """Once before training, with what is known of the training frames. Default: identity."""
        del facts
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

    def project(self, params: PyTree, clock: Clock) -> PyTree:
        """Parameters after an update, put back to where they must lie; frozen groups stay. Default: identity."""
        del clock
        return params

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
