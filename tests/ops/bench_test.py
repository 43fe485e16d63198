"""The benchmark runs on tiny inputs, says what ran, and its numbers hang together."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.ops import bench, cases, costs, inputs, measure, roofline, scaling
from tkjax.ops import dispatch

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "op", "case", "backend", "mode", "median_ms", "gflop", "gbyte", "ceiling_share", "ratio_to_reference",
    "ratio_to_torch", "ratio_to_torch_compiled", "spread_ms", "compile_ms", "repetitions", "bound", "isa",
    "share_beside", "bound_beside",
}  # fmt: skip
HAS_TORCH = importlib.util.find_spec("torch") is not None


def working(op: str) -> set[str]:
    return {name for name in dispatch.backends(op) if dispatch.unavailable(name) is None}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One quick run of one case of every op, in this process."""
    out = tmp_path_factory.mktemp("bench") / "out.json"
    names = (
        "er_planes,rays_4096_side_64,dense_65536,composite_packed,packbits,dilate_morton,width_64_layers_3,"
        "field_er_nerf_train,field_ad_nerf_head,er_nerf_256,blend_train,mesh_50000_448,mesh_448_channels_9,"
        "mesh_448_channels_4"
    )
    assert bench.main(["--quick", "--json", str(out), "--cases", names, "--peers", "none"]) == 0
    return json.loads(out.read_text())


@pytest.mark.slow  # 20 s: every op is timed on every back end; `make bench` does the same
def test_every_row_has_the_keys_and_sane_numbers(result):
    for row in result["rows"]:
        assert set(row) >= KEYS
        assert row["median_ms"] > 0 and row["spread_ms"] >= 0 and row["compile_ms"] >= 0 and row["repetitions"] >= 3
        assert row["gbyte"] > 0 and row["gflop"] > 0 and row["ceiling_share"] > 0
        assert row["bound"] in ("matmul", "copy") and row["bound_beside"] in ("matmul", "copy")
        assert row["share_beside"] > 0
        assert row["ratio_to_torch"] is None and row["ratio_to_torch_compiled"] is None


def test_every_op_ran_on_every_back_end_that_works_here(result):
    ran = {}
    for row in result["rows"]:
        ran.setdefault(row["op"], set()).add(row["backend"])
    modules = {case.op: case.module for case in bench.CASES}
    refused = {(m["op"], m["backend"]) for m in result["not_run"]}
    for op, module in modules.items():
        assert ran[op] == working(module) - {name for o, name in refused if o == op}
        assert "reference" in ran[op]
        parts = {"reference"} & ran[op] if "parts" in dispatch.ran()[module] else set()
        assert ran[op] <= dispatch.ran()[module] | parts
    for missing in result["not_run"]:
        assert missing["reason"]


def test_the_back_end_of_a_row_is_the_one_in_the_program():
    case = next(case for case in bench.CASES if case.name == "er_planes")
    problem = case.build(True)
    for name in working("grid_encode"):
        before = dispatch.ran().get("grid_encode", set())
        run = bench.prepare(case, problem, name, ("forward",))["forward"]
        assert name in dispatch.ran()["grid_encode"] >= before

        def forward(diff, const, name=name):
            return problem.fn(name, *diff, *const)

        lowered = jax.jit(forward).lower(problem.differentiated, problem.constant)
        assert f"grid_encode.{name}" in lowered.as_text(debug_info=True)
        assert run.result[0].shape == (500, 3, 12)


def test_asking_for_a_back_end_that_dispatch_does_not_run_is_noticed(monkeypatch):
    case = next(case for case in bench.CASES if case.name == "er_planes")
    problem = case.build(True)
    silent = problem._replace(fn=lambda backend, *args: problem.fn("reference", *args))
    monkeypatch.setattr(dispatch, "ran", lambda: {"grid_encode": {"reference"}})
    with pytest.raises(AssertionError, match="asked for cpu"):
        bench.prepare(case, silent, "cpu", ("forward",))


def test_ratios_are_those_of_the_medians(result):
    reference = {(r["op"], r["case"], r["mode"]): r["median_ms"] for r in result["rows"] if r["backend"] == "reference"}
    for row in result["rows"]:
        expected = reference[row["op"], row["case"], row["mode"]] / row["median_ms"]
        assert row["ratio_to_reference"] == pytest.approx(expected)


def test_shares_are_those_of_the_ceilings(result):
    ceilings = result["header"]["ceilings"]
    for row in result["rows"]:
        seconds = row["median_ms"] / 1e3
        compute = row["gflop"] / seconds / ceilings["matmul_gflops"]
        bandwidth = row["gbyte"] / seconds / ceilings["copy_gbyte_s"]
        assert row["ceiling_share"] == pytest.approx(max(compute, bandwidth))
        assert row["bound"] == ("matmul" if compute >= bandwidth else "copy")


def test_the_share_beside_is_that_of_the_same_rounds():
    ceilings = measure.Ceilings(quick=True)
    cost = costs.Cost(flop=2.0 * 256**3, bytes=2.0 * 2**20)
    assert ceilings.beside(cost, "matmul", 0.5, 1.0) == pytest.approx(0.5)
    assert ceilings.beside(cost, "copy", 0.25, 1.0) == pytest.approx(0.25)


