"""The ops in plain PyTorch, as its users would write them: what `python -m benchmarks.ops` compares with.

Each function below is the whole op on tensors; `peers` gives it eager and compiled. Loaded by path, because nothing
under tkjax imports torch.
"""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

PRIMES = (1, 2654435761, 805459861)


class Grid:
    """The numbers of a grid's levels as tensors, made once."""

    def __init__(self, spec, planes: int, device: str):
        def column(values, dtype):
            return torch.tensor(list(values), dtype=dtype, device=device)[:, None]

        levels = spec.table
        self.dims, self.features, self.smooth = spec.dims, spec.features, spec.interpolation == "smoothstep"
        self.entries = column((level.entries for level in levels), torch.int64)
        self.hashed = column((level.hashed for level in levels), torch.bool)
        self.any_hashed = any(level.hashed for level in levels)
        self.all_hashed = all(level.hashed for level in levels)
        self.strides = [column((level.strides[d] for level in levels), torch.int64) for d in range(spec.dims)]
        self.scale = column((level.scale for level in levels), torch.float32)
        plane = torch.arange(planes, device=device)[:, None, None] * spec.entries
        self.offset = column((level.offset for level in levels), torch.int64) + plane


def grid_encode(tables, points, grid):
    """tables [P,T,F], points [N,P,D] -> [N,P,L*F]: all levels at once, a gather for each corner."""
    x = points.permute(1, 2, 0)  # [P,D,N]
    inside = ((x >= 0) & (x <= 1)).all(1)
    x = torch.where(inside[:, None], x, torch.zeros_like(x))
    flat, out = tables.reshape(-1, grid.features), 0.0
    pos = [x[:, d, None, :] * grid.scale + 0.5 for d in range(grid.dims)]  # [P,L,N]
    cell = [p.floor() for p in pos]
    frac = [p - c for p, c in zip(pos, cell)]
    if grid.smooth:
        frac = [f * f * (3.0 - 2.0 * f) for f in frac]
    cell = [c.long() for c in cell]
    for corner in range(2**grid.dims):
        bits = [corner >> d & 1 for d in range(grid.dims)]
        index = None
        if not grid.all_hashed:
            index = (cell[0] + bits[0]) * grid.strides[0]
            for d in range(1, grid.dims):
                index = index + (cell[d] + bits[d]) * grid.strides[d]
        if grid.any_hashed:
            code = cell[0] + bits[0]
            for d in range(1, grid.dims):
                code = code ^ (cell[d] + bits[d]) * PRIMES[d]
            index = code if grid.all_hashed else torch.where(grid.hashed, code & 0xFFFFFFFF, index)
        index = index % grid.entries + grid.offset
        weight = frac[0] if bits[0] else 1.0 - frac[0]
        for d in range(1, grid.dims):  # written out: a generator would keep torch.compile from compiling the loop
            weight = weight * (frac[d] if bits[d] else 1.0 - frac[d])
        out = out + weight[..., None] * flat[index]
    out = torch.where(inside[:, None, :, None], out, torch.zeros_like(out))
    return out.permute(2, 0, 1, 3).reshape(points.shape[0], tables.shape[0], -1)


def mlp(x, kernels, biases=None):
    for i, kernel in enumerate(kernels):
        x = torch.relu(x) if i else x
        x = x @ kernel if biases is None else torch.addmm(biases[i], x, kernel)
    return x


def composite(sigma, weighted, plain, valid, t, dt, stop):
    optical = torch.where(valid, sigma, torch.zeros_like(sigma)) * dt
    before = torch.cumsum(torch.nn.functional.pad(optical[:, :-1], (1, 0)), -1)
    transmittance = torch.exp(-before)
    live = valid & (transmittance >= stop)
    weights = torch.where(live, -torch.expm1(-optical) * transmittance, torch.zeros_like(optical))
    zero = torch.zeros((), device=sigma.device)
    return (
        (weights[..., None] * torch.where(live[..., None], weighted, zero)).sum(1),
        torch.where(live[..., None], plain, zero).sum(1),
        weights.sum(1),
        (weights.detach() * torch.where(live, t, zero)).sum(1),
    )


