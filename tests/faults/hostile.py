"""Hostile files against every reader: `python -m tests.faults.hostile --seconds 60` prints what became of them.

Each reader gets a corpus of files that are meant to break it and then, for so many CPU seconds, mutations of sound
ones: bits turned, pieces cut, doubled or swapped, numbers blown up, odd characters put in. It may take a file or refuse
it with an error of ours; anything else is a traceback that a person would see. What takes longer than a few seconds,
and files that appear outside of their folder, are counted too. Nothing large is kept: all is made anew from a seed.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from sdlora.adapters.files.catalog import describe
from sdlora.adapters.files.embeddings import read_embedding
from sdlora.adapters.files.reading import read as read_adapter
from sdlora.config import files
from sdlora.config.generate import GenerateConfig
from sdlora.config.images import CaptionsConfig, ImagesConfig
from sdlora.data.cache import Cache
from sdlora.data.images import scan
from sdlora.data.packed.unpack import unpack as unpack_packed
from sdlora.data.sets.uploads import receive
from sdlora.errors import SdloraError
from sdlora.generation.restore.image_files import read_image_settings
from sdlora.generation.restore.infotext import from_infotext
from sdlora.imports.read import import_settings
from sdlora.library.mixes import list_mixes, load_mix
from sdlora.library.scan import Scan
from sdlora.models.headers import read_header, read_pickled
from sdlora.runs.checkpoints import STATE_FILE, Checkpoint
from sdlora.runs.event_log import read_events
from sdlora.text_files import UnreadableTextError, read_text
from sdlora.training.outputs import checkpoint_state
from tests.support.emoji_adapters import random_adapter
from tests.support.foreign_settings import AI_TOOLKIT, KOHYA, ONETRAINER

SLOW_SECONDS = 5.0
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@dataclass
class Reader:
    """One way in: what reads, files that are sound, and files that are meant to break it."""

    name: str
    read: Callable[[Path, Path], object]
    """Of the file and of an empty folder that it may fill."""
    suffix: str
    sound: list[bytes]
    corpus: list[bytes] = field(default_factory=list)


@dataclass
class Tally:
    """What became of a reader's files."""

    taken: int = 0
    refused: int = 0
    slow: int = 0
    escapes: int = 0
    tracebacks: dict[str, str] = field(default_factory=dict)
    """The last line of each kind, with where it came from."""


def adapter_bytes(folder: Path) -> bytes:
    """A small sound adapter."""
    return random_adapter(folder / "sound.safetensors", 1, rank=1).read_bytes()


def header(table: object, data: bytes = b"\0" * 64) -> bytes:
    """A safetensors file with this header, sound or not."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def adapter_corpus() -> list[bytes]:
    """Headers that promise too much, too little, or nonsense."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    keys = [f"{LAYER}.lora_down.weight", f"{LAYER}.lora_up.weight", f"{LAYER}.alpha"]
    deep = "[" * 5000 + "]" * 5000
    tables: list[object] = [
        {}, {keys[0]: entry}, {keys[0]: {**entry, "shape": [1] * 200}}, {keys[0]: {**entry, "shape": [2**40, 2**40]}},
        {keys[0]: {**entry, "shape": [-1, 4]}}, {keys[0]: {**entry, "data_offsets": [16, 0]}},
        {keys[0]: {**entry, "data_offsets": [0, 2**60]}}, {keys[0]: {**entry, "dtype": "F4096"}},
        {keys[0]: entry, keys[1]: {**entry, "shape": [1] * 200, "data_offsets": [16, 20]}},
        {name: {**entry, "shape": [4], "data_offsets": [16 * i, 16 * i + 16]} for i, name in enumerate(keys)},
        {name: {**entry, "shape": [], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(keys)},
        {keys[0]: entry, "__metadata__": {"ss_tag_frequency": deep, "ss_network_args": deep}},
        {keys[0]: entry, "__metadata__": {"sdlora": deep, "ss_network_dim": "1e999", "ss_datasets": "[1]"}},
        {keys[0]: entry, "__metadata__": {"lora_adapter_metadata": '{"unet.r": [[[[]]]]}'}},
        {keys[0]: entry, "__metadata__": {"lora_adapter_metadata": deep, "modelspec.title": "x" * 10**6}},
        {keys[0]: entry, "__metadata__": [1]}, {keys[0]: [1]}, {keys[0]: None}, [1], "text", 5, None,
        {"bundle_emb..clip_l": entry, "bundle_emb.x": entry}, {f"lora_unet_{'a' * 5000}.lora_up.weight": entry},
        {"model.diffusion_model.input_blocks.0.0.weight": entry}, {"a\u0000b": entry}, {"": entry},
    ]  # fmt: skip
    made = [header(table) for table in tables]
    made += [header(b"{"), header(b'{"a": ' + b"[" * 100_000), header(b'{"a": 1e999}'), header(b'{"\\ud800": 1}')]
    made += [b"", b"\xff" * 8, struct.pack("<Q", 2**62) + b"{}", b"PK\3\4", b"\x80\x04cos\nsystem\n(S'id'\ntR."]
    return made


def zipped(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip file with these entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar file with these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in entries:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return buffer.getvalue()


def picture(**texts: str) -> bytes:
    """A small PNG with texts in it."""
    about = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        about.add_text(name, text)
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


ESCAPING = (
    "../out.png",
    "/tmp/hostile-out.png",
    "a/../../out.png",
    "C:\\out.png",
    "..\\out.png",
    "a\0b.png",
    "CON.png",
)
INFOTEXT = (
    "a fox, <lora:ink:0.8>\nNegative prompt: grey\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, "
    'Seed: 5, Size: 512x768, Model hash: abc, Lora hashes: "ink: 123", Version: v1.10'
)
COMFY = json.dumps(
    {
        "1": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20, "cfg": 7, "positive": ["2", 0]}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["3", 1]}},
        "3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    }
)


