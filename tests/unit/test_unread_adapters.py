"""Adapters of methods that are not read: named by their method, never taken for another one that looks like them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sdlora.adapters.files.catalog import describe
from sdlora.adapters.files.embeddings import embeddings_in, read_embedding
from sdlora.adapters.files.reading import read
from sdlora.errors import AdapterError

LAYER = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
LORA = {f"{LAYER}.lora_A.weight": torch.ones(4, 320), f"{LAYER}.lora_B.weight": torch.ones(320, 4)}


def saved(path: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    if settings:
        (path.parent / "adapter_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize(
    ("factor", "what"),
    [
        ("lora_E", "AdaLoRA"),
        ("lora_diag", "KaSA"),
        ("vera_lambda_b", "VeRA"),
        ("pvera_lambda_b", "PVeRA"),
        ("boft_R", "BOFT"),
        ("hra_u", "HRA"),
        ("fourierft_spectrum", "FourierFT"),
        ("ln_tuning_layers.weight", "LN tuning"),
        ("glora_A.Xd", "GLoRA"),
        ("poly_lora_A", "Poly"),
        ("delora_lambda", "DeLoRA"),
        ("miss_block", "MiSS"),
        ("road_theta", "RoAd"),
        ("waveft_spectrum", "WaveFT"),
    ],
)
def test_methods_of_peft_are_named_without_their_settings(tmp_path: Path, factor: str, what: str) -> None:
    path = saved(tmp_path / "x.safetensors", {f"{LAYER}.{factor}": torch.ones(4, 1)})
    with pytest.raises(AdapterError, match=f"algorithm that is not read: PEFT's {what}"):
        read(path)


@pytest.mark.parametrize(("factor", "what"), [("lora_E", "AdaLoRA"), ("lora_diag", "KaSA")])
def test_lora_with_a_factor_more_is_not_taken_for_lora(tmp_path: Path, factor: str, what: str) -> None:
    path = saved(tmp_path / "x.safetensors", {**LORA, f"{LAYER}.{factor}": torch.ones(4, 1)})
    with pytest.raises(AdapterError, match=f"algorithm that is not read: PEFT's {what}"):
        read(path)
    with pytest.raises(AdapterError, match=what):
        describe(path)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
def test_prompt_tuning_is_no_embedding(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "adapter_model.safetensors", {"prompt_embeddings": torch.ones(4, 768)}, peft_type=kind)
    assert embeddings_in(path) == []
    with pytest.raises(AdapterError, match=f"is PEFT's {kind}, which is not read"):
        read(tmp_path)
    alone = saved(tmp_path / "alone" / "soft.safetensors", {"prompt_embeddings": torch.ones(4, 768)})
    with pytest.raises(AdapterError, match="not read: PEFT's prompt, prefix or P-tuning"):
        read(alone)


@pytest.mark.parametrize("kind", ["VERA", "FOURIERFT", "LN_TUNING", "HRA", "MADE_UP"])
def test_the_settings_beside_a_file_name_its_method(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "adapter_model.safetensors", {f"{LAYER}.what_is_this": torch.ones(4)}, peft_type=kind)
    with pytest.raises(AdapterError, match=f"is PEFT's {kind}, which is not read; LORA, LOHA, LOKR, OFT, IA3 are"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_qalora": True}, "is QALoRA"),
        ({"alora_invocation_tokens": [1, 2]}, "is aLoRA"),
        ({"kasa_config": {"beta": 0.1}}, "is KaSA"),
        ({"init_lora_weights": "lora_ga"}, "begun by lora_ga, which takes the adapter out of the base"),
        ({"lora_alpha": float("inf")}, "an alpha is inf; make it a number"),
        ({"lora_alpha": "8"}, "an alpha is the text '8'; make it a number"),
    ],
)
def test_settings_with_another_formula_or_no_scale_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    saved(tmp_path / "adapter_model.safetensors", LORA, peft_type="LORA", **settings)
    with pytest.raises(AdapterError, match=message):
        read(tmp_path)


def test_settings_in_the_header_count_as_those_beside_the_file(tmp_path: Path) -> None:
    tensors = {key.replace("base_model.model", "unet"): one for key, one in LORA.items()}
    entry = json.dumps({"unet.init_lora_weights": "pissa", "unet.r": 4, "unet.lora_alpha": 4})
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": entry})
    with pytest.raises(AdapterError, match="begun by pissa, which takes the adapter out of the base"):
        read(tmp_path / "x.safetensors")


def test_the_scale_beside_a_file_of_pefts_name_counts_whatever_its_layers_are_called(tmp_path: Path) -> None:
    tensors = {key.replace("base_model.model", "unet"): one for key, one in LORA.items()}
    saved(tmp_path / "adapter_model.safetensors", tensors, peft_type="LORA", r=4, lora_alpha=16)
    (weights,) = read(tmp_path).modules.values()
    assert weights.scale == 4.0


WHOLES = {
    "a safety checker": {"concept_embeds": (17, 768), "special_care_embeds": (3, 768)},
    "an encoder of pictures": {"vision_model.embeddings.class_embedding": (1024,), "visual_projection.weight": (8, 8)},
    "a T2I-Adapter": {"body.0.block1.weight": (4, 4, 3, 3), "conv_in.weight": (4, 64, 3, 3)},
    "an upscaler": {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)},
    "a small VAE": {"0.weight": (64, 4, 3, 3), "1.conv.0.weight": (64, 64, 3, 3)},
    "a VAE": {"first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3), "first_stage_model.quant_conv.weight": (8, 8)},
    "a text encoder": {"text_model.embeddings.token_embedding.weight": (9, 768)},
    "a UNet": {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3)},
}


@pytest.mark.parametrize("what", WHOLES)
def test_another_model_is_named_in_place_of_an_adapter_and_of_an_embedding(tmp_path: Path, what: str) -> None:
    path = saved(tmp_path / "x.safetensors", {key: torch.ones(shape) for key, shape in WHOLES[what].items()})
    with pytest.raises(AdapterError, match=f"^x.safetensors is no adapter but {what}"):
        read(path)
    assert embeddings_in(path) == []
    with pytest.raises(AdapterError, match=f"^x.safetensors is no embedding but {what}"):
        read_embedding(path)


@pytest.mark.parametrize("end", ["scale_weight", "weight_scale", "weight.absmax", "weight.quant_map", "SCB"])
def test_quantised_factors_are_named_so(tmp_path: Path, end: str) -> None:
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    scales = {f"{layer}.{factor}.{end}": torch.ones(1) for factor in ("lora_down", "lora_up")}
    factors = {f"{layer}.lora_down.weight": torch.ones(4, 320), f"{layer}.lora_up.weight": torch.ones(320, 4)}
    path = saved(tmp_path / "x.safetensors", {**factors, **scales})
    for reader in (read, describe):
        with pytest.raises(AdapterError, match=r"^x.safetensors is quantised \(lora_unet_.* goes with some"):
            reader(path)


def test_the_sparse_rest_of_an_extraction_is_named(tmp_path: Path) -> None:
    rest = {f"{LAYER}.bias_indices": torch.zeros(2, 1), f"{LAYER}.bias_values": torch.ones(1)}
    note = read(saved(tmp_path / "x.safetensors", {**LORA, **rest})).unused_note()
    assert note is not None
    assert note.startswith("2 tensors are not used: 2 (the sparse rest that LyCORIS keeps beside the factors")


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "Stable Diffusion 3"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux"),
    ],
)
def test_the_text_encoder_of_another_model_is_no_adapter_by_itself(tmp_path: Path, layer: str, what: str) -> None:
    encoder = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    own = {f"{encoder}.lora_down.weight": torch.ones(4, 768), f"{encoder}.lora_up.weight": torch.ones(768, 4)}
    other = {f"{layer}.lora_down.weight": torch.ones(4, 3072), f"{layer}.lora_up.weight": torch.ones(3072, 4)}
    for reader in (read, describe):
        with pytest.raises(AdapterError, match=f"^x.safetensors is for another model: {what}.* of the same build"):
            reader(saved(tmp_path / "x.safetensors", {**own, **other}))
        assert reader(saved(tmp_path / "x.safetensors", own)) is not None
