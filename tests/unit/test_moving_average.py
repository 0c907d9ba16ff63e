"""The moving average of the trained weights."""

from __future__ import annotations

import pytest
import torch

from sdlora.errors import TrainingError
from sdlora.training.optimization.ema import MovingAverage


def move(parameter: torch.nn.Parameter, value: float) -> None:
    with torch.no_grad():
        parameter.fill_(value)


def test_average_follows_its_formula_with_the_early_ramp():
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = MovingAverage([parameter], decay=0.5)
    expected = 0.0
    for updates in range(20):
        move(parameter, updates + 1.0)
        average.update()
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * (updates + 1.0)
    torch.testing.assert_close(average.averages[0], torch.full((3,), expected))


def test_model_has_the_average_inside_and_its_own_weights_after_even_on_error():
    parameter = torch.nn.Parameter(torch.tensor([0.1, 0.2]))
    average = MovingAverage([parameter], decay=0.9)
    move(parameter, 7.3)
    average.update()
    before = parameter.detach().clone()

    def fail() -> None:
        with average.averaged():
            assert torch.equal(parameter, average.averages[0])
            raise RuntimeError("preview failed")

    with pytest.raises(RuntimeError, match="preview failed"):
        fail()
    assert torch.equal(parameter, before)


def test_average_goes_on_exactly_from_its_saved_state():
    parameter = torch.nn.Parameter(torch.zeros(4))
    whole = MovingAverage([parameter], decay=0.8)
    states = []
    for step in range(10):
        move(parameter, float(step) ** 1.5)
        whole.update()
        states.append({"updates": whole.updates, "averages": [tensor.clone() for tensor in whole.averages]})
    resumed = MovingAverage([parameter], decay=0.8)
    resumed.load_state_dict(states[4])
    for step in range(5, 10):
        move(parameter, float(step) ** 1.5)
        resumed.update()
    assert torch.equal(resumed.averages[0], whole.averages[0])


def test_average_of_other_weights_is_refused():
    average = MovingAverage([torch.nn.Parameter(torch.zeros(4))], decay=0.8)
    other = MovingAverage([torch.nn.Parameter(torch.zeros(5))], decay=0.8)
    with pytest.raises(TrainingError, match="Resume with the adapter settings of the run that was saved"):
        average.load_state_dict(other.state_dict())
