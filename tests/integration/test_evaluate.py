"""`sdlora evaluate` from end to end on a run of two steps: images, scores, report, promotion, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import sdlora
from sdlora.adapters.files.container import content_hash
from sdlora.config import files
from sdlora.errors import ConfigError, ModelError, RunError
from sdlora.evaluation import evaluate as evaluating
from sdlora.evaluation import promotion, report
from sdlora.evaluation.images import PlannedImage
from sdlora.evaluation.lock import locked
from sdlora.evaluation.plan import find_checkpoints
from sdlora.generation.generate import Generator
from sdlora.runs import checkpoints
from sdlora.runs.folder import RunFolder, open_run
from tests.support.tiny_scorers import build_clip, build_dinov2

QUICK: dict[str, Any] = {
    "steps": 2,
    "num_seeds": 2,
    "guidance": 2.0,
    "prompts": {"num_known": 1, "num_new": 1, "num_plain": 1},
    "problem_images": {"draws": 2, "captions": 2},
}
IMAGES = 2 * 2 + 2 * 3 * 2
"""Of the base (the plain prompt is the new one without its trigger), and of each checkpoint."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> Path:
    """A run of two steps, with a checkpoint at each, trained before a test's own cache is set."""
    config = {
        "preset": "demo.yaml",
        "name": "tiny",
        "images": {"folder": str(tiny_images), "resolution": 64, "cache": False},
        "captions": {"trigger": "ohwx"},
        "adapter": {"rank": 2, "layers": "attention"},
        "optimization": {"steps": 2, "batch_size": 2, "learning_rate": 0.01},
        "validation": {"fraction": 0.2},
        "previews": {"prompts": []},
        "outputs": {
            "folder": str(tmp_path_factory.mktemp("runs")),
            "checkpoint_every": 1,
            "self_test": False,
        },
    }
    return sdlora.train(config).folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def pictures(run: Path) -> dict[str, int]:
    """The generated images with their times of change."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "evaluation" / "images").rglob("*.png")}


def test_a_run_is_evaluated_from_end_to_end(run: Path) -> None:
    result = sdlora.evaluate(run, QUICK)

    assert [one.label for one in result.checkpoints] == ["step 1", "step 2"]  # the result is step 2's file once more
    assert result.generated == len(pictures(run)) == IMAGES
    assert (result.features, result.base.num_images, result.base.leak) == ("latents", 4, pytest.approx(0, abs=1e-5))
    for one in result.checkpoints:
        assert one.held_out is not None
        assert one.held_out.low <= one.held_out.value <= one.held_out.high
        assert one.num_images == 4
        assert one.leak is not None
    assert result.recommendation.file in [one.file for one in result.checkpoints]
    assert result.problem_images is not None
    assert set(result.problem_images.by_kind) == {
        "hardest",
        "never learned",
        "memorised first",
        "mislabelled",
        "unlike the others",
    }
    report = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["recommendation"]["label"] == result.recommendation.label
    images = (run / "evaluation" / "images" / "step_000001").glob("ohwx*.png")
    assert any('"ohwx, shape' in Image.open(image).text["sdlora"] for image in images)  # type: ignore[attr-defined]


def test_words_beside_the_trigger_are_left_out_and_used_alone(run: Path) -> None:
    tied = {"enabled": True, "words": ["square"], "num_seeds": 1}
    settings = {**QUICK, "num_seeds": 1, "problem_images": {"enabled": False}, "tied_words": tied}
    result = sdlora.evaluate(run, settings)
    assert result.tied_words is not None
    assert [one.word for one in result.tied_words] == ["square"]
    assert result.generated == len(pictures(run)) == IMAGES // 2 + 2  # the trigger's own were there
    assert report.read(run) == result
    assert sdlora.evaluate(run, settings).generated == 0
    config = files.read_yaml(run / "config.yaml")
    del config["captions"]["trigger"]
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="tied_words: the run has no trigger that words could be tied to"):
        sdlora.evaluate(run, settings)


def test_a_weight_is_advised_and_promoted_with_the_checkpoint(run: Path) -> None:
    settings = {**QUICK, "problem_images": {"enabled": False}, "weights": [1.0, 0.5]}
    result = sdlora.evaluate(run, settings, promote=True)
    advice = result.weight_advice
    assert advice is not None
    assert [one.label for one in advice.tried] == ["weight 0.5", "weight 1"]
    assert advice.sentence.startswith(f"weight {advice.weight:g}: ")
    assert result.generated == len(pictures(run)) == IMAGES + 6  # at weight 1 they were there
    at_1 = next(one for one in result.checkpoints if one.label == result.recommendation.label)
    assert advice.tried[1].likeness == pytest.approx(at_1.likeness, abs=1e-3)
    assert advice.tried[0].held_out != advice.tried[1].held_out is not None
    card = json.loads((run / "tiny.json").read_text(encoding="utf-8"))
    assert card["preferred weight"] == advice.weight
    assert card["activation text"] == "ohwx"
    again = sdlora.evaluate(run, settings, promote=True)
    assert again.generated == 0
    assert again.weight_advice == advice
    (other,) = (one.label for one in result.checkpoints if one.label != result.recommendation.label)
    promotion.promote(run, other)  # for which no weight was advised
    assert json.loads((run / "tiny.json").read_text(encoding="utf-8"))["preferred weight"] == 1


def test_an_interrupted_evaluation_generates_only_what_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saved = evaluating.generate_missing.__globals__["save_image"], []

    def dying(image: Any, path: Path) -> Path:
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(save(image, path))
        return saved[-1]

    monkeypatch.setitem(evaluating.generate_missing.__globals__, "save_image", dying)
    with pytest.raises(KeyboardInterrupt):
        sdlora.evaluate(run, QUICK)
    monkeypatch.undo()
    before = pictures(run)
    (run / "evaluation" / "images" / f".half.1-00000000{'.sdlora-tmp'}").write_bytes(b"half")

    result = sdlora.evaluate(run, QUICK)

    assert len(before) == 5
    assert result.generated == IMAGES - 5
    assert pictures(run).items() >= before.items()
    again = sdlora.evaluate(run, QUICK)
    assert again.generated == 0
    assert again.checkpoints == result.checkpoints


def test_other_settings_have_images_of_their_own_and_a_damaged_one_is_generated_anew(run: Path) -> None:
    small = {**QUICK, "checkpoints": [2], "problem_images": {"enabled": False}}
    sdlora.evaluate(run, small)
    before = pictures(run)
    next((run / "evaluation" / "images" / "step_000002").glob("*.png")).write_bytes(b"torn")

    assert sdlora.evaluate(run, small).generated == 1
    assert sdlora.evaluate(run, {**small, "weight": 0.5}).generated == 6  # the base's stay
    assert pictures(run).keys() > before.keys()


def test_a_damaged_checkpoint_is_left_out_and_named(run: Path) -> None:
    folder, config = open_run(run)
    first, last = find_checkpoints(folder, config)
    content = bytearray(first.path.read_bytes())
    content[-1] ^= 1  # one bit: a number like any other
    first.path.write_bytes(content)
    notes: list[str] = []
    assert find_checkpoints(folder, config, notes=notes) == [last]
    assert notes == ["step 1 is damaged: it differs from what was written; it is left out"]
    assert find_checkpoints(folder, config, [2]) == [last]
    with pytest.raises(ConfigError, match="checkpoints: step 1 is damaged: it differs from what was written"):
        find_checkpoints(folder, config, [1, 2])
    for one in (first.path, last.path, folder.adapter(config.name)):
        one.write_bytes(b"torn")
    with pytest.raises(RunError, match="nothing is left to evaluate\n.*step 1 is damaged"):
        find_checkpoints(folder, config)


def test_the_recommended_checkpoint_becomes_the_result_and_the_former_is_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = open_run(run)
    first, last = find_checkpoints(folder, config)
    result = run / "tiny.safetensors"
    monkeypatch.setattr(evaluating, "recommend", lambda *_: evaluating_recommendation(first.label, str(first.path)))

    done = sdlora.evaluate(run, {**QUICK, "problem_images": {"enabled": False}}, promote=True)

    assert done.promoted == (
        "tiny.safetensors is now tiny-step_000001.safetensors; what it was before lies in former/step_000002"
    )
    assert content_hash(result) == first.content
    assert content_hash(run / "former" / "step_000002" / "tiny-step_000002.safetensors") == last.content
    told = json.loads((run / "tiny.civitai.info").read_text(encoding="utf-8"))["files"][0]
    assert told["sizeKB"] == result.stat().st_size / 1024
    assert told["hashes"]["AutoV3"] == first.content[:12].upper()
    assert checkpoints.promoted_names(RunFolder(run)) == ["step_000001"]
    again = sdlora.evaluate(run, {**QUICK, "problem_images": {"enabled": False}}, promote=True)
    assert again.promoted == "tiny.safetensors is that already"
    last.path.unlink()  # its checkpoint was tidied away: what was the result before is there still

    back = promotion.promote(run, "step 2")

    assert back.promoted == (
        "tiny.safetensors is now tiny-step_000002.safetensors; what it was before lies in former/step_000001"
    )
    assert content_hash(result) == last.content
    assert report.read(run) == back
    assert {(run / one.file).is_file() for one in back.images} == {True}
    with pytest.raises(RunError, match=r"the evaluation has no checkpoint 'step 3'; it has: step 1, step 2"):
        promotion.promote(run, "step 3")
    shutil.rmtree(run / "former")
    first.path.unlink()
    with pytest.raises(RunError, match=r"the file of step 1 is not there any more, or another one by now"):
        promotion.promote(run, "step 1")
    (run / "evaluation" / "evaluation.json").write_text("{}")
    with pytest.raises(RunError, match=r"can't be read, or another version of sdlora wrote it: evaluate tiny again"):
        promotion.promote(run, "step 1")
    (run / "evaluation" / "evaluation.json").unlink()
    with pytest.raises(RunError, match=r"has not been evaluated: there is nothing to promote"):
        promotion.promote(run, "step 1")


def evaluating_recommendation(label: str, file: str) -> Any:
    from sdlora.evaluation.report import Recommendation

    return Recommendation(label, None, file, ("asked for by a test",))


def test_a_promoted_checkpoint_stays_when_others_are_tidied_away(run: Path) -> None:
    folder = RunFolder(run)
    checkpoints.name_promoted(folder, "step_000001")

    assert checkpoints.prune(folder, keep=1) == []


@pytest.mark.parametrize(("build", "kind"), [(build_clip, "clip"), (build_dinov2, "dinov2")])
def test_scores_come_from_a_local_model_through_transformers(run: Path, tmp_path: Path, build: Any, kind: str) -> None:
    model = build(tmp_path / kind)

    result = sdlora.evaluate(
        run, {**QUICK, "checkpoints": [2], "features": str(model), "problem_images": {"enabled": False}}
    )

    assert result.features == str(model)
    assert -1 <= result.base.likeness <= 1
    assert result.base.adherence is not None


def test_a_hub_name_is_refused_offline_before_the_base_model_loads(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(Generator, "__init__", _never)

    with pytest.raises(ModelError, match=r"hub model 'openai/clip-vit-large-patch14' is not in the local cache"):
        sdlora.evaluate(run, {**QUICK, "features": "openai/clip-vit-large-patch14"})


def _never(*_: object) -> None:
    raise AssertionError("the base model was loaded")


def test_what_is_no_scorer_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')

    with pytest.raises(ModelError, match=r"features: 'nothing-here' was not found: it is no folder here"):
        sdlora.evaluate(run, {**QUICK, "features": "nothing-here"})
    with pytest.raises(ModelError, match=r"features: .*empty holds no config.json of a CLIP, SigLIP or DINOv2"):
        sdlora.evaluate(run, {**QUICK, "features": str(tmp_path / "empty")})
    with pytest.raises(ModelError, match=r"can't compare images: it is a model of type 'bert', known are clip"):
        sdlora.evaluate(run, {**QUICK, "features": str(tmp_path / "bert")})


def test_runs_and_checkpoints_that_are_not_there_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run folder"):
        sdlora.evaluate(tmp_path)
    with pytest.raises(ConfigError, match=r"checkpoints: the run has none at step 7; there is: 1, 2"):
        sdlora.evaluate(run, {"checkpoints": [7]})
    shutil.rmtree(run / "checkpoints")
    (run / "tiny.safetensors").unlink()
    with pytest.raises(RunError, match=r"there is no checkpoint yet to evaluate; `sdlora save"):
        sdlora.evaluate(run)


def test_a_wrong_request_is_told_before_a_model_loads(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "__init__", _never)

    with pytest.raises(ConfigError, match=r"the evaluation has 1 problem.*\n.*compute.device: 'tpu' is no device"):
        sdlora.evaluate(run, {"compute": {"device": "tpu"}})


def test_two_evaluations_of_one_run_at_once_are_refused(run: Path) -> None:
    with locked(RunFolder(run)), pytest.raises(RunError, match=r"is being evaluated already"):
        sdlora.evaluate(run, QUICK)


def test_a_run_that_trains_keeps_its_result(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdlora.runs.state import RunState

    monkeypatch.setattr(promotion, "derive", lambda _: RunState("running"))

    with pytest.raises(RunError, match=r"is running: its result can't be replaced now. Stop it first \(sdlora stop"):
        sdlora.evaluate(run, QUICK, promote=True)


def test_the_command_prints_table_recommendation_and_problem_images(run: Path, cli: Any) -> None:
    settings = ["steps=2", "num_seeds=1", "prompts.num_known=1", "prompts.num_new=0", "prompts.num_plain=0"]
    given = [f"--set={one}" for one in (*settings, "problem_images.draws=2", "problem_images.captions=1")]

    shown = cli("evaluate", run, *given)

    assert shown.code == 0, shown.errors
    for text in ("likeness", "base", "step 1", "step 2", "held-out loss", "training images that stand out"):
        assert text in shown.output
    assert "evaluation.json" in shown.output
    as_json = json.loads(cli("evaluate", run, *given, "--json", "--no-images").output)
    assert as_json["problem_images"] is None
    wrong = cli("evaluate", run, "--set", "sedes=1")
    assert (wrong.code, "sedes: unknown setting" in wrong.errors) == (2, True)


def test_settings_come_from_a_file_and_changed_images_are_said(run: Path, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "evaluate.yaml").write_text(
        "steps: 2\nnum_seeds: 1\ncheckpoints: [2]\nprompts: {num_known: 1, num_new: 0, num_plain: 0}\n"
        "problem_images: {enabled: false}\n"
    )
    before = json.loads((run / "images.json").read_text())
    (run / "images.json").write_text(json.dumps({path: ["0", *others] for path, (_, *others) in before.items()}))

    shown = cli("evaluate", run, "--config", tmp_path / "evaluate.yaml")

    assert shown.code == 0, shown.errors
    assert "since the run began 10 images were changed" in shown.errors


def test_a_run_of_new_tokens_alone_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = sdlora.load_config(None, ["adapter.rank=0", "adapter.new_tokens={ohwx: red}"])

    with pytest.raises(RunError, match=r"this run trains new tokens alone; only adapters can be evaluated"):
        find_checkpoints(folder, config)


def test_planned_images_read_back_what_was_saved(tmp_path: Path) -> None:
    absent: Any = object()
    planned = PlannedImage(None, absent, 0, absent, tmp_path / "a.png")

    assert not planned.is_there
    Image.new("RGB", (8, 8), (1, 2, 3)).save(planned.path)
    assert planned.is_there
    assert planned.load().getpixel((0, 0)) == (1, 2, 3)
