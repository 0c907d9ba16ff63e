"""Reads adapter files, whoever wrote them: names made uniform, every scale as its writer meant it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from sdlora.adapters.files import formulas
from sdlora.adapters.files.container import content_hash, load_tensors
from sdlora.adapters.files.embeddings import bundled, embeddings_in, is_bundled
from sdlora.adapters.files.foreign import UNKNOWN_LAYER, no_adapter, shared_encoders
from sdlora.adapters.files.hub_files import PEFT_CONFIG, local_file
from sdlora.adapters.files.key_names import BESIDE, FACTORS, FileAlgorithm, LayerKeys, algorithm_of, by_layer
from sdlora.adapters.files.layer_table import kinds
from sdlora.adapters.files.peft_settings import PeftSettings, peft_settings, refuse_unread_peft
from sdlora.adapters.files.resolution import FAMILY_TITLES, Resolution, resolve
from sdlora.adapters.files.weights import AdapterFile, ModuleWeights, VectorUpdate
from sdlora.config.base_model import FamilyName
from sdlora.config.calls import ReadAdapter
from sdlora.config.files import validate
from sdlora.errors import AdapterError

_NEEDED: dict[FileAlgorithm, tuple[tuple[str, ...], ...]] = {
    "lora": (("lora_down", "lora_up"),),
    "loha": (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),
    "lokr": tuple(
        (*first, *second)
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    "full": (("diff",),),
    "glora": (("a1", "a2", "b1", "b2"),),
    "ia3": (("ia3",), ("ia3_l",)),
    "oft": (("oft_blocks",), ("oft_R",)),
}
_MARKS = {"on_input", "scaled_oft"}
"""Factors that say yes or no, in whatever number type."""
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
"""The end of the name of one file of several, as transformers and PEFT write large models."""
_LAST_FACTORS = {"lora_up", "hada_w1_a", "lokr_w1", "lokr_w1_a", "a1", "b1"}
"""The factors without which an update is nothing, one of each product that is added."""
_RANK_STABILISED = re.compile(r'"rs_lora"\s*:\s*"?(?:true|1)\b', re.IGNORECASE)
_DECOMPOSED = re.compile(r'"dora_wd"\s*:\s*"?(?:true|1)\b', re.IGNORECASE)
_PARTS = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}


def read_all(paths: Sequence[Path | str], family: FamilyName | None = None) -> list[AdapterFile]:
    """Several adapter files, see `read`; the problems of all that can't be used are told at once."""
    files: list[AdapterFile] = []
    problems: list[AdapterError] = []
    for path in paths:
        try:
            files.append(read(path, family))
        except AdapterError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise AdapterError("\n".join(dict.fromkeys(map(str, problems))))
    return files


def read(path: Path | str, family: FamilyName | None = None) -> AdapterFile:
    """All that an adapter file holds, with names made uniform. Every tensor is used, or named in `left_out`.

    path: a file, a folder as PEFT saves it, or hf://owner/name[/file] on the hub. family: overrules what it tells.

    Raises AdapterError, listing what is wrong: damaged, no adapter in it or one for another model, factors missing or
    of shapes that don't fit each other, a DoRA magnitude that isn't understood, non-finite values; ConfigError for what
    is no path or no family.
    """
    asked = validate({"file": path, "family": family}, "read_adapter", ReadAdapter)
    path, family = local_file(asked.file), asked.family
    try:
        tensors, metadata = load_tensors(path)
    except AdapterError:
        _refuse_embedding(path)
        raise
    refuse_unread_peft(path)
    keys = by_layer(tensors)
    if what := keys.other_algorithm:
        raise AdapterError(f"{path.name} is of an algorithm that is not read: {what}")
    if what := keys.packed:
        raise AdapterError(f"{path.name} {what}")
    if key := keys.strange_scale:
        raise AdapterError(
            f"{path.name} scales a layer by {key}, which is not understood; kohya's name for it is .alpha"
        )
    grouped = {name: {factor: tensors[key] for factor, key in given.items()} for name, given in keys.layers.items()}
    found = resolve(grouped, metadata, keys.layout, family)
    embeddings, unused_bundles = bundled(tensors)
    left_out = {key: reason for key, reason in keys.unused.items() if not is_bundled(key)} | unused_bundles
    of_family = "Stable Diffusion" if found.family is None else FAMILY_TITLES[found.family]
    for name in found.strange:
        left_out |= dict.fromkeys(keys.layers[name].values(), f"no layer of {of_family} is called so")
    if not found.names:
        if what := no_adapter(tensors):
            raise AdapterError(f"{path.name} {what}")
        _refuse_embedding(path)
        raise AdapterError(f"{path.name} {_no_adapter(tensors, keys, found, of_family)}")
    if what := shared_encoders(found.names, left_out):
        raise AdapterError(f"{path.name} {what}")
    settings = peft_settings(path, metadata, keys.layout)
    for name in [name for name, own in found.names.items() if _misplaced(grouped[name], own, found.family)]:
        found.names.pop(name)
        left_out |= dict.fromkeys(keys.layers[name].values(), "its shape fits no layer of that kind")
    if not found.names:
        shown = ", ".join(f"{key} {list(tensors[key].shape)}" for key in left_out if key in tensors)
        raise AdapterError(f"{path.name} holds nothing that fits a layer of {of_family}: {shown[:300]}")
    modules, vectors, problems = _layers(grouped, keys, found, settings)
    # Of a LoKr in full, fp16 holds the huge alpha, which has no effect, as infinite.
    full = {name for name, own in found.names.items() if own in modules and modules[own].is_full_lokr}
    idle = {keys.layers[name].get("alpha") for name in full}
    problems = [*_nonfinite({key: tensor for key, tensor in tensors.items() if key not in idle}), *problems]
    if problems:
        listed = "\n  ".join(problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else []))
        raise AdapterError(f"{path.name} can't be used:\n  {listed}")
    # Not the hash in the metadata: tools that change tensors often leave the old one there.
    model_hash = content_hash(path)
    notes = [*found.notes, *_scale_notes(modules, keys.layout, settings), *_rank_stabilised_notes(modules, metadata)]
    notes += [*_rank_notes(modules, keys, found, settings), *_magnitude_notes(modules, metadata, settings)]
    if part := _PART.search(path.stem):
        notes.append(
            f"it is part {int(part[1])} of {int(part[2])} of an adapter: the layers in the other parts are missing"
        )
    if metadata.get("sshs_model_hash", model_hash) != model_hash:
        notes.append("its tensors are not those that its own hash was taken of: changed by another tool, or damaged")
    return AdapterFile(
        path,
        keys.layout,
        found.family,
        {name: _without_zero(weights, keys.layout) for name, weights in modules.items()},
        metadata,
        model_hash,
        left_out,
        tuple(notes),
        vectors,
        found.is_guess,
        embeddings,
    )


