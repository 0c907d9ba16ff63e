"""What a wheel must hold and must not:  python tests/support/wheel_contents.py dist/sdlora-0.1.0-py3-none-any.whl"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

NEEDED = (
    "sdlora/py.typed",
    "sdlora/models/builtin/emoji/unet/diffusion_pytorch_model.safetensors",
    "sdlora/models/builtin/emoji/MODEL_CARD.md",
    "sdlora/models/shipped/clip_merges.txt.gz",
    "sdlora/_shipped/presets/demo.yaml",
    "sdlora/_shipped/sample_images/blueprint/cup.png",
    "webui/assets/page.js",
)
FOREIGN = ("tests", "docs", "recipe", ".ci", ".github", "/draw")
"""Parts of names that have no place in it: tests, the embedded model's recipe, the scripts that draw the samples."""
LARGEST_MIB = 45


def problems(wheel: Path) -> list[str]:
    """Everything wrong with a wheel's contents."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    found = [f"{name} is missing" for name in NEEDED if name not in names]
    found += [f"{name} has no place in it" for name in names if any(part in f"/{name}" for part in FOREIGN)]
    if (size_mib := wheel.stat().st_size / 2**20) > LARGEST_MIB:
        found.append(f"{size_mib:.1f} MiB is more than {LARGEST_MIB}")
    return found


if __name__ == "__main__":
    wheel = Path(sys.argv[1])
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
    sys.exit("\n".join(problems(wheel)) or 0)
