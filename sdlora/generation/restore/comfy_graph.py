"""The graph that ComfyUI writes into a picture (`prompt`, its API format), read back to one request.

A graph can do anything; this follows the way from the saved image back to its sampler, from there to texts, size,
seed, adapters and checkpoint. Kinds of nodes that have a part in it and are not known are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PureWindowsPath
from typing import Any

from sdlora.generation.restore.infotext_grammar import ParsedInfotext

Node = Mapping[str, Any]

_FURTHEST = 60
"""Links that are followed in a row; a graph with a circle ends here."""
_TEXTS = ("text", "text_g", "text_l", "string", "value", "prompt", "positive", "wildcard_text", "populated_text")
_NUMBERS = ("value", "seed", "int", "number", "float", "noise_seed")
_ON_THE_WAY = ("images", "image", "samples", "latent", "latent_image", "input")
_KNOWN = {
    "KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced", "CLIPTextEncode", "CLIPTextEncodeSDXL",
    "CheckpointLoaderSimple", "CheckpointLoader", "LoraLoader", "LoraLoaderModelOnly", "EmptyLatentImage", "VAEDecode",
    "VAEDecodeTiled", "VAEEncode", "VAELoader", "SaveImage", "PreviewImage", "LoadImage", "CLIPSetLastLayer",
    "RandomNoise", "KSamplerSelect", "BasicScheduler", "CFGGuider", "BasicGuider", "PrimitiveNode", "Note", "Reroute",
    "PrimitiveInt", "PrimitiveString", "PrimitiveStringMultiline", "UNETLoader", "CLIPLoader", "DualCLIPLoader",
    "ConditioningZeroOut", "Power Lora Loader (rgthree)", "Seed (rgthree)", "ShowText|pysssss",
}  # fmt: skip


def is_graph(content: object) -> bool:
    """Whether JSON is a ComfyUI graph in the API format."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(node, dict) and "class_type" in node for node in content.values())
    )


def from_graph(content: Mapping[str, Node]) -> ParsedInfotext:
    """The parts of a request by the names of A1111's texts. Raises ValueError without a sampler in the graph."""
    graph = _Graph(content)
    samplers = graph.samplers()
    if not samplers:
        raise ValueError("its ComfyUI graph has no sampler that is known here")
    # Found on the way back from the picture, so the last of them is the one that ran first.
    sampler = samplers[-1]
    warnings = []
    if len(samplers) > 1:
        warnings.append(f"its ComfyUI graph samples {len(samplers)} times; the first time is taken, the others are not")
    settings = graph.settings(sampler)
    tags, model = graph.model_of(sampler)
    if model:
        settings["Model"] = model
    strange = sorted({str(node["class_type"]) for node in content.values()} - _KNOWN)
    if strange:
        settings["ComfyUI nodes"] = ", ".join(strange)
    prompt, negative = (graph.text(sampler, name) for name in ("positive", "negative"))
    missing = [name for name, text in (("prompt", prompt), ("negative prompt", negative)) if text is None]
    if missing:
        warnings.append(f"the {' and the '.join(missing)} can't be found in its ComfyUI graph")
    return ParsedInfotext(" ".join([prompt or "", *tags]).strip(), negative or "", settings, tuple(warnings))


