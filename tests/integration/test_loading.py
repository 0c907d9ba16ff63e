"""Base models from folders, single files, the hub's cache and the package, on real tiny models."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file

from sdlora.config.base_model import BaseModelConfig
from sdlora.errors import ModelError
from sdlora.models import components, folder
from sdlora.models.bundle import Bundle
from sdlora.models.families import FAMILIES
from sdlora.models.hub import reach
from sdlora.models.identity import file_hash, weights_identity
from sdlora.models.loading import load, load_vae
from sdlora.models.quantize import weight_bytes
from sdlora.models.recognition import SD1_TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from sdlora.models.size_conditions import SizeConditions
from sdlora.models.vae import decode_latents, encode_images, encode_moments
from tests.support.tiny_models import save_single_file

SIZES = [SizeConditions(512, 640, 0, 32, 128, 128), SizeConditions(128, 128, 0, 0, 128, 128)]
CAPTIONS = ["a photo of a (cat:1.3)", ""]


def loaded(model: Path | str, **settings: object) -> Bundle:
    return load(BaseModelConfig(model=str(model), **{"precision": "fp32", **settings}))  # type: ignore[arg-type]


@cache
def pristine(model: Path | str, **settings: object) -> Bundle:
    """The same, loaded once for all tests that change nothing."""
    return loaded(model, **settings)


@torch.no_grad()
def prediction(bundle: Bundle) -> torch.Tensor:
    noisy_BCHW = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    states = bundle.family.encode_text(bundle, CAPTIONS)
    return bundle.family.predict(bundle, noisy_BCHW, torch.tensor([20, 900]), states, SIZES)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1


# ---- one model, several forms


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_single_file_predicts_as_its_folder_bit_for_bit(
    family: str, tiny_files: dict[str, Path], pixels: torch.Tensor
) -> None:
    folder, file = pristine(tiny_files[family].with_suffix("")), pristine(tiny_files[family])
    assert folder.family is file.family is FAMILIES[family]  # type: ignore[index]
    assert folder.schedule.prediction == file.schedule.prediction
    assert folder.native_resolution == file.native_resolution
    assert torch.equal(folder.schedule.signal_T, file.schedule.signal_T)
    assert torch.equal(prediction(folder), prediction(file))
    for ours, theirs in zip(encode_moments(folder, pixels), encode_moments(file, pixels), strict=True):
        assert torch.equal(ours, theirs)
    assert folder.identity == file.identity
    assert [tokenizer.pad_token for tokenizer in folder.tokenizers] == [
        tokenizer.pad_token for tokenizer in file.tokenizers
    ]


def test_a_ckpt_loads_as_the_safetensors_does(tiny_sd1: Path, tiny_files: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = loaded(save_single_file(tiny_sd1, tmp_path / "model.ckpt"))
    assert torch.equal(prediction(checkpoint), prediction(pristine(tiny_files["sd1"])))


@pytest.mark.parametrize("form", ["folder", "file"])
def test_fp32_weights_leave_memory_as_each_is_cast(
    form: str, tiny_sd1: Path, tiny_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    for module in (components, folder):
        monkeypatch.setattr(module, "forget_mapped", lambda tensors: given.extend(tensor.nbytes for tensor in tensors))
    bundle = loaded(tiny_sd1 if form == "folder" else tiny_files["sd1"], precision="bf16")
    assert sum(given) >= 2 * (weight_bytes(bundle.unet) + weight_bytes(bundle.vae))


def test_old_files_without_text_model_in_their_names_load(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    prefix = f"{SD1_TEXT_PREFIX}text_model."
    weights = {name.replace(prefix, SD1_TEXT_PREFIX): tensor for name, tensor in load_file(tiny_files["sd1"]).items()}
    weights[f"{SD1_TEXT_PREFIX}embeddings.position_ids"] = torch.arange(77)[None]
    weights["model_ema.decay"] = torch.tensor(0.999)
    save_file(weights, tmp_path / "old.safetensors")
    assert torch.equal(prediction(loaded(tmp_path / "old.safetensors")), prediction(pristine(tiny_files["sd1"])))


def test_the_built_in_model_loads() -> None:
    bundle = loaded("builtin:emoji", precision="bf16")
    assert bundle.family.name == "sd1"
    assert bundle.native_resolution == 128
    assert prediction(bundle).isfinite().all()


COMMIT = "0123456789" * 4


def hub_cache(root: Path, folder: Path) -> None:
    """Lay a folder out as the hub's local cache of owner/name."""
    repository = root / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")  # diffusers' own
