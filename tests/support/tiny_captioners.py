"""Small captioning models in the layouts in which real ones are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
from PIL import Image

TAGS = (
    (9999999, "general", 9),
    (9999998, "explicit", 9),
    (470575, "blue_sky", 0),
    (212816, "green_hill_(place)", 0),
    (13197, "red_rose", 0),
    (401228, "^_^", 0),
    (1, "hero_(game)", 4),
)
"""Rating tags first, as in real lists: tag_id, name, category."""

_WORDS = ("a", "an", "the", "cat", "dog", "boat", "lamp", "tree", "cake", "wheel", "red", "green", "blue", "white")
_WORDS += ("black", "small", "large", "round", "old", "on", "in", "with")


def build_tagger(folder: Path, *, edge_px: int = 448, batch: int | None = None) -> Path:
    """A WD14-style tagger that knows colours: a tag for much blue, green and red, ^_^ for a bright picture, and
    the hero for a dark one. Ratings are always certain.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    weights = numpy.zeros((3, len(TAGS)), numpy.float32)
    bias = numpy.full(len(TAGS), 9.0, numpy.float32)
    for column, channels, direction in ((2, [0], 1), (3, [1], 1), (4, [2], 1), (5, [0, 1, 2], 1), (6, [0, 1, 2], -1)):
        weights[channels, column] = direction * 20 / 255 / len(channels)
        bias[column] = -10 if direction > 0 else 4
    size = batch or "batch_size"
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input_1", "axes"], ["means"], keepdims=0),
            helper.make_node("Gemm", ["means", "weights", "bias"], ["logits"]),
            helper.make_node("Sigmoid", ["logits"], ["predictions_sigmoid"]),
        ],
        "tagger",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, [size, edge_px, edge_px, 3])],
        [helper.make_tensor_value_info("predictions_sigmoid", TensorProto.FLOAT, [size, len(TAGS)])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(numpy.asarray([1, 2]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    rows = [f"{number},{name},{category},{1000 - index}" for index, (number, name, category) in enumerate(TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n", "utf-8")
    return folder


def build_blip(folder: Path) -> Path:
    """A random BLIP with a BERT vocabulary of few words, saved as transformers saves it."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = _bert_tokenizer(folder)
    words = len(tokenizer)  # as in the real BLIP the marks [DEC] and [ENC] come behind all words of the tokenizer
    special = {"pad_token_id": 0, "bos_token_id": words, "eos_token_id": 3, "sep_token_id": 3}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={**shape, **special, "vocab_size": words + 2, "encoder_hidden_size": 32},
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    _save_random(BlipForConditionalGeneration(config), folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def build_git(folder: Path) -> Path:
    """The same for GIT."""
    from transformers import GitConfig, GitForCausalLM, GitProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _bert_tokenizer(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GitConfig(
        **shape,
        vocab_size=len(tokenizer),
        vision_config={**shape, "image_size": 32, "patch_size": 8},
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    _save_random(GitForCausalLM(config), folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def build_florence(folder: Path) -> Path:
    """The same for Florence-2, in the layout that transformers reads."""
    from tokenizers import pre_tokenizers
    from transformers import (
        BartConfig,
        BartTokenizerFast,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    tokenizer = BartTokenizerFast(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    shape = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    text = BartConfig(**shape, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=len(tokenizer))
    vision = {
        "depths": [1, 1, 1, 1], "embed_dim": [8, 16, 24, 32], "num_heads": [2, 2, 2, 2], "num_groups": [2, 2, 2, 2],
        "window_size": 4, "projection_dim": 32,
    }  # fmt: skip
    config = Florence2Config(text_config=text.to_dict(), vision_config=vision, image_token_id=tokenizer.image_token_id)
    _save_random(Florence2ForConditionalGeneration(config), folder)
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5  # 2 x 2 patches and their mean
    Florence2Processor(images, tokenizer).save_pretrained(folder)
    return folder


def _save_random(model, folder: Path) -> None:
    """Weights so large that different pictures give different words."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim > 1:
                values.copy_(torch.randn(values.shape, generator=generator) * 0.4)
        for name, values in model.named_parameters():
            if name.endswith("predictions.bias"):
                values[3] = -8  # [SEP]: no sentence ends before it has a word
    model.save_pretrained(folder)


def _bert_tokenizer(folder: Path):
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *_WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    return BertTokenizerFast(str(folder / "vocab.txt"))


COLOURS = {"sky": (0, 0, 255), "rose": (255, 0, 0), "hill": (0, 255, 0), "night": (0, 0, 0), "snow": (255, 255, 255)}


def captions(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.rglob("*.txt")}


def numbered(images: Sequence[Image.Image]) -> list[str]:
    """A captioner whose words depend on the picture."""
    return [f"colour {'-'.join(map(str, image.resize((1, 1)).getpixel((0, 0))))}" for image in images]