class _Graph:
    def __init__(self, content: Mapping[str, Node]) -> None:
        self.content = content

    def inputs(self, node: Node) -> Mapping[str, Any]:
        found = node.get("inputs")
        return found if isinstance(found, dict) else {}

    def linked(self, value: Any) -> Node | None:
        """The node behind a link, [id, output]."""
        is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int))
        return self.content.get(str(value[0])) if is_link else None

    def samplers(self) -> list[Node]:
        """Samplers on the way back from a saved image, the last one first; else all there are."""
        ends = [
            node for node in self.content.values() if "Save" in node["class_type"] or "Preview" in node["class_type"]
        ]
        for end in ends:
            found = [node for node in self._way(end, _ON_THE_WAY) if self._samples(node)]
            if found:
                return found
        return [node for node in self.content.values() if self._samples(node)][:1]

    def _samples(self, node: Node) -> bool:
        inputs = self.inputs(node)
        return ("positive" in inputs and ("seed" in inputs or "noise_seed" in inputs)) or "guider" in inputs

    def _way(self, node: Node | None, names: tuple[str, ...]) -> Iterator[Node]:
        for _ in range(_FURTHEST):
            if node is None:
                return
            yield node
            inputs = self.inputs(node)
            node = next((found for name in names if (found := self.linked(inputs.get(name)))), None)

    def settings(self, sampler: Node) -> dict[str, str]:
        """Steps, seed and the like, of the sampler itself or of the nodes that a custom one is made of."""
        parts = [
            sampler,
            *(self.linked(self.inputs(sampler).get(name)) for name in ("noise", "guider", "sampler", "sigmas")),
        ]
        inputs: dict[str, Any] = {}
        for part in parts:
            inputs |= {} if part is None else self.inputs(part)
        names = {"steps": "Steps", "cfg": "CFG scale", "sampler_name": "Sampler", "scheduler": "Schedule type"}
        settings = {theirs: str(inputs[name]) for name, theirs in names.items() if self._is_plain(inputs.get(name))}
        seed = self._number(inputs.get("seed", inputs.get("noise_seed")))
        if seed is not None:
            settings["Seed"] = str(seed)
        if settings.get("Schedule type") in ("normal", "simple"):
            settings["Schedule type"] = "Uniform"
        settings |= self._size(inputs)
        skip = self._clip_skip(sampler)
        # ComfyUI draws its noise on the processor, as sdlora does.
        return {**settings, **({"Clip skip": str(skip)} if skip else {}), "RNG": "CPU"}

    def _is_plain(self, value: Any) -> bool:
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)

    def _number(self, value: Any) -> int | None:
        node = self.linked(value)
        if node is not None:
            inputs = self.inputs(node)
            value = next((inputs[name] for name in _NUMBERS if name in inputs), None)
        return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def _size(self, inputs: Mapping[str, Any]) -> dict[str, str]:
        latent = self.linked(inputs.get("latent_image", inputs.get("latent")))
        found = {} if latent is None else self.inputs(latent)
        width, height = (self._number(found.get(name)) for name in ("width", "height"))
        size = {"Size": f"{width}x{height}"} if width and height else {}
        denoise = inputs.get("denoise")
        is_over_image = latent is not None and not size
        if is_over_image and isinstance(denoise, (int, float)):
            size["Denoising strength"] = str(denoise)
        return size

    def text(self, sampler: Node, name: str) -> str | None:
        """The text behind `positive` or `negative`; None where it can't be followed."""
        guider = self.linked(self.inputs(sampler).get("guider"))
        owner = sampler if guider is None else guider
        inputs = self.inputs(owner)
        node = self.linked(inputs.get(name, inputs.get("conditioning") if name == "positive" else None))
        if node is None and guider is not None and name == "negative":
            return ""
        for step in self._way(node, ("conditioning", "conditioning_1", name, "conditioning_to")):
            found = "" if step["class_type"] == "ConditioningZeroOut" else self._words(step)
            if found is not None:
                return found
        return None

    def _words(self, node: Node) -> str | None:
        for _ in range(_FURTHEST):
            inputs = self.inputs(node)
            plain = [inputs[name] for name in _TEXTS if isinstance(inputs.get(name), str)]
            if plain:
                return "\n".join(dict.fromkeys(text for text in plain if text.strip())) if plain else None
            following = next((found for name in _TEXTS if (found := self.linked(inputs.get(name)))), None)
            if following is None or not any(name in inputs for name in _TEXTS[:6]):
                return None
            node = following
        return None

    def _clip_skip(self, sampler: Node) -> int | None:
        node = self.linked(self.inputs(sampler).get("positive"))
        for step in self._way(node, ("clip", "conditioning")):
            layer = self.inputs(step).get("stop_at_clip_layer")
            if isinstance(layer, int) and layer < -1:
                return -layer
        return None

    def model_of(self, sampler: Node) -> tuple[list[str], str | None]:
        """The adapters as tags, in the order in which they are applied, and the checkpoint's name."""
        guider = self.linked(self.inputs(sampler).get("guider"))
        start = self.linked(self.inputs(sampler if guider is None else guider).get("model"))
        tags: list[str] = []
        # From the sampler back to the checkpoint: what was applied last is met first.
        for node in self._way(start, ("model",)):
            inputs = self.inputs(node)
            tags += reversed(list(_tags(inputs)))
            for name in ("ckpt_name", "unet_name"):
                if isinstance(inputs.get(name), str):
                    return tags[::-1], _stem(inputs[name])
        return tags[::-1], None


def _tags(inputs: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(inputs.get("lora_name"), str):
        yield _tag(inputs["lora_name"], inputs.get("strength_model", 1), inputs.get("strength_clip"))
    for value in inputs.values():  # rgthree's loader of many
        if isinstance(value, dict) and isinstance(value.get("lora"), str) and value.get("on", True):
            yield _tag(value["lora"], value.get("strength", 1), value.get("strengthTwo"))


def _tag(name: str, unet: Any, text_encoder: Any) -> str:
    both = unet if text_encoder in (None, unet) else None
    weights = f"{unet}" if both is not None else f"{text_encoder}:{unet}"
    return f"<lora:{_stem(name)}:{weights}>"


def _stem(name: str) -> str:
    return PureWindowsPath(name).stem
