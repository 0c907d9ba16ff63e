"""Noise and timesteps: each image's draws are its own, and are distributed as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdlora.config.objective import ObjectiveConfig
from sdlora.training.loss.noise import even_positions, make_noise, perturb, sample_timesteps


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    "options", [{}, {"noise_offset": 0.1}, {"multires_iterations": 6}, {"noise_offset": 0.1, "multires_iterations": 3}]
)
def test_noise_of_an_image_does_not_depend_on_its_neighbours(options):
    together = make_noise((4, 8, 8), generators(1, 2, 3), **options)
    alone = make_noise((4, 8, 8), generators(2), **options)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


def test_plain_noise_is_torchs_own_draw():
    expected = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(5))
    assert torch.equal(make_noise((4, 8, 8), generators(5))[0], expected)


def test_noise_offset_adds_one_constant_to_each_channel():
    difference = make_noise((4, 8, 8), generators(5), noise_offset=0.1) - make_noise((4, 8, 8), generators(5))
    means = difference.mean(dim=(2, 3))
    torch.testing.assert_close(difference, means[:, :, None, None].expand_as(difference), atol=1e-6, rtol=0)
    many = make_noise((4, 1, 1), generators(*range(400)), noise_offset=0.5) - make_noise(
        (4, 1, 1), generators(*range(400))
    )
    assert many.std().item() == pytest.approx(0.5, rel=0.1)


def test_multires_noise_has_unit_variance_and_more_power_at_low_frequency():
    plain = make_noise((4, 32, 32), generators(*range(40)))
    coarse = make_noise((4, 32, 32), generators(*range(40)), multires_iterations=6, multires_discount=0.7)
    torch.testing.assert_close(coarse.std(dim=(1, 2, 3)), torch.ones(40), atol=1e-5, rtol=0)

    def low_share(noise: torch.Tensor) -> float:
        power = torch.fft.rfft2(noise).abs() ** 2
        return (power[..., :4, :4].mean() / power.mean()).item()

    assert low_share(coarse) > 2 * low_share(plain)


def test_multires_noise_follows_whitakers_sum_of_levels():
    """Replays the draws by hand: levels shrink by r^i, weigh discount^i, and the sum is scaled to unit variance."""
    generator = torch.Generator().manual_seed(9)
    total = torch.randn((4, 16, 12), generator=generator).double().numpy()
    height, width, sizes = 16, 12, []
    for level in range(3):
        shrink = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        height, width = max(1, int(height / shrink)), max(1, int(width / shrink))
        total = total + 0.5**level * bilinear(torch.randn((4, height, width), generator=generator), 16, 12)
        sizes.append((height, width))
        if 1 in (height, width):
            break
    expected = total / total.std(ddof=1)
    ours = make_noise((4, 16, 12), generators(9), multires_iterations=3, multires_discount=0.5)[0]
    assert sizes[0] == (16, 12)
    assert sizes[1][0] <= 8
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-5)


def bilinear(coarse: torch.Tensor, height: int, width: int) -> np.ndarray:
    """Bilinear upsampling with half-pixel centres, one output row and column at a time."""
    source = coarse.double().numpy()

    def interpolation_matrix(size_out: int, size_in: int) -> np.ndarray:
        matrix = np.zeros((size_out, size_in))
        for index in range(size_out):
            place = min(max((index + 0.5) * size_in / size_out - 0.5, 0), size_in - 1)
            low = int(place)
            high = min(low + 1, size_in - 1)
            matrix[index, low] += 1 - (place - low)
            matrix[index, high] += place - low
        return matrix

    rows, columns = interpolation_matrix(height, source.shape[1]), interpolation_matrix(width, source.shape[2])
    return np.einsum("hy,cyx,wx->chw", rows, source, columns)


def test_input_perturbation_adds_noise_of_its_strength():
    noise = make_noise((4, 16, 16), generators(1, 2))
    perturbed = perturb(noise, generators(3, 4), 0.1)
    assert (perturbed - noise).std().item() == pytest.approx(0.1, rel=0.1)


def test_no_input_perturbation_leaves_noise_and_generators_alone():
    noise = make_noise((4, 8, 8), generators(1))
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert perturb(noise, [generator], 0.0) is noise
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "cubic"])
def test_timesteps_stay_in_their_range_and_reach_both_ends(distribution):
    objective = ObjectiveConfig(min_timestep=990, max_timestep=992, timestep_distribution=distribution)
    drawn = sample_timesteps(generators(*range(300)), objective)
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == {990, 991, 992}


def test_one_timestep_range_gives_that_timestep():
    objective = ObjectiveConfig(min_timestep=7, max_timestep=7, timestep_distribution="cubic")
    assert sample_timesteps(generators(1, 2), objective).tolist() == [7, 7]


@pytest.mark.parametrize(
    ("distribution", "quantile"),
    [
        ("uniform", lambda p: p),
        ("logit_normal", lambda p: 1 / (1 + np.exp(-np.sqrt(2) * inverse_erf(2 * p - 1)))),
        ("cubic", lambda p: 1 - (1 - p) ** 3),
    ],
)
def test_timesteps_follow_their_distribution(distribution, quantile):
    generator = torch.Generator().manual_seed(0)
    drawn = sample_timesteps([generator] * 20_000, ObjectiveConfig(timestep_distribution=distribution)).double().numpy()
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(drawn, share) == pytest.approx(1000 * quantile(share), abs=12)


@pytest.mark.parametrize("count", [4, 7, 32, 200])
@pytest.mark.parametrize("first", [0, 5, 4096])
def test_even_timesteps_leave_no_gap_in_any_stretch_of_images(count: int, first: int) -> None:
    places = sorted(even_positions(range(first, first + count), seed=3))
    gaps = np.diff([*places, places[0] + 1.0])
    # Drawn independently the largest of `count` gaps is about log(count) + 0.6 times the mean.
    assert gaps.max() < 2.7 / count
    assert all(0.0 <= place < 1.0 for place in places)


def test_even_timesteps_hang_on_the_number_and_the_seed_alone():
    assert even_positions([7], seed=1) == even_positions([5, 6, 7], seed=1)[2:]
    assert even_positions([7], seed=1) != even_positions([7], seed=2)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "cubic"])
def test_even_timesteps_follow_the_distribution_that_drawn_ones_do(distribution):
    objective = ObjectiveConfig(timestep_distribution=distribution)
    even = sample_timesteps([], objective, even_positions(range(5000), seed=0)).double().numpy()
    drawn = sample_timesteps([torch.Generator().manual_seed(0)] * 20_000, objective).double().numpy()
    for share in (0.1, 0.5, 0.9):
        assert np.quantile(even, share) == pytest.approx(np.quantile(drawn, share), abs=14)


def inverse_erf(value: float) -> float:
    return torch.erfinv(torch.tensor(value, dtype=torch.float64)).item()


def test_random_strengths_are_drawn_evenly_for_each_image():
    def generators(count=4000):
        return [torch.Generator().manual_seed(seed) for seed in range(count)]

    shape = (1, 8, 8)
    full = make_noise(shape, generators(), noise_offset=0.5).mean(dim=(1, 2, 3)).std()
    drawn = make_noise(shape, generators(), noise_offset=0.5, random_offset=True).mean(dim=(1, 2, 3)).std()
    plain = make_noise(shape, generators()).mean(dim=(1, 2, 3)).std()
    # The spread of u x n with even u is that of n over sqrt(3).
    assert (drawn**2 - plain**2).sqrt() / (full**2 - plain**2).sqrt() == pytest.approx(3**-0.5, rel=0.1)

    noise = torch.zeros((4000, 1, 8, 8))
    spread = perturb(noise, generators(), 0.3, random_strength=True).std()
    assert spread / 0.3 == pytest.approx(3**-0.5, rel=0.05)
