"""Export of the mix as one file or into a model, as background jobs; mixes saved as small files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sdlora import MixConfig
from sdlora.config.fields import fields
from sdlora.errors import ConfigError
from sdlora.launch import exports
from sdlora.launch.jobs import JobHandle
from sdlora.library import mixes
from sdlora.library.rows import check_family
from sdlora.models.found import family_of
from sdlora.trash import move_to_trash
from webui.context import LAST_COUNTS, QUICK, Context, handler
from webui.layout import problems_html
from webui.mix import view
from webui.mix.library import LibraryPanel
from webui.mix.rows import RowsPanel
from webui.pieces import notes
from webui.problems import panel, shown_problems
from webui.scripts import SETTLED
from webui.services import Services

_FIELDS = {field.name: field for field in fields(MixConfig, ("adapters",))}
_SUFFIX = ".safetensors"
_WHOLE = ("concat", "linear")
"""Methods that keep everything: there is no rank to choose."""
_DELETE = """(name) => {
  if (!name || !confirm(`Move the saved mix "${name}" to the trash?`)) throw new Error("cancelled");
  return [name];
}"""


def build_export(context: Context, library: LibraryPanel) -> None:
    """The panel with both kinds of export and the newest one's progress."""
    with gr.Accordion("Export", open=False, elem_id="mix-export-panel"):
        name = gr.Textbox(
            label="Name", info="Of the new file; nothing is ever overwritten.", max_lines=1, elem_id="mix-export-name"
        )
        with gr.Row():
            method = gr.Dropdown(
                list(_FIELDS["method"].choices), value="concat", label="Method", elem_id="mix-export-method",
                info=_FIELDS["method"].info, min_width=280, interactive=True,
            )  # fmt: skip
            rank = gr.Number(
                None, label="Rank", precision=0, elem_id="mix-export-rank", min_width=150, visible=False,
                info="Of every layer; or give the share of energy instead.",
            )  # fmt: skip
            energy = gr.Number(
                None, label="Share of energy", step=0.01, elem_id="mix-export-energy", min_width=150, visible=False,
                info=_FIELDS["energy"].info,
            )  # fmt: skip
            density = gr.Number(
                0.5, label="Density", step=0.05, elem_id="mix-export-density", min_width=150, visible=False,
                info=_FIELDS["density"].info,
            )  # fmt: skip
            precision = gr.Dropdown(
                list(_FIELDS["precision"].choices), value="fp16", label="Precision", min_width=150, interactive=True,
                info=_FIELDS["precision"].info, elem_id="mix-export-precision",
            )  # fmt: skip
        export = gr.Button("Export as one adapter", elem_id="mix-export")
        with gr.Row(elem_classes="row-end"):
            base = gr.Dropdown(
                context.services.models(), value="builtin:emoji", label="Base model", allow_custom_value=True, scale=4,
                info="A copy of it gets the adapters baked in.", elem_id="mix-merge-base", interactive=True,
            )  # fmt: skip
            merge = gr.Button("Merge into the model", elem_id="mix-merge", scale=2, min_width=170)
        problems = problems_html("mix-export-problems")
        status = gr.HTML(elem_id="mix-export-status")
        cancel = gr.Button("Cancel the export", size="sm", visible=False, elem_id="mix-export-cancel")
    running = _Exports(context.services, library)
    method.input(handler(_needed), [method], [rank, energy, density], **LAST_COUNTS)
    seen = gr.State("")  # the export that the page shows, as its stamp
    outputs = [status, cancel, seen, problems]
    inputs = [name, method, rank, energy, density, precision]
    export.click(shown_problems(running.begin_mix, 4), inputs, outputs, js=SETTLED, **QUICK)
    merge.click(shown_problems(running.begin_merge, 4), [name, base], outputs, js=SETTLED, **QUICK)
    cancel.click(handler(running.cancel), [seen], [status, cancel], api_visibility="private", show_progress="hidden")
    context.follow("mix", running.stamp, running.poll, [seen, *library.asked], [seen, status, cancel, *library.shown])


def _needed(method: str) -> tuple[Any, Any, Any]:
    """Which inputs a method has use for."""
    truncates = method not in _WHOLE
    return gr.Number(visible=truncates), gr.Number(visible=truncates), gr.Number(visible=truncates and method != "svd")