def _refuse_embedding(path: Path) -> None:
    """Raise AdapterError where the file is an embedding, which is not damaged, and no adapter."""
    if found := embeddings_in(path):
        told = [one.token for one in found if one.token is not None]
        by = ", ".join(told) if len(found) > 1 and told else "its name"
        words = f"is an embedding (textual inversion) and has no layers: generate with it by {by} in the prompt"
        raise AdapterError(f"{path.name} {words}")


def _misplaced(given: Mapping[str, Tensor], own: str, family: FamilyName | None) -> bool:
    """Whether a full update has the axes of another kind of layer, or a product stands where a norm is."""
    weight = given.get("diff", given.get("w_norm"))
    axes = {"norm": 1, "linear": 2, "convolution": 4}
    possible = {axes[kind] for kind in kinds(own, family)}
    if weight is None:
        return possible == {1} and algorithm_of(given) is not None
    return weight.ndim not in possible


def _no_adapter(tensors: Mapping[str, Tensor], keys: LayerKeys, found: Resolution, of_family: str) -> str:
    """What a file is in which no layer of Stable Diffusion was found."""
    if found.strange:
        return f"holds {len(found.strange)} layers, but {of_family} has none of them; the first is {found.strange[0]}"
    if factors := [key for key, reason in keys.unused.items() if reason == UNKNOWN_LAYER]:
        return (
            f"holds {len(factors)} factors of layers whose names are of no Stable Diffusion model, such as {factors[0]}"
        )
    first = next(iter(tensors), "nothing at all")
    return f"holds no LoRA, LoHa or LoKr layers, nor any of another kind that is understood (it holds {first}, ...)"


