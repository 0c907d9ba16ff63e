"""How the images of a step are divided between processes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdlora.config.optimization import OptimizationConfig
from sdlora.errors import ConfigError
from sdlora.training.shares import check_shares, images_a_pass, images_a_step, in_words, share


def rows_of(sizes: list[int], index: int, count: int) -> list[tuple[int, int]]:
    return [(number, row) for number, rows in share(sizes, index, count) for row in range(rows.start, rows.stop)]


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9), count=st.integers(1, 9))
def test_every_image_of_a_step_is_one_processs_and_shares_are_nearly_equal(sizes: list[int], count: int) -> None:
    taken = [rows_of(sizes, index, count) for index in range(count)]
    assert Counter(row for rows in taken for row in rows) == Counter(
        (number, row) for number, size in enumerate(sizes) for row in range(size)
    )
    if len(sizes) % count:
        lengths = [len(rows) for rows in taken]
        assert max(lengths) - min(lengths) <= 1


def test_whole_batches_stay_whole_where_they_divide_evenly() -> None:
    assert list(share([4, 4, 4, 1], 1, 2)) == [(2, slice(0, 4)), (3, slice(0, 1))]


def test_one_process_takes_everything() -> None:
    assert list(share([3, 2], 0, 1)) == [(0, slice(0, 3)), (1, slice(0, 2))]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "a_pass"),
    [(4, 1, 2, 2), (4, 2, 2, 4), (1, 4, 2, 1), (3, 1, 2, 2), (4, 1, 1, 4), (2, 3, 2, 2), (8, 1, 3, 3)],
)
def test_the_largest_pass_of_a_process(batch_size: int, accumulation: int, processes: int, a_pass: int) -> None:
    config = OptimizationConfig(batch_size=batch_size, accumulation=accumulation)
    assert images_a_step(config) == batch_size * accumulation
    assert images_a_pass(config, processes) == a_pass


def test_a_step_of_fewer_images_than_processes_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"a step has 1 image .* which 4 processes can't share: set .*batch_size=4"):
        check_shares(OptimizationConfig(), 4)
    with pytest.raises(ConfigError, match=r"batch_size=2 or more, or take 2 processes"):
        check_shares(OptimizationConfig(accumulation=2), 4)
    check_shares(OptimizationConfig(batch_size=2, accumulation=2), 4)


def test_the_sum_says_what_each_process_has_and_that_the_rate_stays() -> None:
    assert in_words(OptimizationConfig(batch_size=4, accumulation=2), 2) == (
        "8 images a step (batch 4 x accumulation 2), 4 for each of 2 processes, up to 4 at once; steps and learning "
        "rate are those of one process"
    )
    assert "2 or 3 for each of 2 processes" in in_words(OptimizationConfig(batch_size=5), 2)
