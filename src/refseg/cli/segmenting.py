"""`refseg segment`: photographs and expressions in, overlays, masks or JSON out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refseg.cli.arguments import SHIPPED, Device, Model, Threads, Threshold, load_model, sort_arguments
from refseg.cli.files import Names, ensure_writable
from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.segmentation import Segmentation
    from refseg.segmenter import Segmenter

_A_HANDFUL = 8
_SHOWN = 60


class Format(StrEnum):
    """What is written per photograph and expression."""

    OVERLAY = "overlay"
    MASK = "mask"
    JSON = "json"

    @property
    def suffix(self) -> str:
        """The file name's ending."""
        return {"overlay": ".jpg", "mask": ".png", "json": ".json"}[self.value]


def segment(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTO... EXPRESSION...",
            help="Photographs and sentences, in any order. A photograph is a file, a folder/ or a pattern.",
            show_default=False,
        ),
    ] = None,
    photo: Annotated[
        list[str] | None,
        typer.Option(
            "--photo", "-p", help="Treat this argument as a photograph, a folder or a pattern.", show_default=False
        ),
    ] = None,
    expression: Annotated[
        list[str] | None,
        typer.Option("--expression", "-e", help="Treat this argument as an expression.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for the results. By default refseg-out, or none with --json.", show_default=False
        ),
    ] = None,
    format: Annotated[
        Format,
        typer.Option(
            help="overlay: the photograph with the mask in colour. mask: white on black. json: with run lengths."
        ),
    ] = Format.OVERLAY,
    model: Model = SHIPPED,
    device: Device = "auto",
    threshold: Threshold = None,
    threads: Threads = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON line per photograph and expression, and nothing else."),
    ] = False,
) -> None:
    """Segments in photographs what sentences describe.

    \b
    refseg segment street.jpg "the red bag"
    refseg segment street.jpg "the red bag" "left shoe" --format mask
    refseg segment photos/ "the dog"                     every photograph of a folder
    refseg segment "photos/*.png" "the dog" --json       one JSON line each, for scripts
    refseg segment -p photos -e "cat.png on the screen"  says which is which

    An argument that exists as a file, or looks like one, is a photograph. Any other is an expression.
    One that could be either is an error, which says how to write it.
    A result is written to refseg-out/street--the-red-bag.jpg, or into the folder of --out.

    The exit code is 1 if some photographs could not be read and were skipped, and 2 if nothing could be done.
    """
    photos, expressions = sort_arguments(arguments or [], photo or [], expression or [])

    from refseg.words import clean_expression

    expressions = [clean_expression(sentence) for sentence in expressions]
    if out is None and not as_json:
        out = Path("refseg-out")
    if out is not None:
        ensure_writable(out)
    segmenter = load_model(model, device, threshold, threads)
    names = None if out is None else Names(out, photos)
    done = 0
    for file, results in _segment_all(segmenter, photos, expressions):
        done += 1
        for result in results:
            path = None if names is None else names.path(file, result.expression, format.suffix)
            if path is not None:
                result.save(path)
            _say(json.dumps(as_record(file, result, path)) if as_json else describe(file, result, path))
    if done < len(photos):
        raise typer.Exit(1 if done else 2)


def as_record(photo: Path, result: Segmentation, path: Path | None) -> dict[str, Any]:
    """A result as JSON: the photograph, what `Segmentation.to_dict` says, and the file written or null."""
    return {"photo": str(photo), **result.to_dict(), "file": None if path is None else str(path)}


def describe(photo: Path, result: Segmentation, path: Path | None) -> str:
    """One line for people: where, how sure, how much of the photograph, and what they should know."""
    share = float(result.mask.mean())
    parts = [f"{path or photo}", f"score {result.score:.2f}"]
    parts.append(f"{share:.1%} of the photograph" if share else f'found nothing for "{_shown(result.expression)}"')
    if share and result.found is False:
        parts.append("perhaps not in the photograph")
    if result.unknown_words:
        parts.append("does not know " + ", ".join(f"'{_shown(word)}'" for word in result.unknown_words))
    if result.truncated:
        parts.append("read only the expression's first words")
    return "  ".join(parts)


def _segment_all(
    segmenter: Segmenter, photos: Sequence[Path], expressions: list[str]
) -> Iterator[tuple[Path, list[Segmentation]]]:
    """The results of one photograph after another. Photographs that cannot be read are reported and left out."""
    from tqdm import tqdm

    quiet = len(photos) <= _A_HANDFUL or not sys.stderr.isatty()
    for photo in tqdm(photos, unit="photo", disable=quiet):
        try:
            encoded = segmenter.encode(photo)
        except RefsegError as fault:
            tqdm.write(f"refseg: {fault}", file=sys.stderr)
            continue
        yield photo, segmenter.segment(encoded, expressions)


def _say(line: str) -> None:
    """Prints above the progress bar, at once. A reader that has hung up is noticed here."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


def _shown(text: str) -> str:
    """A sentence fit for one line of a terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
