"""Our adapter layers against those of lycoris-lora: the same bare loop, layers, pictures, noise and rate.

`python -m tests.benchmarks.lycoris_learning FOLDER` trains LoCon (LoRA with convolutions), DoRA, LoHa and LoKr of rank
16 on the embedded base model for a hundred steps with three seeds, once with our layers and once with LyCORIS', and
prints the norm of all updates after 12, 50 and 100 steps and the loss on held-out pictures. What a seed draws differs
between the two sides in the first values of the adapters alone. What FOLDER has already is not trained again.

Shapes: B batch, C channels, H and W latent height and width.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

from sdlora import atomic
from sdlora.adapters.live.attach import attach
from sdlora.config.adapter import AdapterConfig
from sdlora.config.base_model import BaseModelConfig
from sdlora.models.loading import load
from tests.benchmarks import learning_sets
from tests.benchmarks.held_out_loss import HeldOutLoss, Picture, picture_loss
from tests.benchmarks.learning import BASE, SIZE_PX

Side = Literal["ours", "lycoris"]
KINDS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "LoCon": ({}, LoConModule, {}),
    "DoRA": ({"dora": True}, LoConModule, {"weight_decompose": True}),
    "LoHa": ({"algorithm": "loha"}, LohaModule, {}),
    "LoKr": ({"algorithm": "lokr"}, LokrModule, {}),
}
"""Each with our settings, and LyCORIS' class and arguments."""
RANK, RATE, BATCH = 16, 1e-3, 2
MEASURED = (12, 50, 100)
SET = "ink"

Parameters = list[nn.Parameter]
UpdateNorm = Callable[[], float]


def with_ours(seed: int, settings: dict[str, Any]) -> tuple[nn.Module, Parameters, UpdateNorm]:
    """The base's UNet with our layers, what they train, and the norm of their updates."""
    bundle = load(BaseModelConfig(model="builtin:emoji", precision="fp32"))
    adapter = attach(bundle, AdapterConfig(rank=RANK, alpha=RANK, layers="all+conv", **settings), seed=seed)

    def norm() -> float:
        squares = 0.0
        for (part, path), weights in adapter.module_weights().items():
            (base,) = (layer.get_base_layer() for p, q, layer in adapter.modules() if (p, q) == (part, path))
            changed = base.weight + adapter.delta_weight(part, path).reshape(base.weight.shape)
            if weights.dora_scale is not None:
                lengths = changed.flatten(1).norm(dim=1).reshape(-1, *[1] * (changed.ndim - 1))
                changed = changed * weights.dora_scale.reshape(lengths.shape) / lengths
            squares += float((changed - base.weight).square().sum())
        return math.sqrt(squares)

    adapter.train(True)
    return bundle.unet, adapter.parameters, norm


def with_lycoris(seed: int, kind: Any, arguments: dict[str, Any]) -> tuple[nn.Module, Parameters, UpdateNorm]:
    """The same with LyCORIS' modules on the layers that ours would be on."""
    bundle = load(BaseModelConfig(model="builtin:emoji", precision="fp32"))
    throwaway = load(BaseModelConfig(model="builtin:emoji", precision="fp32"))
    paths = [target.path for target in attach(throwaway, AdapterConfig(rank=RANK, layers="all+conv")).targets]
    unet = bundle.unet
    unet.requires_grad_(False)
    torch.manual_seed(seed)
    modules = []
    for path in paths:
        module = kind(path.replace(".", "_"), unet.get_submodule(path), 1.0, lora_dim=RANK, alpha=RANK, **arguments)
        module.apply_to()
        module.train()
        modules.append(module)
    parameters = [one for module in modules for one in module.parameters() if one.requires_grad]

    def norm() -> float:
        squares = 0.0
        for module in modules:
            base = module.org_module[0].weight
            changed, _ = module.get_merged_weight(1.0, base.shape)
            squares += float((changed - base).square().sum())
        return math.sqrt(squares)

    return unet, parameters, norm


def train(side: Side, kind: str, seed: int, pictures: list[Picture], held_out: list[Picture]) -> dict[str, Any]:
    """A hundred steps of the bare loop; returns norms and held-out losses by step, and the training losses."""
    ours, module, arguments = KINDS[kind]
    unet, parameters, norm = with_ours(seed, ours) if side == "ours" else with_lycoris(seed, module, arguments)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    schedule = DDPMScheduler.from_pretrained(BASE, subfolder="scheduler")
    found: dict[str, Any] = {"side": side, "kind": kind, "seed": seed, "points": [], "losses": []}
    for step, (latents_BCHW, states, noise_BCHW, timesteps_B) in enumerate(_batches(pictures, seed), start=1):
        noisy_BCHW = schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        predicted_BCHW = unet(noisy_BCHW, timesteps_B, encoder_hidden_states=states).sample
        loss = nn.functional.mse_loss(predicted_BCHW, noise_BCHW)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found["losses"].append(loss.item())
        if step in MEASURED:
            with torch.no_grad():
                losses = [picture_loss(unet, schedule, index, picture) for index, picture in enumerate(held_out)]
                point = {"step": step, "norm": norm(), "loss": math.fsum(losses) / len(losses)}
            found["points"].append(point)
        if step == MEASURED[-1]:
            break
    return found


def _batches(pictures: list[Picture], seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Pictures, states, noise and timesteps, the same for both sides."""
    draws = torch.Generator().manual_seed(seed)
    while True:
        chosen = [pictures[index] for index in torch.randperm(len(pictures), generator=draws)[:BATCH]]
        latents_BCHW = torch.cat([picture.latents_BCHW for picture in chosen])
        states = torch.cat([picture.states_BTD for picture in chosen])
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=draws)
        yield latents_BCHW, states, noise_BCHW, torch.randint(0, 1000, (BATCH,), generator=draws)


def report(root: Path) -> None:
    """Print the mean and spread over the seeds that are there."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / "lycoris").glob("*.json"))]
    print("| adapter | layers | " + " | ".join(f"norm at {step}" for step in MEASURED) + " | held-out loss at "
          + " | ".join(str(step) for step in MEASURED) + " |")  # fmt: skip
    print("|" + " --- |" * (2 + 2 * len(MEASURED)))
    for kind, side in product(KINDS, ("ours", "lycoris")):
        rows = [one["points"] for one in results if (one["kind"], one["side"]) == (kind, side)]
        if rows:
            cells = [_cell([row[at]["norm"] for row in rows], 3) for at in range(len(MEASURED))]
            cells += [_cell([row[at]["loss"] for row in rows], 4) for at in range(len(MEASURED))]
            seeds = "1 seed" if len(rows) == 1 else f"{len(rows)} seeds"
            print(f"| {kind} | {side} ({seeds}) | " + " | ".join(cells) + " |")


def _cell(values: list[float], digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def main() -> None:
    """Train what is missing, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = given.folder.resolve()
    (root / "lycoris").mkdir(parents=True, exist_ok=True)
    folders = learning_sets.prepare(SET, root / "sets")
    trained, held_out = (HeldOutLoss(BASE, folder, SIZE_PX).pictures for folder in folders)
    for seed, kind, side in product(range(given.seeds), given.kinds.split(","), ("ours", "lycoris")):
        target = root / "lycoris" / f"{kind}_{side}_{seed}.json"
        if not target.exists():
            atomic.write_text(target, json.dumps(train(side, kind, seed, trained, held_out)))  # type: ignore[arg-type]
    report(root)


if __name__ == "__main__":
    main()
