"""New tokens trained alone and with layers: what a run writes, how it goes on, and what uses its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from sdlora.adapters.files.embeddings import embeddings_beside, read_embedding, token_of
from sdlora.adapters.files.reading import read
from sdlora.adapters.hub.embedding_facts import embedding_facts
from sdlora.adapters.hub.publishing import prepare as prepare_push
from sdlora.cli import generate as _commands  # noqa: F401  (registers it)
from sdlora.cli.grids import run_settings
from sdlora.config import files
from sdlora.config.base_model import BaseModelConfig
from sdlora.config.generate import GenerateConfig, UsedAdapter
from sdlora.config.train import TrainConfig
from sdlora.errors import AdapterError, ConfigError, RunError, TrainingError
from sdlora.events import Event, StepFinished, Validated, WarningRaised
from sdlora.generation.generate import Generator
from sdlora.generation.grid.adapters import checkpoint_files
from sdlora.generation.sampling.embeddings import choose_embeddings
from sdlora.library.scan import Library
from sdlora.models.loading import load
from sdlora.runs.checkpoints import newest
from sdlora.runs.folder import RunFolder
from sdlora.runs.results import adapter_files, embedding_files
from sdlora.training.loop.run import resume, train
from sdlora.training.loop.running import RunResult
from sdlora.training.preflight.summary import summarise
from tests.integration.test_resume import STEPS, CutAtCheckpoint, settings

TOKEN = "adapter.new_tokens.<ohwx>={init: red fox, vectors: 3}"
Configure = Callable[..., TrainConfig]


class Collector:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def configure(tiny_images: Path, tmp_path: Path) -> Configure:
    def with_overrides(*overrides: str) -> TrainConfig:
        plain = [
            f"images.folder={tiny_images}", "images.resolution=64", "images.bucket_step=32", TOKEN,
            "optimization.steps=2", "optimization.batch_size=2", "optimization.precision=fp32",
            "optimization.learning_rate=1e-3", "optimization.threads=1", f"outputs.folder={tmp_path / 'runs'}",
        ]  # fmt: skip
        return files.load(overrides=[*plain, *overrides])

    return with_overrides


ALONE = ("adapter.rank=0",)
SMALL = ("adapter.rank=2", "adapter.layers=attention", "outputs.self_test=false")


def test_tokens_alone_leave_an_embedding_and_nothing_else(configure: Configure) -> None:
    seen = Collector()
    config = configure(
        *ALONE, "validation.fraction=0.2", "validation.every=1", "optimization.ema=0.9", "captions.dropout=0.5",
        "optimization.batch_size=1", "previews.prompts=[a photo of <ohwx>]", "previews.steps=2", "previews.every=1",
        "optimization.steps=4",
    )  # fmt: skip
    result = train(config, [seen])
    assert result.adapter == result.folder / "my-lora_emb.safetensors"
    assert sorted(path.name for path in result.folder.glob("my-lora*")) == [
        "my-lora_emb.civitai.info",
        "my-lora_emb.json",
        "my-lora_emb.png",
        "my-lora_emb.safetensors",
    ]
    assert json.loads((result.folder / "my-lora_emb.civitai.info").read_text())["model"]["type"] == "TextualInversion"
    assert token_of(result.adapter) == "<ohwx>"
    assert list(load_file(result.adapter)) == ["emb_params"]
    with safe_open(result.adapter, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.trigger_phrase"] == "<ohwx>"
    (first, *_, last) = seen.of(Validated)
    assert (first.step, first.relative_loss) == (0, 1.0)
    assert last.relative_loss != 1.0
    assert seen.of(WarningRaised) == []
    assert set(seen.of(StepFinished)[0].learning_rates) == {"new_tokens"}
    before, after = ((result.folder / f"previews/step_00000{step}/00.png").read_bytes() for step in (0, 4))
    assert before != after
    with pytest.raises(RunError, match="this run is complete"):
        resume(result.folder)
    assert resume(result.folder, overrides=["optimization.steps=5"]).step == 5


def test_a_finished_run_of_tokens_without_checkpoints_says_to_begin_anew(configure: Configure) -> None:
    folder = train(configure(*ALONE)).folder
    for checkpoint in (folder / "checkpoints").glob("step_*"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    with pytest.raises(RunError, match=r"would write over my-lora_emb.safetensors. Begin a new run\.$"):
        resume(folder)


def test_files_of_tokens_are_not_taken_for_adapters(configure: Configure, tmp_path: Path) -> None:
    config = configure(
        *SMALL, "adapter.new_tokens.other={init: blue}", "captions.trigger=<ohwx> other", "outputs.self_test=true"
    )
    result = train(config)
    folder = RunFolder(result.folder)
    assert result.adapter.name == "my-lora.safetensors"
    assert [(file.path.name, file.step) for file in adapter_files(folder)] == [
        ("my-lora-step_000002.safetensors", 2),
        ("my-lora.safetensors", None),
    ]
    assert [(file.path.name, file.token) for file in embedding_files(folder) if file.step is None] == [
        ("my-lora_emb-ohwx.safetensors", "<ohwx>"),
        ("my-lora_emb-other.safetensors", "other"),
    ]
    assert [file.token for file in embedding_files(folder) if file.step == 2] == ["<ohwx>", "other"]
    assert list(checkpoint_files(result.folder)) == ["2", "final"]
    library = Library([result.folder], tmp_path / "memory.json").scan()
    assert sorted(entry.name for entry in library.entries) == ["my-lora", "my-lora-step_000002"]
    assert library.problems == ()
    assert list(embeddings_beside(result.adapter)) == ["<ohwx>", "other"]
    published = prepare_push(result.folder, "me/fox", base_model="own/base")
    assert {"my-lora_emb-ohwx.safetensors", "my-lora_emb-other.safetensors"} <= set(published.files)
    assert (
        'load_textual_inversion("me/fox", weight_name="my-lora_emb-ohwx.safetensors", token="<ohwx>")' in published.card
    )


@pytest.mark.parametrize("alone", [True, False])
def test_a_run_cut_off_and_resumed_gives_the_same_bytes(
    shallow_sd1: Path, tiny_images: Path, tmp_path: Path, alone: bool
) -> None:
    plain = settings(shallow_sd1, tiny_images, tmp_path / "straight", "fp32", "adamw")
    plain = [one for one in plain if not one.startswith("adapter.")]
    config = files.load(overrides=[*plain, TOKEN, *(ALONE if alone else SMALL)])
    run = tmp_path / "cut" / "my-lora"
    straight = train(config, [CutAtCheckpoint(tmp_path / "straight" / "my-lora", run)])
    assert newest(RunFolder(run)).step < STEPS
    assert not list(run.glob("*.safetensors"))
    resumed = resume(run)
    names = ["my-lora_emb.safetensors"] if alone else ["my-lora.safetensors", "my-lora_emb.safetensors"]
    for name in names:
        one, other = load_file(straight.folder / name), load_file(resumed.folder / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_new_tokens_until_stops_them_and_not_the_layers(configure: Configure) -> None:
    def trained(steps: int, *overrides: str) -> RunResult:
        return train(configure(*SMALL, f"optimization.steps={steps}", *overrides))

    short, long = trained(1), trained(3, "optimization.new_tokens_until=1")
    (one,), (other,) = (
        load_file(next(iter(embeddings_beside(run.adapter).values()))).values() for run in (short, long)
    )
    assert torch.equal(one, other)
    name = next(key for key in load_file(short.adapter) if key.endswith("lora_up.weight"))
    assert not torch.equal(load_file(short.adapter)[name], load_file(long.adapter)[name])
    rate = load_file(
        next(iter(embeddings_beside(trained(1, "optimization.new_token_learning_rate=0").adapter).values()))
    )
    assert not torch.equal(one, rate["emb_params"])


def test_quantised_and_checkpointed_unets_pass_the_gradients_on(configure: Configure) -> None:
    start = load(BaseModelConfig(precision="fp32"))
    numbers = start.tokenizers[0].convert_tokens_to_ids(["red</w>", "fox</w>"])
    rows = start.text_encoders[0].get_input_embeddings().weight.detach()[numbers]
    result = train(
        configure(
            *ALONE, "base_model.quantization=int8", "optimization.gradient_checkpointing=true",
            "optimization.precision=bf16", "optimization.steps=1",
        )
    )  # fmt: skip
    assert not torch.equal(load_file(result.adapter)["emb_params"][:2], rows)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_diffusers_reads_the_file_to_the_same_text_states(shallow_sd1: Path, configure: Configure, format: str) -> None:
    result = train(configure(*SMALL, f"base_model.model={shallow_sd1}", f"outputs.format={format}"))
    file = result.folder / "my-lora_emb.safetensors"
    bundle = load(BaseModelConfig(model=str(shallow_sd1), precision="fp32"))
    width = bundle.text_encoders[0].get_input_embeddings().weight.shape[1]
    bundle.new_tokens = choose_embeddings(["a <ohwx>"], [result.folder], {}, [width]).tokens
    with torch.no_grad():
        found = bundle.family.encode_text(bundle, ["a photo of <ohwx> in snow"]).states_BTD
    pipeline = StableDiffusionPipeline.from_pretrained(shallow_sd1, safety_checker=None)
    # diffusers' own form tells the token itself
    told = {"token": "<ohwx>"} if format == "kohya" else {}
    pipeline.load_textual_inversion(str(file.parent), weight_name=file.name, **told)
    with torch.no_grad():
        expected, _ = pipeline.encode_prompt("a photo of <ohwx> in snow", "cpu", 1, do_classifier_free_guidance=False)
    error = float((found - expected).abs().max())
    print(f"sd1 {format}: text states of diffusers within {error:.1e}")
    assert error < 1e-3


def test_diffusers_reads_both_encoders_of_sdxl(tiny_sdxl: Path, configure: Configure) -> None:
    result = train(configure(*ALONE, f"base_model.model={tiny_sdxl}"))
    tensors = load_file(result.adapter)
    assert sorted(tensors) == ["clip_g", "clip_l"]
    bundle = load(BaseModelConfig(model=str(tiny_sdxl), precision="fp32"))
    widths = [encoder.get_input_embeddings().weight.shape[1] for encoder in bundle.text_encoders]
    bundle.new_tokens = choose_embeddings(["a <ohwx>"], [result.folder], {}, widths).tokens
    with torch.no_grad():
        found = bundle.family.encode_text(bundle, ["a photo of <ohwx> in snow"])
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl)
    for slot, number in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = (getattr(pipeline, f"{part}{number}") for part in ("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion(tensors[slot], token="<ohwx>", text_encoder=encoder, tokenizer=tokenizer)
    with torch.no_grad():
        expected, *_ = pipeline.encode_prompt(
            "a photo of <ohwx> in snow", device="cpu", do_classifier_free_guidance=False
        )
    error = float((found.states_BTD - expected).abs().max())
    print(f"sdxl: text states of diffusers within {error:.1e}")
    assert error < 1e-3
    # diffusers gives the token a number above the end mark's, and a text encoder with the published eos_token_id of 2
    # takes the largest number for the end: there, the pooled state is the token's. Ours is that of the end mark.
    assert pipeline.text_encoder_2.config.eos_token_id == 2
    pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
    with torch.no_grad():
        pooled = pipeline.encode_prompt("a photo of <ohwx> in snow", device="cpu", do_classifier_free_guidance=False)[2]
    assert float((found.pooled_BD - pooled).abs().max()) < 1e-3


def request(**values: object) -> GenerateConfig:
    plain = {"prompt": "a photo of <ohwx>", "steps": 2, "width_px": 64, "height_px": 64, "seed": 1}
    return GenerateConfig(**{**plain, **values})  # type: ignore[arg-type]


def test_generate_finds_the_token_beside_its_adapter_in_it_and_in_the_folder_of_the_run(configure: Configure) -> None:
    strong = ("optimization.new_token_learning_rate=0.3", "outputs.checkpoint_every=1")
    config = configure(*SMALL, *strong, "optimization.steps=3")
    result, bundled = train(config), train(configure(*SMALL, *strong, "outputs.bundle_embeddings=true"))
    generator = Generator(BaseModelConfig())

    def picture(expects_note: bool = False, **values: object) -> bytes:
        (made,) = generator.generate(request(**values))
        assert any("<ohwx>" in text for text in made.warnings) == expects_note
        return made.image.tobytes()

    def used(path: Path) -> tuple[UsedAdapter, ...]:
        return (UsedAdapter(file=str(path)),)

    words = picture()
    trained = picture(adapters=used(result.adapter))
    assert picture(embedding_folders=(result.folder,)) not in (words, trained)
    # an adapter's own token goes before that of a folder; a file's name before both
    checkpoint = checkpoint_files(result.folder)["1"]
    of_checkpoint = picture(adapters=used(checkpoint), embedding_folders=(result.folder,))
    assert of_checkpoint == picture(adapters=used(checkpoint))
    rows = [request(adapters=used(path)) for path in (result.adapter, checkpoint)]
    assert [made.image.tobytes() for made in generator.generate_rows(rows)] == [trained, of_checkpoint]
    # moved away, it is words, and that is said
    (result.folder / "my-lora_emb.safetensors").rename(result.folder.parent / "elsewhere.safetensors")
    assert picture(expects_note=True, adapters=used(result.adapter)) != trained
    assert any(name.startswith("bundle_emb.<ohwx>.emb_params") for name in load_file(bundled.adapter))
    assert read(bundled.adapter).unused == ()
    together = picture(adapters=used(bundled.adapter))
    (bundled.folder / "my-lora_emb.safetensors").unlink()
    assert picture(adapters=used(bundled.adapter)) == together


def test_generate_run_knows_the_tokens_of_a_run(configure: Configure, tmp_path: Path, cli) -> None:
    result = train(configure(*ALONE, "optimization.new_token_learning_rate=0.3"))
    assert run_settings(result.folder)["embedding_folders"] == [str(result.folder)]
    options = ["--run", result.folder, "--size", "64x64", "--steps", 2, "--seed", 1, "--set", "files.metadata=false"]
    outcome = cli("generate", "a photo of <ohwx>", *options, "--out", tmp_path / "a")
    assert outcome.code == 0, outcome.errors
    (own,) = Generator(BaseModelConfig()).generate(
        request(embedding_folders=(result.folder,), sampler="DPM++ 2M Karras")
    )
    (saved,) = (tmp_path / "a").glob("*.png")
    from PIL import Image

    assert Image.open(saved).tobytes() == own.image.tobytes()
    (tmp_path / "more").mkdir()
    assert (
        cli("generate", "<ohwx>", *options, "--embedding-folder", tmp_path / "more", "--out", tmp_path / "b").code == 0
    )


def test_a_token_goes_on_from_the_embedding_of_the_adapter_that_a_run_starts_from(configure: Configure) -> None:
    first = train(configure(*SMALL, "optimization.new_token_learning_rate=0.1"))
    start = f"adapter.start_from={first.adapter}"
    go_on = configure(start, "optimization.new_token_learning_rate=0", "optimization.learning_rate=1e-4")
    second = train(go_on)
    one, other = (load_file(run.folder / "my-lora_emb.safetensors")["emb_params"] for run in (first, second))
    assert torch.equal(one, other)
    seen = Collector()
    train(configure(start, "adapter.new_tokens={}", "captions.trigger=zz"), [seen])
    told = " ".join(str(event) for event in seen.events)
    assert "my-lora.safetensors brings the new token <ohwx>, which stays behind" in told
    with pytest.raises(ConfigError, match="<ohwx> was trained with 3 vectors, here it has 2: set vectors"):
        summarise(configure(start, "adapter.new_tokens.<ohwx>={init: red fox, vectors: 2}"))
    with pytest.raises(ConfigError, match="<ohwx> stands in no trained caption"):
        summarise(configure(start, "captions.dropout=1"))


def test_a_token_that_no_caption_calls_up_is_refused_before_anything_is_loaded(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="<ohwx> stands in no trained caption.*set captions.trigger to <ohwx>"):
        train(configure(*ALONE, "captions.trigger=zz"))
    with pytest.raises(ConfigError, match="the init of <ohwx> is 90 tokens long, more than the 75 of a caption"):
        train(configure(*ALONE, f"adapter.new_tokens.<ohwx>={'fox ' * 90}"))
    shuffled = ("captions.shuffle_tags=true", "captions.trigger=''", "adapter.new_tokens={'on': blue, white: red}")
    train(configure(*ALONE, *shuffled, "optimization.steps=1"))
    text = summarise(configure(*ALONE, "adapter.new_tokens.<ohwx>={init: red fox, vectors: 1}")).as_text()
    assert "the init 'red fox' of <ohwx> is 2 tokens long, of which vectors=1 takes the first" in text
    assert "new token:       <ohwx>: 1 vectors from 'red fox', rate 0.005, without an adapter" in text


def test_a_token_takes_as_many_places_of_a_caption_as_it_has_vectors(configure: Configure) -> None:
    summary = summarise(configure(*ALONE, "adapter.new_tokens.<ohwx>={init: fox, vectors: 70}"))
    assert all(count > 75 for count in summary.long_captions.values())
    assert len(summary.long_captions) == 10


def test_vectors_that_are_not_finite_are_never_written(configure: Configure) -> None:
    with pytest.raises(TrainingError, match="training can't go on"):
        train(configure(*ALONE, "optimization.new_token_learning_rate=1e38", "optimization.max_nonfinite=2",
                        "optimization.optimizer=torch.optim.SGD", "optimization.max_gradient_norm=0"))  # fmt: skip


def test_an_embedding_is_read_back_by_its_name_too(configure: Configure) -> None:
    result = train(configure(*ALONE))
    embedding = read_embedding(result.adapter)
    assert (embedding.name, embedding.token) == ("my-lora_emb", "<ohwx>")
    assert "a prompt uses it as embedding:my-lora_emb, or as <ohwx>" in embedding_facts(embedding).as_text()
    with pytest.raises(AdapterError, match="holds new tokens alone and no adapter"):
        prepare_push(result.folder, "me/fox")
    assert embedding.vectors["clip_l"].shape[0] == 3
