"""Small random models that compare images, in the layouts in which real ones are published."""

from __future__ import annotations

import json
from pathlib import Path

import torch

EDGE_PX = 32


def build_clip(folder: Path) -> Path:
    """A CLIP with image and text encoder, of random weights."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), ",</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=77, projection_dim=8, **sizes, **marks)
    vision = CLIPVisionConfig(image_size=EDGE_PX, patch_size=8, projection_dim=8, **sizes)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": EDGE_PX, "width": EDGE_PX}
    CLIPImageProcessor(size={"shortest_edge": EDGE_PX}, crop_size=size).save_pretrained(folder)
    return folder


def build_dinov2(folder: Path) -> Path:
    """A DINOv2, which knows no texts, of random weights."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=EDGE_PX, patch_size=8, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": EDGE_PX, "width": EDGE_PX}
    BitImageProcessor(size={"shortest_edge": EDGE_PX}, crop_size=size).save_pretrained(folder)
    return folder