def read_picture_as_request(path: Path, _: Path) -> object:
    """As `generate --from` does it."""
    return read_image_settings(path)


def upload(path: Path, target: Path) -> object:
    """As the page takes an archive."""
    return receive(target, [path])


def unpacked(path: Path, target: Path) -> object:
    """As `dataset import` takes a shard."""
    return unpack_packed(path, target / "new")


def scanned(path: Path, target: Path) -> object:
    """As a run finds a picture, and a caption."""
    folder = target / "pictures"
    folder.mkdir()
    (folder / f"a{path.suffix}").write_bytes(path.read_bytes())
    (folder / "a.txt").write_text("a fox", encoding="utf-8")
    return scan(ImagesConfig(folder=folder), CaptionsConfig())


def captioned(path: Path, target: Path) -> object:
    """A caption beside a sound picture."""
    folder = target / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "a.txt").write_bytes(path.read_bytes())
    return scan(ImagesConfig(folder=folder), CaptionsConfig())


def described_folder(path: Path, target: Path) -> object:
    """A metadata file over a sound picture."""
    folder = target / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "metadata.jsonl").write_bytes(path.read_bytes())
    return scan(ImagesConfig(folder=folder), CaptionsConfig())


def checkpoint_loaded(path: Path, target: Path) -> object:
    """As a run that goes on takes its state; without checksums, as older versions wrote none."""
    (target / STATE_FILE).write_bytes(path.read_bytes())
    return checkpoint_state.load(Checkpoint(1, target))


def cache_entry(path: Path, target: Path) -> object:
    """Whatever lies in the cache is good or made anew."""
    key = "a" * 64
    (target / key[:2]).mkdir()
    (target / key[:2] / f"{key}.safetensors").write_bytes(path.read_bytes())
    return Cache(target).get(key)


def loaded_mix(path: Path, target: Path) -> object:
    """A mix that a page saved."""
    (target / "x.mix.yaml").write_bytes(path.read_bytes())
    return load_mix(list_mixes(target)[0], target, Scan()) if list_mixes(target) else None


def overridden(path: Path, _: Path) -> object:
    """A text as `--set` has it."""
    return files.load("demo.yaml", [path.read_bytes().decode("utf-8", "surrogateescape").replace("\0", "")])


