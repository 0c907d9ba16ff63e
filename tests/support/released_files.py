"""Makes the files that later versions must keep opening: a studio of the page, by the version that is installed.

    python -m tests.support.released_files tests/data/released-0.1/studio

Run it with the checkout of the release first on PYTHONPATH, once a release; what it made is never made again, for
nobody can make the files of an old version with a new one. The commands of that version train, convert and mix; its
page, in a browser, takes what a person enters. The studio lies at /studio meanwhile, which stands in its files as the
place of everything; whoever opens a copy puts the copy's place there (`tests.support.released.open_studio`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path("/studio")
STEPS = 6
STOPPED_AT = 3
SETTINGS = [
    "base_model.model=builtin:emoji",
    "images.resolution=64",
    "images.horizontal_flip=true",
    "captions.trigger=zwx",
    "captions.dropout=0.1",
    "adapter.rank=1",
    "adapter.alpha=1",
    "adapter.layers=regex:mid_block.*(attn2.to_q|attn2.to_v|resnets.0.conv1)",
    "adapter.text_encoder=true",
    "adapter.text_encoder_layers=attention",
    f"optimization.steps={STEPS}",
    "optimization.batch_size=2",
    "optimization.accumulation=2",
    "optimization.learning_rate=0.01",
    "optimization.schedule=cosine",
    "optimization.ema=0.9",
    "optimization.precision=fp32",
    "objective.weighting=min_snr",
    "objective.noise_offset=0.05",
    "validation.fraction=0.2",
    "validation.every=2",
    "validation.timesteps=[300, 700]",
    "previews.prompts=[a zwx cat, a zwx house]",
    "previews.every=3",
    "previews.steps=2",
    f"outputs.folder={ROOT / 'runs'}",
]
ELSEWHERE = "elsewhere 00000000-0000-0000-0000-000000000000 pid:[1]"
HEAVY = ("*.part", "thumbnails", "jobs", "trash", "models", "image_worker")


def pictures(folder: Path) -> None:
    """Five small captioned pictures."""
    folder.mkdir(parents=True)
    for index in range(5):
        image = Image.new("RGB", (72, 64 + 8 * (index % 2)), (50 * index, 90, 250 - 50 * index))
        ImageDraw.Draw(image).ellipse((8, 8, 30 + 6 * index, 50), fill="white")
        image.save(folder / f"shape {index}.png")
        (folder / f"shape {index}.txt").write_text(f"zwx, circle {index}, on colour", encoding="utf-8")


def run(name: str, layout: str, *, stop_at: int | None = None) -> Path:
    """Train a run to its end, or stop it at a step as `sdlora stop` does."""
    import sdlora

    class Sink:
        def emit(self, event: Any) -> None:
            if event.kind == "step_finished" and event.step == stop_at:
                (ROOT / "runs" / name / "requests" / "stop").touch()

        def close(self) -> None:
            """Nothing to close."""

    settings = [*SETTINGS, f"name={name}", f"outputs.format={layout}", f"images.folder={ROOT / 'datasets' / 'shapes'}"]
    return Path(sdlora.train(sdlora.load_config(None, settings), [Sink()]).folder)


def command(*arguments: str) -> None:
    """One of the release's own commands."""
    subprocess.run([sys.executable, "-m", "sdlora", *arguments], check=True, cwd=ROOT)