def field(params, rows, sh, ray, points, grid, train):
    """The ER-NeRF head field (three planes, two attentions, density, colour; with `train` uncertainty as well)."""
    unit = points * 0.5 + 0.5
    planes = torch.stack([unit[:, pair] for pair in ([0, 1], [1, 2], [0, 2])], 1)
    f = grid_encode(params["planes"]["tables"], planes, grid).reshape(points.shape[0], -1)

    def apply(name, x):
        own = params[name]
        return mlp(x, [own[f"kernel_{i}"] for i in range(len(own))])

    v = apply("audio_channel_attention", f)
    w = torch.sigmoid(apply("eye_attention", f))
    h = apply("density", torch.cat([f, v * rows["audio"], w * rows["eye"]], -1))
    sigma = torch.exp(h[:, :1].clamp(max=40.0))
    code = rows["code"].expand(points.shape[0], -1)
    rgb = torch.sigmoid(apply("colour", torch.cat([sh[ray], h[:, 1:], code], -1))) * 1.002 - 0.001
    if not train:
        return torch.cat([sigma, rgb], -1)
    u = torch.nn.functional.softplus(apply("uncertainty", f.detach()))
    return torch.cat([sigma, rgb, u, torch.linalg.vector_norm(v, dim=-1, keepdim=True), w], -1)


def _call(problem, grid, values):
    kind = problem["kind"]
    if kind == "grid_encode":
        return grid_encode(values["tables"], values["points"], grid)
    if kind == "field_mlp":
        out = mlp(values["x"], values["kernels"], values["biases"])
        return torch.sigmoid(out) if problem["output"] == "sigmoid" else out
    if kind == "composite":
        names = ("sigma", "weighted", "plain", "valid", "t")
        return composite(*(values[name] for name in names), problem["dt"], problem["stop"])
    return field(*(values[name] for name in ("params", "rows", "sh", "ray", "points")), grid, problem["train"])


DIFFERENTIATED = {
    "grid_encode": ("tables",),
    "field_mlp": ("x", "kernels", "biases"),
    "composite": ("sigma", "weighted", "plain"),
    "field": ("params", "rows"),
}


class Peer(NamedTuple):
    """A ready call and what it returned, as numpy (the forward pass only)."""

    call: Callable[[], object]
    result: list[np.ndarray] | None


def versions() -> dict:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}


def prepare(threads: int, device: str) -> None:
    """RuntimeError where torch cannot use `device`."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch has no GPU")
    torch.set_num_threads(threads)
    config = importlib.import_module("torch._functorch.config")
    config.donated_buffer = False  # the backward pass is timed many times on the same residuals


def _tensors(value, device):
    if value is None or isinstance(value, str | float | bool):
        return value
    if isinstance(value, dict):
        return {k: _tensors(v, device) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_tensors(v, device) for v in value]
    return torch.from_numpy(np.array(value)).to(device)


def _leaves(value) -> list:
    if isinstance(value, dict):
        return [x for v in value.values() for x in _leaves(v)]
    if isinstance(value, list):
        return [x for v in value for x in _leaves(v)]
    return [] if value is None else [value]


def peers(problem: dict, modes, device: str, compiled: bool, to_points: bool) -> dict[str, Peer]:
    """mode -> what to time, warm. Gradients go to the same inputs as in the JAX op."""
    static = ("kind", "spec", "train", "output", "dt", "stop")
    values = {k: _tensors(v, device) for k, v in problem.items() if k not in static}
    names = DIFFERENTIATED[problem["kind"]] + (("points",) if to_points else ())
    leaves = _leaves([values[name] for name in names])
    for leaf in leaves:
        leaf.requires_grad_()  # also for the forward pass, which records nothing: a change would compile again

    tables = values.get("tables", values.get("params", {}).get("planes", {}).get("tables"))
    grid = None if tables is None else Grid(problem["spec"], tables.shape[0], device)

    def whole(values):
        return _call(problem, grid, values)

    torch.compiler.reset()  # what earlier cases compiled counts against a limit
    fn = torch.compile(whole, dynamic=False) if compiled else whole
    out: dict[str, Peer] = {}

    def synchronised(call):
        if device != "cuda":
            return call

        def timed():
            call()
            torch.cuda.synchronize()

        return timed

    if "forward" in modes:

        def forward():
            with torch.no_grad():
                return fn(values)

        first = forward()
        first = [first] if isinstance(first, torch.Tensor) else list(first)
        out["forward"] = Peer(synchronised(forward), [v.detach().cpu().numpy() for v in first])
    if set(modes) & {"backward", "forward+backward"}:
        torch.manual_seed(0)
        results = _leaves(list(r) if isinstance(r := fn(values), tuple) else r)
        results = [r for r in results if r.requires_grad]
        grads = [torch.randn_like(r) for r in results]

        def backward():
            return torch.autograd.grad(results, leaves, grads, retain_graph=True, allow_unused=True)

        def together():
            again = _leaves(list(r) if isinstance(r := fn(values), tuple) else r)
            again = [r for r in again if r.requires_grad]
            return torch.autograd.grad(again, leaves, grads, allow_unused=True)

        backward()
        if "backward" in modes:
            out["backward"] = Peer(synchronised(backward), None)
        if "forward+backward" in modes:
            together()
            out["forward+backward"] = Peer(synchronised(together), None)
    return out
