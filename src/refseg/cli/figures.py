"""`refseg figure`: the paper's figures 4 to 7, for any model and photograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refseg.cli.arguments import SHIPPED, Device, Model, Threads, load_model
from refseg.cli.files import ensure_writable
from refseg.errors import RefsegError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from refseg.data.table import Row
    from refseg.segmentation import Segmentation
    from refseg.segmenter import EncodedPhoto

figure = typer.Typer(
    name="figure", no_args_is_help=True, help="Draws figures for a paper: models, sentences, attention."
)

Photo = Annotated[Path, typer.Argument(help="A photograph.", show_default=False)]
Out = Annotated[
    Path,
    typer.Option(help="The figure to write, .png or .svg. It is one column (3.3 inches) wide.", show_default=False),
]


@figure.command(no_args_is_help=True)
def compare(
    out: Out,
    photo: Annotated[Path | None, typer.Argument(help="A photograph.", show_default=False)] = None,
    expressions: Annotated[
        list[str] | None, typer.Argument(metavar="EXPRESSION...", help="Sentences about it.", show_default=False)
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model, or NAME=MODEL to print another name. Repeat it.", show_default="shipped"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Data as for `refseg evaluate`, in place of a photograph.", show_default=False),
    ] = None,
    row: Annotated[
        list[int] | None,
        typer.Option(min=0, help="The number of a row of that data, from 0. Repeat it.", show_default=False),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Draws several models side by side, one row per sentence (figures 4 and 5 of the paper).

    \b
    refseg figure compare street.jpg "the red bag" --out 4.svg \\
        --model Baseline=runs/baseline --model SHNet=runs/shnet
    refseg figure compare --data unc:val --row 17 --row 204 --out 5.png \\
        --model HCAM=runs/only-hcam --model SHNet=runs/shnet

    The first column is the photograph. With --row it is the true mask.
    Rows have the numbers that a report of `refseg evaluate` gives them.
    """
    from refseg.words import clean_expression

    rows = _rows(data or [], row or [], photo)
    if not rows and (photo is None or not expressions):
        raise RefsegError("there is nothing to compare on; give a photograph and a sentence, or --data and --row")
    asked = [(known.image, known.expression) for known in rows]
    asked += [(photo, sentence) for sentence in expressions or [] if photo]
    asked = [(file, clean_expression(sentence)) for file, sentence in asked]
    _check(out, [file for file, _ in asked])
    from refseg.evaluation import figures

    answers: dict[str, list[Segmentation]] = {}
    for name, place in _names(model or [SHIPPED]).items():
        segmenter = load_model(place, device, threads=threads)
        encoded = {file: segmenter.encode(file) for file in dict.fromkeys(file for file, _ in asked)}
        for known in rows:
            _check_size(known, encoded[known.image])
        answers[name] = [segmenter.segment(encoded[file], [sentence])[0] for file, sentence in asked]
        _tell(answers[name], f"{name}: ")
    _write(figures.compare(answers, [known.mask() for known in rows] if rows else None), out)