def readers(folder: Path) -> list[Reader]:
    """Every way in for files of others."""
    preset = files.dump(files.load("demo.yaml")).encode()
    foreign = [json.dumps(settings).encode() for settings in (KOHYA, ONETRAINER, AI_TOOLKIT)]
    adapter = adapter_bytes(folder)
    small = {LAYER.replace("lora_", "x"): torch.ones(2, 2)}
    save_file({"clip_l": torch.ones(2, 768)} | small, folder / "emb.safetensors")
    embedding = (folder / "emb.safetensors").read_bytes()
    pickled = io.BytesIO()
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}}, pickled)
    pickled_adapter, state = io.BytesIO(), io.BytesIO()
    torch.save({f"{LAYER}.{part}.weight": torch.ones(4, 4) for part in ("lora_down", "lora_up")}, pickled_adapter)
    torch.save({"adapter": {"a": torch.ones(2)}, "optimizer": {}, "precision": {}, "progress": {"step": 1}}, state)
    save_file({"latents": torch.ones(4, 8, 8)}, folder / "cached.safetensors")
    cached = (folder / "cached.safetensors").read_bytes()
    odd_names = [zipped([(name, picture())]) for name in ESCAPING]
    numbers = ["1e999", "-1", "nan", "9" * 400, "true", "null", "[]", "{}", '""', "2001-13-45", "0x" + "f" * 300]
    keys = [setting.encode() for setting in ("adapter.rank", "images.folders", "optimization.steps", "seed", "x", "")]
    return [
        Reader("settings (YAML)", lambda path, _: files.load(path), ".yaml", [preset],
               [f"{key}: {value}".encode() for key in ("seed", "adapter", "name") for value in numbers]),
        Reader("--set", overridden, ".txt", [b"adapter.rank=8", b"images.folders=[{folder: a, repeats: 2}]"],
               [key + b"=" + value.encode() for key in keys for value in numbers]),
        Reader("other trainers' settings", lambda path, _: import_settings(path), ".json", foreign,
               [json.dumps({"network_dim": value, "lr": value}).encode() for value in numbers]),
        Reader("adapters", lambda path, _: read_adapter(path), ".safetensors", [adapter], adapter_corpus()),
        Reader("the library", lambda path, _: describe(path), ".safetensors", [adapter], adapter_corpus()),
        Reader("base models' headers", lambda path, _: read_header(path), ".safetensors", [adapter], adapter_corpus()),
        Reader("embeddings", lambda path, _: read_embedding(path), ".safetensors", [embedding], adapter_corpus()),
        Reader("pickled embeddings", lambda path, _: read_embedding(path), ".pt", [pickled.getvalue()]),
        Reader("pickled adapters", lambda path, _: read_adapter(path), ".pt", [pickled_adapter.getvalue()]),
        Reader("pickled models", lambda path, _: read_pickled(path), ".ckpt", [pickled_adapter.getvalue()]),
        Reader("checkpoints", checkpoint_loaded, ".pt", [state.getvalue()]),
        Reader("cache entries", cache_entry, ".safetensors", [cached]),
        Reader("metadata of a folder", described_folder, ".jsonl",
               [b'{"file_name": "a.png", "text": "a fox"}\n', b'{"a.png": {"caption": "a fox", "tags": "b"}}'],
               [f'{{"file_name": "a.png", "text": {value}}}'.encode() for value in numbers]),
        Reader("mixes", loaded_mix, ".yaml", [b"adapters: [{file: ink.safetensors, weight: 0.5}]\nmethod: concat\n"]),
        Reader("pictures' settings", read_picture_as_request, ".png",
               [picture(parameters=INFOTEXT), picture(prompt=COMFY), picture(invokeai_metadata='{"seed": 5}')],
               [picture(parameters=f"x\nSteps: {value}, Size: {value}, Seed: {value}") for value in numbers]
               + [picture(prompt="[" * 50_000), picture(sdlora="[" * 50_000), picture(parameters="x" * 10**6)]),
        Reader("infotexts", lambda path, _: from_infotext(path.read_bytes().decode("utf-8", "replace")), ".txt",
               [INFOTEXT.encode(), COMFY.encode()]),
        Reader("prompts", lambda path, _: GenerateConfig(prompt=path.read_bytes().decode("utf-8", "replace")), ".txt",
               [b"a (red:1.2) fox [cat:dog:0.5] AND b :0.8 {x|y} __c__ <lora:ink:te=1:unet=2>"]),
        Reader("archives on the page", upload, ".zip", [zipped([("a.png", picture()), ("a.txt", b"a fox")])],
               odd_names),
        Reader("shards", unpacked, ".tar", [tarred([("a.png", picture()), ("a.txt", b"a fox"), ("a.json", b"{}")])],
               [tarred([(name, picture()), ("b.json", b"[" * 50_000)]) for name in ESCAPING if "\0" not in name]),
        Reader("pictures", scanned, ".png", [picture()]),
        Reader("captions", captioned, ".txt", ["a fox, 狐".encode(), "a fox".encode("utf-16")]),
        Reader("texts", lambda path, _: read_text(path), ".txt", ["a fox, 狐".encode(), "ä".encode("cp1252")]),
        Reader("runs' events", lambda path, _: read_events(path), ".jsonl",
               [b'{"kind": "step_finished", "step": 1, "epoch": 0, "loss": 0.1, "time": 1.0}\n']),
        Reader("saved settings of a page", lambda path, _: yaml.safe_dump(files.read_yaml(path)), ".yaml", [preset]),
    ]  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A file that is nearly this one."""
    content = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        if not content:
            break
        at = chance.randrange(len(content))
        kind = chance.randrange(7)
        if kind == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del content[at : at + chance.randrange(1, 64)]
        elif kind == 2:
            content[at:at] = content[at : at + chance.randrange(1, 64)] * chance.choice((1, 2, 50))
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            content[at:at] = chance.choice(
                (
                    b"\0",
                    b"\xff\xfe",
                    b"\n",
                    b"[",
                    b"{",
                    b'"',
                    b":",
                    b"-",
                    b"9" * 40,
                    b"1e999",
                    "狐".encode(),
                    b"\xed\xa0\x80",
                )
            )
        elif kind == 5:
            content[at : at + 8] = struct.pack("<q", chance.choice((-1, 0, 2**31, 2**62, 255)))
        else:
            other = chance.randrange(len(content))
            content[at : at + 16], content[other : other + 16] = content[other : other + 16], content[at : at + 16]
    return bytes(content)


def attempt(reader: Reader, data: bytes, root: Path, tally: Tally) -> None:
    """Give a reader one file, in a folder of its own, and note what became of it."""
    with tempfile.TemporaryDirectory(dir=root) as place:
        inside = Path(place) / "in"
        inside.mkdir()
        path = inside / f"file{reader.suffix}"
        path.write_bytes(data)
        target = inside / "target"
        target.mkdir()
        began = time.process_time()
        try:
            reader.read(path, target)
            tally.taken += 1
        except (SdloraError, UnreadableTextError):
            tally.refused += 1
        except ValueError as error:  # pydantic's own, as `files.validate` puts them into words
            if type(error).__name__ == "ValidationError":
                tally.refused += 1
            else:
                note(error, tally)
        except Exception as error:
            note(error, tally)
        tally.slow += time.process_time() - began > SLOW_SECONDS
        tally.escapes += sum(1 for found in Path(place).iterdir() if found != inside)


def note(error: Exception, tally: Tally) -> None:
    """Remember a traceback by its kind and the place in our code where it came out."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/sdlora/" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    tally.tracebacks.setdefault(f"{type(error).__name__} at {place}", str(error)[:100])


def main() -> None:
    """Try, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose names hold this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sdlora-hostile-") as place:
        root = Path(place)
        print(f"{'reader':<28}{'files':>8}{'taken':>8}{'refused':>9}{'slow':>6}{'escapes':>9}{'tracebacks':>12}")
        for reader in readers(root):
            if options.only not in reader.name:
                continue
            tally, chance = Tally(), random.Random(options.seed)
            for data in (*reader.sound, *reader.corpus):
                attempt(reader, data, root, tally)
            end = time.process_time() + options.seconds
            while time.process_time() < end:
                attempt(
                    reader, mutated(chance.choice((*reader.sound, *reader.sound, *reader.corpus)), chance), root, tally
                )
            number = tally.taken + tally.refused + len(tally.tracebacks)
            figures = (number, tally.taken, tally.refused, tally.slow, tally.escapes, len(tally.tracebacks))
            print(
                f"{reader.name:<28}"
                + "".join(f"{value:>{width}}" for value, width in zip(figures, (8, 8, 9, 6, 9, 12), strict=True)),
                flush=True,
            )
            for kind, text in tally.tracebacks.items():
                print(f"    {kind}: {text}", flush=True)


if __name__ == "__main__":
    main()
