"""What a page's form shows at one moment, as the page sends it; no Gradio."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sdlora.config import fields
from sdlora.config.fields import Field


@dataclass(frozen=True)
class Sheet:
    """Settings, preset and YAML as they stood on the page when it was asked."""

    settings: Mapping[str, Any]
    """What the inputs show, by dotted name."""
    preset: str
    """Chosen in the list."""
    standing: str
    """The preset that the settings were taken from."""
    yaml: str = ""
    yaml_base: str = ""
    """The text that agrees with the form."""
    asked: str = ""
    """Number of the newest event that fills the form."""
    filled: str = ""
    """Number of the newest one whose answer the page shows."""
    pressed: Mapping[str, str] = field(default_factory=dict)
    """Data of the button that was pressed, if one was."""

    @classmethod
    def read(cls, collected: str) -> Sheet:
        """The sheet in the JSON that `gradio_quirks.collect` writes."""
        values = json.loads(collected)
        others = {name: values.pop(name) for name in ("preset", "standing", "yaml", "yaml_base", "asked", "filled")}
        pressed = values.pop("pressed") or {}
        return cls(values, pressed=pressed, **{name: value or "" for name, value in others.items()})

    @property
    def is_stale(self) -> bool:
        """Whether something was about to fill the form when this was sent."""
        return self.asked != self.filled

    @property
    def has_other_yaml(self) -> bool:
        """Whether a person changed the YAML and did not apply it."""
        return self.yaml.strip() != self.yaml_base.strip()

    def agreeing(self) -> Sheet:
        """The same, the YAML left to follow the form."""
        return replace(self, yaml="", yaml_base="")

    def on(self, preset: str) -> Sheet:
        """The same settings, compared with another preset."""
        return replace(self, preset=preset, standing=preset)

    def differs(self, among: Sequence[Field], settings: Mapping[str, Any], preset: str) -> bool:
        """Whether filling the form with these settings changes anything."""
        return preset != self.standing or any(fields.differences(among, self.settings, settings))
