"""What an adapter file is and says about itself, as plain values for people and programs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdlora.adapters.algebra.blocks import block_label, in_order
from sdlora.adapters.algebra.derived import PROVENANCE
from sdlora.adapters.files.metadata import LINEAGE
from sdlora.adapters.files.reading import read
from sdlora.adapters.files.weights import AdapterFile
from sdlora.constants import MIB
from sdlora.models.identity import sha256_of

_SETTINGS = {
    "ss_sd_model_name": "base model",
    "ss_steps": "steps",
    "ss_num_epochs": "epochs",
    "ss_num_train_images": "images",
    "ss_total_batch_size": "batch size",
    "ss_resolution": "resolution",
    "ss_learning_rate": "learning rate",
    "ss_unet_lr": "UNet learning rate",
    "ss_text_encoder_lr": "text encoder learning rate",
    "ss_optimizer": "optimizer",
    "ss_lr_scheduler": "schedule",
    "ss_mixed_precision": "mixed precision",
    "ss_noise_offset": "noise offset",
    "ss_min_snr_gamma": "min-SNR gamma",
    "ss_loss_type": "loss",
    "ss_clip_skip": "clip skip",
    "ss_seed": "seed",
    "ss_training_comment": "comment",
}
_LISTED_TAGS = 24
_LONGEST = 500


@dataclass(frozen=True)
class Unused:
    """Tensors of a file that are not used, for one reason."""

    reason: str
    count: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A file's description. Everything is plain: `as_dict` can become JSON."""

    name: str
    size_bytes: int
    family: str | None
    format: str
    algorithms: tuple[str, ...]
    dtypes: tuple[str, ...]
    num_modules: int
    num_parameters: int
    modules_by_block: dict[str, int]
    ranks: dict[int, int]
    """Rank to number of modules, most common first."""
    alphas: dict[str, int]
    """The same for alphas; "none" where the file has none."""
    dora: bool
    trigger: str
    settings: dict[str, str]
    tags: dict[str, int]
    """Most frequent training tags with their counts."""
    model_hash: str
    """sha256 of the tensors' bytes."""
    file_hash: str
    """sha256 of the whole file."""
    made_of: Any
    """Provenance of a mixed, merged, resized or converted file."""
    lineage: Any
    """Changes of settings while it was trained: [{step, changes: {setting: [before, after]}}]."""
    unused: tuple[str, ...]
    """Tensors that no command uses."""
    unused_because: tuple[Unused, ...]
    """The same by reason."""
    vectors: int
    """Layers whose bias or norm is changed."""
    notes: tuple[str, ...]
    embeddings: tuple[str, ...] = ()
    """Names of the embeddings that are bundled with it."""

    @property
    def short_hash(self) -> str:
        """The hash of A1111's infotext and of model sites (AutoV3)."""
        return self.model_hash[:12]

    @property
    def auto_v2(self) -> str:
        """The hash by which model sites find the whole file (AutoV2)."""
        return self.file_hash[:10]

    def as_dict(self) -> dict[str, Any]:
        """All that `--json` prints: every field, `short_hash` and `auto_v2`."""
        return {**asdict(self), "short_hash": self.short_hash, "auto_v2": self.auto_v2}

    def as_text(self) -> str:
        """The same for reading, a fact a line."""
        kind = " and ".join(self.algorithms) + (" with DoRA" if self.dora else "")
        if self.vectors:
            kind = " and ".join(filter(None, [kind, "biases or norms"]))
        lines = [
            f"{self.name}: {kind} for {self.family or 'an unknown family'}, {self.format} layout",
            f"size            {self.size_bytes / MIB:.1f} MiB, {self.num_parameters:,} numbers, "
            + _joined(self.dtypes),
            f"layers          {self.num_modules}: {_counted(self.modules_by_block, len(self.modules_by_block))}",
            f"rank            {_counted(self.ranks)}",
            f"alpha           {_counted(self.alphas)}",
            f"hash            {self.short_hash} ({self.model_hash})",
            f"file hash       {self.auto_v2} ({self.file_hash})",
        ]
        if self.embeddings:
            lines.append(f"embeddings      {', '.join(self.embeddings)}")
        if self.trigger:
            lines.append(f"trigger words   {self.trigger}")
        lines += [f"{name:<15} {_shortened(value)}" for name, value in self.settings.items()]
        if self.tags:
            lines.append(f"tags            {_counted(self.tags)}")
        if self.made_of is not None:
            lines.append(f"made by         {json.dumps(self.made_of, ensure_ascii=False)}")
        lines += [f"changed         {sentence}" for sentence in _lineage(self.lineage)]
        lines += [
            f"not understood  {one.count} tensors: {_joined(one.tensors)} ({one.reason})" for one in self.unused_because
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def inspect(file: AdapterFile | Path | str) -> Inspection:
    """Describe an adapter file, read already or by its path. Raises AdapterError when it can't be read."""
    file = file if isinstance(file, AdapterFile) else read(file)
    modules = file.modules.values()
    tensors = [tensor for weights in modules for tensor in weights.factors.values()]
    tensors += [weights.dora_scale for weights in modules if weights.dora_scale is not None]
    tensors += [tensor for vector in file.vectors.values() for tensor in vector.tensors]
    blocks = Counter(block_label(name) for name in file.layer_names)
    stated = {words: file.metadata[key] for key, words in _SETTINGS.items() if key in file.metadata}
    counts: Counter[str] = Counter()
    folders = _parsed(file.metadata.get("ss_tag_frequency"))
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counts.update({tag.strip(): count for tag, count in tags.items() if isinstance(count, int)})
    return Inspection(
        name=file.path.name,
        size_bytes=file.path.stat().st_size,
        family=file.family,
        format=file.format,
        algorithms=file.algorithms,
        dtypes=tuple(dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)),
        num_modules=len(file.layer_names),
        num_parameters=sum(tensor.numel() for tensor in tensors),
        modules_by_block={block: blocks[block] for block in in_order(blocks, file.family)},
        ranks=dict(Counter(weights.rank for weights in modules).most_common()),
        alphas=dict(Counter("none" if w.alpha is None else f"{w.alpha:g}" for w in modules).most_common()),
        dora=any(weights.dora_scale is not None for weights in modules),
        trigger=file.metadata.get("modelspec.trigger_phrase", ""),
        # kohya writes "None" for what was off; a 0 tells as little.
        settings={words: value for words, value in stated.items() if value not in ("None", "", "0")},
        tags=dict(counts.most_common(_LISTED_TAGS)),
        model_hash=file.model_hash,
        file_hash=sha256_of(file.path),
        made_of=_parsed(file.metadata.get(PROVENANCE)),
        lineage=_parsed(file.metadata.get(LINEAGE)),
        unused=file.unused,
        unused_because=tuple(
            Unused(reason, count, tuple(name for name, why in file.left_out.items() if why == reason))
            for reason, count in Counter(file.left_out.values()).items()
        ),
        vectors=len(file.vectors),
        notes=file.notes,
        embeddings=tuple(file.embeddings),
    )


def _shortened(text: str) -> str:
    """Some comments are whole logs; all of it stands in `--json`."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def _lineage(told: Any) -> list[str]:
    """`step 2: optimization.steps 2 -> 3`, a line a version."""
    sentences = []
    for version in told if isinstance(told, list) else []:
        changes = version.get("changes") if isinstance(version, dict) else None
        if isinstance(changes, dict):
            words = [
                f"{name} {value[0]} -> {value[1]}" if isinstance(value, list) and len(value) == 2 else str(name)
                for name, value in changes.items()
            ]
            sentences.append(f"at step {version.get('step')}: {', '.join(words)}")
    return sentences


def _parsed(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def _counted(counts: dict[Any, int], most: int = _LISTED_TAGS) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)))
    listed = list(counts.items())
    more = f", and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(f"{value} ({count})" for value, count in listed[:most]) + more


def _joined(values: tuple[str, ...]) -> str:
    return ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