def test_all_back_ends_computed_the_same(result):
    for row in result["rows"]:
        assert row["difference"] < 1e-3, row


def test_the_header_tells_what_is_needed_to_read_the_numbers(result):
    header = result["header"]
    assert header["versions"]["jax"] == jax.__version__ and header["device"] and header["date"][:2] == "20"
    assert header["cores"] >= 1 and "scatter" in header["scatter_add"]["text"]
    assert header["ops_ran"]["grid_encode"]


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_peers_are_timed_in_the_same_run_and_agree(tmp_path):
    out = tmp_path / "out.json"
    names = "rad_tiled_3d,dense_65536,er_colour,width_128_biased,field_er_nerf_train"
    arguments = ["--quick", "--json", str(out), "--cases", names, "--backends", "reference", "--peers", "torch"]
    assert bench.main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    peers = [row for row in rows if row["backend"] == "torch"]
    assert {row["op"] for row in peers} == {"grid_encode", "composite", "field_mlp", "field"}
    median = {(r["case"], r["mode"]): r["median_ms"] for r in peers}
    for row in rows:
        assert row["ratio_to_torch"] == pytest.approx(median[row["case"], row["mode"]] / row["median_ms"])
    for row in peers:
        assert (row["mode"] == "forward") == (row["difference"] is not None)
        assert row["difference"] is None or row["difference"] < 1e-3, row


def test_without_torch_the_peers_are_reported_as_not_available(monkeypatch):
    monkeypatch.setattr(bench, "PEERS_FILE", ROOT / "nowhere.py")
    case = next(case for case in bench.CASES if case.name == "er_colour")
    peers = bench.Peers(None)
    _, runs, missing = bench.contenders(case, ("reference",), ("forward",), peers, True)
    assert set(runs["forward"]) == {"reference"}
    assert [m["backend"] for m in missing] == ["torch"] and "not available" in missing[0]["reason"]


