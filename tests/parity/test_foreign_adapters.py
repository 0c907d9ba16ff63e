"""Adapter files as other tools write them, read with the strength that the algorithm's formula gives, in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdlora.adapters.files.kohya import kohya_name
from sdlora.adapters.files.layer_table import FAMILY_NAMES, layers
from sdlora.adapters.files.reading import read
from sdlora.config.base_model import FamilyName
from sdlora.errors import AdapterError
from sdlora.models.configs import shipped_configs
from tests.support.adapter_matrix import PAGE, algorithms_for, outcome, page
from tests.support.foreign_adapters import lora, write_foreign
from tests.support.foreign_layouts import LAYOUTS
from tests.support.tiny_models import narrow_configs


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_algorithm_in_every_layout_has_the_strength_of_its_formula(layout: str) -> None:
    for family in FAMILY_NAMES:
        for name in algorithms_for(family):
            found = outcome(layout, name, family)
            assert found.kind in ("read", "base", "assumed", "nothing"), (family, name, found)


@pytest.mark.slow
def test_the_page_about_adapter_files_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.support.adapter_matrix"


def test_every_layer_in_the_table_is_one_of_the_real_model_with_its_size() -> None:
    for family in FAMILY_NAMES:
        configs = shipped_configs(family)
        with torch.device("meta"):
            models: dict[Any, nn.Module] = {"unet": UNet2DConditionModel.from_config(configs["unet"])}
            models["text_encoder"] = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
        real = {
            kohya_name(part, path, family): (layer.weight.shape[0], layer.weight[0].numel())
            for part, model in models.items()
            for path, layer in model.named_modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
        }
        table = {name: (layer.rows, layer.columns) for name, layer in layers(family).items()}
        assert real.items() <= table.items()
        beyond = {name for name in table.keys() - real.keys() if "lora_te2" not in name}
        assert all("layers_23_" in name for name in beyond)  # SD 2's last text layer, unused but in files


def tiny_unet() -> nn.Module:
    configs = narrow_configs("sd1")
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(configs["unet"])


def tiny_text_encoder() -> nn.Module:
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(**narrow_configs("sd1")["text_encoder"]))


ATTENTION = r".*attn[12]\.(to_q|to_k|to_v|to_out\.0)"
PEFT_CONFIGS: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: LoraConfig(r=4, lora_alpha=12, target_modules=ATTENTION),
    "rsLoRA": lambda: LoraConfig(r=4, lora_alpha=12, use_rslora=True, target_modules=ATTENTION),
    "patterns": lambda: LoraConfig(
        r=4,
        lora_alpha=3,
        target_modules=ATTENTION,
        rank_pattern={"attn1.to_q": 2, r"up_blocks.*attn2\.to_k": 6},
        alpha_pattern={"attn1.to_q": 5, "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v": 9},
    ),
    "DoRA": lambda: LoraConfig(r=4, lora_alpha=12, use_dora=True, target_modules=ATTENTION + r"|.*\.conv1"),
    "bias": lambda: LoraConfig(r=4, lora_alpha=12, lora_bias=True, target_modules=r".*attn1\.to_out\.0"),
    "LoHa": lambda: LoHaConfig(r=4, alpha=12, target_modules=ATTENTION + r"|.*\.conv1", init_weights=False),
    "LoHa, Tucker": lambda: LoHaConfig(
        r=4, alpha=12, target_modules=r".*\.conv1", use_effective_conv2d=True, init_weights=False
    ),
    "LoKr": lambda: LoKrConfig(r=4, alpha=12, target_modules=ATTENTION + r"|.*\.conv1", init_weights=False),
    "LoKr, whole": lambda: LoKrConfig(r=64, alpha=12, target_modules=ATTENTION, init_weights=False),
    "LoKr, both": lambda: LoKrConfig(
        r=2, alpha=12, target_modules=ATTENTION, decompose_both=True, decompose_factor=8, init_weights=False
    ),
    "OFT": lambda: OFTConfig(r=0, oft_block_size=8, target_modules=ATTENTION, init_weights=False),
    "IA3": lambda: IA3Config(target_modules=ATTENTION, feedforward_modules=r".*to_v", init_ia3_weights=False),
}


@pytest.mark.parametrize("name", PEFT_CONFIGS)
def test_a_folder_that_peft_saves_has_the_deltas_of_peft(tmp_path: Path, name: str) -> None:
    unet = tiny_unet()
    weights = {
        kohya_name("unet", path, "sd1"): layer.weight.detach().clone()
        for path, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }
    model = get_peft_model(unet, PEFT_CONFIGS[name]())
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in key:
                parameter.copy_(torch.randn_like(parameter) * 0.1 + (1 if "ia3" in key else 0))
    model.save_pretrained(str(tmp_path))
    file = read(tmp_path, "sd1")
    found = {path: layer for path, layer in model.base_model.model.named_modules() if isinstance(layer, BaseTunerLayer)}
    assert file.unused == ()
    assert file.format == "peft"
    assert len(found) == len(file.modules) > 0
    assert not any("taken as 1" in note for note in file.notes)
    for path, layer in found.items():
        own = kohya_name("unet", path, "sd1")
        weight = weights[own].double()
        expected = peft_delta(layer, weight)
        torch.testing.assert_close(file.modules[own].delta_on(weight), expected, rtol=1e-4, atol=1e-5, msg=path)
        if name == "bias":
            bias = layer.lora_B["default"].bias.detach() * 3
            torch.testing.assert_close(file.vectors[own].bias, bias)


def peft_delta(layer: BaseTunerLayer, weight: Tensor) -> Tensor:
    """What PEFT does to a weight: by merging, which every kind of it can."""
    layer.merge(safe_merge=False)
    merged = layer.get_base_layer().weight.detach().double()
    return (merged - weight).flatten(1)


def test_a_text_encoder_that_peft_saves_is_read_whatever_transformers_calls_its_layers(tmp_path: Path) -> None:
    model = get_peft_model(tiny_text_encoder(), LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "fc1"]))
    model.save_pretrained(str(tmp_path))
    file = read(tmp_path / "adapter_model.safetensors", "sd1")
    assert len(file.modules) == 24
    assert file.unused == ()
    assert all(name.startswith("lora_te_text_model_encoder_layers_") for name in file.modules)
    assert {weights.scale for weights in file.modules.values()} == {4.0}


def peft_file(folder: Path, **config: object) -> Path:
    path, _ = write_foreign(folder, LAYOUTS["PEFT folder"], lora, "sd1")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 2, **config}))
    return path


def test_a_peft_file_without_its_settings_says_which_scale_was_assumed(tmp_path: Path) -> None:
    path = peft_file(tmp_path)
    assert {weights.scale for weights in read(path).modules.values()} == {0.5}
    (tmp_path / "adapter_config.json").unlink()
    file = read(path)
    assert {weights.scale for weights in file.modules.values()} == {1.0}
    assert file.notes == (
        "2 of 2 layers have no alpha, and there is no adapter_config.json beside it: their scale is taken as 1",
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "ADALORA"}, "is PEFT's ADALORA, which is not read; LORA, LOHA, LOKR, OFT, IA3 are"),
        ({"init_lora_weights": "pissa_niter_16"}, "begun by pissa_niter_16, which takes the adapter out of the base"),
        ({"init_lora_weights": "olora"}, "on the plain base it is another adapter"),
        ({"peft_type": "OFT", "coft": True}, "OFT with coft"),
    ],
)
def test_peft_settings_that_make_it_another_adapter_are_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        read(peft_file(tmp_path, **config))


def test_broken_peft_settings_are_refused_for_the_scale_is_unknown(tmp_path: Path) -> None:
    path = peft_file(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not valid JSON, so the adapter's scale isn't known"):
        read(path)


def test_a_folder_without_an_adapter_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="this folder holds no adapter file"):
        read(tmp_path)
    peft_file(tmp_path / "unet")
    with pytest.raises(AdapterError, match="no adapter file; unet in it does: name that"):
        read(tmp_path)


LYCORIS = ("locon", "loha", "lokr", "full", "diag-oft", "boft", "glora", "ia3", "dylora")


@pytest.mark.parametrize("algorithm", LYCORIS)
def test_a_file_that_lycoris_saves_has_the_deltas_of_lycoris(tmp_path: Path, algorithm: str) -> None:
    from lycoris import LycorisNetwork, create_lycoris

    unet = tiny_unet()
    weights = {
        kohya_name("unet", path, "sd1"): layer.weight.detach().clone()
        for path, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
    }
    LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel", "ResnetBlock2D"]})
    torch.manual_seed(2)
    network = create_lycoris(
        unet,
        1.0,
        linear_dim=4,
        linear_alpha=2,
        conv_dim=4,
        conv_alpha=2,
        algo=algorithm,
        train_norm=True,
    )
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    path = tmp_path / "lycoris.safetensors"
    network.save_weights(str(path), torch.float32, {})
    file = read(path, "sd1")
    assert file.unused == ()
    assert len(file.layer_names) == len(network.loras)
    for module in network.loras:
        own = "lora_unet_" + module.lora_name.removeprefix("lycoris_")
        if own not in file.modules:
            assert own in file.vectors  # a norm
            torch.testing.assert_close(file.vectors[own].weight, module.w_norm.detach())
            continue
        if algorithm == "full":
            expected = module.custom_state_dict()["diff"]
        elif algorithm == "dylora":
            state = module.custom_state_dict()
            expected = state["lora_up.weight"].flatten(1) @ state["lora_down.weight"].flatten(1) * 0.5
        else:
            expected = module.get_diff_weight(1.0)[0]
        if algorithm in ("loha", "lokr"):  # its get_diff_weight multiplies twice by the scale
            expected = file.modules[own].delta()
        wanted = expected.detach().double()
        found = file.modules[own].delta_on(weights[own])
        torch.testing.assert_close(found.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-5, msg=own)


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **metadata: str) -> Path:
    save_file(change(load_file(path)), path, metadata or None)
    return path


def test_layers_that_the_family_has_not_are_named_and_a_file_of_such_alone_is_refused(tmp_path: Path) -> None:
    path, expected = write_foreign(tmp_path, LAYOUTS["kohya"], lora, "sd1")
    strange = "lora_unet_down_blocks_9_attentions_0_proj_in"
    down = torch.ones(4, 320)
    more = {f"{strange}.lora_down.weight": down, f"{strange}.lora_up.weight": down.T.contiguous()}
    file = read(rewritten(path, lambda tensors: tensors | more))
    assert set(file.layer_names) == set(expected)
    assert file.left_out == dict.fromkeys(more, "no layer of Stable Diffusion 1.x is called so")
    with pytest.raises(AdapterError, match="holds 1 layers, but Stable Diffusion has none of them; the first is"):
        read(rewritten(path, lambda _: more))


def test_layers_of_other_sizes_than_the_familys_are_said(tmp_path: Path) -> None:
    path, expected = write_foreign(tmp_path, LAYOUTS["kohya"], lora, "sd1")
    assert not any("other sizes" in note for note in read(path).notes)
    name = next(name for name in expected if name.endswith("conv_in"))
    key = f"{name}.lora_up.weight"

    def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {key: tensors[key][:-8].contiguous()}

    (note,) = (note for note in read(rewritten(path, cut)).notes if "other sizes" in note)
    assert f"1 layer of other sizes than sd1's, so that its models can't take the file: {name} (" in note
    assert "312 x 36 weights, sd1 has 320 x 36" in note


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        ("lora_prior_unet_down_blocks_0_attentions_0_proj", "Stable Cascade"),
        ("transformer.single_transformer_blocks.3.attn.to_q", "Flux"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
        ("lora_unet_joint_blocks_1_x_block_attn_qkv", "Stable Diffusion 3"),
        ("diffusion_model.blocks.0.cross_attn.k", "Wan"),
        ("transformer.transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("diffusion_model.context_refiner.0.attention.qkv", "Lumina or Z-Image"),
        ("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "ControlNet"),
    ],
)
def test_adapters_for_other_models_are_named_as_what_they_are(tmp_path: Path, layer: str, what: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}, path)
    with pytest.raises(AdapterError, match=rf"is for another model: .*{what}"):
        read(path)


@pytest.mark.parametrize("shape", [(7,), (640, 2), (3, 768)])
def test_a_dora_magnitude_that_is_not_understood_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path, _ = write_foreign(tmp_path, LAYOUTS["kohya"], lora, "sd1")
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    rewritten(path, lambda tensors: tensors | {f"{name}.dora_scale": torch.ones(shape)})
    with pytest.raises(AdapterError, match="DoRA magnitude .* is neither for the 640 outputs nor for the 768 inputs"):
        read(path)


def test_a_dora_magnitude_without_factors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.dora_scale": torch.ones(1280, 1)}, path)
    with pytest.raises(AdapterError, match="a DoRA magnitude without factors"):
        read(path)


def test_shapes_overrule_metadata_and_that_is_said(tmp_path: Path) -> None:
    path, expected = write_foreign(tmp_path, LAYOUTS["kohya, original names"], lora, "sd1")
    file = read(rewritten(path, dict, ss_base_model_version="sdxl_base_v1-0"))
    assert file.family == "sd1"
    assert set(file.modules) == set(expected)
    assert file.notes == ("its metadata say sdxl, but the shapes of its layers are those of sd1: taken as sd1",)


def test_a_family_that_is_asked_for_overrules_what_the_file_tells(tmp_path: Path) -> None:
    path, _ = write_foreign(tmp_path, LAYOUTS["kohya, original names"], lora, "sd1")
    file = read(path, "sd2")
    assert file.family == "sd2"
    assert "taken as sd2 as asked, though it looks like sd1" in file.notes


@pytest.mark.parametrize(
    ("prefix", "family", "said"),
    [
        ("text_encoder.text_model", None, False),
        ("base_model.model.text_model", None, False),
        ("lora_te_text_model", "sd1", True),
        ("lora_te1_text_model", "sdxl", True),
    ],
)
def test_the_first_text_encoder_of_two_families_is_no_silent_guess(
    tmp_path: Path, prefix: str, family: FamilyName | None, said: bool
) -> None:
    separator = "." if "." in prefix else "_"
    layer = separator.join([prefix, "encoder", "layers", "0", "self_attn", "q_proj"])
    path = tmp_path / "x.safetensors"
    down, up = torch.ones(4, 768), torch.ones(768, 4)
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, f"{layer}.alpha": torch.tensor(4.0)}
    save_file(tensors, path)
    file = read(path)
    assert file.family == family
    assert any("fit sd1 and sdxl alike" in note for note in file.notes) == said


def test_a_second_text_encoder_is_told_by_its_width(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    layer = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{layer}.lora_A.weight": torch.ones(4, 1280), f"{layer}.lora_B.weight": torch.ones(1280, 4)}, path)
    file = read(path)
    assert (file.family, list(file.modules)) == ("sdxl", ["lora_te2_text_model_encoder_layers_0_self_attn_q_proj"])


def test_plain_tensors_of_a_pickle_are_read_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    path, expected = write_foreign(tmp_path, LAYOUTS["kohya"], lora, "sd1")
    for name in ("x.pt", "x.ckpt", "x.bin"):
        torch.save(load_file(path), tmp_path / name)
        assert read(tmp_path / name).modules.keys() == expected.keys()
        assert len(read(tmp_path / name).model_hash) == 64
    torch.save({"state_dict": load_file(path)}, tmp_path / "y.ckpt")
    assert read(tmp_path / "y.ckpt").modules.keys() == expected.keys()

    marker = tmp_path / "run"

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    torch.save({"a": Harmful()}, tmp_path / "z.pt")
    with pytest.raises(AdapterError, match="z.pt is a pickle: opening one can run any program"):
        read(tmp_path / "z.pt")
    assert not marker.exists()