def _nonfinite(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    for key, tensor in tensors.items():
        # Through float32, as isfinite knows no 8-bit floats.
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            yield f"{key} has a value that is not finite"


def _layers(
    grouped: Mapping[str, Mapping[str, Tensor]], keys: LayerKeys, found: Resolution, settings: PeftSettings
) -> tuple[dict[str, ModuleWeights], dict[str, VectorUpdate], list[str]]:
    """Updates of weights and of vectors by own name, and what is wrong with any of them."""
    modules: dict[str, ModuleWeights] = {}
    vectors: dict[str, VectorUpdate] = {}
    problems: list[str] = []
    for name, own in found.names.items():
        given = grouped[name]
        if own in modules or own in vectors:
            # Two spellings of one layer: adding both would double it, and to choose one would be a guess.
            problems.append(f"{name} and another key both mean {own}")
            continue
        try:
            weights = _module_weights(given)
            if weights is not None:
                # lora_unet_..., lora_te1_...: the second word names the part.
                weights = settings.scaled(_PARTS[name.split("_")[1]], keys.paths[name], weights)
                modules[own] = weights
            vector = _vector(given, 1.0 if weights is None else weights.scale)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        shape = None if weights is None else weights.delta_shape
        if vector.bias is not None and shape is not None and len(vector.bias) != shape[0]:
            problems.append(f"{name}: a bias of {len(vector.bias)} values for {shape[0]} outputs")
        elif vector.tensors:
            vectors[own] = vector
    return modules, vectors, problems


def _module_weights(given: Mapping[str, Tensor]) -> ModuleWeights | None:
    """One layer's weights, None for biases and norms alone. Raises ValueError saying what is wrong."""
    factors = {name: tensor for name, tensor in given.items() if name not in BESIDE}
    algorithm = algorithm_of(factors)
    magnitude = given.get("dora_scale", given.get("magnitude"))
    if algorithm is None or (algorithm == "full" and given["diff"].ndim == 1):
        if magnitude is not None:
            raise ValueError("a DoRA magnitude without factors")
        return None
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in factors.items())
    if not set(factors) <= set(FACTORS[algorithm]) or not any(set(one) <= set(factors) for one in _NEEDED[algorithm]):
        raise ValueError(f"these factors make no {algorithm} layer: {shapes}")
    if not all(tensor.is_floating_point() for name, tensor in factors.items() if name not in _MARKS):
        raise ValueError(f"holds whole numbers where factors should be: {shapes}")
    for name in ("alpha", "scalar"):
        if name in given and given[name].numel() != 1:
            raise ValueError(f"{name} has {given[name].numel()} values, not one")
    alpha = given.get("alpha")
    weights = ModuleWeights(algorithm, factors, None if alpha is None else float(alpha.float()))
    if weights.is_full_lokr and not isfinite(weights.alpha or 0):
        weights = replace(weights, alpha=None)
    if not _consistent(weights):
        raise ValueError(f"the shapes don't fit each other: {shapes}")
    if "scalar" in given:
        weights = _times_scalar(weights, float(given["scalar"].float()))
    if magnitude is None:
        return weights
    return replace(weights, dora_scale=_magnitude(magnitude, weights, by_output="magnitude" in given))


def _times_scalar(weights: ModuleWeights, scalar: float) -> ModuleWeights:
    """With the number that early LyCORIS trained beside the factors (use_scalar); today's multiplies it in itself."""
    if weights.is_full_lokr:
        first = weights.factors["lokr_w1"].float() * scalar
        return replace(weights, factors={**weights.factors, "lokr_w1": first})
    if not weights.has_scale:
        raise ValueError(f"a scalar with {weights.algorithm}, which is not understood")
    if scalar == 0:
        # It begins at 0, so it is that of a layer that was never trained; as an alpha it would mean the rank.
        none = {name: torch.zeros_like(tensor) for name, tensor in weights.factors.items() if name in _LAST_FACTORS}
        return replace(weights, factors={**weights.factors, **none})
    # An alpha of 0 means the rank in files that have a scalar.
    return replace(weights, alpha=(weights.alpha or float(weights.rank)) * scalar)


def _consistent(weights: ModuleWeights) -> bool:
    """Whether the factors fit each other."""
    try:
        if weights.algorithm == "glora":
            factors = weights.factors
            inner = [factors["a1"].shape[1] == factors["a2"].shape[0], factors["b1"].shape[1] == factors["b2"].shape[0]]
            if not all(inner) or factors["a1"].shape[0] != factors["a2"].shape[1]:
                return False
        if weights.algorithm == "oft":
            return formulas.oft_is_whole(weights.factors)
        shape = weights.delta_shape
        return shape is None or (shape.numel() > 0 and weights.rank > 0 and len(shape) in (2, 4))
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False


def _magnitude(magnitude: Tensor, weights: ModuleWeights, by_output: bool) -> Tensor:
    """DoRA's magnitude as kohya's files have it, [out,1(,1,1)] or [1,in(,1,1)].

    by_output: it is one of PEFT's or ai-toolkit's, [out] or [1,out,1,1].

    Raises ValueError when it is neither: applied without, it would be another adapter.
    """
    shape = weights.delta_shape
    if shape is None:
        raise ValueError(f"a DoRA magnitude with {weights.algorithm}, which is not understood")
    if not magnitude.is_floating_point():
        raise ValueError(f"its DoRA magnitude is in whole numbers ({str(magnitude.dtype).removeprefix('torch.')})")
    outputs, inputs = shape[0], shape[1]
    ones = [1] * (len(shape) - 2)
    given = list(magnitude.shape)
    of_outputs = given in ([outputs], [outputs, 1], [outputs, 1, 1, 1])
    if of_outputs or (by_output and given in ([1, outputs, 1, 1], [1, outputs])):
        return magnitude.reshape(outputs, 1, *ones)
    # LoHa's and LoKr's updates of convolutions don't tell how many of their columns are kernel elements
    of_inputs = magnitude.ndim > 1 and given[0] == 1 and shape[1:].numel() % magnitude.numel() == 0
    if of_inputs and not by_output and (len(shape) == 2 or magnitude.numel() == inputs):
        return magnitude
    raise ValueError(f"its DoRA magnitude {given} is neither for the {outputs} outputs nor for the {inputs} inputs")


