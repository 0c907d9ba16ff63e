"""A form made from a configuration section: one input a setting, addressed by dotted name, never by position."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from pydantic import BaseModel

from sdlora.config import fields
from sdlora.config.fields import Field

Suggestions = Sequence[str | tuple[str, str]]


class Form:
    """The inputs of one kind of section. Make it inside a layout, `place` what is in view, `accordions` for the rest.

    Handlers take `form.inputs` as a set and get a dict: `form.shown(dict)` is what the inputs show by dotted name,
    `form.check(shown)` the configuration or its problems. They return `form.updates(shown)`, a dict of components.
    """

    def __init__(
        self,
        section: type[BaseModel],
        prefix: str,
        *,
        leave_out: Collection[str] = (),
        suggestions: Mapping[str, Suggestions] | None = None,
    ) -> None:
        """prefix: begins each element's id (`train` gives `train-adapter-rank`).

        leave_out: settings or sections without an input. suggestions: texts offered for a setting that takes others.
        """
        self.section = section
        self.prefix = prefix
        self.fields = fields.fields(section, leave_out)
        self.by_name = {field.name: field for field in self.fields}
        self.components: dict[str, gr.components.Component] = {}
        self.sections: dict[str, gr.Accordion] = {}
        """The accordions by section."""
        self._suggestions = dict(suggestions or {})

    @property
    def inputs(self) -> set[gr.components.Component]:
        """All placed inputs, for a handler that takes a dict."""
        return set(self.components.values())

    @property
    def outputs(self) -> list[gr.components.Component]:
        """All placed inputs, for a handler that returns `updates`."""
        return list(self.components.values())

    @property
    def triggers(self) -> list[Any]:
        """The events of a person's changes (`input`), not of a handler's."""
        return [component.input for component in self.components.values()]

    def place(self, name: str, **options: Any) -> Any:
        """Put one setting's input here; options (label, info, lines, ...) overrule the generated ones."""
        field = self.by_name[name]
        component = _component(field, self._suggestions.get(name), self.element_id(name), options)
        self.components[name] = component
        return component

    def accordions(self, titles: Mapping[str, str] | None = None, columns: int = 3) -> None:
        """Put all settings not placed yet here, one closed accordion a section."""
        rest = [field for field in self.fields if field.name not in self.components]
        for section in dict.fromkeys(field.section for field in rest):
            plain = section.replace("_", " ").replace(".", ": ").capitalize() or "General"
            inside = [field for field in rest if field.section == section]
            with gr.Accordion(
                (titles or {}).get(section, plain),
                open=False,
                elem_id=self.element_id(f"section-{section or 'general'}"),
                elem_classes=["settings", f"by-{columns}"],
            ) as self.sections[section]:
                # Beside each other by style alone: the page opens the slower the more parts it has, and rows are some.
                for field in inside:
                    self.place(field.name)

    def element_id(self, name: str) -> str:
        """The element id of a setting's input: `train-adapter-rank`."""
        return f"{self.prefix}-{name.replace('.', '-')}"

    def place_of(self, name: str) -> tuple[str, str]:
        """The element ids of a setting's input and of the accordion in which it may be."""
        return self.element_id(name), self.element_id(f"section-{self.by_name[name].section or 'general'}")

    def shown(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        """What the inputs show by dotted name, from the dict a handler is given."""
        return {name: values[component] for name, component in self.components.items() if component in values}

    def show(self, config: BaseModel) -> dict[str, Any]:
        """What the inputs show for a configuration, by dotted name."""
        return fields.show_all(config, self.fields)

    def check(self, shown: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> tuple[Any, list[str]]:
        """The configuration behind the inputs, or None and every problem; others: settings without an input."""
        return fields.check(self.section, self.fields, shown, others)

    def updates(self, shown: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[Any, Any]:
        """What a handler returns to fill the inputs (all that are in `shown`, or only `names`)."""
        wanted = set(shown) if names is None else set(names)
        return {
            component: shown[name] for name, component in self.components.items() if name in wanted and name in shown
        }


def _component(field: Field, suggestions: Suggestions | None, element_id: str, options: Mapping[str, Any]) -> Any:
    common: dict[str, Any] = {
        "value": fields.show(field, field.default),
        "label": field.label,
        "info": field.info,
        "elem_id": element_id,
        "elem_classes": "setting",
        "interactive": True,
        "min_width": 240,
        **options,
    }
    if suggestions is not None:
        return gr.Dropdown(**{"choices": list(suggestions), "allow_custom_value": True, **common})
    # Not filterable: what is typed into a list of few fixed choices could only be refused.
    if field.kind == "choice":
        return gr.Dropdown(**{"choices": field.spelled_choices, "filterable": False, **common})
    if field.kind == "flag":
        return gr.Checkbox(**common)
    empty = fields.empty_means(field.info) if field.is_optional else ""
    if field.kind == "number":
        # No minimum or maximum here: Gradio would refuse the value with a message that names no setting.
        return gr.Number(**{"step": field.step, "placeholder": empty, **common})
    lines = {"lines": 2, "max_lines": 8} if field.kind in ("lines", "yaml") else {"lines": 1}
    return gr.Textbox(**{"placeholder": empty, **lines, **common})