@figure.command(no_args_is_help=True)
def anchor(
    photo: Photo,
    expressions: Annotated[list[str], typer.Argument(metavar="EXPRESSION...", help="Sentences about it.")],
    out: Out,
    model: Model = SHIPPED,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Draws what each of several sentences finds in one photograph (figure 6).

    \b
    refseg figure anchor street.jpg "the red bag" "the left shoe" "her hair" --out anchor.svg
    """
    from refseg.words import clean_expression

    expressions = [clean_expression(sentence) for sentence in expressions]
    _check(out, [photo])
    from refseg.evaluation import figures

    answers = load_model(model, device, threads=threads)(photo, expressions)
    _tell(answers)
    _write(figures.anchor(answers), out)


@figure.command(no_args_is_help=True)
def attention(
    photo: Photo,
    expression: Annotated[str, typer.Argument(help="A sentence about it.", show_default=False)],
    out: Out,
    level: Annotated[int, typer.Option(min=2, max=4, help="The visual level. 2 is the finest, 4 the deepest.")] = 4,
    layer: Annotated[
        int | None, typer.Option(min=1, help="The layer of SFM, from 1. By default the last.", show_default=False)
    ] = None,
    model: Model = SHIPPED,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Draws what attends to what inside SFM: pixels, words, and a map for each word (figure 7).

    Attention is the mean over the heads. It shows how pixels and words are weighted, not why a mask is as it is.

    \b
    refseg figure attention street.jpg "the shoe on the left" --out attention.svg
    refseg figure attention street.jpg "the shoe on the left" --level 3 --layer 1 --out attention.png
    """
    from refseg.words import clean_expression

    expression = clean_expression(expression)
    _check(out, [photo])
    from refseg.evaluation import figures

    segmenter = load_model(model, device, threads=threads)
    encoded = segmenter.encode(photo)
    words, shares = segmenter.attention(encoded, expression)
    layers = shares.shape[1]
    if layer is not None and layer > layers:
        raise RefsegError(f"this model's SFM has no layer {layer}; give 1 to {layers}")
    answers = segmenter.segment(encoded, [expression])
    _tell(answers)
    _write(figures.attention(answers[0], words, shares[level - 2, (layer or layers) - 1]), out)
    typer.echo(
        f"level {level}, layer {layer or layers} of {layers}, mean of the heads; "
        "each map and the matrix from 0 to its own highest share"
    )


def _rows(data: Sequence[str], numbers: Sequence[int], photo: Path | None) -> list[Row]:
    """The rows with these numbers, counted through all the data."""
    if not data and not numbers:
        return []
    if photo is not None or not data or not numbers:
        raise RefsegError("--data and --row belong together, in place of a photograph and its sentences")
    from refseg.data.sources import load_rows

    rows = [row for spec in data for row in load_rows(spec)]
    for number in numbers:
        if number >= len(rows):
            raise RefsegError(f"row {number} is not in the data; its rows are 0 to {len(rows) - 1}")
    return [rows[number] for number in numbers]


def _names(models: Sequence[str]) -> dict[str, str]:
    """Models by the name to print: runs/shnet is "shnet", SHNet=runs/shnet is "SHNet"."""
    named: dict[str, str] = {}
    for model in models:
        name, sign, place = model.partition("=")
        if not sign or Path(model).exists():
            name, place = Path(model).name or model, model
        if not name or name in named:
            raise RefsegError(f"two models cannot share the name {name!r}; write --model NAME=MODEL")
        named[name] = place
    return named


def _check(out: Path, photos: Sequence[Path]) -> None:
    """What can be known to fail before a model is loaded."""
    from refseg.evaluation.figures import SUFFIXES
    from refseg.evaluation.plots import need_matplotlib

    if out.suffix.lower() not in SUFFIXES:
        raise RefsegError(f"--out {out} must end in .png or .svg")
    if out.is_dir() or out.resolve() in {photo.resolve() for photo in photos}:
        raise RefsegError(f"--out {out} is a {'folder' if out.is_dir() else 'photograph'} already; name another file")
    need_matplotlib()
    ensure_writable(out.parent)


def _check_size(row: Row, encoded: EncodedPhoto) -> None:
    if encoded.size != (row.height, row.width):
        raise RefsegError(
            f"{row.image} is {encoded.size} but its row says {(row.height, row.width)}; "
            "write the table again from the photographs as displayed"
        )


def _tell(answers: Sequence[Segmentation], who: str = "") -> None:
    """Prints what the figure does not show: words that the model does not know or did not read."""
    for answer in answers:
        if answer.unknown_words:
            words = ", ".join(f"'{word}'" for word in answer.unknown_words)
            typer.echo(f"refseg: {who}does not know {words}", err=True)
        if answer.truncated:
            typer.echo(f"refseg: {who}read only the expression's first words", err=True)


def _write(drawn: Figure, out: Path) -> None:
    from refseg.evaluation.figures import save

    save(drawn, out)
    typer.echo(out)
