"""Benchmark of the ops: cases x back ends x modes, side by side in one run.

python -m benchmarks.ops --json OUT [--cases grid_encode,field_er_nerf] [--backends cpu,reference] [--modes forward]
python -m benchmarks.ops --scaling [--json OUT]

Modes: `forward`; `backward`, the VJP with residuals given, compiled on its own; `forward+backward`. Where PyTorch is
installed and the repository's benchmarks/ is at hand, the same op in eager and compiled PyTorch is timed in the same
rounds (back ends `torch` and `torch_compiled`). Ratios are how many times faster a row is: median of the other divided
by its own. Work is counted by the formulas of costs.py. Shares of the ceilings (a large product, a large copy):
`ceiling_share` of the best that was measured in the run, `share_beside` of what the nearer of the two gave in the same
rounds as the row.
"""

import argparse
import collections
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.ops import measure, roofline
from benchmarks.ops.cases import CASES, MODES, Case, Problem
from tkjax.ops import dispatch

PEERS_FILE = Path(__file__).resolve().parents[1] / "peers_torch.py"
CEILING = "ceiling"  # the contender that is a large product or a large copy
NOT_A_NUMBER = 1e30  # as a difference; JSON has no infinity
PEER_NAMES = ("torch", "torch_compiled")


class Run(NamedTuple):
    """One contender of a case and mode, compiled and warm."""

    call: object
    compile_s: float  # of the first call, run included
    result: list[np.ndarray] | None  # leaves of the forward result, to compare


class Peers:
    """PyTorch, if it can be had; `reason` says why not."""

    def __init__(self, wanted: tuple[str, ...] | None, quick: bool = False):
        self.everywhere = wanted is not None  # asked for by name: in every case that has a peer
        self.wanted, self.module, self.reason = PEER_NAMES if wanted is None else wanted, None, None
        self.device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        if not self.wanted:
            self.reason = "not asked for"
        elif not PEERS_FILE.is_file():
            self.reason = f"no {PEERS_FILE.parent.name}/{PEERS_FILE.name}: run from a checkout of the repository"
        elif importlib.util.find_spec("torch") is None:
            self.reason = "torch is not installed"
        else:
            # PyTorch's idle threads must sleep, not spin on the cores that the next contender needs.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            spec = importlib.util.spec_from_file_location("peers_torch", PEERS_FILE)
            module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
                module.prepare(1 if quick else measure.cores(), self.device)
                self.module = module
            except (ImportError, OSError, RuntimeError) as error:
                self.reason = one_line(error)

    def build(self, problem: Problem, modes, compiled: bool) -> dict:
        to_points = problem.peer["kind"] == "grid_encode" and len(problem.differentiated) == 2
        return self.module.peers(problem.peer, modes, self.device, compiled, to_points)


def one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def floats(tree) -> list:
    return [v for v in jax.tree.leaves(tree) if jnp.issubdtype(v.dtype, jnp.floating)]


def prepare(case: Case, problem: Problem, backend: str, modes) -> dict[str, Run]:
    """mode -> compiled call of a JAX back end. ValueError with the reason if it does not do the case."""

    def forward(diff, const):
        return problem.fn(backend, *diff, *const)

    def residuals(diff, const):
        return jax.vjp(lambda *d: forward(d, const), *diff)

    def both(diff, const, g):
        out, vjp = residuals(diff, const)
        return out, vjp(g)

    args = (problem.differentiated, problem.constant)
    out = jax.eval_shape(forward, *args)
    if not dispatch.ran().get(case.module, set()) & {backend, "parts"}:  # parts: each on the back end that was named
        raise AssertionError(f"{case.op}: asked for {backend}, dispatch ran {dispatch.ran().get(case.module)}")
    runs = {}
    if "forward" in modes:
        runs["forward"] = first_call(jax.jit(forward), args)
    if "backward" in modes or "forward+backward" in modes:
        keys = iter(range(len(jax.tree.leaves(out))))
        g = jax.tree.map(lambda v: jax.random.normal(jax.random.key(next(keys)), v.shape, v.dtype), out)
    if "backward" in modes:
        _, vjp = jax.jit(residuals)(*args)
        runs["backward"] = first_call(jax.jit(lambda vjp, g: vjp(g)), (vjp, g))
    if "forward+backward" in modes:
        runs["forward+backward"] = first_call(jax.jit(both), (*args, g))
    return runs