@contextmanager
def page() -> Iterator[Any]:
    """The release's page on the studio, in a browser window."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "webui", "--root", str(ROOT), "--port", str(port), "--no-browser"],
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(address)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            window = browser.new_page(viewport={"width": 1280, "height": 900})
            window.set_default_timeout(120_000)
            window.goto(address)
            window.wait_for_selector("body[data-ready]")
            yield window
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(60)


def enter_what_a_person_would(window: Any) -> None:
    """Each tab's fields, two adapters in use, a saved mix, two images."""

    def tab(name: str) -> None:
        window.click(f"#tab-{name}-button")
        window.locator(f"#tab-{name}").wait_for(state="visible")
        window.wait_for_timeout(500)

    def enter(selector: str, text: str) -> None:
        window.click(selector)
        window.keyboard.press("ControlOrMeta+a")
        window.keyboard.type(text)
        window.keyboard.press("Tab")
        window.wait_for_timeout(500)

    tab("dataset")
    window.locator("#dataset-summary").filter(has_text="5 images").wait_for()
    window.click("#dataset-train")
    window.wait_for_selector("#train-images-folder")
    enter("#train-name textarea", "kept-name")
    enter("#train-captions-trigger textarea", "kept trigger")
    enter("#train-optimization-steps :is(input, textarea)", "123")
    enter("#train-search textarea", "of linear lay")
    window.wait_for_selector("#train-adapter-rank input")
    enter("#train-adapter-rank input", "7")
    tab("mix")
    for number, name in enumerate(("ink", "wash"), 1):
        window.locator("#mix-library .thumbnail-item", has_text=name).first.click()
        window.wait_for_selector(f"#mix-card h4:has-text('{name}')")
        window.click("#mix-add")
        window.wait_for_selector(f"#mix-row-{number}")
    enter("#mix-tags textarea", "<lora:ink:te=0.25:unet=0.5> <lora:wash:-0.6>")
    window.click("#mix-saved-panel button.label-wrap")
    enter("#mix-save-name :is(input, textarea)", "both")
    window.click("#mix-save")
    enter("#mix-prompt textarea", "kept comparison")
    tab("generate")
    enter("#generate-prompt textarea", "a red fox, kept prompt")
    for field, value in (("steps", "2"), ("seed", "7"), ("num_images", "2")):
        enter(f"#generate-{field} input", value)
    window.click("#generate-go")
    while len(list(ROOT.glob("outputs/*/*.png"))) < 3:
        window.wait_for_timeout(500)
    window.reload()
    window.wait_for_selector("body[data-ready]")
    tab("generate")
    window.click("#generate-history-tab-button")
    window.locator("#generate-history .thumbnail-item").nth(1).wait_for()
    tab("settings")
    enter("#settings-adapter-folders textarea", str(ROOT / "more adapters"))
    enter("#settings-keep-gib input", "11")
    tab("runs")
    window.locator("#runs-list button[data-run=stopped]").first.click()
    window.wait_for_selector("#runs-status .badge.stopped")
    window.wait_for_timeout(2000)


def keep(target: Path) -> None:
    """Copy what a later version reads: not the thumbnails, of the finished run no state, of this machine no name."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*HEAVY))
    for state in (target / "runs" / "ink").glob("checkpoints/*/state.pt"):
        state.unlink()
    for name, key, value in (("process.json", "place", ELSEWHERE), ("environment.json", "platform", "Linux")):
        for path in target.glob(f"runs/*/{name}"):
            path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), key: value}), encoding="utf-8")


def losses(folder: Path) -> list[float]:
    """The loss of every step of a run."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["loss"] for event in map(json.loads, lines) if event["kind"] == "step_finished"]


def _wait_for(address: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the page did not start")


def main(target: Path) -> None:
    """Make the studio, then copy what is kept of it."""
    if ROOT.exists() or target.exists():
        raise SystemExit(f"{ROOT} and {target} must not exist yet")
    pictures(ROOT / "datasets" / "shapes")
    finished, stopped = run("ink", "diffusers"), run("stopped", "kohya", stop_at=STOPPED_AT)
    (ROOT / "adapters").mkdir()
    (ROOT / "more adapters").mkdir()
    command("mix", f"{finished / 'ink.safetensors'}:0.7", "--out", str(ROOT / "adapters" / "wash.safetensors"))
    picture = ["generate", "--prompt", "a red fox, in fp32", "--seed", "11", "--steps", "3"]
    used = ["--adapter", f"{finished / 'ink.safetensors'}:4", "--adapter", "adapters/wash.safetensors:unet=-0.6,te=0.3"]
    command(*picture, *used, "--set", "compute.precision=fp32", "--set", "compute.device=cpu", "--out", "outputs/fp32")
    with page() as window:
        enter_what_a_person_would(window)
    keep(target)
    about = {"losses": losses(finished), "losses of the stopped run": losses(stopped)}
    (target.parent / "facts.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    shutil.rmtree(ROOT)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
