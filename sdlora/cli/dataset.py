"""Commands on datasets: check, fix, undo, edit, sheet, import. (The others have files of their own.)"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sdlora import atomic
from sdlora.cli.app import app, console, in_home
from sdlora.cli.early import require_files
from sdlora.cli.guesses import SettingsCommand, WholeCommand
from sdlora.cli.help import Commands
from sdlora.cli.progress import progress
from sdlora.cli.train import PresetOption, SetOption
from sdlora.config import files
from sdlora.errors import ConfigError, DataError
from sdlora.words import as_typed, wrong_ending

if TYPE_CHECKING:
    from sdlora.data.fix.changes import Change
    from sdlora.data.lint.findings import Finding, Report

dataset_app = typer.Typer(
    cls=Commands, help="Check, fix and show a dataset before training on it.", no_args_is_help=True
)
app.add_typer(dataset_app, name="dataset")

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_EXAMPLES = 3
_CHANGES_SHOWN = 50

FoldersArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="FOLDER...", help="Image folders; by default images.folder.")
]
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A dataset's folder.")]
ApplyOption = Annotated[bool, typer.Option("--apply", help="Make the changes; without it they are only shown.")]


@dataset_app.command("check", cls=SettingsCommand)
def check_command(
    folders: FoldersArgument = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Write the report as a page with small pictures.", callback=in_home),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it is there.")] = False,
) -> None:
    """Find what would make a run fail or a LoRA bad. Exit code 1 when there are errors."""
    from sdlora.data.lint.check import check

    require_files([], out=html, suffix=".html", force=force)
    config = files.load(preset, overrides or ())
    with progress("reading images") as on_progress:
        report = check(config, folders or (), on_progress=on_progress)
    if html is not None:
        from sdlora.data.lint.html import as_html

        atomic.write_text(html, as_html(report))
    if as_json:
        console.print_json(json.dumps(report.as_dict()))
    else:
        _show(report)
        if html is not None:
            console.print(f"wrote {html}", markup=False)
    if report.of("error"):
        raise typer.Exit(1)


@dataset_app.command("fix", cls=SettingsCommand)
def fix_command(
    folder: FolderArgument,
    rules: Annotated[
        str | None, typer.Option("--rules", "-r", help="Fixes to make, with commas between; or all.")
    ] = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    encoding: Annotated[str, typer.Option(help="What captions that aren't UTF-8 are written in.")] = "cp1252",
    apply_changes: ApplyOption = False,
) -> None:
    """Fix what `check` found; `undo` gives every byte back."""
    from sdlora.data.fix.fixes import plan_fixes
    from sdlora.data.lint.findings import FIXABLE

    config = files.load(preset, overrides or ())
    every = [name for name in FIXABLE if name != "trigger-missing" or config.captions.trigger]
    names = [name.strip() for name in (rules or "").split(",") if name.strip()]
    if not names:
        raise ConfigError(
            "the command line", [_which_fixes(folder, plan_fixes(folder, every, config, encoding=encoding))]
        )
    changes = plan_fixes(folder, every if names == ["all"] else names, config, encoding=encoding)
    _make_or_show(folder, changes, apply_changes)


@dataset_app.command("edit", cls=WholeCommand)
def edit_command(
    folder: FolderArgument,
    pattern: Annotated[str, typer.Argument(help="A regular expression, Python's syntax.")],
    replacement: Annotated[str, typer.Argument(help=r"What takes a match's place; \1 is the first group.")],
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i", help="Capitals don't matter.")] = False,
    apply_changes: ApplyOption = False,
) -> None:
    """Replace text in all captions; `undo` gives every byte back."""
    from sdlora.data.fix.edit import left_alone, plan_edit

    changes = plan_edit(folder, pattern, replacement, ignore_case=ignore_case)
    for sentence in left_alone(folder):
        console.print(f"left alone: {sentence}", markup=False)
    _make_or_show(folder, changes, apply_changes)


@dataset_app.command("undo")
def undo_command(folder: FolderArgument) -> None:
    """Take back the newest `fix`, `edit` or `caption` of a dataset; again for the one before."""
    from sdlora.data.fix.changes import undo

    undone = undo(folder)
    console.print(f"undone: {len(undone.files)} changes of {undone.change_set}", markup=False)


@dataset_app.command("sheet", cls=SettingsCommand)
def sheet_command(
    folders: FoldersArgument = None,
    preset: PresetOption = None,
    overrides: SetOption = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The PNG to write.", callback=in_home),
    ] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(min=1, max=50, help="Images in a row.")] = 6,
    most: Annotated[int, typer.Option(min=1, max=2000, help="Images at most.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Show all images in one picture, with the crops and captions they are trained with, masks tinted."""
    require_files([], out=out, suffix=".png", force=force)
    from sdlora.data.sheet import draw_sheet

    sheet = draw_sheet(files.load(preset, overrides or ()), folders or (), columns=columns, most=most)
    with atomic.writing(out, large=True) as file:
        sheet.save(file, "PNG")
    console.print(f"wrote {out} ({sheet.width}x{sheet.height} px)", markup=False)