def first_call(fn, args) -> Run:
    start = time.perf_counter()
    result = jax.block_until_ready(fn(*args))
    seconds = time.perf_counter() - start
    return Run(lambda: fn(*args), seconds, [np.asarray(v, np.float32) for v in jax.tree.leaves(result)])


def difference(result, reference) -> float | None:
    """Largest distance to the reference's result, relative to the largest magnitude of each array."""
    if result is None or reference is None or len(result) != len(reference):
        return None
    worst = 0.0
    for a, b in zip(result, reference):
        if a.shape != b.shape:
            return None
        if a.size:
            away = float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(b))), 1e-30))
            worst = max(worst, away if math.isfinite(away) else NOT_A_NUMBER)
    return worst


def contenders(case: Case, backends, modes, peers: Peers, quick: bool):
    """(problem, {mode: {name: Run}}, [what did not run])."""
    problem = case.build(quick)
    modes = [mode for mode in case.modes if mode in modes]
    runs: dict[str, dict[str, Run]] = {mode: {} for mode in modes}
    missing = []

    def note(name, reason):
        missing.append({"op": case.op, "case": case.name, "backend": name, "modes": modes, "reason": reason})

    for name in backends:
        try:
            for mode, run in prepare(case, problem, name, modes).items():
                runs[mode][name] = run
        except (ValueError, NotImplementedError) as error:
            note(name, one_line(error))
    for name in peers.wanted if problem.peer is not None else ():
        if not (peers.everywhere or name in case.peers):
            continue
        if peers.module is None:
            note(name, f"not available: {peers.reason}")
            continue
        try:
            start = time.perf_counter()
            built = peers.build(problem, modes, name == "torch_compiled")
            seconds = time.perf_counter() - start
            for mode, peer in built.items():
                runs[mode][name] = Run(peer.call, seconds, peer.result)
        except Exception as error:  # torch.compile fails in many ways (no C++ compiler, …) that are no business of ours
            note(name, f"not available: {one_line(error)}")
    return problem, runs, missing


def isa_of(backend: str) -> str | None:
    if backend != "cpu":
        return None
    from tkjax.ops import cpu

    return cpu.active_isa()


def rows_of(case: Case, problem: Problem, mode: str, runs: dict[str, Run], ceilings, quick: bool) -> list[dict]:
    cost, rows = problem.costs[mode], []
    _, nearer = ceilings.share(cost, 1.0)
    calls = {name: run.call for name, run in runs.items()} | {CEILING: ceilings.calls()[nearer]}
    seconds = measure.interleave(calls, quick, PEER_NAMES)
    medians = {name: statistics.median(v) for name, v in seconds.items()}
    for name, run in runs.items():
        own = medians[name]
        rows.append(
            {
                "op": case.op, "case": case.name, "backend": name, "mode": mode, **measure.summary(seconds[name]),
                "compile_ms": max(run.compile_s - own, 0.0) * 1e3,
                "size": problem.size, "unit": problem.unit,
                "gflop": cost.flop / 1e9, "gbyte": cost.bytes / 1e9, "ggather": cost.gathers / 1e9,
                "gflop_s": cost.flop / own / 1e9, "gbyte_s": cost.bytes / own / 1e9,
                "ceiling_share": None, "bound": None,  # known when the ceilings have been measured for the last time
                "share_beside": ceilings.beside(cost, nearer, medians[CEILING], own), "bound_beside": nearer,
                "ratio_to_reference": ratio(medians, "reference", own),
                "ratio_to_torch": ratio(medians, "torch", own),
                "ratio_to_torch_compiled": ratio(medians, "torch_compiled", own),
                "difference": difference(run.result, runs["reference"].result if "reference" in runs else None),
                "isa": isa_of(name),
            }
        )  # fmt: skip
    return rows


