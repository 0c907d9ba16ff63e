"""How a run's checkpoints are evaluated: with which prompts and seeds, what compares the images, what is measured."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sdlora.config.generate import ComputeConfig, Sampler
from sdlora.config.section import Section
from sdlora.constants import LARGEST_EDGE_PX, LATENT_FACTOR


class EvaluatedPromptsConfig(Section):
    known: tuple[str, ...] = ()
    """Prompts of scenes that were trained; by default training captions, spread over the images."""

    new: tuple[str, ...] = ()
    """Prompts with the trigger in scenes that were not trained; by default the trigger with scenes of a fixed list
    that no caption speaks of."""

    plain: tuple[str, ...] = ()
    """Prompts without the trigger, which the adapter should leave alone; by default those scenes, and training
    captions, without it."""

    num_known: int = Field(default=3, ge=0, le=64)
    """How many known scenes are taken where none are given."""

    num_new: int = Field(default=3, ge=0, le=8)
    """How many new scenes are taken where none are given."""

    num_plain: int = Field(default=2, ge=0, le=16)
    """How many prompts without the trigger are taken where none are given."""

    negative: str = ""
    """Negative prompt of all images."""


class ProblemImagesConfig(Section):
    enabled: bool = True
    """Measure each training image's loss, which tells images that are hard, never learned or captioned wrong."""

    draws: int = Field(default=8, ge=2, le=64)
    """Timesteps at which each image is measured, each with its own noise: the same for all images, every time."""

    captions: int = Field(default=12, ge=1, le=256)
    """Captions of other images that each image is tried with, to find those that fit better than its own."""

    listed: int = Field(default=5, ge=1, le=100)
    """Images listed of each kind."""


class TiedWordsConfig(Section):
    enabled: bool = False
    """Find out what the recommended checkpoint has tied together: words that stand beside the trigger in most captions
    are left out of prompts, and used without the trigger."""

    words: tuple[str, ...] = ()
    """Words or phrases to look at; by default those that most captions have."""

    share: float = Field(default=0.8, gt=0.0, le=1.0)
    """Share of the captions from which on a phrase is looked at."""

    most: int = Field(default=3, ge=1, le=32)
    """How many phrases are looked at, the most frequent first."""

    num_seeds: int = Field(default=8, ge=1, le=64)
    """Images of each prompt."""


class CharactersConfig(Section):
    enabled: bool = False
    """With several triggers: find out whether one brings what only another was trained to bring, each asked for in the
    same new scenes."""

    triggers: tuple[str, ...] = ()
    """Triggers or names to hold against each other; by default those of the run's folders."""

    num_seeds: int = Field(default=8, ge=1, le=64)
    """Images of each prompt and trigger."""


class EvaluateConfig(Section):
    version: Literal[1] = 1
    """Version of this format."""

    checkpoints: tuple[int, ...] = ()
    """Steps whose checkpoints are evaluated; by default all that the run has kept."""

    weight: float = Field(default=1.0, gt=0.0, le=4.0)
    """Weight of the adapter in all images by which checkpoints are compared."""

    weights: tuple[float, ...] = ()
    """Weights that the recommended checkpoint is tried at, to advise one, such as [0.4, 0.6, 0.8, 1, 1.2]; empty: none.
    Each above 0 and at most 4."""

    features: str = "auto"
    """What compares images: `latents` (the base model's own VAE and UNet, no download), or a CLIP, SigLIP or DINOv2
    model as a hub name or a folder, such as openai/clip-vit-large-patch14, which auto takes for all bases but
    builtin ones."""

    features_revision: str | None = None
    """Branch, tag or commit of a hub model in features."""

    prompts: EvaluatedPromptsConfig = EvaluatedPromptsConfig()

    num_seeds: int = Field(default=4, ge=1, le=64)
    """Images of each prompt and checkpoint."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of a prompt's first image, the others count up; also draws timesteps and noise of the losses."""

    sampler: Sampler = "DPM++ 2M Karras"
    """Sampler, by the names that other tools use."""

    steps: int = Field(default=25, ge=1, le=200)
    """Sampling steps."""

    guidance: float = Field(default=7.0, ge=0.0, le=50.0)
    """Classifier-free guidance scale (CFG)."""

    width_px: int | None = Field(default=None, ge=64, le=LARGEST_EDGE_PX, multiple_of=LATENT_FACTOR)
    """Width; by default the run's first training resolution."""

    height_px: int | None = Field(default=None, ge=64, le=LARGEST_EDGE_PX, multiple_of=LATENT_FACTOR)
    """Height; by default the run's first training resolution."""

    batch_size: int = Field(default=4, ge=1, le=64)
    """Images generated at once, and images measured at once."""

    most_copies: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of a checkpoint's images that may be near copies of training images before it is passed over."""

    tied_words: TiedWordsConfig = TiedWordsConfig()
    characters: CharactersConfig = CharactersConfig()
    problem_images: ProblemImagesConfig = ProblemImagesConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_checkpoint_is_a_list(cls, values: Any) -> Any:
        """A single step on the command line, `checkpoints=500`, stands for a list of one."""
        if isinstance(values, dict) and isinstance(values.get("checkpoints"), int):
            return {**values, "checkpoints": [values["checkpoints"]]}
        return values

    @model_validator(mode="after")
    def _check(self) -> EvaluateConfig:
        prompts, problems = self.prompts, []
        if self.num_seeds * (prompts.num_known + prompts.num_new + len(prompts.known) + len(prompts.new)) == 0:
            problems.append("prompts.known and prompts.new: nothing to evaluate; give prompts, or numbers above 0")
        for name, texts in (("known", prompts.known), ("new", prompts.new), ("plain", prompts.plain)):
            problems += [f"prompts.{name}.{place}: is empty" for place, text in enumerate(texts) if not text.strip()]
        for name in ("known", "new", "plain"):
            if getattr(prompts, name) and f"num_{name}" in prompts.model_fields_set:
                problems.append(f"prompts.num_{name} has no effect beside prompts.{name}")
        tied = self.tied_words
        problems += [f"tied_words.words.{place}: is empty" for place, word in enumerate(tied.words) if not word.strip()]
        if tied.words and tied.model_fields_set & {"share", "most"}:
            problems.append("tied_words.share and tied_words.most have no effect beside tied_words.words")
        named = self.characters.triggers
        problems += [f"characters.triggers.{place}: is empty" for place, word in enumerate(named) if not word.strip()]
        if len(set(named)) != len(named):
            problems.append(f"characters.triggers: {', '.join(named)}: one is named twice")
        if self.features == "latents" and self.features_revision is not None:
            problems.append("features_revision has no effect with features=latents")
        if not self.features.strip():
            problems.append("features: is empty; give latents, auto, a hub name or a folder")
        problems += [f"weights: {each:g} is not above 0 and at most 4" for each in self.weights if not 0 < each <= 4]
        if len(self.weights) == 1:
            problems.append("weights: a single one has nothing to be compared with; name several, or set weight")
        if len(set(self.weights)) != len(self.weights):
            problems.append(f"weights: {', '.join(f'{each:g}' for each in self.weights)}: a weight is named twice")
        if len(set(self.checkpoints)) != len(self.checkpoints):
            problems.append(f"checkpoints: {', '.join(map(str, self.checkpoints))}: a step is named twice")
        if problems:
            raise ValueError("\n".join(problems))
        return self