@dataset_app.command("import")
def import_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Settings, metadata or folder of another trainer, or a LoRA file that tells its own; or .tar and "
            ".parquet files of a dataset: one, a folder of them, or a pattern such as set-{000..012}.tar.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The YAML to write, else printed; for shards the new folder.", callback=in_home
        ),
    ] = None,
    captions_for: Annotated[
        Path | None,
        typer.Option(
            "--captions-for", help="Write the captions of a metadata file beside these images.", callback=in_home
        ),
    ] = None,
    caption_column: Annotated[
        str | None,
        typer.Option("--caption-column", help="Parquet: column of captions; by default text or caption."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the YAML that is there already.")] = False,
) -> None:
    """Take over settings of kohya_ss, sd-scripts, OneTrainer and others; unpack webdataset and parquet files."""
    from sdlora.data.packed.unpack import packed_files
    from sdlora.imports.read import import_settings, is_settings_folder

    if not is_settings_folder(source) and packed_files(source):
        if captions_for is not None:
            problem = f"--captions-for has no effect: {source} holds images with their captions, which go to --out"
            raise ConfigError("the command line", [problem])
        _unpack(source, out, caption_column)
        return
    if caption_column is not None:
        raise ConfigError("the command line", [f"--caption-column is for .parquet files, and {source} is none"])
    if out is not None and (wrong := wrong_ending(out, ".yaml", ".yml")):
        raise ConfigError("the command line", [wrong])
    imported = import_settings(source)
    if out is None:
        console.print(imported.as_yaml(), markup=False)
    else:
        if out.exists() and not force:
            raise ConfigError(str(out), ["it is there already; --force replaces it"])
        atomic.write_text(out, imported.as_yaml())
        for sentence in imported.changed:
            console.print(f"changed: {sentence}", markup=False)
        for sentence in imported.lost:
            console.print(f"not taken over: {sentence}", markup=False)
        if imported.assumed:
            console.print(f"not in the file, so as by default there: {', '.join(imported.assumed)}", markup=False)
        if imported.without_effect:
            console.print(f"without effect here: {', '.join(imported.without_effect)}", markup=False)
        console.print(f"wrote {out}, read as {imported.tool}", markup=False)
    if captions_for is not None:
        from sdlora.data.fix.caption_import import plan_captions
        from sdlora.data.unread import some
        from sdlora.words import count

        planned = plan_captions(captions_for, imported.captions)
        _make_or_show(captions_for, planned.changes, apply_changes=True)
        for name in planned.unknown:
            console.print(f"no image: {name}", markup=False)
        for name, why in planned.unclear.items():
            console.print(f"unclear, so not taken over: {name}: {why}", markup=False)
        if planned.kept:
            files = f"{count(len(planned.kept), 'image')} with another caption in a .txt file, which stays"
            console.print(f"{files}: {some(planned.kept)}", markup=False)


def _unpack(source: Path, out: Path | None, caption_column: str | None) -> None:
    from sdlora.data.packed.unpack import packed_files, unpack
    from sdlora.words import count

    if out is None:
        raise ConfigError("the command line", [f"{source} is unpacked into a folder of images: name it with --out"])
    if caption_column is not None and not any(path.suffix == ".parquet" for path in packed_files(source)):
        words = "--caption-column has no effect: captions in tar files stand in files beside the images"
        raise ConfigError("the command line", [words])
    with progress("unpacking (MiB)") as on_progress:
        result = unpack(source, out, caption_column=caption_column, on_progress=on_progress)
    for sample in result.unusable[:_CHANGES_SHOWN]:
        console.print(f"left out: {sample.name}: {sample.reason}", markup=False)
    if result.num_unusable > _CHANGES_SHOWN:
        console.print(f"and {result.num_unusable - _CHANGES_SHOWN} more")
    for sentence in result.notes:
        console.print(f"note: {sentence}", markup=False)
    if result.with_others.number:
        console.print(
            f"note: {count(result.with_others.number, 'image')} with several captions, of which the first of .txt, "
            f".caption, .json and of text, caption, prompt is taken: {result.with_others}",
            markup=False,
        )
    for reason, files_of_it in result.unused.items():
        console.print(f"not used: {count(files_of_it.number, 'file')}, {reason}: {files_of_it}", markup=False)
    counts = {
        "images unpacked": result.images,
        "unpacked before the interruption": result.before,
        "without a caption": result.uncaptioned,
        "left out": result.num_unusable,
        "files not used": sum(files_of_it.number for files_of_it in result.unused.values()),
    }
    console.print(", ".join(f"{number} {what}" for what, number in counts.items() if number) or "no images in it")
    if not result.images + result.before:
        raise DataError(f"{source} holds no image that can be used; nothing is in {out}")
    console.print(f"train on them with --set {as_typed(f'images.folder={out}')}", markup=False)


def _show(report: Report) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "rule", "files", "what"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "files" else "left")
    by_rule: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        by_rule[finding.rule].append(finding)
    for rule, findings in by_rule.items():
        paths = list(dict.fromkeys(path for finding in findings for path in finding.files))
        severity = findings[0].severity
        lines = [finding.message for finding in findings[:_EXAMPLES]]
        lines += [f"(and {len(findings) - _EXAMPLES} more like it)"] if len(findings) > _EXAMPLES else []
        if paths:
            names = ", ".join(report.name(path) for path in paths[:_EXAMPLES])
            lines.append(names + (f" and {len(paths) - _EXAMPLES} more" if len(paths) > _EXAMPLES else ""))
        lines += [f"fix: --rules {findings[0].fix}"] if findings[0].fix else []
        count = str(len(paths)) if paths else ""
        table.add_row(f"[{_COLOURS[severity]}]{severity}[/]", rule, count, escape("\n".join(lines)))
    if report.findings:
        console.print(table)
    console.print(report.summary, markup=False)


