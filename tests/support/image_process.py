"""A stand-in for the image worker: the real server around a generator that obeys the prompt, without torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from PIL import Image

from sdlora.config.generate import GenerateConfig
from sdlora.errors import AdapterError
from sdlora.launch.image_worker import main


@dataclass
class Facts:
    model_name: str = "none"
    model_hash: str | None = None
    adapter_hashes: dict[str, str] = field(default_factory=dict)


@dataclass
class Generated:
    image: Image.Image
    config: GenerateConfig
    facts: Facts = field(default_factory=Facts)
    warnings: tuple[str, ...] = ("paint is wet",)


@dataclass
class Step:
    step: int
    total_steps: int
    image_index: int
    num_images: int

    def images(self) -> list[Image.Image]:
        return [Image.new("RGB", (8, 8), "red")] * 2


class Obedient:
    """Makes red squares; "crash", "wrong" and "slow" in the prompt are done as they say."""

    def fits(self, config: GenerateConfig) -> bool:
        return True

    def generate(
        self, config: GenerateConfig, *, on_step: Callable[[Step], None], is_cancelled: Callable[[], bool]
    ) -> Iterator[Generated]:
        print("libraries print this")
        for index in range(config.num_images):
            on_step(Step(1, 1, index, config.num_images))
            if config.prompt == "crash":
                print("Fatal Python error: out of paint", file=sys.stderr, flush=True)
                os._exit(3)
            if config.prompt == "wrong":
                raise AdapterError("this brush doesn't fit")
            if config.prompt == "broken":
                raise ZeroDivisionError("no canvas")
            while config.prompt == "slow" and index == 1 and not is_cancelled():
                time.sleep(0.01)
            if is_cancelled():
                return
            yield Generated(Image.new("RGB", (8, 8), "red"), config.model_copy(update={"seed": index, "num_images": 1}))


if __name__ == "__main__":
    main(lambda config: Obedient)  # type: ignore[arg-type,return-value]
