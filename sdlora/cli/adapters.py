"""Commands on finished adapters: inspect, mix, merge, extract, resize, convert, push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdlora.cli.app import app, console, in_home
from sdlora.cli.early import require_files
from sdlora.cli.guesses import WholeCommand
from sdlora.cli.progress import progress
from sdlora.config import files
from sdlora.config.base_model import FamilyName, Precision
from sdlora.config.calls import ExtractAdapter, Layout, ResizeAdapter
from sdlora.config.mix import MixConfig, MixedAdapter, MixMethod, parse_adapters
from sdlora.constants import MIB
from sdlora.errors import ConfigError
from sdlora.runs.folder import run_meant

if TYPE_CHECKING:
    from sdlora.adapters.algebra.making import Made
    from sdlora.adapters.files.embeddings import Embedding
    from sdlora.adapters.files.writing import Export

_SUFFIX = ".safetensors"

AdaptersArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE:WEIGHT...",
        help="Adapters with weights, for example a.safetensors:0.8 b.safetensors:unet=0.6,te=0,blocks=OUTD. "
        "FILE may lie on the hub: hf://owner/name/file.",
    ),
]
FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="An adapter file, or hf://owner/name/file.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The file to write.", callback=in_home)]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Base model: folder, .safetensors file, builtin:... or a hub name.")
]
RankOption = Annotated[int | None, typer.Option("--rank", min=1, help="Rank of every layer.")]
EnergyOption = Annotated[
    float | None, typer.Option("--energy", help="Share of each layer's sum of squares to keep, such as 0.99.")
]
PrecisionOption = Annotated[Precision | None, typer.Option("--precision", help="Number type of the written weights.")]
FamilyOption = Annotated[FamilyName | None, typer.Option("--family", help="Family, for files that don't tell it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(
    file: FileArgument,
    other: Annotated[str | None, typer.Argument(help="Another adapter to compare with.")] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
    chart: Annotated[
        Path | None,
        typer.Option("--chart", help="Draw a bar chart by block into this PNG.", callback=in_home),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what the file says, no analysis.")] = False,
    family: FamilyOption = None,
    force: ForceOption = False,
) -> None:
    """Show what an adapter is, how strong it is and where; with two, how far they agree."""
    require_files([file, other], [base], out=chart, suffix=".png", force=force)
    from sdlora.adapters.algebra.analysis import analyse
    from sdlora.adapters.algebra.comparison import compare
    from sdlora.adapters.files.embeddings import embeddings_in
    from sdlora.adapters.files.reading import read_all
    from sdlora.adapters.hub.chart import save_chart
    from sdlora.adapters.hub.inspection import inspect as describe

    if quick and (chart or other):
        raise ConfigError("the command line", ["--quick does no analysis, so --chart and a second file go without it"])
    if other is None and (embeddings := embeddings_in(file)):
        if chart is not None:
            raise ConfigError("the command line", [f"--chart: {file} is an embedding, which has no blocks to draw"])
        _show_embeddings(embeddings, base, as_json=as_json)
        return
    adapters = read_all([name for name in (file, other) if name is not None], family)
    base_weight = None
    if base is not None:
        from sdlora.adapters.algebra.making import open_fitting_base

        model, adapters = open_fitting_base(base, adapters)
        base_weight = model.weight
    facts = [describe(adapter) for adapter in adapters]
    result: dict[str, Any] = {"files": [one.as_dict() for one in facts]}
    texts = [one.as_text() for one in facts]
    bars: list[tuple[str, float]] = []
    if len(adapters) == 2:
        with progress("comparing") as on_progress:
            comparison = compare(adapters[0], adapters[1], base_weight, on_progress)
        result["comparison"], title = comparison.as_dict(), f"cosine of {facts[0].name} and {facts[1].name}"
        texts.append(comparison.as_text())
        bars = [(block.block, block.cosine) for block in comparison.blocks]
    elif not quick:
        with progress("analysing") as on_progress:
            analysis = analyse(adapters[0], base_weight, on_progress)
        result["analysis"], title = analysis.as_dict(), f"||dW|| of {facts[0].name}"
        texts.append(analysis.as_text())
        bars = [(block.block, block.norm) for block in analysis.blocks]
    if chart is not None:
        save_chart(bars, title, chart, force=force)
        texts.append(f"chart written to {chart}")
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        console.print("\n\n".join(texts), markup=False)


def _show_embeddings(embeddings: list[Embedding], base: str | None, *, as_json: bool) -> None:
    from sdlora.adapters.hub.embedding_facts import embedding_facts

    facts = [embedding_facts(embedding, base) for embedding in embeddings]
    if as_json:
        told = facts[0].as_dict() if len(facts) == 1 else {"embeddings": [one.as_dict() for one in facts]}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        console.print("\n\n".join(one.as_text() for one in facts), markup=False)


@app.command(cls=WholeCommand)
def mix(
    out: OutOption,
    adapters: AdaptersArgument = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A YAML file with the mix's settings.", callback=in_home),
    ] = None,
    method: Annotated[MixMethod | None, typer.Option("--method", help="How; concat is the exact sum.")] = None,
    rank: RankOption = None,
    energy: EnergyOption = None,
    density: Annotated[float | None, typer.Option("--density", help="ties, dare: share of values kept.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="dare: seed of the random choice.")] = None,
    base: BaseOption = None,
    precision: PrecisionOption = None,
    family: FamilyOption = None,
    errors: Annotated[bool, typer.Option("--errors", help="List every layer's relative error.")] = False,
    force: ForceOption = False,
) -> None:
    """Mix adapters into one: the exact weighted sum of their updates, or an approximation with its error."""
    values = files.read_yaml(config) if config else {}
    if adapters:
        given_adapters = [adapter.model_dump() for adapter in parse_adapters(adapters, MixedAdapter)]
        if values.get("adapters"):
            words = f"note: the adapters that {config} names are not mixed: those given here take their place"
            console.print(words, markup=False)
        values["adapters"] = given_adapters
    given = {
        "method": method,
        "rank": rank,
        "energy": energy,
        "density": density,
        "seed": seed,
        "base_model": base,
        "precision": precision,
        "family": family,
    }
    values |= {name: value for name, value in given.items() if value is not None}
    settings = files.validate(values, str(config or "the command line"), MixConfig)
    named = [adapter.file for adapter in settings.adapters]
    require_files(named, [settings.base_model], out=out, suffix=_SUFFIX, force=force)
    # After the check: a wrong setting is told at once, without the seconds that loading torch takes.
    from sdlora.adapters.algebra.making import mix_adapters

    with progress("mixing") as on_progress:
        made = mix_adapters(settings, out, force=force, on_progress=on_progress)
    _show_made(made, errors=errors)


@app.command(cls=WholeCommand)
def merge(
    adapters: AdaptersArgument,
    base: Annotated[str, typer.Option("--base", help="Base model: folder, .safetensors file or a hub name.")],
    out: OutOption,
    force: ForceOption = False,
) -> None:
    """Bake adapters into a base model: a folder becomes a folder, a single file a single file."""
    weighted = parse_adapters(adapters or (), MixedAdapter)
    suffix = _SUFFIX if Path(base).is_file() else None  # a folder of diffusers becomes a folder
    require_files([adapter.file for adapter in weighted], [base], out=out, suffix=suffix, force=force)
    from sdlora.adapters.algebra.making import merge_adapters

    with progress("merging") as on_progress:
        merged = merge_adapters(base, weighted, out, force=force, on_progress=on_progress)
    console.print(f"{merged.path}: {len(merged.changed)} layers changed", markup=False)
    if merged.unplaced:
        listed = ", ".join(merged.unplaced[:3])
        console.print(f"note: the model has not {len(merged.unplaced)} layers of the adapters: {listed}", markup=False)
    for note in merged.notes:
        console.print(f"note: {note}", markup=False)


@app.command(cls=WholeCommand)
def extract(
    tuned: Annotated[str, typer.Option("--tuned", help="The tuned model: folder, .safetensors file or hub name.")],
    base: Annotated[str, typer.Option("--base", help="The model it was tuned from.")],
    out: OutOption,
    rank: RankOption = None,
    conv_rank: Annotated[
        int | None, typer.Option("--conv-rank", min=0, help="Rank of convolutions; 0 leaves them out.")
    ] = None,
    energy: EnergyOption = None,
    precision: PrecisionOption = "fp16",
    errors: Annotated[bool, typer.Option("--errors", help="List every layer's relative error.")] = False,
    force: ForceOption = False,
) -> None:
    """Make an adapter of the difference of two models."""
    given = {"tuned": tuned, "base": base, "target": out, "rank": rank, "conv_rank": conv_rank, "energy": energy}
    files.validate(given, "the command line", ExtractAdapter)
    require_files([], [tuned, base], out=out, suffix=_SUFFIX, force=force)
    from sdlora.adapters.algebra.extract import Ranks
    from sdlora.adapters.algebra.making import extract_adapter

    ranks = Ranks(rank or Ranks.rank, conv_rank, energy)
    with progress("extracting") as on_progress:
        made = extract_adapter(
            tuned, base, out, ranks, precision=precision or "fp16", force=force, on_progress=on_progress
        )
    _show_made(made, errors=errors)


@app.command(cls=WholeCommand)
def resize(
    file: FileArgument,
    out: OutOption,
    rank: RankOption = None,
    energy: EnergyOption = None,
    precision: PrecisionOption = None,
    family: FamilyOption = None,
    errors: Annotated[bool, typer.Option("--errors", help="List every layer's relative error.")] = False,
    force: ForceOption = False,
) -> None:
    """Cut an adapter to a smaller rank, or to what keeps a share of every layer's energy."""
    given = {"source": file, "target": out, "rank": rank, "energy": energy}
    files.validate(given, "the command line", ResizeAdapter)
    require_files([file], out=out, suffix=_SUFFIX, force=force)
    from sdlora.adapters.algebra.making import resize_adapter

    with progress("resizing") as on_progress:
        made = resize_adapter(
            file,
            out,
            rank=rank,
            energy=energy,
            precision=precision,
            family=family,
            force=force,
            on_progress=on_progress,
        )
    _show_made(made, errors=errors)


