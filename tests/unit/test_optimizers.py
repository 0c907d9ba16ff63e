"""Every optimizer, for real: it learns, it goes on exactly from a saved state, and it refuses what it can't do."""

from __future__ import annotations

import builtins
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer

from sdlora.config.optimization import OPTIMIZERS, OWN_RATE, OptimizationConfig
from sdlora.errors import ConfigError, MissingPackageError
from sdlora.training.optimization.optimizers import (
    build,
    check,
    evaluation_weights,
    notes,
    set_learning_rates,
)
from sdlora.training.optimization.parameter_groups import ParameterGroup
from sdlora.training.optimization.schedules import factor

CPU = torch.device("cpu")
STEPS = 40
NAMES = (*OPTIMIZERS, "torch.optim.SGD")
PRODIGY_START = {"d0": 1e-3}  # the usual 1e-6 takes longer to grow than these tests last
RATES = {
    **dict.fromkeys(OWN_RATE, 1.0),
    "dadapt_adam": 0.3,
    "adafactor": 0.03,
    "torch.optim.SGD": 1.0,
    "muon": 0.05,
    "soap": 0.03,
}


def state_bytes(optimizer: Optimizer) -> int:
    """Memory that the optimizer's state takes, tables shared between weights counted once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(tensors.values())


def settings(name: str, **changes) -> OptimizationConfig:
    values = {"optimizer": name, "learning_rate": RATES.get(name, 0.01), "steps": STEPS, "warmup": 3}
    if name in OWN_RATE:
        values["optimizer_options"] = PRODIGY_START
    return OptimizationConfig(**{**values, **changes})


class Run:
    """A LoRA of rank 16 on a frozen 64 x 64 map, pulled to another low-rank map."""

    def __init__(self, config: OptimizationConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        self.config = config
        self.a = nn.Parameter(torch.randn((16, 64), generator=generator) / 8)
        self.b = nn.Parameter(torch.zeros(64, 16))
        self.wanted = torch.randn((64, 4), generator=generator) @ torch.randn((4, 64), generator=generator) / 8
        rate = config.learning_rate
        ratio = 1.0 if config.optimizer in OWN_RATE else 0.5
        self.groups = [ParameterGroup("a", [self.a], rate, 0.01), ParameterGroup("b", [self.b], rate * ratio, 0.01)]
        self.optimizer = build(self.groups, config, CPU)
        self.step_number = 0

    def step(self) -> float:
        inputs = torch.randn((32, 64), generator=torch.Generator().manual_seed(1000 + self.step_number))
        loss = ((inputs @ (self.b @ self.a - self.wanted).T) ** 2).mean()
        loss.backward()
        self.rates = set_learning_rates(self.optimizer, self.groups, factor(self.step_number, STEPS, self.config))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_number += 1
        return loss.item()

    def weights(self) -> bytes:
        return b"".join(parameter.detach().numpy().tobytes() for parameter in (self.a, self.b))


def through_a_file(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_learns(name):
    run = Run(settings(name))
    losses = [run.step() for _ in range(2 * STEPS)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_half_the_steps_saved_loaded_and_continued_give_the_same_bytes(name):
    whole, first, second = (Run(settings(name)) for _ in range(3))
    for _ in range(STEPS):
        whole.step()
    for _ in range(STEPS // 2):
        first.step()
    saved = through_a_file({"optimizer": first.optimizer.state_dict(), "weights": [first.a.data, first.b.data]})
    with torch.no_grad():
        second.a.copy_(saved["weights"][0])
        second.b.copy_(saved["weights"][1])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.step_number = STEPS // 2
    for _ in range(STEPS - STEPS // 2):
        second.step()
    assert second.weights() == whole.weights()
    assert second.weights() != first.weights()


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw8bit"])
def test_8bit_adam_keeps_two_bytes_a_parameter_even_for_small_lora_tensors(name):
    run = Run(settings(name))
    run.step()
    lookup_tables = 2 * 256 * 4
    assert run.a.numel() < 4096  # bitsandbytes' own limit would keep these in fp32
    assert (state_bytes(run.optimizer) - lookup_tables) / (run.a.numel() + run.b.numel()) == pytest.approx(
        2.03, abs=0.01
    )
    exact = Run(settings("adamw"))
    exact.step()
    assert state_bytes(exact.optimizer) == pytest.approx(8 * 2 * 1024, abs=16)


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw8bit"])
def test_8bit_adam_updates_are_within_a_few_percent_of_adam(name):
    low, exact = Run(settings(name)), Run(settings("adamw"))
    start = torch.cat([exact.a.detach().flatten(), exact.b.detach().flatten()]).clone()
    for _ in range(20):
        low.step()
        exact.step()
    ends = [torch.cat([run.a.detach().flatten(), run.b.detach().flatten()]) for run in (low, exact)]
    error = (ends[0] - ends[1]).norm() / (ends[1] - start).norm()
    assert 0 < error < 0.05


def test_adamw_equals_torchs_plain_implementation():
    run, plain = Run(settings("adamw")), Run(settings("adamw", optimizer_options={"fused": False, "foreach": False}))
    assert run.optimizer.param_groups[0]["fused"] is True
    for _ in range(STEPS):
        run.step()
        plain.step()
    torch.testing.assert_close(run.a, plain.a)


def test_learning_rates_of_a_step_are_set_and_named():
    run = Run(settings("adamw", schedule="linear"))
    run.step()
    assert run.rates == {"a": pytest.approx(0.01 / 4), "b": pytest.approx(0.005 / 4)}
    assert [group["lr"] for group in run.optimizer.param_groups] == list(run.rates.values())


def test_rate_reported_for_prodigy_includes_its_own_estimate():
    run = Run(settings("prodigy"))
    for _ in range(STEPS):
        run.step()
    estimate = run.optimizer.param_groups[0]["d"]
    assert estimate > 1e-3
    assert set_learning_rates(run.optimizer, run.groups, 0.5)["a"] == pytest.approx(0.5 * estimate)


def test_prodigy_has_the_usual_settings_for_lora():
    group = Run(settings("prodigy", optimizer_options={"d_coef": 2})).optimizer.param_groups[0]
    assert (group["decouple"], group["use_bias_correction"], group["safeguard_warmup"]) == (True, True, True)
    assert group["d_coef"] == 2


def test_prodigy_prints_nothing(capsys):
    Run(settings("prodigy"))
    assert capsys.readouterr().out == ""


def test_schedule_free_weights_for_previews_differ_and_previews_do_not_change_the_run():
    watched, left_alone = Run(settings("schedule_free_adamw")), Run(settings("schedule_free_adamw"))
    for _ in range(STEPS):
        watched.step()
        left_alone.step()
        before = watched.weights()
        with evaluation_weights(watched.optimizer):
            inside = watched.weights()
        assert watched.weights() == before
    assert inside != before
    assert watched.weights() == left_alone.weights()


def test_other_optimizers_are_judged_at_the_weights_they_train():
    run = Run(settings("adamw"))
    run.step()
    before = run.weights()
    with evaluation_weights(run.optimizer):
        assert run.weights() == before


def test_options_reach_the_optimizer_and_lists_become_tuples():
    run = Run(settings("adamw", optimizer_options={"betas": [0.8, 0.95]}))
    assert run.optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_a_small_number_that_yaml_takes_for_text_is_a_number():
    assert Run(settings("adamw", optimizer_options={"eps": "1e-6"})).optimizer.param_groups[0]["eps"] == 1e-6


def test_paging_on_the_cpu_is_noted_and_bitsandbytes_does_not_warn_itself():
    config = settings("paged_adamw8bit")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = Run(config)
        run.step()
    assert not [warning for warning in caught if "Paged" in str(warning.message)]
    assert notes(run.groups, config, CPU) == [
        "optimizer=paged_adamw8bit pages between card and host; on the CPU it is the same as adamw8bit"
    ]


def test_tensors_too_small_for_8_bits_are_noted():
    tiny = ParameterGroup("a", [nn.Parameter(torch.zeros(4, 16)), nn.Parameter(torch.zeros(64, 16))], 1e-3, 0.0)
    (note,) = notes([tiny], settings("adamw8bit"), CPU)
    assert note == (
        "1 of 2 adapter tensors have fewer than 256 values and keep 32-bit optimizer state (64 of 1088 values)"
    )
    assert notes([tiny], settings("adamw"), CPU) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_options": {"btas": [0.9, 0.99]}}, r"btas: unknown option of AdamW, did you mean 'betas'\?"),
        (
            {"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_options": {"growth_rate": 0.9, "d0": "0"}},
            "(?s)growth_rate: must be above 1, got 0.9.*d0: must be above 0",
        ),
        ({"optimizer_options": {"zzz": 1}}, "zzz: unknown option of AdamW, it takes betas, eps"),
        ({"optimizer_options": {"lr": 1e-3}}, "lr: set optimization.learning_rate instead"),
        ({"optimizer_options": {"weight_decay": 0}}, "weight_decay: set optimization.weight_decay instead"),
        ({"optimizer_options": {"eps": -1.0}}, "optimizer adamw rejects its options .'eps': -1.0.: Invalid epsilon"),
        ({"optimizer_options": {"betas": [0.9]}}, r"betas: must be 2 numbers, such as \[0.9, 0.999\], got \(0.9,\)"),
        ({"optimizer_options": {"betas": "0.9,0.99"}}, r"betas: must be 2 numbers, .*, got '0.9,0.99'"),
        ({"optimizer_options": {"eps": "tiny"}}, "eps: must be a number, got 'tiny'"),
        ({"optimizer_options": {"amsgrad": "yes"}}, "amsgrad: must be true or false, got 'yes'"),
        ({"optimizer": "torch.optim.Nothing"}, "'torch.optim.Nothing' can't be imported: .*no attribute 'Nothing'"),
        ({"optimizer": "no_such_package.Adam"}, "'no_such_package.Adam' can't be imported: No module named"),
        ({"optimizer": "torch.nn.Linear"}, "'torch.nn.Linear' is no optimizer class"),
        ({"optimizer": "torch.optim.LBFGS"}, "'torch.optim.LBFGS' needs a closure"),
    ],
)
def test_wrong_optimizer_or_option_is_refused_before_any_model_is_loaded(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(settings("adamw", **changes))


def test_all_wrong_options_are_listed_at_once():
    with pytest.raises(ConfigError, match="2 problems") as caught:
        check(settings("adamw", optimizer_options={"lr": 1, "btas": 2}))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_passes_the_check(name):
    check(settings(name))


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("adamw8bit", "bitsandbytes", "8bit"),
        ("paged_adamw8bit", "bitsandbytes", "8bit"),
        ("lion", "lion-pytorch", "lion"),
        ("prodigy", "prodigyopt", "prodigy"),
        ("schedule_free_adamw", "schedulefree", "schedule-free"),
    ],
)
def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name, package, extra):
    def refuse(real: Callable = builtins.__import__):
        def missing(module: str, *args):
            raise ImportError(f"No module named '{module}'")

        return missing

    monkeypatch.setattr("sdlora.training.optimization.optimizers.importlib.import_module", refuse())
    with pytest.raises(MissingPackageError, match=rf"optimizer={name} needs the package '{package}'") as caught:
        check(settings(name))
    assert f"pip install -e '.[{extra}]'  (or: pip install {package})" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_encoder_learning_rate": 0.5}, "text_encoder_learning_rate=0.5: prodigy takes one learning rate"),
        ({"block_learning_rates": {"mid_block": 0.5}}, "with prodigy a factor can be 0 or 1 only"),
        ({"lora_plus_ratio": 16.0}, "lora_plus_ratio=16.0 can't be used with prodigy"),
    ],
)
def test_several_learning_rates_are_refused_for_prodigy(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings("prodigy", **changes)


def test_prodigy_gives_text_encoders_the_same_rate_by_default():
    assert set(settings("prodigy").learning_rates.values()) == {1.0}
    assert settings("prodigy", text_encoder_learning_rate=0.0).learning_rates["text_encoder_2"] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, "schedule=cosine has no place with schedule_free_adamw"),
        ({"ema": 0.99}, "ema=0.99 averages twice"),
    ],
)
def test_what_schedule_free_does_itself_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings("schedule_free_adamw", **changes)


def test_a_misspelt_option_is_refused_although_the_package_takes_any() -> None:
    config = OptimizationConfig(optimizer="came", optimizer_options={"clip_treshold": 1.0})
    with pytest.raises(ConfigError, match="clip_treshold: unknown option of CAME, did you mean 'clip_threshold'"):
        check(config)


def test_muon_leaves_magnitudes_to_adamw() -> None:
    matrix, magnitude = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    groups = [ParameterGroup("unet", [matrix], 0.02, 0.0), ParameterGroup("unet magnitude", [magnitude], 0.02, 0.0)]
    optimizer = build(groups, OptimizationConfig(optimizer="muon", learning_rate=0.02), CPU)
    assert [group["use_muon"] for group in optimizer.param_groups] == [True, False]
    (matrix.square().sum() + magnitude.square().sum()).backward()
    optimizer.step()
    assert not torch.equal(matrix.data, torch.ones(4, 4))
    assert not torch.equal(magnitude.data, torch.ones(4))


def test_adafactor_can_find_its_own_rate() -> None:
    config = settings("adafactor", optimizer_options={"relative_step": True, "scale_parameter": False})
    run = Run(config)
    losses = [run.step() for _ in range(STEPS)]
    assert losses[-1] < losses[0] / 2
    assert run.rates == {"a": 0.01, "b": 0.01}
    assert "finds its own learning rate" in notes(run.groups, config, CPU)[0]
