"""Adapter files as plain tensors: what is written, what is read, what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdlora.adapters.files.container import legacy_hash, serialise, tensor_hash, write_atomically
from sdlora.adapters.files.kohya import Part
from sdlora.adapters.files.metadata import TrainingFacts
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.tensor_files import TensorFile
from sdlora.adapters.files.weights import ModuleWeights
from sdlora.adapters.files.writing import diffusers_tensors, kohya_tensors, write_side_car
from sdlora.errors import AdapterError, ModelError

Modules = dict[tuple[Part, str], ModuleWeights]

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
KEY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.1.resnets.0.conv1"
TEXT = "encoder.layers.0.mlp.fc1"


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lora(out: int, rank: int, inputs: int, alpha: float | None = 4.0) -> ModuleWeights:
    return ModuleWeights("lora", {"lora_down": random(rank, inputs), "lora_up": random(out, rank)}, alpha)


def conv_lora(out: int, rank: int, inputs: int, alpha: float) -> ModuleWeights:
    factors = {"lora_down": random(rank, inputs, 3, 3), "lora_up": random(out, rank, 1, 1)}
    return ModuleWeights("lora", factors, alpha)


def mixed_modules() -> Modules:
    """Different ranks and scales, linear and convolution, UNet and text encoder."""
    return {
        ("unet", QUERY): lora(12, 4, 10, 4.0),
        ("unet", KEY): lora(12, 2, 768, 4.0),
        ("unet", CONV): conv_lora(12, 3, 8, 1.5),
        ("text_encoder", TEXT): lora(16, 4, 10, 0.3),
    }


def written(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, dict(metadata) if metadata else None)
    return path


def assert_same_updates(found: Mapping[str, ModuleWeights], expected: Mapping[str, ModuleWeights], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(found[name].delta(), weights.delta(), rtol=rtol, atol=rtol, msg=name)


def test_kohya_files_hold_one_alpha_and_give_back_every_update(tmp_path: Path) -> None:
    modules = mixed_modules()
    tensors, network = kohya_tensors(modules, "sd1", torch.float32)
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")} == {4.0}
    assert network.arguments == {"conv_dim": "3", "conv_alpha": "4.0"}
    file = read(written(tmp_path / "a.safetensors", tensors))
    assert (file.format, file.family, file.unused) == ("kohya", "sd1", ())
    names = ("lora_unet_" + QUERY, "lora_unet_" + KEY, "lora_unet_" + CONV, "lora_te_text_model_" + TEXT)
    expected = {name.replace(".", "_"): weights for name, weights in zip(names, modules.values(), strict=True)}
    assert_same_updates(file.modules, expected, 1e-6)


def test_weights_whose_alpha_is_the_files_are_written_untouched() -> None:
    modules = mixed_modules()
    tensors, _ = kohya_tensors(modules, "sd1", torch.float32)
    name = f"lora_unet_{QUERY.replace('.', '_')}"
    assert torch.equal(tensors[f"{name}.lora_up.weight"], modules["unet", QUERY].factors["lora_up"])
    assert torch.equal(tensors[f"{name}.lora_down.weight"], modules["unet", QUERY].factors["lora_down"])


def test_an_alpha_that_fp16_cannot_hold_is_rounded_and_the_rest_folded_in() -> None:
    tensors, _ = kohya_tensors({("unet", QUERY): lora(12, 4, 10, 0.1)}, "sd1", torch.bfloat16)
    name = f"lora_unet_{QUERY.replace('.', '_')}"
    alpha = float(tensors[f"{name}.alpha"])
    assert alpha == float(torch.tensor(alpha, dtype=torch.bfloat16))
    delta = tensors[f"{name}.lora_up.weight"].float() @ tensors[f"{name}.lora_down.weight"].float() * alpha / 4
    torch.testing.assert_close(delta.double(), lora(12, 4, 10, 0.1).delta(), rtol=2e-2, atol=2e-3)


def test_diffusers_files_need_no_alpha_and_give_back_every_update(tmp_path: Path) -> None:
    modules = mixed_modules()
    tensors, _ = diffusers_tensors(modules, torch.float32)
    assert f"text_encoder.text_model.{TEXT}.lora_A.weight" in tensors
    assert not any("alpha" in name for name in tensors)
    kohya, _ = kohya_tensors(modules, "sd1", torch.float32)
    one = read(written(tmp_path / "d.safetensors", tensors))
    two = read(written(tmp_path / "k.safetensors", kohya))
    assert (one.format, one.family) == ("diffusers", "sd1")
    assert_same_updates(one.modules, two.modules, 1e-6)


def test_sdxl_names_in_either_spelling_are_read_as_one(tmp_path: Path) -> None:
    down, up = random(4, 10), random(12, 4)
    original = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    for name in (original, "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q"):
        tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
        file = read(written(tmp_path / "x.safetensors", tensors))
        assert file.family == "sdxl"
        assert list(file.modules) == [original]


def test_loha_and_lokr_are_read_with_the_formulas_of_lycoris(tmp_path: Path) -> None:
    first, second = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_mid_block_attentions_0_proj_out"
    third = "lora_unet_mid_block_resnets_0_conv1"
    a, b, c, d = random(6, 2), random(2, 8), random(6, 2) + 1, random(2, 8) + 1
    small, large = random(2, 4), random(3, 2)
    conv_a, conv_b = random(3, 2), random(2, 2 * 9)
    tensors = {
        f"{first}.hada_w1_a": a,
        f"{first}.hada_w1_b": b,
        f"{first}.hada_w2_a": c,
        f"{first}.hada_w2_b": d,
        f"{first}.alpha": torch.tensor(1.0),
        f"{second}.lokr_w1": small,
        f"{second}.lokr_w2": large,
        f"{second}.alpha": torch.tensor(100.0),  # both factors are full: every tool ignores it
        f"{third}.lokr_w1": small,
        f"{third}.lokr_w2_a": conv_a,
        f"{third}.lokr_w2_b": conv_b,
        f"{third}.alpha": torch.tensor(1.0),
    }
    modules = read(written(tmp_path / "x.safetensors", tensors)).modules
    torch.testing.assert_close(modules[first].delta().float(), (a @ b) * (c @ d) / 2)
    torch.testing.assert_close(modules[second].delta().float(), torch.kron(small, large))
    torch.testing.assert_close(modules[third].delta().float(), torch.kron(small, conv_a @ conv_b) / 2)


def test_tucker_convolutions_are_read(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_resnets_0_conv1"
    down, mid, up = random(2, 5, 1, 1), random(2, 2, 3, 3), random(7, 2, 1, 1)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up}
    weights = read(written(tmp_path / "x.safetensors", tensors)).modules[name]
    expected = torch.einsum("or,rsxy,si->oixy", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    torch.testing.assert_close(weights.delta().float(), expected)
    torch.testing.assert_close(weights.without_tucker().delta().float(), expected)


def test_old_attention_processor_files_are_read(tmp_path: Path) -> None:
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor"
    tensors = {
        f"unet.{block}.to_out_lora.down.weight": random(4, 10),
        f"unet.{block}.to_out_lora.up.weight": random(12, 4),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight": random(4, 10),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": random(12, 4),
    }
    file = read(written(tmp_path / "x.safetensors", tensors))
    assert list(file.modules) == [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
    ]
    assert file.unused == ()


def test_alphas_declared_in_the_header_of_diffusers_files_count(tmp_path: Path) -> None:
    tensors = {f"unet.{path}.lora_{x}.weight": random(4, 4) for path in (QUERY, KEY) for x in "AB"}
    declared = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {KEY: 2}}
    file = read(written(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps(declared)}))
    scales = {name.rsplit("_", 1)[1]: weights.scale for name, weights in file.modules.items()}
    assert scales == {"q": 2.0, "k": 0.5}


def test_a_missing_alpha_means_scale_1_and_is_told(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{name}.lora_down.weight": random(4, 10), f"{name}.lora_up.weight": random(12, 4)}
    file = read(written(tmp_path / "x.safetensors", tensors))
    assert file.modules[name].scale == 1.0
    assert file.notes == ("1 of 1 layers have no alpha: their scale is taken as 1",)


def test_tensors_that_are_not_understood_are_named(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": random(4, 10),
        f"{name}.lora_up.weight": random(12, 4),
        "lora_unet_conv_in.diff": random(3),
        "lora_unet_conv_in.alpha": torch.tensor(1.0),
        "emb_params": random(2),
    }
    assert set(read(written(tmp_path / "x.safetensors", tensors)).unused) == {
        "lora_unet_conv_in.diff",
        "lora_unet_conv_in.alpha",
        "emb_params",
    }


NAME = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{NAME}.lora_down.weight": random(4, 10)}, r"make no lora layer: lora_down \[4, 10\]"),
        (
            {f"{NAME}.lora_down.weight": random(4, 10), f"{NAME}.lora_up.weight": random(12, 3)},
            r"don't fit each other: lora_down \[4, 10\], lora_up \[12, 3\]",
        ),
        (
            {f"{NAME}.lora_down.weight": random(4, 10), f"{NAME}.lora_up.weight": torch.full((12, 4), float("nan"))},
            r"lora_up.weight has a value that is not finite",
        ),
        (
            {f"{NAME}.lora_down.weight": random(4, 10).int(), f"{NAME}.lora_up.weight": random(12, 4)},
            "whole numbers where factors should be",
        ),
        (
            {
                f"{NAME}.lora_down.weight": random(4, 10),
                f"{NAME}.lora_up.weight": random(12, 4),
                f"{NAME}.alpha": random(2),
            },
            "alpha has 2 values, not one",
        ),
        ({f"{NAME}.hada_w1_a": random(4, 2), f"{NAME}.lokr_w1": random(2, 2)}, "make no lokr layer"),
        ({"model.diffusion_model.input_blocks.0.0.weight": random(2)}, "is no adapter but a whole base model"),
        ({}, "holds no LoRA, LoHa or LoKr layer"),
    ],
)
def test_wrong_contents_get_one_clear_error(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        read(written(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; download or copy it again"),
        (struct.pack("<Q", 2**60) + b"{}", "its header claims 1152921504606846976 of 10 bytes"),
        (struct.pack("<Q", 2) + b"{]", "invalid JSON in header"),
        (struct.pack("<Q", 2) + b"[]", "damaged or not a safetensors file: invalid JSON in header"),
        (struct.pack("<Q", 11) + b'{"a":1,"a":', "invalid JSON in header"),
        (
            struct.pack("<Q", 20 * 2**20) + bytes(20 * 2**20),
            "its header is of 20,971,520 bytes; up to 16,777,216",
        ),
        (struct.pack("<Q", 8) + b'{"a":{}}', "damaged or not a safetensors file"),
        (b"PK\x03\x04aaaaaaaaaa", "is a pickle: opening one can run any program"),
        (pickle.dumps({"a": 1}), "is a pickle"),
    ],
)
def test_damaged_files_get_one_clear_error(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(AdapterError, match=message):
        read(path)


def damaged(whole: bytes, kind: str, generator: Random) -> bytes:
    """A file spoilt in one of the ways that files get spoilt, or made to do harm."""
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name, other = generator.sample(names, 2)
    if kind == "truncated":
        return whole[: generator.randrange(len(whole))]
    if kind in ("bits of the header", "bits of the data"):
        spoilt = bytearray(whole)
        first, last = (0, 8 + length) if kind == "bits of the header" else (8 + length, len(whole))
        for _ in range(generator.randint(1, 4)):
            spoilt[generator.randrange(first, last)] ^= 1 << generator.randrange(8)
        return bytes(spoilt)
    if kind == "wrong shape":
        header[name]["shape"] = header[other]["shape"] if generator.random() < 0.5 else [generator.randrange(99), 3]
    if kind == "huge declared size":
        header[name]["shape"] = [2**40, 2**20]
        if generator.random() < 0.5:
            header[name]["data_offsets"][1] = 2**60
    if kind == "huge declared header":
        return struct.pack("<Q", generator.choice([2**63, 2**40, 10**9])) + whole[8:]
    if kind == "lost tensor":
        del header[name]
    raw = json.dumps(header).encode()
    if kind == "duplicate keys":
        entry = json.dumps({name: header[other]}).encode()
        raw = raw[:-1] + b", " + entry[1:]
    if kind == "deep nesting":
        raw = b"[" * 100_000
    return struct.pack("<Q", len(raw)) + raw + data


KINDS = (
    "truncated",
    "bits of the header",
    "bits of the data",
    "wrong shape",
    "huge declared size",
    "huge declared header",
    "lost tensor",
    "duplicate keys",
    "deep nesting",
)
SPOILS_FOR_SURE = {"truncated", "huge declared size", "huge declared header", "duplicate keys", "deep nesting"}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_with_one_clear_error_and_no_memory(tmp_path: Path, kind: str) -> None:
    tensors, _ = kohya_tensors(mixed_modules(), "sd1", torch.float16)
    whole = serialise(tensors, {"sshs_model_hash": tensor_hash(serialise(tensors, {}))})
    path, generator, messages = tmp_path / "x.safetensors", Random(kind), []
    before = peak_memory_mib()
    for _ in range(25):
        path.write_bytes(damaged(whole, kind, generator))
        try:
            file = read(path)
        except AdapterError as error:
            messages.append(str(error))
        else:
            told = any("damaged" in note for note in file.notes)
            assert told or kind != "bits of the data"
    assert all(message.startswith(path.name) for message in messages)
    assert all(len(message) < 2000 for message in messages)
    assert len(messages) == 25 or kind not in SPOILS_FOR_SURE
    assert peak_memory_mib() - before < 200


def peak_memory_mib() -> float:
    """Of this process so far; 0 where the system doesn't tell."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), 0.0)


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    """The length of a header of 640 bytes is written 80 02, as some pickles begin."""
    tensors = {f"{NAME}.lora_down.weight": random(4, 10), f"{NAME}.lora_up.weight": random(12, 4)}
    data = serialise(tensors, {"filling": "x" * 300})
    (length,) = struct.unpack("<Q", data[:8])
    data = serialise(tensors, {"filling": "x" * (300 + 640 - length)})
    assert data[:2] == b"\x80\x02"
    write_atomically(tmp_path / "x.safetensors", data)
    assert list(read(tmp_path / "x.safetensors").modules) == [NAME]


