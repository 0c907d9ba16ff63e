"""The tokenizer: byte-pair encoding exactly as CLIP's, with a small vocabulary of its own.

Written as `vocab.json` and `merges.txt` in CLIP's order (256 bytes, 256 bytes that end a word, merges, two
special tokens), so any text tokenises.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from .data import STYLES, caption, read_images, read_names
from .files import write_json

VOCABULARY_SIZE = 3072
MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CAPTION_COPIES = 20
WORD_COPIES = 5


def train_tokenizer(work: Path) -> None:
    """Learn the merges and write the `tokenizer` folder."""
    folder = work / "tokenizer"
    if (folder / "tokenizer_config.json").exists():
        return
    merges = _learn_merges(_corpus(work))
    alphabet = _byte_characters()
    tokens = [*alphabet, *(character + WORD_END for character in alphabet)]
    kept = merges[: VOCABULARY_SIZE - len(tokens) - 2]
    tokens += ["".join(pair) for pair in kept] + [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in kept), encoding="utf-8")
    specials = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    write_json(folder / "special_tokens_map.json", specials)
    configuration = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        **specials,
    }
    write_json(folder / "tokenizer_config.json", configuration)


def _corpus(work: Path) -> list[str]:
    """Captions, all emoji names, and words that prompts are likely to hold, repeated by importance."""
    lines = [caption(words, style) for name in read_names() for words in name.captions for style in STYLES.values()]
    _, images = read_images(work)
    names = sorted({image.name.replace("-", " ") for image in images if image.style != "fxemoji"})
    text = (Path(__file__).parent / "words.txt").read_text()
    words = [line for line in text.splitlines() if not line.startswith("#")]
    return lines * CAPTION_COPIES + names * WORD_COPIES + words * 10 * WORD_COPIES


def _learn_merges(lines: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges of the lines, most frequent first."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        end_of_word_suffix=WORD_END,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte, in CLIP's order (printable bytes first)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