def ratio(medians: dict[str, float], other: str, own: float) -> float | None:
    return medians[other] / own if other in medians else None


COLUMNS = (
    ("case", 30, lambda r: f"{r['op']} {r['case']}"),
    ("mode", 16, lambda r: r["mode"]),
    ("back end", 14, lambda r: r["backend"]),
    ("median ms", 10, lambda r: f"{r['median_ms']:.3f}"),
    ("spread", 8, lambda r: f"{r['spread_ms']:.3f}"),
    ("compile", 8, lambda r: f"{r['compile_ms']:.0f}"),
    ("GFLOP", 8, lambda r: f"{r['gflop']:.3f}"),
    ("GB", 7, lambda r: f"{r['gbyte']:.3f}"),
    ("share", 6, lambda r: "-" if r["ceiling_share"] is None else f"{100 * r['ceiling_share']:.1f}%"),
    ("beside", 6, lambda r: f"{100 * r['share_beside']:.1f}%"),
    ("of", 6, lambda r: r["bound"] or "-"),
    ("x ref", 7, lambda r: times(r["ratio_to_reference"])),
    ("x torch", 7, lambda r: times(r["ratio_to_torch"])),
    ("x comp.", 7, lambda r: times(r["ratio_to_torch_compiled"])),
)


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def line(cells) -> str:
    return " ".join(
        f"{text:<{width}}" if i < 3 else f"{text:>{width}}" for i, (text, width) in enumerate(cells)
    ).rstrip()


def print_table(header: dict, rows: list[dict], missing: list[dict]) -> None:
    c = header["ceilings"]
    print(f"{header['device']}, {header['cores']} cores, jax {header['versions']['jax']}")
    print(f"ceilings: matmul {c['matmul_gflops']:.1f} GFLOP/s ({c['matmul']}), copy {c['copy_gbyte_s']:.1f} GB/s")
    print(f"scatter-add: {header['scatter_add']['text']}")
    print(line([(name, width) for name, width, _ in COLUMNS]))
    for row in rows:
        print(line([(text(row), width) for _, width, text in COLUMNS]))
    print("\n".join(roofline.lines(header["roofline"])))
    reasons = collections.Counter((m["op"], m["case"], m["backend"], m["reason"]) for m in missing)
    for op, case, backend, reason in reasons:
        print(f"not run: {op} {case} on {backend}: {reason}")


class Progress:
    """A line to stderr before each case: how far, and how long it will take yet."""

    def __init__(self, total: int):
        self.total, self.done, self.start = total, 0, time.perf_counter()

    def step(self, what: str) -> None:
        spent = time.perf_counter() - self.start
        left = f", {spent / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        print(f"[{self.done + 1}/{self.total}{left}] {what}", file=sys.stderr, flush=True)
        self.done += 1


def run(cases, backends, modes, peer_names, quick: bool, save=lambda result: None) -> dict:
    """The whole benchmark: {"header", "rows", "not_run"}. `save` is given what there is after each case."""
    header, ceilings, peers = measure.header(), measure.Ceilings(quick), Peers(peer_names, quick)
    if peers.module is not None:
        header["versions"]["torch"] = peers.module.versions()
    else:
        header["peers"] = f"not available: {peers.reason}"
    rows, missing, progress = [], [], Progress(len(cases))
    for number, case in enumerate(cases):
        if number % 7 == 0:
            ceilings.measure()
        progress.step(f"{case.op} {case.name}")
        problem, runs, left_out = contenders(case, backends, modes, peers, quick)
        missing += left_out
        for mode, of_mode in runs.items():
            if of_mode:
                rows += [(problem.costs[mode], row) for row in rows_of(case, problem, mode, of_mode, ceilings, quick)]
        del problem, runs
        save(finished(header, ceilings, rows, missing))
    ceilings.measure()
    return finished(header, ceilings, rows, missing)


