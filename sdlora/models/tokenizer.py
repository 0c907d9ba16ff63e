"""CLIP's byte-pair vocabulary, shipped in compact form, and the tokenizers made of it.

All Stable Diffusion text encoders share one vocabulary of 49,408 entries (Radford et al. 2021): 256 bytes, the same
bytes at a word's end, 48,894 merges, a start and an end mark. It follows from the merges alone.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sdlora.config.base_model import BaseModelConfig
from sdlora.file_memory import while_unchanged
from sdlora.models.source import locate

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
OPENCLIP_PAD = "!"
MAX_LENGTH = 77

_MERGES = Path(__file__).parent / "shipped" / "clip_merges.txt.gz"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@cache
def clip_merges() -> tuple[str, ...]:
    """The merges in order, each two pieces with a space between."""
    return tuple(gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines())


@cache
def clip_vocabulary() -> dict[str, int]:
    """Every piece and its number, 0 to 49,407."""
    # A printable letter for each byte, in the vocabulary's order: printable bytes stand for themselves, the others for
    # the characters from 256 up (Radford et al. 2019, byte-level BPE).
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = 256 - len(printable)
    letters = [chr(number) for number in (*printable, *range(256, 256 + rest))]
    # The order is the vocabulary: a piece's place is its number.
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [merge.replace(" ", "", 1) for merge in clip_merges()]
    pieces += [START, END]
    return {piece: number for number, piece in enumerate(pieces)}


def light_tokenizer(config: BaseModelConfig) -> Tokenizer:
    """A tokenizer to count with, made without torch or transformers: the folder's own, else CLIP's."""
    source = locate(config.model)
    folder = source.path / "tokenizer" if source.path is not None and source.kind != "file" else None
    if folder is not None and (folder / "tokenizer.json").is_file():
        return _tokenizer_in(folder / "tokenizer.json")
    if folder is not None and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        return _byte_pair_tokenizer(vocabulary, [line for line in lines if line and not line.startswith("#version")])
    return _byte_pair_tokenizer(clip_vocabulary(), clip_merges())


@while_unchanged(2)
def _tokenizer_in(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _byte_pair_tokenizer(vocabulary: dict[str, int], merges: list[str] | tuple[str, ...]) -> Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(
        BPE(vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


@cache
def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """transformers' tokenizer with the shipped vocabulary.

    pad_token: END for SD 1.x and SDXL's first encoder, OPENCLIP_PAD (number 0) for SD 2.x and SDXL's second.
    """
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder))
        # read back from files, as that is the one way in which every version of transformers can make it
        return CLIPTokenizer.from_pretrained(
            folder,
            bos_token=START,
            eos_token=END,
            unk_token=END,
            pad_token=pad_token,
            model_max_length=MAX_LENGTH,
        )


def write_vocabulary(folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` as transformers reads them."""
    (folder / "vocab.json").write_text(json.dumps(clip_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *clip_merges(), ""]), encoding="utf-8")