class _Exports:
    """The newest export of this server, and what starts one."""

    def __init__(self, services: Services, library: LibraryPanel) -> None:
        self.services, self.panel = services, library
        # An export is a process of its own and outlives the page: one that still runs is followed again.
        self.job: JobHandle | None = exports.newest_export(services.workspace.jobs)
        if self.job is not None and not self.job.state().is_active:
            self.job = None

    def begin_mix(
        self, name: str, method: str, rank: float | None, energy: float | None, density: float, precision: str
    ) -> tuple[Any, ...]:
        """Begin to write one adapter file."""
        rows, folder = self.services.active.rows, self.services.workspace.adapters
        target = mixes.new_file(name or "", folder, _SUFFIX)
        family = check_family(rows, self.services.adapters)
        # What is out of view isn't meant: a rank that was typed for another method.
        truncates, thins = method not in _WHOLE, method not in (*_WHOLE, "svd")
        settings = {
            "method": method,
            "rank": int(rank) if truncates and rank is not None else None,
            "energy": energy if truncates else None,
            "density": density if thins else None,
            "precision": precision,
            "family": family,
        }
        self._begin(lambda: exports.start_mix(mixes.mix_config(rows, settings), target, self.services.workspace.jobs))
        return self._shown(), gr.Button(visible=True), self.stamp(), ""

    def begin_merge(self, name: str, base: str) -> tuple[Any, ...]:
        """Begin to bake the adapters into a copy of a model."""
        rows, family = self.services.active.rows, family_of(base)
        is_file = Path(base).is_file()
        # A single file is merged into one, a folder of diffusers into a folder, which has no suffix.
        target = mixes.new_file(name or "", self.services.workspace.models, _SUFFIX if is_file else "")
        check_family(rows, self.services.adapters, None if family is None else (base, family))
        adapters = mixes.mixed(rows)
        self._begin(lambda: exports.start_merge(adapters, base, target, self.services.workspace.jobs))
        return self._shown(), gr.Button(visible=True), self.stamp(), ""

    def cancel(self, seen: str) -> tuple[Any, ...]:
        """End the export that the page shows; another window may have begun one since."""
        if self.job is not None and self.job.name == seen.rsplit(" ", 2)[0]:
            self.job.cancel()
        return self._shown(), gr.Button(visible=self.job is not None and self.job.state().is_active)

    def stamp(self) -> str:
        """Changes with the newest export's state; empty where there was none."""
        if self.job is None:
            return ""
        state = self.job.state()
        return f"{self.job.name} {state.status} {state.done}"

    def poll(self, seen: str, *asked: Any) -> Any:
        """What this page doesn't show yet; once an export is over the library shows it."""
        if self.job is None:
            return gr.skip()
        now, state = self.stamp(), self.job.state()
        if now == seen:
            return gr.skip()
        library = [gr.skip()] * len(self.panel.shown)
        if not state.is_active:
            library = list(self.panel.look_again(*asked))
        return [now, self._shown(), gr.Button(visible=state.is_active), *library]

    def _begin(self, start: Any) -> None:
        if self.job is not None and self.job.state().is_active:
            raise ConfigError("the export", ["another export is running; wait for it or cancel it"])
        self.job = start()

    def _shown(self) -> str:
        if self.job is None:
            return ""
        arguments = self.job.arguments
        target = Path(arguments[arguments.index("--out") + 1]).name
        return view.export(self.job.state(), exports.outcome(self.job), target)


def build_saved(context: Context, in_use: RowsPanel) -> None:
    """Save the rows under a name, load them again."""
    services, folder = context.services, context.workspace.mixes
    with gr.Accordion("Saved mixes", open=False, elem_id="mix-saved-panel"):
        with gr.Row(elem_classes="row-end"):
            name = gr.Textbox(
                label="Save as", info="A small file that `sdlora mix --config` reads too.", max_lines=1, scale=4,
                elem_id="mix-save-name",
            )  # fmt: skip
            save = gr.Button("Save", elem_id="mix-save", scale=1, min_width=90)
        with gr.Row(elem_classes="row-end"):
            saved = gr.Dropdown(
                mixes.list_mixes(folder), label="Saved", info="Loading replaces the rows.", elem_id="mix-saved",
                scale=4, interactive=True, value=None,
            )  # fmt: skip
            load = gr.Button("Load", elem_id="mix-load", scale=1, min_width=90)
            delete = gr.Button("Delete", elem_id="mix-saved-delete", scale=1, min_width=90)
        problems = problems_html("mix-saved-problems")

    def keep(chosen: str) -> tuple[Any, str]:
        rows = services.active.rows
        path = mixes.save_mix(rows, chosen or "", folder)
        off = [f"{row.name}: switched off, so the file does not name it" for row in rows if not row.enabled]
        return gr.Dropdown(choices=mixes.list_mixes(folder), value=path.stem), notes(off, "Saved without")

    def take(chosen: str | None) -> dict[Any, Any]:
        try:
            if not chosen:
                raise ConfigError("saved mixes", ["choose a saved mix first"])
            rows, missing = mixes.load_mix(chosen, folder, services.scan())
        except ConfigError as error:
            return {problems: panel(error.problems)}
        services.active.change(lambda _: rows)
        return {**in_use.shown(), problems: notes(missing, "Not everything could be loaded")}

    def drop(chosen: str | None) -> dict[Any, Any]:
        is_there = chosen in mixes.list_mixes(folder)  # a name from the browser leads nowhere else
        deleted = move_to_trash([folder / f"{chosen}.yaml"], services.workspace.trash) if is_there else []
        said = "" if deleted else panel([f"there is no saved mix called '{chosen}' any more"])
        return {saved: gr.Dropdown(choices=mixes.list_mixes(folder), value=None), problems: said}

    save.click(shown_problems(keep, 2), [name], [saved, problems], **QUICK)
    load.click(handler(take), saved, [*in_use.outputs, problems], **QUICK)
    delete.click(handler(drop), [saved], [saved, problems], js=_DELETE, **QUICK)