def finished(header: dict, ceilings, rows: list[tuple], missing: list[dict]) -> dict:
    """Everything with shares of the best ceilings so far."""
    for cost, row in rows:
        row["ceiling_share"], row["bound"] = ceilings.share(cost, row["median_ms"] / 1e3)
    known = {
        "ceilings": ceilings.describe(),
        "roofline": roofline.bounds(max(ceilings.matmul_gflops), max(ceilings.copy_gbytes)),
        "ops_ran": {op: sorted(names) for op, names in dispatch.ran().items()},
    }
    return {"header": header | known, "rows": [row for _, row in rows], "not_run": missing}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"bench: {message}", file=sys.stderr)
        raise SystemExit(2)


def chosen(parser: Parser, what: str, text: str | None, known) -> tuple[str, ...]:
    """The names of a comma list, in the order of `known`."""
    if text is None:
        return tuple(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        parser.error(f"--{what} {', '.join(unknown) or 'is empty'}; choose from {', '.join(known)}")
    return tuple(name for name in known if name in names)


def parse(argv: list[str] | None):
    parser = Parser(prog="python -m benchmarks.ops", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--json", metavar="OUT", help="write header and rows to this file")
    parser.add_argument("--cases", help="names of ops or cases, separated by commas; default: all")
    parser.add_argument("--backends", help=f"of {', '.join(dispatch.BACKENDS)}; default: all that work here")
    parser.add_argument("--modes", help=f"of {', '.join(MODES)}; default: all")
    parser.add_argument("--peers", help=f"of {', '.join(PEER_NAMES)}, or none; default: those of each case")
    parser.add_argument("--quick", action="store_true", help="tiny inputs, three repetitions: does it run?")
    parser.add_argument("--scaling", action="store_true", help="cost against number of samples and against threads")
    options = parser.parse_args(argv)
    if options.scaling:
        for name in ("cases", "backends", "modes", "peers"):
            if getattr(options, name) is not None:
                parser.error(f"--{name} is not used with --scaling, which has its own")
    names = dict.fromkeys(name for case in CASES for name in (case.op, case.name))
    wanted = chosen(parser, "cases", options.cases, names)
    cases = tuple(case for case in CASES if case.op in wanted or case.name in wanted)
    modes = chosen(parser, "modes", options.modes, MODES)
    peers = None  # those of each case
    if options.peers is not None:
        peers = () if options.peers == "none" else chosen(parser, "peers", options.peers, PEER_NAMES)
    working = {name: dispatch.unavailable(name) for name in dispatch.BACKENDS}
    backends = chosen(parser, "backends", options.backends, dispatch.BACKENDS)
    for name in backends:
        if working[name] and options.backends:
            parser.error(f"back end {name} does not work here: {working[name]}")
    backends = tuple(name for name in backends if not working[name])
    if not any(mode in case.modes for case in cases for mode in modes):
        parser.error(f"none of these cases has mode {', '.join(modes)}")
    if options.json:
        folder = Path(options.json).resolve().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or Path(options.json).is_dir():
            parser.error(f"--json {options.json}: no file can be written there")
    return options, cases, backends, modes, peers


def main(argv: list[str] | None = None) -> int:
    measure.repair_scatter()
    options, cases, backends, modes, peers = parse(argv)

    def save(result: dict) -> None:
        if options.json:
            Path(options.json).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")

    if options.scaling:
        from benchmarks.ops import scaling

        result = scaling.run(options.quick)
    else:
        if not options.quick:
            jax.config.update("jax_enable_compilation_cache", False)  # compile times are those of a first run
        result = run(cases, backends, modes, peers, options.quick, save)
        print_table(result["header"], result["rows"], result["not_run"])
    save(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