def test_a_truncated_file_and_a_missing_one_are_told_apart(tmp_path: Path) -> None:
    tensors, _ = kohya_tensors(mixed_modules(), "sd1", torch.float16)
    path = written(tmp_path / "x.safetensors", tensors)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AdapterError, match="damaged or not a safetensors file"):
        read(path)
    with pytest.raises(AdapterError, match="there is no such file"):
        read(tmp_path / "y.safetensors")
    with pytest.raises(AdapterError, match=r"is a safetensors file under another name; rename it to end in .safetens"):
        read(written(tmp_path / "x.pt", tensors))


def test_a_value_beyond_fp16_is_refused_with_advice() -> None:
    modules: Modules = {("unet", QUERY): lora(12, 4, 10)}
    modules["unet", QUERY].factors["lora_down"][0, 0] = 1e5  # type: ignore[index]
    with pytest.raises(
        AdapterError,
        match=r"the value 1e\+05, beyond what float16 can hold .*or --precision bf16",
    ):
        kohya_tensors(modules, "sd1", torch.float16)
    kohya_tensors(modules, "sd1", torch.bfloat16)


def test_the_diffusers_format_refuses_what_diffusers_cannot_read() -> None:
    factors = {name: random(4, 4) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    with pytest.raises(AdapterError, match="holds LoRA only, not loha; use"):
        diffusers_tensors({("unet", QUERY): ModuleWeights("loha", factors, 1.0)}, torch.float32)


def test_the_same_contents_make_the_same_bytes_and_the_library_reads_them(tmp_path: Path) -> None:
    tensors, _ = kohya_tensors(mixed_modules(), "sd1", torch.float16)
    metadata = {f"key_{i}": "wörd" for i in range(20)}
    data = serialise(tensors, metadata)
    assert data == serialise(tensors, dict(reversed(metadata.items())))
    path = tmp_path / "x.safetensors"
    write_atomically(path, data)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == metadata
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_hashes_are_of_the_bytes_that_kohya_hashes() -> None:
    data = serialise({"a": torch.arange(2**19, dtype=torch.float32)}, {})
    (length,) = struct.unpack("<Q", data[:8])
    assert tensor_hash(data) == hashlib.sha256(data[8 + length :]).hexdigest()
    assert legacy_hash(data) == hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
    assert legacy_hash(b"small") == hashlib.sha256(b"").hexdigest()[:8]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="/file exists already, as something else"):
        write_atomically(tmp_path / "file" / "x.safetensors", b"")


