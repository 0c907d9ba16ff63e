"""The adapter: which layers it touches and how large it is."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import Field, model_validator

from sdlora.config.section import Section

Algorithm = Literal["lora", "loha", "lokr"]
LAYER_SETS = ("attention", "attention+ff", "all", "all+conv")
REGEX_PREFIX = "regex:"


class AdapterConfig(Section):
    algorithm: Algorithm = "lora"
    """lora (low rank), loha (Hadamard product of two low-rank maps) or lokr (Kronecker product)."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the update of linear layers and 1x1 projections."""

    alpha: float | None = Field(default=None, gt=0)
    """Scale of the update is alpha / rank; by default alpha = rank / 2."""

    conv_rank: int | None = Field(default=None, ge=1, le=1024)
    """Rank of Conv2d layers (layer set all+conv); by default the same as rank."""

    conv_alpha: float | None = Field(default=None, gt=0)
    """Alpha of Conv2d layers; by default keeps the same alpha / rank."""

    layers: str = "all"
    """UNet layers: attention, attention+ff, all (adds proj_in/out), all+conv, or `regex:` and a pattern."""

    block_ranks: dict[str, int] = Field(default_factory=dict)
    """Rank by block pattern, for example {down_blocks.0: 4, mid_block: 32}; 0 leaves the block out."""

    unet: bool = True
    """Train the UNet; off trains the text encoders alone."""

    text_encoder: bool = False
    """Train the text encoder (both of SDXL) too."""

    text_encoder_layers: Literal["attention", "attention+ff"] = "attention+ff"
    """Text-encoder layers; attention always means q, k, v and out together, as other tools demand."""

    rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023)."""

    dora: bool = False
    """Train magnitude and direction apart (DoRA, Liu et al. 2024); such files do not travel to all tools."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input (LoHa and LoKr: on rows of the update)."""

    rank_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance to leave out each rank of a layer for one image (LoRA)."""

    module_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance to leave out a layer's whole update for one batch (LoRA)."""

    lokr_factor: int = Field(default=-1, ge=-1)
    """LoKr: size of the smaller Kronecker factor; -1 takes the most even split."""

    lokr_decompose_both: bool = False
    """LoKr: factorise the smaller Kronecker factor too, where the rank is small enough."""

    lokr_full: bool = False
    """LoKr: hold the larger Kronecker factor whole instead of as a product of the rank (sd-scripts' full matrix)."""

    tucker: bool = False
    """LoHa and LoKr: factorise convolutions by Tucker decomposition, which takes far fewer values for 3x3 kernels."""

    start_from: str | None = None
    """Go on from this adapter file, or hf://owner/name[/file] (any common format); ranks and layers come from it."""

    def scale(self, rank: int, *, is_conv: bool = False) -> float:
        """What the update of a layer of this rank is multiplied by: alpha / rank, with rslora alpha / sqrt(rank).

        A layer whose rank a block pattern changes keeps the ratio of alpha to rank, as its alpha goes with its rank.
        """
        ratio = 0.5 if self.alpha is None else self.alpha / self.rank
        if is_conv and self.conv_alpha is not None:
            ratio = self.conv_alpha / (self.conv_rank or self.rank)
        # alpha / sqrt(rank) is alpha / rank times sqrt(rank).
        return ratio * math.sqrt(rank) if self.rslora else ratio

    @model_validator(mode="after")
    def _check(self) -> AdapterConfig:
        problems: list[str] = []
        if self.layers.startswith(REGEX_PREFIX):
            try:
                re.compile(self.layers.removeprefix(REGEX_PREFIX))
            except re.error as error:
                problems.append(f"layers: not a regular expression: {error}")
        elif self.layers not in LAYER_SETS:
            known = ", ".join(LAYER_SETS)
            problems.append(f"layers: unknown layer set '{self.layers}'; use one of {known}, or regex:PATTERN")
        if (self.conv_rank or self.conv_alpha) and self.layers in LAYER_SETS[:-1]:
            problems.append(f"conv_rank/conv_alpha have no effect with layers={self.layers}; use all+conv")
        if self.algorithm != "lora" and self.rslora:
            problems.append(f"rslora goes with algorithm lora only, not {self.algorithm}")
        if self.algorithm != "lora" and (self.rank_dropout or self.module_dropout):
            problems.append(f"rank_dropout and module_dropout go with algorithm lora only, not {self.algorithm}")
        for name, algorithms in (
            ("lokr_decompose_both", ("lokr",)),
            ("lokr_full", ("lokr",)),
            ("tucker", ("loha", "lokr")),
        ):
            if getattr(self, name) and self.algorithm not in algorithms:
                problems.append(f"{name} goes with algorithm {' and '.join(algorithms)} only, not {self.algorithm}")
        if self.tucker and self.layers in LAYER_SETS[:-1]:
            problems.append(f"tucker has no effect with layers={self.layers}; use all+conv")
        if not self.unet and not self.text_encoder:
            problems.append("unet=false leaves nothing to train; set text_encoder=true")
        if any(rank < 0 for rank in self.block_ranks.values()):
            problems.append("block_ranks: a rank must be 0 (leave out) or more")
        if problems:
            raise ValueError("\n".join(problems))
        return self