@app.command(cls=WholeCommand)
def convert(
    file: FileArgument,
    out: OutOption,
    to: Annotated[Layout, typer.Option("--to", help="The layout to write.")],
    precision: PrecisionOption = None,
    family: FamilyOption = None,
    force: ForceOption = False,
) -> None:
    """Write an adapter in kohya's or diffusers' layout; the effective weights stay the same to the last bit."""
    require_files([file], out=out, suffix=_SUFFIX, force=force)
    from sdlora.adapters.algebra.convert import convert as convert_file

    _show_export(convert_file(file, out, to, precision=precision, family=family, force=force))


@app.command()
def push(
    source: Annotated[
        Path | None, typer.Argument(metavar="FILE|RUN", help="An adapter file, or a run's folder.")
    ] = None,
    repository: Annotated[
        str | None, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub; --dry-run needs none.")
    ] = None,
    base_model: Annotated[str | None, typer.Option("--base", help="Hub name of the base model, for the card.")] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Licence, for the card.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card and the files, upload nothing.")] = False,
) -> None:
    """Upload an adapter to the Hugging Face hub with a model card and preview pictures."""
    missing = ["FILE|RUN: what to upload, an adapter file or a run's folder"] if source is None else []
    if repository is None and not dry_run:
        missing.append("OWNER/NAME: the repository on the hub; --dry-run shows everything without one")
    if source is None or missing:
        raise ConfigError("the command line", [f"there is no {text}" for text in missing])
    if not source.expanduser().exists():
        raise ConfigError(str(source), [f"there is no such file or run folder; {run_meant(source)}"])
    from sdlora.adapters.hub.publishing import prepare
    from sdlora.adapters.hub.publishing import push as upload

    publication = prepare(
        source.expanduser(), repository or "OWNER/NAME", base_model=base_model, license_name=license_name
    )
    if publication.base_model is None:
        note = "note: the card links no base model, since the file names none on the hub; --base OWNER/NAME sets it"
        console.print(note, markup=False)
    if dry_run:
        console.print(publication.card, markup=False)
        console.print("files: README.md, " + ", ".join(publication.files), markup=False)
    else:
        console.print(upload(publication, private=private), markup=False)


def _show_made(made: Made, *, errors: bool) -> None:
    from sdlora.adapters.algebra.mix import summary

    result = made.result
    if errors:
        for layer in result.layers:
            console.print(f"{layer.relative_error:9.2e}  rank {layer.rank:<4} {layer.name}", markup=False)
    console.print(summary(result.modules, result.vectors), markup=False)
    console.print(
        f"relative error {result.relative_error:.2e} in total, {result.worst.relative_error:.2e} in the worst layer "
        f"({result.worst.name})"
        if result.relative_error
        else "exact, up to rounding",
        markup=False,
    )
    for note in result.notes:
        console.print(f"note: {note}", markup=False)
    _show_export(made.export)


def _show_export(export: Export) -> None:
    for warning in export.warnings:
        console.print(f"note: {warning}", markup=False)
    console.print(f"{export.path}: {export.size_bytes / MIB:.1f} MiB, hash {export.model_hash[:12]}", markup=False)
