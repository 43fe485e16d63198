"""What lies in a workdir: round trips, refusals that name what differs, rows that are cut back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stubs.clip import FakeClip
from tests.stubs.config import stub_config
from tkjax import trees
from tkjax.errors import UserError
from tkjax.models import load_system
from tkjax.train import checkpoint, loop
from tkjax.train.checkpoint import Checkpoints, check_run, latest_step, truncate_metrics
from tkjax.train.loop import load_variables

names = st.text("abc_0", min_size=1, max_size=4)
nested = st.recursive(
    st.integers(0, 9), lambda sub: st.dictionaries(names, sub, min_size=1, max_size=3) | st.lists(sub, min_size=1)
)


@given(nested)
def test_flattening_is_undone_and_every_leaf_has_its_own_path(tree):
    flat = trees.flatten(tree)
    assert len(flat) == len(jax.tree.leaves(tree))
    assert trees.unflatten(tree, flat) == tree


@pytest.fixture
def store(tmp_path):
    opened = Checkpoints(tmp_path, "head", keep=2)
    yield opened
    opened.close()


def test_every_bit_of_an_item_comes_back(store):
    bits = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint32)
    floats = bits.view(np.float32)
    floats[:3] = [np.inf, -0.0, 1e-42]  # a denormal too
    tree = {"a": [jnp.asarray(np.nan_to_num(floats)), jnp.asarray(bits)], "b": {"n": jnp.int32(-3)}, "u": jnp.uint8(7)}
    store.save(5, {"params": tree, "state": {}}, {"note": 1})
    store.wait()
    assert latest_step(store.path.parents[1], "head") == 5
    back = store.restore(5, {"params": tree, "state": {}})
    assert back["state"] == {}
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(back["params"]), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert store.meta(5) == {"note": 1}


def test_a_save_holds_what_was_there_when_it_started(store):
    donate = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1_000_00)
    for step in (1, 2):
        store.save(step, {"params": {"x": x}}, {})
        for _ in range(20):
            x = donate(x)
    store.wait()
    for step, value in ((1, 0), (2, 20)):
        back = store.restore(step, {"params": {"x": x}})["params"]["x"]
        np.testing.assert_array_equal(back, np.full(len(x), value))


def test_only_the_latest_are_kept(store):
    for step in (1, 2, 3, 4):
        store.save(step, {"params": {"x": jnp.zeros(3)}}, {})
    store.wait()
    assert sorted(int(p.name) for p in store.path.iterdir()) == [3, 4]


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"x": jnp.zeros(4)}, ["params/x", "(3,)", "(4,)"]),
        ({"x": jnp.zeros(3), "y": jnp.zeros(2)}, ["params/y", "None", "(2,)"]),
        ({"z": jnp.zeros(3)}, ["params/x", "(3,)", "None"]),
    ],
)
def test_an_array_that_does_not_fit_is_named_with_both_shapes(store, like, words):
    store.save(1, {"params": {"x": jnp.zeros(3)}}, {})
    store.wait()
    with pytest.raises(UserError) as info:
        store.restore(1, {"params": like})
    assert all(word in str(info.value) for word in words)


def test_what_a_killed_save_leaves_is_not_a_checkpoint_and_is_swept(tmp_path):
    with_one = Checkpoints(tmp_path, "head", keep=2)
    with_one.save(1, {"params": {"x": jnp.ones(3)}}, {})
    with_one.close()
    half = with_one.path / "2.orbax-checkpoint-tmp-123"
    (half / "params").mkdir(parents=True)
    assert latest_step(tmp_path, "head") == 1
    again = Checkpoints(tmp_path, "head", keep=2)
    again.save(2, {"params": {"x": jnp.ones(3)}}, {})
    again.close()
    assert not half.exists() and latest_step(tmp_path, "head") == 2


# -- the run's identity


def run(**config):
    base = {"train": {"frames": 1, "log_every": 5}, "eval": {"chunk_rays": 1}, "data": {"preload": "disk", "size": 0}}
    for key, value in config.items():
        part, name = key.split("__")
        base[part] = base[part] | {name: value}
    return {"config": base, "data": {"digest": "abc"}}


def test_the_same_run_and_settings_that_change_no_result_are_accepted(tmp_path):
    check_run(tmp_path, run())
    checkpoint.write_run(tmp_path, run())
    check_run(tmp_path, run())
    check_run(tmp_path, run(train__log_every=7, eval__chunk_rays=9, eval__new=1, data__preload="host"))


def test_a_run_with_other_settings_is_refused_with_every_key_and_both_values(tmp_path):
    checkpoint.write_run(tmp_path, run())
    other = run(train__frames=8, data__size=256)
    other["data"] = {"digest": "xyz"}
    with pytest.raises(UserError) as info:
        check_run(tmp_path, other)
    text = str(info.value)
    for words in (
        "train.frames (1 there, 8 now)",
        "data.size (0 there, 256 now)",
        "dataset digest ('abc' there, 'xyz'",
    ):
        assert words in text
    assert "\n" not in text and "log_every" not in text and "another workdir" in text


def test_a_damaged_record_is_one_sentence(tmp_path):
    checkpoint.write_run(tmp_path, run())
    (tmp_path / "checkpoints" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is not readable"):
        check_run(tmp_path, run())


rows = st.lists(st.tuples(st.sampled_from(["head", "torso"]), st.integers(1, 30)), max_size=20)


@given(rows, st.sampled_from(["head", "torso"]), st.integers(0, 30), st.integers(0, 20))
def test_rows_after_the_checkpoint_and_a_row_cut_in_two_go(tmp_path_factory, rows, stage, step, cut):
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    lines = [json.dumps({"stage": s, "step": n, "loss": 0.5}) for s, n in rows]
    path.write_text("".join(line + "\n" for line in lines) + '{"stage": "torso", "step'[:cut])
    truncate_metrics(path, ["head", "torso"], stage, step)
    order = {"head": 0, "torso": 1}
    kept = [line for line, (s, n) in zip(lines, rows, strict=True) if (order[s], n) <= (order[stage], step)]
    assert path.read_text().splitlines() == kept


# -- loading


def test_loading_from_an_empty_workdir_and_an_unknown_stage_say_so(tmp_path):
    model = load_system(stub_config("simplest").system)(stub_config("simplest"), FakeClip().info)
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        load_variables(tmp_path, model)
    with pytest.raises(UserError, match="stage 'lips' is unknown; this system has all"):
        load_variables(tmp_path, model, stage="lips")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_trains_no_more_and_other_settings_are_refused(tmp_path):
    clip, events = FakeClip(), []
    config = stub_config("simplest", steps=10)
    first = loop.train(config, clip, tmp_path)
    config.train.log_every = 3
    again = loop.train(config, clip, tmp_path, on_event=lambda name, facts: events.append(name))
    assert events == ["stage"]
    np.testing.assert_array_equal(first.params["logit"], again.params["logit"])
    config.seed = 1
    with pytest.raises(UserError, match=r"seed \(0 there, 1 now\)"):
        loop.train(config, clip, tmp_path)
    with pytest.raises(UserError, match="dataset digest"):
        loop.train(stub_config("simplest", steps=10), FakeClip(seed=3), tmp_path)


def test_a_run_from_before_signals_were_described_goes_on(tmp_path):
    config = stub_config("simplest", steps=10)
    loop.train(config, FakeClip(), tmp_path)
    path = tmp_path / "checkpoints" / "run.json"
    run = json.loads(path.read_text())
    info = run["data"]["info"]
    del info["signals"]
    info |= {"audio_kind": "logmel", "audio_channels": 6, "audio_steps": 4, "audio_windows": 8, "n_expression": 3}
    path.write_text(json.dumps(run))
    loop.train(config, FakeClip(), tmp_path)
    info |= {"audio_channels": 7}
    path.write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"dataset info\.signals\.sound"):
        loop.train(config, FakeClip(), tmp_path)


def test_another_number_of_threads_is_a_logged_warning(tmp_path, caplog, monkeypatch):
    def stop(name, facts):
        if name == "checkpoint":
            raise KeyboardInterrupt

    config = stub_config("simplest", steps=20)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, FakeClip(), tmp_path, on_event=stop)
    threads = checkpoint.n_threads()
    monkeypatch.setattr(checkpoint, "n_threads", lambda: threads + 5)
    loop.train(config, FakeClip(), tmp_path)
    assert any(f"{threads} threads" in m and f"{threads + 5}" in m for m in caplog.messages)