BAD = {
    "unknown flag": ["--nonsense"],
    "unknown case": ["--cases", "nonsense"],
    "unknown mode": ["--modes", "sideways"],
    "unknown back end": ["--backends", "abacus"],
    "empty list": ["--cases", ","],
    "no such folder": ["--json", "/nonexistent/folder/out.json"],
    "a mode that the case lacks": ["--cases", "march", "--modes", "backward"],
    "unknown peer": ["--peers", "tensorflow"],
    "not with scaling": ["--scaling", "--cases", "march"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_bad_flags_are_one_sentence_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("bench: ") and said.err.count("\n") == 1 and not said.out


def test_a_back_end_that_does_not_work_here_is_refused_by_name(capsys):
    absent = [name for name in dispatch.BACKENDS if dispatch.unavailable(name)]
    if not absent:
        pytest.skip("every back end works here")
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--backends", absent[0]])
    assert stopped.value.code == 2 and absent[0] in capsys.readouterr().err


def test_the_command_line_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ops", "--cases", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_scaling_binds_the_children_to_so_many_cores(monkeypatch):
    monkeypatch.setattr(scaling, "thread_counts", lambda cores: [1])
    monkeypatch.setattr(
        scaling,
        "CHILD",
        scaling.CHILD.replace("print(json", "keep = next(iter(scaling.CASES.items())); "
        "scaling.CASES = dict([keep])\nprint(json"),
    )  # fmt: skip
    rows = scaling.threads(1000, True)
    assert {row["threads"] for row in rows} == {1}
    assert {row["backend"] for row in rows} == working("grid_encode")
    assert all(row["speedup"] == 1.0 and row["median_ms"] > 0 for row in rows)


def test_sizes_that_would_take_too_long_are_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(scaling, "TOO_LONG", 0.0)
    monkeypatch.setattr(scaling, "CASES", {("composite", "dense", "forward"): CASE_COMPOSITE})
    rows = scaling.sweep((100, 200), quick=True)
    first, second = (next(r for r in rows if r["size"] == n and r["backend"] == "reference") for n in (100, 200))
    assert first["ns_per_sample"] == pytest.approx(first["median_ms"] * 1e6 / 100)
    assert second["median_ms"] is None and "would take" in second["reason"]


def CASE_COMPOSITE(n, backend):
    return scaling._composite(n, False, backend)


def test_thread_counts():
    assert [scaling.thread_counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_the_head_field_costs_what_the_dossier_says():
    program = inputs.er_nerf_program()
    picture = cases.mlps(program.select("sigma", "rgb"))
    inference = costs.field(1, 4, picture, 0, inputs.ER_PLANES, 3)["forward"]
    assert inference.flop == 46_368 == program.select("sigma", "rgb").flops
    assert inference.gathers == 144
    training = costs.field(1, 7, cases.mlps(program), 0, inputs.ER_PLANES, 3)["forward+backward"]
    assert training.flop == 3 * 2 * 24_368 and program.flops == 2 * 24_368
    assert inputs.NGP3D.table[-1].entries == 2**16 and inputs.ER_PLANES.entries == 163_584


def test_the_rad_nerf_field_costs_what_its_dossier_says():
    """§10: 28,352 multiply-adds, 16 x 8 and 16 x 4 gathers."""
    program = inputs.rad_nerf_program()
    grids = (inputs.RAD_SPACE, 1), (inputs.RAD_AMBIENT, 1)
    forward = costs.field(1, 4, cases.mlps(program), 0, *grids[0], grids[1])["forward"]
    assert forward.flop == 2 * 28_352 == program.flops and forward.gathers == 192
    assert (inputs.RAD_SPACE.entries, inputs.RAD_AMBIENT.entries) == (903_480, 555_520)


@pytest.mark.parametrize("signal, macs, active", [(64, 593_408, 595_844), (106, 614_912, 617_348)])
def test_the_ad_nerf_networks_cost_what_their_dossier_says(signal, macs, active):
    """§10 and §3: multiply-adds and parameters of one of the head's and of the torso's networks."""
    program = inputs.ad_nerf_program(signal)
    costs_here = costs.field(1, 4, cases.mlps(program), 0)
    assert costs_here["forward"].flop == 2 * macs == program.flops and costs_here["backward"].flop == 4 * macs
    assert sum(v.size for v in jax.tree.leaves(inputs.wide_params(program))) == active


def test_grid_costs_by_hand():
    spec = inputs.ER_PLANES  # per point, plane and level: 8 + 4 for position and weights, 8 to sum four corners
    cost = costs.grid_encode(1000, 3, spec)["forward"]
    assert cost.flop == 1000 * 36 * 20 and cost.gathers == 1000 * 144
    assert cost.bytes == 1000 * 6 * 4 + 1000 * 36 * 4 + 144_000 * 4


def test_rays_meet_a_head():
    some = inputs.samples(20_000, size=64)
    assert len(some.points) == 20_000 == some.count.sum() and np.all(np.diff(some.ray) >= 0)
    assert np.array_equal(np.bincount(some.ray, minlength=len(some.count)), some.count)
    assert np.abs(some.points).max() <= 1.0 and np.abs(some.points[:, 1]).max() <= 0.5
    first = some.count[: 64 * 64]
    assert 0.2 < np.mean(first > 0) < 0.6 and 2 < np.mean(first) < 6  # a trained head: 0.32 and 4.0
    lengths = np.linalg.norm(some.rays.direction, axis=1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)


def test_densities_spread_like_trained_ones():
    problem = cases.CASES[-3].build(True)
    out = problem.fn("reference", *problem.differentiated, *problem.constant)
    log_density = np.log(np.asarray(out)[:, 0])
    assert problem.costs["forward"].flop == 300 * 46_368
    assert 0.7 < log_density.std() < 2.5 and log_density.mean() > 0


def test_interleaving_gives_each_its_turns():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = measure.interleave(calls, quick=True)
    assert all(len(v) == measure.SLOW_REPETITIONS for v in seconds.values())
    summary = measure.summary([1.0, 2.0, 3.0, 4.0, 100.0])
    assert summary == {"median_ms": 3000.0, "spread_ms": pytest.approx(2000.0), "repetitions": 5}
    assert math.isclose(bench.ratio({"reference": 3.0}, "reference", 1.5), 2.0)


def test_the_scatter_repair_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setattr(measure, "version", lambda name: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--user")
    measure.repair_scatter()  # no GPU plug-in here: nothing to repair
    plugins = any((d.name or "").startswith("jax-cuda") for d in measure.importlib.metadata.distributions())
    assert (os.environ["XLA_FLAGS"] == "--user") != plugins
    fake = type("D", (), {"name": "jax-cuda13-plugin"})
    monkeypatch.setattr(measure.importlib.metadata, "distributions", lambda: [fake])
    measure.repair_scatter()
    assert os.environ["XLA_FLAGS"] == "--user --xla_backend_extra_options=-nvptx-allow-ftz-atomics"
    measure.repair_scatter()
    assert os.environ["XLA_FLAGS"].count("nvptx") == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert measure.scatter_state()["repaired"]
    monkeypatch.setenv("XLA_FLAGS", "")
    assert "do not repair" in measure.scatter_state()["text"]


def test_roofline_by_hand():
    rows = roofline.bounds(100.0, 10.0)
    field, frame, step, refreshed = rows
    assert field["compute_ms"] == pytest.approx(463.68) and field["bandwidth_ms"] == pytest.approx(60.4)
    each = roofline.samples_per_ray()
    assert 3 < each < 5  # a trained head: 4.0
    assert frame["gflop"] == pytest.approx(each * 65536 * 46_368e-9)
    assert step["per_second"] == pytest.approx(1.0 / (each * 4096 * 146_208 / 100e9))
    assert refreshed["gflop"] - step["gflop"] == pytest.approx(131_072 * 35_232 / 16 / 1e9)
    assert roofline.DENSITY_FLOP == 2 * (4352 + 592 + 12672)
    assert len(roofline.lines(rows)) == 4
