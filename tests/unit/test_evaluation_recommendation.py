"""Which checkpoint is recommended, and the words for it."""

from __future__ import annotations

from dataclasses import replace

from sdlora.evaluation.findings import Interval
from sdlora.evaluation.recommendation import recommend
from sdlora.evaluation.report import Copy, Scores

BASE = Scores("base", None, None, 8, 0.2, 0.3, 1.0, 1.0, 0.0, 0.3, 0.2, 0, ())
COPIES = tuple(Copy(f"{seed}.png", "cat_03.png", 0.5) for seed in range(3))


def at(step: int, likeness: float, adherence: float = 1.0, **others: object) -> Scores:
    found = replace(BASE, label=f"step {step}", step=step, file=f"{step}.safetensors", likeness=likeness)
    return replace(found, adherence_of_base=adherence, **others)  # type: ignore[arg-type]


def recommended(*checkpoints: Scores) -> str:
    return recommend(BASE, checkpoints, most_copies=0.05, least_adherence=0.85).sentence


def test_the_earliest_of_those_that_have_learned_nearly_as_much_is_taken() -> None:
    said = recommended(at(100, 0.5), at(200, 0.796, 0.97), at(300, 0.8), at(400, 0.75))

    assert said == "step 200: likeness within 0.7% of the best, adherence 97% of the base, no near copies, leak 0.00"


def test_copies_are_passed_over_and_named_with_the_step_from_which_on_they_are() -> None:
    said = recommended(at(100, 0.5), at(200, 0.7), at(300, 0.8, copies=COPIES), at(400, 0.9, copies=COPIES))

    assert said.startswith("step 200: likeness is the best, adherence 100% of the base, no near copies")
    assert said.endswith("; from step 300 on 3 of 8 images are near copies of cat_03.png")


def test_burned_images_lost_adherence_and_overfitting_are_passed_over() -> None:
    burned = recommended(at(100, 0.5), at(200, 0.8, burned=4))
    lost = recommended(at(100, 0.5), at(200, 0.8, 0.6))
    worse = recommended(
        at(100, 0.5, held_out=Interval(0.90, 0.88, 0.92)), at(200, 0.8, held_out=Interval(0.97, 0.95, 0.99))
    )

    assert "step 100" in burned
    assert "from step 200 on 4 of 8 images are burned" in burned
    assert "from step 200 on adherence falls to 60% of the base" in lost
    assert "held-out loss 0.90 of the base (0.88 to 0.92)" in worse
    assert "from step 200 on held-out images are predicted worse (0.97 of the base's loss)" in worse


def test_adherence_is_held_against_the_best_checkpoint_where_none_has_the_bases() -> None:
    assert recommended(at(100, 0.5, 0.5), at(200, 0.8, 0.45)).startswith("step 200: likeness is the best")


def test_where_all_have_faults_the_least_is_taken_and_said_so() -> None:
    said = recommended(at(100, 0.5, copies=COPIES[:1]), at(200, 0.8, copies=COPIES))

    assert said.startswith("step 100: none is without fault, this one has the least, likeness is the best")
    assert "1 of 8 images is a near copy" in said


def test_a_run_that_learned_nothing_is_told_so() -> None:
    assert "nothing of the training images shows yet" in recommended(at(100, 0.1))