def _vector(given: Mapping[str, Tensor], scale: float) -> VectorUpdate:
    """What a layer's tensors do to its bias, and to its weight if it is a norm. Raises ValueError for other shapes."""
    weight = given.get("w_norm", given["diff"] if "diff" in given and given["diff"].ndim == 1 else None)
    bias = given.get("diff_b", given.get("b_norm"))
    if "lora_bias" in given:
        # the bias of the second factor is scaled with its output
        scaled = given["lora_bias"] if scale == 1 else given["lora_bias"].float() * scale
        bias = scaled if bias is None else bias + scaled
    for tensor in (weight, bias):
        if tensor is not None and (tensor.ndim != 1 or not tensor.is_floating_point()):
            raise ValueError(f"a bias or norm of shape {list(tensor.shape)} in {tensor.dtype}, not a vector of floats")
    return VectorUpdate(weight, bias)


def _without_zero(weights: ModuleWeights, layout: str) -> ModuleWeights:
    """An alpha of 0 means the rank to kohya's tools and LyCORIS, which write it so."""
    is_rank = weights.alpha == 0 and weights.has_scale and "kohya" in layout
    return replace(weights, alpha=float(weights.rank)) if is_rank else weights


def _rank_stabilised_notes(modules: Mapping[str, ModuleWeights], metadata: Mapping[str, str]) -> list[str]:
    """LyCORIS puts the root of its rs_lora into the alpha that it writes, but for GLoRA and LoKr of whole matrices."""
    if not _RANK_STABILISED.search(metadata.get("ss_network_args", "")):
        return []
    weaker = sum(weights.algorithm == "glora" or weights.is_full_lokr for weights in modules.values())
    if not weaker:
        return []
    return [
        f"{weaker} of {len(modules)} layers were trained with rs_lora, which such files don't hold: here, as in other"
        " tools, they are weaker by the square root of their rank than they were trained"
    ]


def _rank_notes(
    modules: Mapping[str, ModuleWeights], keys: LayerKeys, found: Resolution, settings: PeftSettings
) -> list[str]:
    """Where the settings tell another rank than the factors have: PEFT's scale is alpha by the first, ours by these."""
    others: dict[int, int] = {}
    for name, own in found.names.items():
        weights = modules.get(own)
        if weights is not None and weights.algorithm == "lora":
            told = settings.rank(_PARTS[name.split("_")[1]], keys.paths[name])
            if told is not None and told != weights.rank and "alpha" not in keys.layers[name]:
                others[told] = others.get(told, 0) + 1
    return [
        f"{settings.source} says rank {told}, but {number} of {len(modules)} layers have another: their scale is alpha"
        " by their own rank"
        for told, number in others.items()
    ]


def _magnitude_notes(
    modules: Mapping[str, ModuleWeights], metadata: Mapping[str, str], settings: PeftSettings
) -> list[str]:
    """Where a DoRA was trained, as its settings say, but no magnitude is there."""
    is_told = settings.use_dora or _DECOMPOSED.search(metadata.get("ss_network_args", "")) is not None
    if not is_told or not modules or any(weights.dora_scale is not None for weights in modules.values()):
        return []
    return [
        "its settings say DoRA, but no layer has a magnitude: taken without, which is another adapter if they were lost"
    ]


def _scale_notes(modules: Mapping[str, ModuleWeights], layout: str, settings: PeftSettings) -> list[str]:
    """What was taken for the scale of layers whose file doesn't tell it plainly."""
    scaled = [weights for weights in modules.values() if weights.has_scale]
    notes = []
    without = sum(weights.alpha is None for weights in scaled)
    if without:
        beside = f", and there is no {PEFT_CONFIG} beside it" if "peft" in layout and not settings.source else ""
        notes.append(f"{without} of {len(modules)} layers have no alpha{beside}: their scale is taken as 1")
    zero = sum(weights.alpha == 0 for weights in scaled)
    if zero and "kohya" in layout:
        notes.append(f"{zero} of {len(modules)} layers have alpha 0, which kohya's tools take for the rank: scale 1")
    elif zero:
        notes.append(f"{zero} of {len(modules)} layers have alpha 0: they have no effect")
    if any("oft_R" in weights.factors for weights in modules.values()) and not settings.source:
        notes.append("its OFT doesn't tell its series: 5 Cayley-Neumann terms are taken, as OneTrainer has them")
    return notes
