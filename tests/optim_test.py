"""Optimiser and moving average against closed forms and torch."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tkjax.errors import UserError
from tkjax.interface import Ema, Rate
from tkjax.train.optim import ema_decay, ema_every, ema_update, global_norm, learning_rate, optimiser

floats = st.floats(-2, 2, width=32)


def run(rate, steps, p0, grads):
    tx = optimiser({"all": rate}, {"w": "all"}, steps)
    params = {"w": jnp.asarray(p0, jnp.float32)}
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"])


@given(
    st.lists(floats, min_size=3, max_size=3),
    st.lists(st.lists(floats, min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.01, 0.1]),
)
def test_updates_equal_torch_adamw_with_an_exponential_schedule(p0, grads, b1, decay):
    torch = pytest.importorskip("torch")
    steps, rate = 10, Rate(lr=1e-2, final_factor=0.5, decay=decay, b1=b1, b2=0.99, eps=1e-8)
    p = torch.nn.Parameter(torch.tensor(p0, dtype=torch.float32))
    adamw = torch.optim.AdamW([p], lr=rate.lr, betas=(b1, 0.99), eps=1e-8, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda s: 0.5 ** (s / steps))
    for g in grads:
        p.grad = torch.tensor(g, dtype=torch.float32)
        adamw.step()
        schedule.step()
    np.testing.assert_allclose(run(rate, steps, p0, grads), p.detach().numpy(), atol=2e-6)


def test_a_parameter_without_gradient_shrinks_by_lr_times_decay():
    rate = Rate(lr=1e-2, decay=0.01)
    np.testing.assert_allclose(run(rate, 100, [2.0], [[0.0]]), 2.0 * (1 - 1e-2 * 0.01), rtol=1e-7)


def test_the_rate_ends_at_its_final_factor():
    schedule = learning_rate(Rate(lr=1e-2, final_factor=0.5), 1000)
    assert float(schedule(0)) == pytest.approx(1e-2)
    assert float(schedule(1000)) == pytest.approx(5e-3)
    # lips stage of the dossier: 0.05 ** (step / iters), entered at 100k of 125k
    lips = learning_rate(Rate(lr=1e-2 * 0.05**0.8, final_factor=0.05**0.2), 25_000)
    assert float(lips(0)) == pytest.approx(0.000910, abs=1e-6)
    assert float(lips(25_000)) == pytest.approx(0.0005, abs=1e-7)


def test_frozen_groups_get_zero_updates_and_no_state():
    params = {"a": jnp.ones(3), "b": jnp.ones((1000,))}
    tx = optimiser({"x": Rate(lr=1e-2, decay=0.1)}, {"a": "x", "b": "y"}, 10)
    state = tx.init(params)
    updates, _ = tx.update({"a": jnp.ones(3), "b": jnp.full((1000,), jnp.nan)}, state, params)
    assert np.all(np.asarray(updates["b"]) == 0) and np.all(np.asarray(updates["a"]) != 0)
    import jax

    assert all(leaf.size <= 3 for leaf in jax.tree.leaves(state))


def test_a_rate_for_a_group_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"'hash'.*planes"):
        optimiser({"hash": Rate(lr=1.0)}, {"w": "planes"}, 10)


def test_ema_decays_are_those_of_the_dossier():
    ema = Ema(decay=0.95)
    for n, expected in ((1, 0.181818), (2, 0.25), (10, 0.55), (100, 0.918182), (10_000, 0.95)):
        assert float(ema_decay(ema, n)) == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 200_000), st.integers(1, 5000))
def test_every_stage_updates_its_average_often_enough_to_forget_the_start(steps, every):
    n = steps // ema_every(Ema(every=every), steps)
    assert ema_every(Ema(every=every), steps) <= every
    assert n >= min(steps, 20)
    if steps >= 20 * every:
        assert ema_every(Ema(every=every), steps) == every


@given(st.lists(floats, min_size=1, max_size=30))
def test_the_average_stays_within_what_it_averages(values):
    average = {"w": jnp.float32(values[0])}
    for n, v in enumerate(values, 1):
        average = ema_update(average, {"w": jnp.float32(v)}, ema_decay(Ema(), n))
    assert min(values) - 1e-5 <= float(average["w"]) <= max(values) + 1e-5


@given(st.integers(0, 2**31), st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=3))
def test_the_norm_is_that_of_all_numbers_together(seed, shapes):
    rng = np.random.default_rng(seed)
    tree = {str(k): rng.normal(size=shape).astype(np.float32) for k, shape in enumerate(shapes)}
    flat = np.concatenate([np.zeros(1), *(np.ravel(v).astype(np.float64) for v in tree.values())])
    np.testing.assert_allclose(global_norm(tree), np.linalg.norm(flat), rtol=1e-5)
    assert global_norm(tree).dtype == jnp.float32