def _which_fixes(folder: Path, changes: Sequence[Change]) -> str:
    """What to write where no rules are given; changes: those that all fixes would make."""
    counts = Counter(rule for change in changes for rule in change.rules)
    apply_here = ", ".join(f"{rule} ({count} change{'' if count == 1 else 's'})" for rule, count in counts.items())
    here = f"in {folder} apply: {apply_here}" if counts else f"in {folder} none has anything to change"
    return f"say which fixes to make with --rules, commas between them, or --rules all; {here}"


def _make_or_show(folder: Path, changes: list[Change], apply_changes: bool) -> None:
    from sdlora.data.fix.changes import apply

    root = folder.expanduser().resolve()
    for change in changes[:_CHANGES_SHOWN]:
        what = f"{', '.join(change.rules)}: {change.path.relative_to(root)}: {change.summary}"
        console.print(what, markup=False)
    if len(changes) > _CHANGES_SHOWN:
        console.print(f"and {len(changes) - _CHANGES_SHOWN} more")
    if not changes:
        console.print("nothing to change")
    elif apply_changes:
        trash = apply(folder, changes)
        console.print(f"{len(changes)} changes made; originals are in {trash}", markup=False)
        console.print(f"{as_typed('sdlora', 'dataset', 'undo', folder)} takes them back", markup=False)
    else:
        console.print(f"{len(changes)} changes would be made; add --apply to make them")