def test_the_side_car_lies_beside_the_file_with_its_preview(tmp_path: Path) -> None:
    preview = tmp_path / "preview.png"
    preview.write_bytes(b"png")
    facts = TrainingFacts("x", "sd1", trigger="blprnt")
    file = written(tmp_path / "my.lora.safetensors", {"weight": torch.ones(2)}, {"sshs_model_hash": "ab" * 32})
    paths = write_side_car(file, facts, preview)
    assert [path.name for path in paths] == ["my.lora.json", "my.lora.civitai.info", "my.lora.png"]
    assert json.loads(paths[0].read_text(encoding="utf-8"))["activation text"] == "blprnt"
    for_sites = json.loads(paths[1].read_text(encoding="utf-8"))
    assert (for_sites["trainedWords"], for_sites["baseModel"]) == (["blprnt"], "SD 1.5")
    whole = hashlib.sha256(file.read_bytes()).hexdigest().upper()
    hashes = for_sites["files"][0]["hashes"]
    assert hashes == {"SHA256": whole, "AutoV2": whole[:10], "AutoV3": "ABABABABABAB"}
    assert paths[2].read_bytes() == b"png"


def test_a_number_type_that_is_no_weights_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", {"ids": torch.arange(4), "weight": torch.ones(2)})
    file = TensorFile(path)
    assert file.read("weight").tolist() == [1, 1]
    with pytest.raises(ModelError, match=r"model.safetensors: ids holds numbers of type I64, .* F64, F32, F16, BF16"):
        file.read("ids")
