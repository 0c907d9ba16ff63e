"""The recipe of `builtin:emoji`, and the folder it made."""

import copy

import pytest
import torch

from sdlora.models.builtin import BUILTIN_MODELS
from tests.recipe.data import caption, read_names
from tests.recipe.files import load_checkpoint, save_checkpoint
from tests.recipe.latents import change_units
from tests.recipe.optimizer import MasterWeights, orthogonalise, unflatten
from tests.recipe.unet import diffusion_loss
from tests.recipe.vae import block_error, build_vae, moments, psnr

FOLDER = BUILTIN_MODELS["builtin:emoji"]
needs_weights = pytest.mark.skipif(not (FOLDER / "unet").exists(), reason="the weights are not in this checkout")


def test_names_are_unique_and_sixty_are_the_benchmark():
    names = read_names()
    assert len({name.icon for name in names}) == len(names)
    assert sum(name.tier == "benchmark" for name in names) == 60
    first_captions = [name.captions[0] for name in names]
    assert len(set(first_captions)) == len(first_captions)


def test_caption_names_the_style():
    assert caption("a cat face", "noto") == "a cat face, noto style emoji"


def test_change_of_units_keeps_pictures_and_normalises_latents():
    torch.manual_seed(0)
    vae = build_vae()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        mean, log_variance = moments(vae, images)
        picture = vae.decoder(vae.post_quant_conv(mean))
        shift, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
        change_units(vae, shift, scale)
        new_mean, new_log_variance = moments(vae, images)
        new_picture = vae.decoder(vae.post_quant_conv(new_mean))
    torch.testing.assert_close(new_mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(new_mean.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(new_log_variance, log_variance - 2 * scale.log()[None, :, None, None], atol=1e-4, rtol=0)
    torch.testing.assert_close(new_picture, picture, atol=1e-4, rtol=0)


def test_psnr_of_a_known_error():
    images = torch.zeros(1, 3, 8, 8)
    shifted = images + 10 / 127.5
    assert psnr(images, shifted).item() == pytest.approx(
        10 * torch.log10(torch.tensor(255.0**2 / 100)).item(), abs=1e-3
    )


def test_block_error_sees_green():
    green = torch.zeros(1, 3, 2, 2)
    green[:, 1] = 0.1
    assert block_error(green) > 2 * block_error(torch.full((1, 3, 2, 2), 0.1 / 3))


def test_perfect_prediction_has_no_loss():
    noise = torch.randn(2, 4, 4, 4)

    class Perfect:
        def __call__(self, noisy, timesteps, text):
            return type("Output", (), {"sample": noise})

    alphas = torch.linspace(0.99, 0.01, 1000)
    loss = diffusion_loss(
        Perfect(), torch.randn(2, 4, 4, 4), torch.zeros(2, 1, 1), noise, torch.tensor([5, 900]), alphas
    )
    assert loss.item() == 0.0


def test_orthogonalised_matrix_has_singular_values_near_one():
    values = torch.linalg.svdvals(orthogonalise(torch.randn(32, 128)).float())
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_master_weights_learn_and_flatten_back():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 4))
    inputs, targets = torch.randn(64, 32), torch.randn(64, 4)
    copied = copy.deepcopy(model)
    model.bfloat16()
    weights = MasterWeights([model])
    losses = []
    for _ in range(60):
        loss = (model(inputs.bfloat16()).float() - targets).square().mean()
        loss.backward()
        weights.step(1e-2, num_workers=1)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    unflatten(weights.master, [copied])
    for bf16, fp32 in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(bf16.float(), fp32.detach(), atol=1e-2, rtol=1e-2)


def test_checkpoint_is_whole_or_absent(tmp_path):
    assert load_checkpoint(tmp_path / "state.pt") is None
    save_checkpoint(tmp_path / "state.pt", {"step": 3})
    assert load_checkpoint(tmp_path / "state.pt") == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


@needs_weights
def test_shipped_folder_is_small_and_in_fp16():
    from safetensors import safe_open

    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 40 * 2**20
    for part in ("unet", "vae", "text_encoder"):
        (path,) = (FOLDER / part).glob("*.safetensors")
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


@needs_weights
def test_shipped_tokenizer_takes_any_text():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    ids = tokenizer("a cat face, 你好 🤖 Señor qzx42").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert "你好" in tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer.model_max_length == 77
