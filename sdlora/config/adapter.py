"""The adapter: which layers it touches and how large it is."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sdlora.config.section import Section

Algorithm = Literal["lora", "loha", "lokr"]
LAYER_SETS = ("attention", "attention+ff", "all", "all+conv")
REGEX_PREFIX = "regex:"
LARGEST_RANK = 1024
TOLD_BY_FILE = ("algorithm", "rank", "alpha", "conv_rank", "conv_alpha", "layers", "block_ranks", "dora", "tucker",
                "text_encoder_layers", "lokr_factor", "lokr_decompose_both", "lokr_full")  # fmt: skip
"""Of an adapter that training goes on from."""
_MOST_VECTORS = 75
"""As many as a chunk of a caption has places."""
_NO_PART_OF_A_TOKEN = re.compile(r"[\s,()\[\]{}:|\\.]|\b(?:BREAK|AND)\b")
"""What captions, prompts and the names of tensors give a meaning of its own."""


class NewTokenConfig(Section):
    init: str
    """Words whose vectors the token starts with."""

    vectors: int | None = Field(default=None, ge=1, le=_MOST_VECTORS)
    """Vectors that the token is made of; by default as many as init has tokens."""

    @model_validator(mode="before")
    @classmethod
    def _text_means_init(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"init": value}
        if not isinstance(value, dict | NewTokenConfig):
            raise ValueError(f"must be the words that it starts with, or {{init: ..., vectors: ...}}; got {value!r}")
        return value

    @field_validator("init")
    @classmethod
    def _is_not_empty(cls, init: str) -> str:
        if not init.strip():
            raise ValueError("is empty; give words that come near to what the token shall mean")
        return init


def bare_token(token: str) -> str:
    """A token's letters, digits, - and _, for the name of its file: `<ohwx>` becomes `ohwx`."""
    return re.sub(r"[^\w-]", "", token)


class AdapterConfig(Section):
    algorithm: Algorithm = "lora"
    """lora (low rank), loha (Hadamard product of two low-rank maps) or lokr (Kronecker product)."""

    rank: int = Field(default=16, ge=0, le=LARGEST_RANK)
    """Rank of the update of linear layers and 1x1 projections; 0 trains new_tokens alone."""

    alpha: float | None = Field(default=None, gt=0)
    """Scale of the update is alpha / rank; by default alpha = rank / 2."""

    conv_rank: int | None = Field(default=None, ge=1, le=LARGEST_RANK)
    """Rank of Conv2d layers (layer set all+conv); by default the same as rank."""

    conv_alpha: float | None = Field(default=None, gt=0)
    """Alpha of Conv2d layers; by default keeps the same alpha / rank."""

    layers: str = "all"
    """UNet layers: attention, attention+ff, all (adds proj_in/out), all+conv, or `regex:` and a pattern."""

    block_ranks: dict[str, int] = Field(default_factory=dict)
    """Rank by block pattern, for example {down_blocks.0: 4, mid_block: 32}; 0 leaves the block out. Of several
    that match a layer the last one counts."""

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

    new_tokens: dict[str, NewTokenConfig] = Field(default_factory=dict)
    """Words that the model has not, each with vectors of its own that are trained (textual inversion, Gal et al. 2023;
    together with layers pivotal tuning): {<ohwx>: {init: red fox, vectors: 4}}, or in short {<ohwx>: red fox}. A single
    one is the trigger where captions.trigger is not set."""

    start_from: str | None = None
    """Go on from this adapter file, or hf://owner/name[/file] (any common format); ranks and layers come from it, and
    the vectors of the same new_tokens in or beside it."""

    def beside_file(self, algorithm: Algorithm, *, dora: bool) -> dict[str, Any]:
        """The values that count beside a file to start from, with those that it tells: to be checked together."""
        return {**self.model_dump(exclude={*TOLD_BY_FILE, "rslora"}), "algorithm": algorithm, "dora": dora}

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
        problems += _token_problems(self.new_tokens)
        if self.rank == 0:
            problems += self._problems_without_layers()
        elif not self.unet and not self.text_encoder:
            problems.append("unet=false leaves nothing to train; set text_encoder=true, or rank=0 for new_tokens alone")
        if any(not 0 <= rank <= LARGEST_RANK for rank in self.block_ranks.values()):
            problems.append(f"block_ranks: a rank must be 0 (leave out) or more, up to {LARGEST_RANK}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_without_layers(self) -> list[str]:
        """With rank 0: what is set for layers, of which there are none."""
        if not self.new_tokens:
            return ["rank: 0 leaves nothing to train; give a rank of 1 or more, or new_tokens"]
        of_layers = [name for name in type(self).model_fields if name not in ("rank", "new_tokens")]
        plain = AdapterConfig.model_construct()
        useless = [name for name in of_layers if getattr(self, name) != getattr(plain, name)]
        return [f"{name}: has no effect with rank=0, which trains new_tokens alone" for name in useless]


def _token_problems(tokens: dict[str, NewTokenConfig]) -> list[str]:
    problems: list[str] = []
    for token in tokens:
        if found := _NO_PART_OF_A_TOKEN.search(token):
            problems.append(
                f"new_tokens: '{token}' can't be a token, as '{found[0]}' has a meaning in prompts or files; "
                "write it like <ohwx>"
            )
        elif not bare_token(token):
            problems.append(f"new_tokens: '{token}' can't be a token: it needs a letter or a digit, as in <ohwx>")
    bare = [bare_token(token).casefold() for token in tokens]
    for token, name in zip(tokens, bare, strict=True):
        if name and bare.count(name) > 1:
            problems.append(f"new_tokens: '{token}' and another one differ in signs or capitals only")
    return problems
