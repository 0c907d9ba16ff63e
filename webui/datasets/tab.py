"""The dataset tab: choose or make a dataset, upload, look through its images, write captions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from sdlora.config import presets
from sdlora.data.sets import folders, listing, uploads
from sdlora.errors import DataError
from sdlora.launch.dataset_jobs import WORDS, DatasetJobs, runs_on
from sdlora.trash import move_to_trash
from webui.context import EACH_COUNTS, LAST_COUNTS, PRIVATE, QUEUED, QUICK, Context, confirm, handler
from webui.datasets import view
from webui.datasets.browser import Browser
from webui.datasets.bulk import BulkPanel
from webui.datasets.typed import NUMBERED, Typed
from webui.datasets.work import WorkPanels
from webui.gradio_quirks import COMES_AND_GOES
from webui.layout import hidden_text, html, live_html, problems_html, small_button
from webui.problems import panel, shown_in
from webui.scripts import NEXT_ASKED, PRESSES, focus, goes_to

FIRST_NAME = "my images"
FIRST_RUN = "demo.yaml"


def build(context: Context) -> None:
    """Lay out the tab."""
    DatasetTab(context)


class DatasetTab:
    """Datasets by name; the parts that work on the chosen one get it as their first input."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.datasets = context.workspace.datasets
        self.jobs = DatasetJobs(context.workspace.jobs)
        self._lay_out()
        self._wire()
        context.share("dataset.chosen", self.chosen)
        context.share("dataset.tab", self)
        context.when_built.append(self._wire_train)

    def _lay_out(self) -> None:
        known = folders.names(self.datasets)
        gr.HTML("<h2>Dataset</h2>", elem_classes="tab-title")
        with gr.Row(elem_classes="page-columns"):
            with gr.Column():
                self.chosen = gr.Dropdown(
                    known, value=known[0] if known else None, label="Dataset", elem_id="dataset-chosen",
                    info="A folder of images and captions.", interactive=True, **COMES_AND_GOES,
                )  # fmt: skip
                self._lay_out_buttons()
            with gr.Column():
                # Of any type: what isn't taken is told of in words, where Gradio would only say "Invalid file type".
                self.upload = gr.File(
                    label="Drop images, captions (.txt) or zip files here",
                    file_count="multiple",
                    elem_id="dataset-upload",
                    height=146,
                )
        self.received = live_html("dataset-received")
        self.empty = html("dataset-empty", js_on_load=PRESSES, visible=False)
        with gr.Column(elem_classes="off-page"):
            self.address = html("dataset-address", js_on_load=goes_to("dataset", "name"))
            self.opened = hidden_text("dataset-opened", "The dataset in view")
        with gr.Row(elem_classes="page-columns dataset-columns"):
            self.browser = Browser(self.context, self.chosen)
            with gr.Column(visible=False) as self.below:
                self.bulk = BulkPanel(self.context, self.chosen, self.browser)
                self.work = WorkPanels(self.context, self.chosen, self.browser, self.jobs)

    def _lay_out_buttons(self) -> None:
        with gr.Row(elem_classes="bar"):
            self.new = small_button("New", "dataset-new", 60)
            self.rename = small_button("Rename", "dataset-rename", 80)
            self.delete = small_button("Delete", "dataset-delete", 70)
            self.train = small_button("Train with this dataset", "dataset-train", 190, variant="primary")
        with gr.Column(elem_classes="off-page"):
            self.renamed = hidden_text("dataset-renamed", "The dataset that gets a new name")
        with gr.Row(visible=False, elem_classes="row-end") as self.naming:
            self.name = gr.Textbox(
                label="Name", info="Becomes the folder's name.", elem_id="dataset-name", max_lines=1, scale=3,
                min_width=200,
            )  # fmt: skip
            self.create = small_button("Create", "dataset-create", 90)
            self.give_name = small_button("Give it this name", "dataset-give-name", 130)
            self.cancel_naming = small_button("Cancel", "dataset-cancel-naming", 80)
        self.name_problems = problems_html("dataset-name-problems", elem_classes="bare")

    @property
    def views(self) -> list[Any]:
        """What changes with the chosen dataset."""
        return [
            self.chosen,
            self.opened,
            self.received,
            self.delete,
            self.rename,
            self.train,
            self.empty,
            self.below,
            *self.browser.views,
            *self.bulk.views,
            *self.work.views,
        ]

    def _wire(self) -> None:
        named = [self.naming, self.name, self.create, self.give_name, self.renamed, self.name_problems]
        told = [*self.views, self.name_problems]

        def shown(act: Any) -> Any:
            return shown_in(self.name_problems, act)

        written = self.browser.editor.written
        numbered: dict[str, Any] = {"js": NUMBERED}
        chosen = [*written, self.chosen, self.opened]
        other = self.chosen.input(shown(self._choose_other), chosen, told, **numbered, **LAST_COUNTS)
        self.new.click(handler(self._ask_new), None, named, **QUICK).then(None, None, None, js=focus("dataset-name"))
        self.rename.click(shown(self._ask_rename), self.chosen, named, **QUICK).then(
            None, None, None, js=focus("dataset-name")
        )
        closed = [self.naming, self.name_problems]
        self.cancel_naming.click(lambda: (gr.Row(visible=False), ""), None, closed, **QUICK)
        asked = [self.create.click, self.give_name.click, self.name.submit]
        painted = self.browser.editor.mask.painted
        naming = [*written, painted, self.renamed, self.name]
        named_so = gr.on(asked, shown(self._name), naming, [self.naming, painted, *told], **numbered, **QUICK)
        deleted = self.delete.click(
            shown(self._delete),
            self.chosen,
            told,
            js=confirm("Move '{#dataset-chosen input}' ({#dataset-count}) to the trash?"),
            **PRIVATE,
        )
        received = self.upload.upload(
            shown(self._receive),
            [*written, self.chosen, self.upload],
            [self.upload, *told],
            js=NUMBERED,
            api_visibility="private",
            show_progress_on=[self.received],
        )
        gone = self.address.select(shown(self._go), written, told, **numbered, **EACH_COUNTS)
        for event in (other, named_so, deleted, received, gone):
            self.work.chart_on(event.then)
        self.context.shared["tab.dataset"].select(handler(self._offer), None, self.chosen, **QUICK)
        self.context.remember("dataset.chosen", self.chosen, show=self._kept)
        # A dataset named in the page's address comes before the one that was remembered.
        kept = "(chosen) => [window.sdlora.place('dataset') || chosen]"
        self.context.on_load.append((self._choose, [self.chosen], self.views, kept))

    def _wire_train(self) -> None:
        """Send the dataset to the Train tab, which is built later."""
        train = self.context.shared["train.tab"]
        sent = [*train.outputs, *train.choices, self.context.tabs, self.name_problems]
        acted = shown_in(self.name_problems, self._send_to_train)
        self.train.click(acted, [self.chosen, train.asked], sent, js=NEXT_ASKED, **QUICK)
        begun = [self.context.shared["runs.selected"], self.context.tabs]
        outputs = [*self.views, *begun, self.name_problems]
        begun_by = self.empty.select(shown_in(self.name_problems, self._act), self.chosen, outputs, **QUEUED)
        self.work.chart_on(begun_by.then)

    def _kept(self, name: str) -> Any:
        """The remembered choice, if that dataset is still there."""
        known = folders.names(self.datasets)
        return gr.Dropdown(choices=known, value=name if name in known else next(iter(known), None))

    def _offer(self) -> Any:
        """The datasets as they are now, without changing what is chosen."""
        return gr.Dropdown(choices=folders.names(self.datasets))

    def _choose_other(self, *given: Any) -> dict[Any, Any]:
        """Another dataset. A list that was opened and left is no choice; a name that is none is told of."""
        *written, name, opened = given
        if name == opened:
            return {self.opened: gr.skip()}
        # Gradio takes any text for such a list, so a name that was typed is looked up here.
        if name not in folders.names(self.datasets):
            raise DataError(f"{folders.gone(name)}." if name else "Choose a dataset from the list.")
        if (stays := self._asked(Typed.of(*written))) is not None:
            return {**stays, self.chosen: opened}
        return self._choose(name)

    def _go(self, event: gr.EventData, *written: Any) -> dict[Any, Any]:
        """The dataset that the page's address names."""
        stays = self._asked(Typed.of(*written))
        return self._choose(str(event.pressed["name"])) if stays is None else stays

    def _asked(self, typed: Typed) -> dict[Any, Any] | None:
        """Before another dataset comes: keep what was typed last, or ask whose caption an image is to have."""
        theirs = self.browser.editor.keep(typed)
        if theirs is None:
            return None
        words = f"{typed.image} has two captions: say below its box which of them to save, then go on."
        return {**self.browser.editor.asking(theirs), self.name_problems: panel([words])}

    def _choose(self, name: str | None) -> dict[Any, Any]:
        """Show a dataset from its first image on; another one, and that it is another, when it is gone meanwhile."""
        known = folders.names(self.datasets)
        gone = escape(f"{folders.gone(name)}.") if name and name not in known else ""
        name = name if name in known else next(iter(known), None)
        self.context.state.set("dataset.chosen", name)
        folder = self.datasets / name if name else None
        items = listing.read(folder) if folder else []
        updates: dict[Any, Any] = {
            self.chosen: gr.Dropdown(choices=known, value=name),
            self.opened: name or "",
            self.received: gone,
            self.empty: gr.HTML(view.nothing(name), visible=not items),
            self.below: gr.Column(visible=bool(items)),
        }
        updates |= {button: gr.Button(interactive=name is not None) for button in (self.delete, self.rename)}
        updates[self.train] = gr.Button(interactive=bool(items))
        return updates | self.browser.opened(folder, items) | self.bulk.opened() | self.work.opened(folder)

    def with_image(self, written: Sequence[Any], name: str, image: str) -> dict[Any, Any]:
        """A dataset with one of its images in the editor, as updates of `views`. Raises DataError when it is gone.

        written: values of the editor's, of an event with `js=NUMBERED`. What stays since it is asked whose it is to be
        is shown instead.
        """
        if (theirs := self.browser.editor.keep(Typed.of(*written))) is not None:
            return self.browser.editor.asking(theirs)
        folder = folders.folder_of(self.datasets, name)
        return {**self._choose(folder.name), **self.browser.shown_image(folder, image)}

    def _ask_new(self) -> dict[Any, Any]:
        return {
            self.naming: gr.Row(visible=True),
            self.name: gr.Textbox(value="", label="Name of the new dataset"),
            self.create: gr.Button(visible=True),
            self.give_name: gr.Button(visible=False),
            self.renamed: "",
            self.name_problems: "",
        }

    def _ask_rename(self, name: str) -> dict[Any, Any]:
        folders.folder_of(self.datasets, name)
        return {
            self.naming: gr.Row(visible=True),
            self.name: gr.Textbox(value=name, label=f"New name of '{name}'"),
            self.create: gr.Button(visible=False),
            self.give_name: gr.Button(visible=True),
            self.renamed: name,
            self.name_problems: "",
        }

    def _name(self, *given: Any) -> dict[Any, Any]:
        """Make a dataset of this name, or give it to the one that was to be renamed."""
        *written, painted, old, name = given
        if (stays := self._asked(Typed.of(*written))) is not None:
            return stays
        if not old:
            return {self.naming: gr.Row(visible=False), **self._choose(folders.create(self.datasets, name).name)}
        self._refuse_while_used(folders.folder_of(self.datasets, old))
        folder = folders.rename(self.datasets, old, name)
        follows = self.browser.editor.mask.renamed(old, folder.name, painted)
        return {self.naming: gr.Row(visible=False), **follows, **self._choose(folder.name)}

    def _delete(self, name: str) -> dict[Any, Any]:
        folder = folders.folder_of(self.datasets, name)
        self._refuse_while_used(folder)
        if not move_to_trash([folder], self.context.workspace.trash):  # deleted elsewhere just now
            raise DataError(f"{folders.gone(name)}.")
        gr.Info(f"{name} is in the trash folder now.")
        return self._choose(None)

    def _receive(self, *given: Any) -> dict[Any, Any]:
        *written, name, files = given
        known = folders.names(self.datasets)
        if name and name not in known:  # never into another one than the page shows
            raise DataError(f"{folders.gone(name)}, so nothing was added: choose another one and drop the files again.")
        # Pictures dropped onto an empty page need no dataset to be made first.
        name = name or (FIRST_NAME if FIRST_NAME in known else folders.create(self.datasets, FIRST_NAME).name)
        report = uploads.receive(self.datasets / name, [Path(file) for file in files or []])
        theirs = self.browser.editor.keep(Typed.of(*written))
        shown = self._choose(name)
        if theirs is not None:
            shown = self.browser.editor.staying(shown, theirs)
        return {self.upload: None, **shown, self.received: view.received(report)}

    def _act(self, name: str | None, event: gr.EventData) -> dict[Any, Any]:
        """A button of the empty state."""
        if event.pressed["act"] == "first-run":
            return self._first_run()
        if event.pressed["act"] == "sample":
            return self._choose(folders.add_sample(self.datasets).name)
        if event.pressed["act"] == "create":
            return self._choose(folders.create(self.datasets, FIRST_NAME).name)
        return self._choose(name)

    def _first_run(self) -> dict[Any, Any]:
        """Train what needs no pictures and no download."""
        services = self.context.services
        run = services.watch.start(presets.load(FIRST_RUN))
        gr.Info(f"{run.name} trains now, for about three minutes; its pictures come as it goes.", duration=8)
        return {self.context.shared["runs.selected"]: run.name, self.context.tabs: self.context.go_to("runs")}

    def _refuse_while_used(self, folder: Path) -> None:
        """Raise DataError while a job or a run reads the folder."""
        users = [WORDS[kind].lower() for kind in self.jobs.active(folder)]
        users += runs_on(folder, self.context.workspace.runs)
        if users:
            raise DataError(f"{folder.name} is in use by {', '.join(users)}: stop that first.")

    def _send_to_train(self, name: str, asked: str) -> dict[Any, Any]:
        folder = folders.folder_of(self.datasets, name)
        if not folders.count_images(folder):
            raise DataError(f"{name} has no images yet: upload some first.")
        filled: dict[Any, Any] = self.context.shared["train.tab"].take_dataset(folder, asked)
        return {**filled, self.context.tabs: self.context.go_to("train")}