def test_a_hub_name_loads_from_the_cache_when_offline(
    tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path, tiny_sd1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reach.cache_clear()
    bundle = loaded("owner/name")
    assert bundle.identity == pristine(tiny_sd1).identity
    assert loaded(tiny_sd1, vae="owner/name").vae_identity == bundle.vae_identity
    with pytest.raises(ModelError, match=r"'owner/other' is not in the local cache and the hub can't be reached"):
        loaded("owner/other")
    reach.cache_clear()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RepositoryNotFoundError, "'owner/name' doesn't exist, or is private: check the name"),
        (GatedRepoError, "'owner/name' asks for consent: accept its terms"),
        (RevisionNotFoundError, "'owner/name' has no revision 'v9'"),
    ],
)
def test_the_hubs_refusals_are_explained(
    error: type[HfHubHTTPError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    reach.cache_clear()
    with pytest.raises(ModelError, match=message):
        loaded("owner/name", revision="v9")


def test_sdxl_in_bf16_sees_image_sizes_to_the_pixel(tiny_files: dict[str, Path]) -> None:
    bundle = loaded(tiny_files["sdxl"], precision="bf16")
    states = bundle.family.encode_text(bundle, [""])
    added = bundle.family.added_conditions(states, [SizeConditions(837, 641, 0, 0, 837, 641)])
    assert added is not None
    assert added["time_ids"].tolist() == [[837, 641, 0, 0, 837, 641]]
    assert prediction(bundle).dtype == torch.bfloat16


# ---- how it is held


def test_weights_are_frozen_in_eval_mode_and_in_the_number_type_asked_for(tiny_files: dict[str, Path]) -> None:
    bundle = loaded(tiny_files["sd1"], precision="bf16")
    for module in (bundle.unet, bundle.vae, *bundle.text_encoders):
        assert not module.training
        assert all(not weight.requires_grad and weight.dtype == torch.bfloat16 for weight in module.parameters())
    assert prediction(bundle).dtype == bundle.dtype == torch.bfloat16


def test_precision_changes_the_cache_identities_and_clip_skip_the_texts(tiny_files: dict[str, Path]) -> None:
    plain, half = pristine(tiny_files["sd1"]), loaded(tiny_files["sd1"], precision="bf16")
    skipping = loaded(tiny_files["sd1"], clip_skip=2)
    assert plain.vae_identity != half.vae_identity
    assert plain.text_identity != half.text_identity
    assert plain.text_identity != skipping.text_identity
    assert plain.vae_identity == skipping.vae_identity


def test_identity_tells_weights_apart() -> None:
    layer = torch.nn.Linear(100, 100)
    before = weights_identity([layer])
    assert weights_identity([layer]) == before
    with torch.no_grad():
        layer.weight *= 1.01
    assert weights_identity([layer]) != before


def test_a_files_hash_is_kept_until_the_file_changes(tmp_path: Path, settled: None) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    first = file_hash(file, tmp_path / "cache")
    assert first == hashlib.sha256(b"weights").hexdigest()
    kept = tmp_path / "cache" / "file-hashes.json"
    kept.write_text(kept.read_text().replace(first, "0" * 64))
    assert file_hash(file, tmp_path / "cache") == "0" * 64
    file.write_bytes(b"other weights")
    assert file_hash(file, tmp_path / "cache") not in (first, "0" * 64)


def test_clip_skip_beyond_the_encoder_is_refused(tiny_sd1: Path, tmp_path: Path) -> None:
    shallow = shutil.copytree(tiny_sd1, tmp_path / "model")
    config = json.loads((shallow / "text_encoder" / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (shallow / "text_encoder" / "config.json").write_text(json.dumps(config))
    edit(shallow / "text_encoder", lambda weights: drop(weights, *[f".layers.{layer}." for layer in range(3, 12)]))
    with pytest.raises(ModelError, match="clip_skip is 4, but the text encoder has 3 layers"):
        loaded(shallow, clip_skip=4)


def test_clip_skip_on_sdxl_is_said_to_have_no_effect(tiny_files: dict[str, Path]) -> None:
    assert any("clip_skip has no effect" in note for note in loaded(tiny_files["sdxl"], clip_skip=2).notes)


# ---- weights that don't fit

Weights = dict[str, torch.Tensor]


def edit(part: Path, change: Callable[[Weights], Weights]) -> None:
    """Rewrite the one weight file of a folder's part."""
    (file,) = part.glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def drop(weights: Weights, *pieces: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not any(piece in name for piece in pieces)}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet", r"unet: weights don't match the model \(1 missing: conv_norm_out.bias\)"),
        ("text_encoder", r"text_encoder: weights don't match the model \(1 missing: .*final_layer_norm.bias\)"),
    ],
)
def test_a_folder_with_a_weight_missing_is_refused(tiny_sd1: Path, tmp_path: Path, part: str, message: str) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    edit(model / part, lambda weights: drop(weights, "conv_norm_out.bias", "final_layer_norm.bias"))
    with pytest.raises(ModelError, match=message):
        loaded(model)


def test_a_folder_with_a_weight_too_many_is_refused(tiny_sd1: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    edit(model / "unet", lambda weights: {**weights, "motion.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"1 without a place in the model: motion.weight"):
        loaded(model)


def test_position_numbers_in_older_folders_are_no_obstacle(tiny_sd1: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    numbers = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    edit(model / "text_encoder", lambda weights: weights | numbers)
    assert loaded(model).identity == pristine(tiny_sd1).identity


def test_a_folder_with_other_shapes_than_its_config_is_refused(tiny_sd1: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    edit(model / "unet", lambda weights: {**weights, "conv_in.bias": torch.zeros(7)})
    with pytest.raises(ModelError, match="model/unet"):
        loaded(model)


def test_a_folder_without_weights_is_refused_and_names_its_variants(tiny_sd1: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd1, tmp_path / "model")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(ModelError, match=r"unet: can't be loaded \(it has the variant fp16: set base_model.variant\)"):
        loaded(model)
    shutil.rmtree(model / "tokenizer")
    weights.with_name("diffusion_pytorch_model.fp16.safetensors").rename(weights)
    with pytest.raises(ModelError, match=r"model/tokenizer: has no vocabulary \(vocab.json and merges.txt"):
        loaded(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: drop(weights, "out.2.bias"),
            r"\(UNet\): weights don't match the model \(1 missing: conv_out.bias",
        ),
        (
            lambda weights: {**weights, f"{UNET_PREFIX}motion.weight": torch.ones(1)},
            "1 without a place in the model: model.diffusion_model.motion.weight",
        ),
        (
            lambda weights: {**weights, f"{VAE_PREFIX}decoder.extra.weight": torch.ones(1)},
            r"\(VAE\): .*\(1 without a place in the model: decoder.extra.weight",
        ),
        (
            lambda weights: {**weights, f"{UNET_PREFIX}out.2.bias": torch.ones(9)},
            r"1 weights have another shape: conv_out.bias is \(9,\), not \(4,\)",
        ),
        (
            lambda weights: drop(weights, "final_layer_norm.bias"),
            r"\(text encoder\): .*1 missing: .*final_layer_norm.bias",
        ),
        (lambda weights: drop(weights, VAE_PREFIX), "holds no VAE; give one as base_model.vae"),
        (
            lambda weights: drop(weights, f"{VAE_PREFIX}encoder.down.0.block.0.conv1.weight"),
            r"\(VAE\): incomplete, .* is missing",
        ),
        (lambda weights: drop(weights, "position_embedding"), r"\(text encoder\): incomplete, .* is missing"),
    ],
)
def test_a_single_file_whose_weights_dont_fit_is_refused(
    tiny_files: dict[str, Path], tmp_path: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    save_file(change(load_file(tiny_files["sd1"])), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        loaded(tmp_path / "model.safetensors")


# ---- the VAE


def test_another_vae_comes_from_a_folder_or_a_file_in_either_layout(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    original = {
        name.removeprefix(VAE_PREFIX): tensor
        for name, tensor in load_file(tiny_files["sd2"]).items()
        if name.startswith(VAE_PREFIX)
    }
    save_file(original, tmp_path / "vae.safetensors")
    folder = tiny_files["sd2"].with_suffix("")
    wanted = weights_identity([pristine(folder).vae])
    diffusers = folder / "vae" / "diffusion_pytorch_model.safetensors"
    for vae in (folder / "vae", folder, tmp_path / "vae.safetensors", diffusers, tiny_files["sd2"]):
        assert weights_identity([load_vae(str(vae), "sd1", torch.float32)]) == wanted
    assert loaded(tiny_files["sd1"], vae=str(folder)).vae_identity == pristine(folder).vae_identity
    with pytest.raises(ModelError, match=r"holds no VAE of Stable Diffusion, which base_model.vae must be"):
        load_vae(str(folder / "unet" / "diffusion_pytorch_model.safetensors"), "sd1", torch.float32)


def test_a_file_without_vae_takes_the_one_given(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    save_file(drop(load_file(tiny_files["sd1"]), VAE_PREFIX), tmp_path / "model.safetensors")
    bundle = loaded(tmp_path / "model.safetensors", vae=str(tiny_files["sd1"]))
    assert bundle.vae_identity == pristine(tiny_files["sd1"]).vae_identity


def test_sdxls_vae_stays_in_fp32_when_the_rest_is_fp16(
    tiny_files: dict[str, Path], tiny_sdxl: Path, tmp_path: Path
) -> None:
    bundle = loaded(tiny_files["sdxl"], precision="fp16")
    assert (bundle.unet.dtype, bundle.vae.dtype) == (torch.float16, torch.float32)
    assert bundle.vae_identity == pristine(tiny_files["sdxl"]).vae_identity
    assert "SDXL's VAE overflows in fp16, so it is held in fp32" in bundle.notes
    fixed = shutil.copytree(tiny_sdxl / "vae", tmp_path / "vae")
    config = json.loads((fixed / "config.json").read_text())
    (fixed / "config.json").write_text(json.dumps(config | {"force_upcast": False}))
    assert loaded(tiny_files["sdxl"], precision="fp16", vae=str(fixed)).vae.dtype == torch.float16


def test_a_vae_that_overflows_runs_again_in_fp32_and_it_is_said(
    tiny_files: dict[str, Path], pixels: torch.Tensor
) -> None:
    plain, bundle = pristine(tiny_files["sd1"]), loaded(tiny_files["sd1"], precision="fp16")
    for model in (plain, bundle):
        model.vae.encoder.conv_in.weight.data *= 1000  # beyond 65,504 after the next layers' squares
        model.vae.encoder.conv_in.bias.data += 60_000
    mean_BCHW, _ = encode_moments(bundle, pixels)
    assert mean_BCHW.isfinite().all()
    assert bundle.vae.dtype == torch.float32
    assert bundle.notes[-1] == "the VAE overflowed in float16, so it runs in fp32 from now on"


def test_latents_are_drawn_by_the_generator_and_decode_to_pixels(
    tiny_files: dict[str, Path], pixels: torch.Tensor
) -> None:
    bundle = pristine(tiny_files["sd1"])
    first, again, other = (encode_images(bundle, pixels, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.shape == (2, 4, 8, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    mean_BCHW, std_BCHW = encode_moments(bundle, pixels)
    distribution = bundle.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean_BCHW, distribution.mean * bundle.vae.config.scaling_factor)
    torch.testing.assert_close(std_BCHW, distribution.std * bundle.vae.config.scaling_factor)
    expected = bundle.vae.decode(mean_BCHW / bundle.vae.config.scaling_factor).sample
    torch.testing.assert_close(decode_latents(bundle, mean_BCHW), expected)


def test_a_file_that_tells_nothing_of_a_unet_that_says_nothing_is_taken_as_usual_and_it_is_said(
    tiny_sd1: Path, tmp_path: Path
) -> None:
    file = save_single_file(tiny_sd1, tmp_path / "model.safetensors", metadata={})
    bundle = loaded(file)
    assert bundle.schedule.prediction == "epsilon"
    assert "gave no clear answer: taken as epsilon; base_model.prediction overrules that" in bundle.notes[-1]
    assert not any("clear answer" in note for note in loaded(file, prediction="flow").notes)


def test_the_latents_factors_can_be_given_and_name_other_cached_latents(tiny_sd1: Path) -> None:
    plain, other = loaded(tiny_sd1), loaded(tiny_sd1, vae_scale=0.5, vae_shift=0.1)
    pixels_BCHW = torch.zeros(1, 3, 32, 32)
    (mean, _), (changed, _) = (encode_moments(bundle, pixels_BCHW) for bundle in (plain, other))
    torch.testing.assert_close(changed, (mean / plain.vae.config.scaling_factor - 0.1) * 0.5)
    assert plain.vae_identity != other.vae_identity
