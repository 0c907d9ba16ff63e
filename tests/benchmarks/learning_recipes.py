"""What the learning benchmark compares: baselines and candidates, as settings with the paper they follow."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN = (
    "base_model.model=builtin:emoji",
    "images.resolution=128",
    "adapter.rank=16",
    "adapter.alpha=16",
    "optimization.batch_size=4",
    "optimization.optimizer=adamw",
    "optimization.weight_decay=0.01",
    "optimization.schedule=constant",
    "optimization.warmup=0",
    "optimization.precision=fp32",
    "optimization.device=cpu",
    "optimization.threads=1",
)
"""What all share: the settings that both scripts have in common, at rank 16 and four pictures a step."""
RATES = ("3e-4", "1e-3", "3e-3")
BASELINES = tuple(f"{script}-{rate}" for script in ("diffusers", "sd-scripts") for rate in RATES)
"""What the candidates are held against, each at its own best rate."""


@dataclass(frozen=True)
class Recipe:
    """Settings beside those that all share, and where they come from."""

    settings: tuple[str, ...]
    source: str

    @property
    def all_settings(self) -> tuple[str, ...]:
        """With those that all share."""
        return (*PLAIN, *self.settings)


def _diffusers(rate: str) -> Recipe:
    layers = ("adapter.layers=attention", "adapter.text_encoder=false", "optimization.max_gradient_norm=0")
    return Recipe(
        (*layers, f"optimization.learning_rate={rate}"),
        "baseline: what train_text_to_image_lora.py of diffusers trains (attention alone; its clipping clips nothing)",
    )


def _kohya(rate: str, *more: str, source: str = "") -> Recipe:
    layers = ("adapter.layers=all", "adapter.text_encoder=true", f"optimization.text_encoder_learning_rate={rate}")
    return Recipe(
        (*layers, f"optimization.learning_rate={rate}", *more),
        source or "baseline: what train_network.py of sd-scripts trains (all linear layers, text encoder, one rate)",
    )


def _unet(*more: str, source: str, rate: str = "1e-3", layers: str = "all") -> Recipe:
    fixed = (f"adapter.layers={layers}", "adapter.text_encoder=false", f"optimization.learning_rate={rate}")
    return Recipe((*fixed, *more), source)


def _te(*more: str, source: str) -> Recipe:
    layers = ("adapter.layers=all", "adapter.text_encoder=true", "optimization.text_encoder_learning_rate=1e-3")
    return Recipe((*layers, "optimization.learning_rate=3e-3", *more), source)


_FALLING = ("objective.timestep_spacing=even", "optimization.schedule=cosine", "optimization.warmup=0.1")
_MIRRORED = ("images.horizontal_flip=true", "optimization.ema=0.95")
_CUBIC = ("optimization.schedule=polynomial", "optimization.schedule_power=3")
RECIPES: dict[str, Recipe] = {
    **{f"diffusers-{rate}": _diffusers(rate) for rate in RATES},
    **{f"sd-scripts-{rate}": _kohya(rate) for rate in RATES},
    "unet": _unet(source="all linear layers of the UNet, no text encoder: what the candidates below change"),
    "conv": _unet(layers="all+conv", source="convolutions too (LoCon)"),
    "lora+16": _unet("optimization.lora_plus_ratio=16", source="LoRA+, Hayou et al. 2024", rate="3e-4"),
    "lora+16-1e-3": _unet("optimization.lora_plus_ratio=16", source="LoRA+, Hayou et al. 2024"),
    "lora+4": _unet("optimization.lora_plus_ratio=4", source="LoRA+, Hayou et al. 2024"),
    "rslora": _unet("adapter.rslora=true", source="rsLoRA, Kalajdzievski 2023"),
    "ema-0.99": _unet("optimization.ema=0.99", source="weight averaging, Polyak and Juditsky 1992"),
    "min-snr": _unet("objective.weighting=min_snr", source="min-SNR, Hang et al. 2023"),
    "soft-min-snr": _unet("objective.weighting=soft_min_snr", source="soft min-SNR, Crowson et al. 2024"),
    "dropout": _unet("adapter.dropout=0.1", source="dropout on the adapter's input, Hu et al. 2021"),
    "rank-dropout": _unet("adapter.rank_dropout=0.1", source="dropout of ranks, as in sd-scripts"),
    "caption-dropout": _unet("captions.dropout=0.1", source="caption dropout, Ho and Salimans 2022"),
    "flip": _unet("images.horizontal_flip=true", source="mirrored images"),
    "crop-jitter": _unet("images.crop_jitter=0.1", source="jittered crops"),
    "weight-norm": _unet("optimization.max_weight_norm=1", source="limit on each layer's update, as in sd-scripts"),
    "decay-0.1": _unet("optimization.weight_decay=0.1", source="decoupled decay towards the base"),
    "cosine": _unet("optimization.schedule=cosine", source="cosine decay of the rate"),
    "logit-normal": _unet("objective.timestep_distribution=logit_normal", source="Esser et al. 2024"),
    "muon": _unet("optimization.optimizer=muon", source="Muon on the factors, Jordan et al. 2024"),
    "soap": _unet("optimization.optimizer=soap", source="SOAP on the factors, Vyas et al. 2024"),
    "dora": _unet("adapter.dora=true", source="DoRA, Liu et al. 2024"),
    "varied": _unet(
        "images.horizontal_flip=true",
        "images.crop_jitter=0.1",
        "images.rotation=8",
        source="mirrored, turned and cut anew each time",
    ),
    "flip-lora+4": _unet(
        "images.horizontal_flip=true", "optimization.lora_plus_ratio=4", source="mirrored images and LoRA+"
    ),
    "flip-conv": _unet("images.horizontal_flip=true", layers="all+conv", source="mirrored images and convolutions"),
    "ema-3e-3": _unet("optimization.ema=0.95", source="thrice the rate, and an average", rate="3e-3"),
    "flip-ema-3e-3": _unet(
        "images.horizontal_flip=true",
        "optimization.ema=0.95",
        source="thrice the rate, an average, mirrored images",
        rate="3e-3",
    ),
    "te-ema-3e-3": _te("optimization.ema=0.95", source="thrice the rate, an average, the text encoder at 1e-3"),
    "flip-te-ema-3e-3": _te(
        "images.horizontal_flip=true",
        "optimization.ema=0.95",
        source="thrice the rate, an average, the text encoder at 1e-3, mirrored images",
    ),
    "unet-cubic-3e-3": _unet(*_MIRRORED, *_CUBIC, source="the same without the text encoder", rate="3e-3"),
    "te-cubic-3e-3": _te(
        *_MIRRORED,
        *_CUBIC,
        source="thrice the rate, falling as (1 - t)^3, an average, the text encoder at 1e-3, mirrored images",
    ),
    "te-cubic-3e-3-dropout": _te(*_MIRRORED, *_CUBIC, "adapter.dropout=0.1", source="the same, inputs dropped"),
    "te-cubic-3e-3-decay": _te(
        *_MIRRORED, *_CUBIC, "optimization.weight_decay=1", source="the same, decayed towards the base"
    ),
    "te-cubic-3e-3-captions": _te(*_MIRRORED, *_CUBIC, "captions.dropout=0.1", source="the same, captions dropped"),
    "varied-ema-3e-3": _unet(
        "images.horizontal_flip=true",
        "images.crop_jitter=0.1",
        "images.rotation=8",
        "optimization.ema=0.95",
        source="the same, and turned and cut anew each time",
        rate="3e-3",
    ),
    "conv-ema-2e-3": _unet(
        "optimization.ema=0.95", source="convolutions, twice the rate, an average", rate="2e-3", layers="all+conv"
    ),
    "conv-ema-3e-3": _unet("optimization.ema=0.95", source="the same, a higher rate", rate="3e-3", layers="all+conv"),
    "even": _unet("objective.timestep_spacing=even", source="even timesteps, after Kingma et al. 2021"),
    "precondition": _unet("optimization.precondition=true", source="Zhang and Pilanci 2024"),
    "rate-3e-3": _unet(source="thrice the rate alone", rate="3e-3"),
    "cosine-3e-3": _unet(
        "optimization.schedule=cosine", "optimization.warmup=0.1", source="a high rate that falls", rate="3e-3"
    ),
    "even-cosine-1e-3": _unet(*_FALLING, source="even timesteps and a rate that falls"),
    "even-cosine-2e-3": _unet(
        *_FALLING, source="even timesteps and a rate that falls, from twice the rate", rate="2e-3"
    ),
    "even-cosine-3e-3": _unet(
        *_FALLING, source="even timesteps and a rate that falls, from thrice the rate", rate="3e-3"
    ),
    "even-cosine-conv": _unet(
        *_FALLING, source="even timesteps, a rate that falls, convolutions", rate="2e-3", layers="all+conv"
    ),
}
