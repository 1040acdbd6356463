"""`refseg data`: expressions and scenes to train on, and the published datasets from whatever copy the user has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.files import ensure_writable
from refseg.errors import RefsegError

data = typer.Typer(name="data", no_args_is_help=True, help="Makes data to train on, and reads published datasets.")

Name = Annotated[str, typer.Argument(metavar="DATASET", help="unc, unc+, gref-umd, gref-google, referit or grefcoco.")]
Root = Annotated[
    Path,
    typer.Option(envvar="REFSEG_DATA", help="The folder with your datasets and photographs."),
]


@data.command(no_args_is_help=True)
def expressions(
    instances: Annotated[Path, typer.Argument(help="Segments in COCO format, for example instances.json.")],
    out: Annotated[Path, typer.Option(help="The table to write, for example table.jsonl.")],
    images: Annotated[
        Path | None,
        typer.Option(help="The folder of the photographs. By default images/, next to the instances."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed chooses other expressions.")] = 0,
    per_photo: Annotated[int, typer.Option(min=1, help="The most expressions for one photograph.")] = 40,
    split: Annotated[str, typer.Option(help="A name that every row carries, for example val.")] = "",
    sentences: Annotated[
        Path | None,
        typer.Option(
            help="Use these sentences and write none: JSON lines with image_id, annotations (ids) and expression."
        ),
    ] = None,
) -> None:
    """Writes referring expressions for segments that have none.

    Each expression is true of its segment and of no other segment in the photograph.
    Masks and pixels decide that.

    \b
    refseg data expressions instances.json --images photos --out table.jsonl
    refseg data expressions instances.json --sentences typed.jsonl --out table.jsonl
    """
    from refseg.data.expressions.generate import generate, statistics
    from refseg.data.expressions.typed import typed_rows
    from refseg.data.table import write_table

    ensure_writable(out.parent)
    if sentences is None:
        rows = list(generate(instances, images, seed=seed, per_photo=per_photo, split=split))
    else:
        rows = list(typed_rows(instances, sentences, images, split=split))
    if not rows:
        raise RefsegError(f"{instances} yields no expressions; it needs photographs with labelled segments")
    write_table(out, rows)
    counts = statistics(rows)
    typer.echo(
        f"{out}: {counts.expressions} expressions of {counts.referents} referents in {counts.photographs} photos"
    )
    typer.echo(
        f"{counts.with_siblings:.0%} of the expressions mean something that has a sibling of its label in the photo"
    )
    typer.echo(f"{counts.words_per_expression:.1f} words per expression, {counts.vocabulary} distinct words")
    for kind, count in counts.kinds.items():
        typer.echo(f"  {kind:<10}{count:>8}")


@data.command(no_args_is_help=True)
def scenes(
    out: Annotated[Path, typer.Option(help="The folder to write, for example scenes.")],
    count: Annotated[int, typer.Option(min=1, help="The number of scenes.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed renders other scenes.")] = 0,
) -> None:
    """Renders scenes of coloured shapes, with their segments.

    \b
    refseg data scenes --out scenes --count 500
    refseg data expressions scenes/instances.json --out scenes/table.jsonl
    """
    from refseg.data.rendered import render

    typer.echo(render(out, count, seed))


@data.command(no_args_is_help=True)
def prepare(
    dataset: Name,
    root: Root,
    out: Annotated[
        Path | None,
        typer.Option(help="The table to write. By default unc.jsonl or unc-val.jsonl.", show_default=False),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="Only this split, for example val. By default all but trainval.", show_default=False),
    ] = "",
) -> None:
    """Writes a published dataset as a table: one row per expression.

    Rows that cannot be used are counted and listed.
    Photographs stay where they are; those inside parquet files are unpacked next to the table.

    \b
    refseg data prepare unc --root datasets --out unc.jsonl
    refseg data prepare gref-google --root datasets --split val

    The exit code is 1 if some rows could not be used.
    """
    from refseg.data.published.audit import skip_lines
    from refseg.data.published.catalogue import find_dataset
    from refseg.data.published.referents import make_rows
    from refseg.data.sources import check_partition, read_dataset
    from refseg.data.table import write_table

    known = find_dataset(dataset)
    if split:
        known.check_split(split)
    path = out or Path(f"{known.name}-{split}.jsonl" if split else f"{known.name}.jsonl")
    ensure_writable(path.parent)
    copy = read_dataset(known, root, path.parent / "photographs")
    rows, skips = [], []
    for name in [split] if split else [name for name in known.splits if name != "trainval"]:
        check_partition(copy, name)
        more, unusable = make_rows(copy, name)
        rows += more
        skips += unusable
        typer.echo(
            f"{known.name}:{name}  {len(more):,} expressions in {len({row.image for row in more}):,} photographs"
        )
    for line in [*copy.notes, *skip_lines(skips)]:
        typer.echo(line, err=True)
    if not rows:
        raise RefsegError(f"nothing of {known.title} can be used; see: refseg data verify {known.name} --root {root}")
    typer.echo(f"{path}: {write_table(path, rows):,} rows")
    if skips:
        raise typer.Exit(1)


@data.command(no_args_is_help=True)
def parse(
    table: Annotated[Path, typer.Argument(help="The table, for example unc-train.jsonl.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The table to write. By default the same.", show_default=False),
    ] = None,
    parser: Annotated[str, typer.Option(help="A pipeline of spaCy: its name or its folder.")] = "en_core_web_sm",
) -> None:
    """Writes the dependency tree of each expression into a table.

    LSCM and BUSNet read such trees. With them in the table, training and evaluation need no parser.

    \b
    refseg data parse unc-train.jsonl

    It needs pip install 'refseg[parse]', and once: python -m spacy download en_core_web_sm
    """
    import dataclasses

    from refseg.data.parses import all_words, spacy_trees
    from refseg.data.table import read_table, write_table

    rows = read_table(table)
    path = out or table
    ensure_writable(path.parent)
    sentences = list(dict.fromkeys(all_words(row.expression) for row in rows))
    trees = dict(zip(sentences, spacy_trees(sentences, parser), strict=True))
    parsed = [dataclasses.replace(row, heads=trees[all_words(row.expression)] or ()) for row in rows]
    without = sum(not row.heads for row in parsed)
    typer.echo(f"{path}: {write_table(path, parsed):,} rows, {without:,} of them without a tree")


@data.command(no_args_is_help=True)
def verify(dataset: Name, root: Root) -> None:
    """Compares your copy of a dataset with the published one.

    Looks at files, counts per split, photographs and masks. Prints what is missing and where to get it.

    \b
    refseg data verify unc --root datasets

    The exit code is 0 only if nothing differs.
    """
    from refseg.data.published.audit import verify as check
    from refseg.data.published.catalogue import find_dataset
    from refseg.data.sources import read_dataset
    from refseg.files import cache_folder

    comparison = check(read_dataset(find_dataset(dataset), root, cache_folder() / "photographs"))
    typer.echo(comparison.to_text())
    if not comparison.sound:
        raise typer.Exit(1)


@data.command(no_args_is_help=True)
def audit(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="One or more datasets.")],
    root: Root,
) -> None:
    """Lists photographs shared by training and evaluation splits.

    Looks within and across datasets.
    A model that was trained on one and is scored on the other has seen those photographs before.
    The photographs themselves are not needed.

    \b
    refseg data audit unc unc+ gref-umd gref-google --root datasets
    """
    from refseg.data.published.audit import overlaps
    from refseg.data.published.catalogue import find_dataset
    from refseg.data.sources import read_dataset

    names = dict.fromkeys(find_dataset(name).name for name in datasets)
    found = overlaps([read_dataset(find_dataset(name), root) for name in names])
    if not found:
        typer.echo(f"no photograph is shared between training and evaluation of {', '.join(names)}")
        return
    typer.echo(
        f"{'trained on':<20}{'scored on':<18}{'shared photographs':>18}{'of those scored':>17}{'expressions':>13}"
    )
    for overlap in found:
        typer.echo(
            f"{overlap.training:<20}{overlap.evaluation:<18}{len(overlap.photographs):>18,}"
            f"{overlap.share:>17.1%}{overlap.expressions:>13,}"
        )
