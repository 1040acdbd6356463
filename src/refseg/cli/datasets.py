"""`refseg data prepare`, `verify` and `audit`: the published datasets, from whatever copy the user has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.files import ensure_writable
from refseg.errors import RefsegError

Name = Annotated[str, typer.Argument(metavar="DATASET", help="unc, unc+, gref-umd, gref-google or referit.")]
Root = Annotated[
    Path,
    typer.Option(envvar="REFSEG_DATA", help="The folder that holds your datasets and photographs."),
]


def prepare(
    dataset: Name,
    root: Root,
    out: Annotated[
        Path | None, typer.Option(help="The table to write; by default unc.jsonl or unc-val.jsonl.", show_default=False)
    ] = None,
    split: Annotated[
        str, typer.Option(help="One split, for example val; by default all, trainval apart.", show_default=False)
    ] = "",
) -> None:
    """Writes the expression table of a published dataset: one row per expression, with its mask.

    What cannot be used is counted and listed. Photographs stay where they are; those inside parquet files are
    unpacked beside the table.

    \b
    refseg data prepare unc --root datasets --out unc.jsonl
    refseg data prepare gref-google --root datasets --split val
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


def verify(dataset: Name, root: Root) -> None:
    """Compares your copy with the published dataset: files, counts per split, photographs, masks.

    Prints what is missing and where to get it. The exit code is 0 only if nothing differs.

    \b
    refseg data verify unc --root datasets
    """
    from refseg.data.published.audit import verify as check
    from refseg.data.published.catalogue import find_dataset
    from refseg.data.sources import cache_folder, read_dataset

    report = check(read_dataset(find_dataset(dataset), root, cache_folder() / "photographs"))
    typer.echo(report.to_text())
    if not report.sound:
        raise typer.Exit(1)


def audit(
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="Two datasets or more, or one alone.")],
    root: Root,
) -> None:
    """Reports photographs that a training split shares with an evaluation split, within and across datasets.

    A model trained on the one and scored on the other has seen the answers' photographs. Needs no photographs.

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
    for one in found:
        typer.echo(
            f"{one.training:<20}{one.evaluation:<18}{len(one.photographs):>18,}{one.share:>17.1%}{one.expressions:>13,}"
        )
