"""The learning rate's course against diffusers' schedulers.

diffusers' first step has rate 0 whenever there is warm-up. Ours counts the same ramp one step later, so that ours at
step s with w warm-up steps of n is diffusers' at s + 1 with w + 1 of n + 1, during warm-up and after.
"""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.optimization import get_scheduler

from sdlora.config.optimization import OptimizationConfig
from sdlora.training.optimization.schedules import factor

STEPS = 60


def reference(name: str, warmup: int, cycles: int, power: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = {"num_warmup_steps": warmup + 1, "num_training_steps": STEPS + 1}
    if name == "constant":
        name = "constant_with_warmup"
    if name == "cosine_with_restarts":
        options["num_cycles"] = cycles
    scheduler = get_scheduler(name, optimizer, power=power, **options)
    rates = []
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


@pytest.mark.parametrize("warmup", [0, 1, 12])
@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_schedule_equals_that_of_diffusers(name, warmup):
    config = OptimizationConfig(schedule=name, warmup=warmup, schedule_cycles=3, schedule_power=1.7)
    ours = [factor(step, STEPS, config) for step in range(STEPS)]
    assert ours == pytest.approx(reference(name, warmup, 3, 1.7), abs=2e-7)


def test_cosine_equals_torchs_annealing_with_a_floor():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=0.2)
    config = OptimizationConfig(schedule="cosine", schedule_floor=0.2)
    for step in range(STEPS):
        assert factor(step, STEPS, config) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warmup_share_counts_steps_of_the_whole_run():
    share, number = OptimizationConfig(warmup=0.05), OptimizationConfig(warmup=5)
    assert [factor(s, 100, share) for s in range(100)] == [factor(s, 100, number) for s in range(100)]


def test_first_step_is_never_wasted_and_rates_rise_evenly_to_one():
    config = OptimizationConfig(warmup=4, schedule="linear")
    assert [factor(step, 100, config) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_rates_end_at_the_floor_and_stay_there(name):
    config = OptimizationConfig(schedule=name, schedule_floor=0.1, schedule_cycles=2)
    assert factor(STEPS, STEPS, config) == factor(5 * STEPS, STEPS, config) == pytest.approx(0.1)
    assert min(factor(step, STEPS, config) for step in range(STEPS)) >= 0.1


def test_warmup_longer_than_the_run_only_rises():
    rates = [factor(step, 10, OptimizationConfig(warmup=50, schedule="cosine")) for step in range(10)]
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1] < 1


def test_restarts_begin_each_cycle_at_the_full_rate():
    config = OptimizationConfig(schedule="cosine_with_restarts", schedule_cycles=3)
    assert [factor(step, 30, config) for step in (0, 10, 20)] == [1.0, 1.0, 1.0]
    assert math.isclose(factor(5, 30, config), 0.5)


def test_rex_is_the_formula_of_its_paper():
    config = OptimizationConfig(schedule="rex")
    for step in range(STEPS):
        z = step / STEPS
        assert factor(step, STEPS, config) == pytest.approx((1 - z) / (0.5 + 0.5 * (1 - z)), rel=1e-12)


def test_wsd_is_stable_and_then_falls_as_one_minus_a_root():
    config = OptimizationConfig(schedule="wsd", warmup=10, schedule_decay=0.25, schedule_floor=0.1)
    rates = [factor(step, 110, config) for step in range(111)]
    assert rates[10:86] == pytest.approx([1.0] * 76)
    for done in range(26):
        assert rates[85 + done] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(done / 25)))


@pytest.mark.parametrize(("warmup", "timescale"), [(16, None), (0, 50), (16, 50)])
def test_inverse_sqrt_equals_that_of_transformers(warmup, timescale):
    from transformers.optimization import get_inverse_sqrt_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_inverse_sqrt_schedule(optimizer, num_warmup_steps=warmup, timescale=timescale)
    config = OptimizationConfig(schedule="inverse_sqrt", warmup=warmup, schedule_timescale=timescale)
    for step in range(STEPS):
        if step >= warmup:
            assert factor(step, STEPS, config) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_piecewise_equals_that_of_diffusers():
    from diffusers.optimization import get_piecewise_constant_schedule

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_piecewise_constant_schedule(optimizer, "1:10,0.5:30,0.1")
    config = OptimizationConfig(schedule="piecewise", schedule_points=((10, 0.5), (30, 0.1)))
    for step in range(STEPS):
        assert factor(step, STEPS, config) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
    shares = OptimizationConfig(schedule="piecewise", schedule_points=((0.25, 0.5), (0.75, 0.1)))
    assert [factor(step, 40, shares) for step in (9, 10, 29, 30)] == [1.0, 0.5, 0.5, 0.1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"schedule": "piecewise"}, "needs schedule_points"),
        ({"schedule_points": ((0.5, 0.1),)}, "have no effect with schedule=constant"),
        ({"schedule": "piecewise", "schedule_points": ((0.5, 0.1), (0.2, 1))}, "steps must rise; got 0.5, 0.2"),
        ({"schedule": "piecewise", "schedule_points": ((0.5, -1),)}, "can't be below 0"),
    ],
)
def test_points_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        OptimizationConfig(**settings)
