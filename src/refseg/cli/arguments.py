"""What several commands share: their options, photographs told from expressions, a recipe from its overrides."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from refseg.errors import RefsegError

if TYPE_CHECKING:
    from refseg.segmenter import Refine, Segmenter

SHIPPED = "shipped"
_MODEL = "A checkpoint's folder or a hub id 'org/name'; 'shipped' is the model inside refseg."
Model = Annotated[str, typer.Option(help=_MODEL)]
ModelArgument = Annotated[str, typer.Argument(help=_MODEL)]
Device = Annotated[str, typer.Option(help="What computes: auto, cpu, cuda, cuda:1 or mps.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="The probability, between 0 and 1, above which a pixel belongs to the mask. By default the model's.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads that compute on a CPU. By default one per processor that this process may use.",
        show_default=False,
    ),
]

PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".jp2"}
)
"""More than can be read: such a photograph is reported with its cure, not passed over in silence."""

RECIPE_KEYS = (
    *("base", "start", "start_share", "backbone_weights"),
    *("sentences", "word_vectors", "unknown_vector", "tokens"),
)
"""Keys of a recipe that stand in no section."""

EXAMPLE = 'refseg segment street.jpg "the red bag"'
Item = TypeVar("Item")


def load_model(
    model: str,
    device: str,
    threshold: float | None = None,
    threads: int | None = None,
    refine: Refine | None = None,
    word_vectors: Path | None = None,
) -> Segmenter:
    """As `refseg.load`, imported when it is needed: --help loads no engine."""
    from refseg.segmenter import load

    return load(model, device=device, threshold=threshold, threads=threads, refine=refine, word_vectors=word_vectors)


def sort_arguments(
    arguments: Sequence[str], photos: Sequence[str] = (), expressions: Sequence[str] = ()
) -> tuple[list[Path], list[str]]:
    """Tells photographs from expressions among `arguments`, in whatever order they stand.

    An argument is a photograph if it is a file, a folder, a pattern that matches photographs, or looks like
    the name of one; every other is an expression. What could be either is an error, never a guess. `photos`
    and `expressions` were named as such by their options. Returns files that exist (folders and patterns
    opened, sorted) and expressions, each once. Raises RefsegError for a photograph that does not exist, for
    what could be either, and where no photograph or no expression is named.
    """
    files = [file for photo in photos for file in _open(photo)]
    sentences = list(expressions)
    for argument in arguments:
        found = _photographs(argument)
        files += found
        if not found:
            sentences.append(argument)
    if not files:
        raise RefsegError(f"no photograph is named; for example: {EXAMPLE}")
    if not sentences:
        raise RefsegError(f"no expression says what to segment; for example: {EXAMPLE}")
    return _once(files), _once(sentences)


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Parts `RECIPE --a.b value --c.d=value` into what is not an override and overrides as `a.b=value`."""
    others: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            others.append(argument)
            continue
        key, equals, value = argument[2:].partition("=")
        if "." not in key and key not in RECIPE_KEYS:
            raise RefsegError(f"there is no option --{key}; a value of the recipe is set by --section.key value")
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("--"):
                raise RefsegError(f"--{key} has no value; write --{key}=true to switch something on")
            value = following
        overrides.append(f"{key}={value}")
    return others, overrides


def _photographs(argument: str) -> list[Path]:
    """The photographs that an argument names; none if it is an expression."""
    if _exists(argument):
        if _is_bare(argument):
            kind = "folder" if Path(argument).is_dir() else "file"
            raise RefsegError(
                f"'{argument}' could be the {kind} or an expression; write ./{argument} or -e '{argument}'"
            )
        return _open(argument)
    return _matches(argument) or (_open(argument) if _looks_like_a_file(argument) else [])


def _open(photo: str) -> list[Path]:
    """The files that the name of a photograph, a folder or a pattern stands for, sorted; at least one."""
    path = Path(photo)
    if not _exists(photo):
        if found := _matches(photo):
            return found
        raise RefsegError(_missing(photo))
    if not path.is_dir():
        return [path]
    files = [file for file in path.iterdir() if _is_photograph(file)]
    if not files:
        raise RefsegError(f"the folder {photo} holds no photographs ({' '.join(sorted(PHOTO_SUFFIXES))})")
    return sorted(files)


def _matches(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        return []
    found = (Path(name) for name in glob.glob(pattern))  # noqa: PTH207 (Path.glob refuses absolute patterns)
    return sorted(file for file in found if _is_photograph(file))


def _exists(argument: str) -> bool:
    try:
        return Path(argument).exists() and argument != ""
    except (OSError, ValueError):  # a sentence longer than any file's name
        return False


def _is_photograph(file: Path) -> bool:
    hidden = file.name.startswith(".")  # macOS leaves ._street.jpg beside street.jpg
    return file.suffix.lower() in PHOTO_SUFFIXES and not hidden and not file.is_dir()


def _is_bare(argument: str) -> bool:
    """Whether a name could as well be a word: neither a separator nor a suffix in it."""
    return not re.search(r"[/\\.]", argument)


def _looks_like_a_file(argument: str) -> bool:
    """Whether what does not exist was meant as a file: street.jgp, photos/street, my street.jpg."""
    if Path(argument).suffix.lower() in PHOTO_SUFFIXES:
        return True
    one_word = not re.search(r"\s", argument)
    return one_word and ("/" in argument or re.search(r"[^.]\.[A-Za-z0-9]{3,4}$", argument) is not None)


def _missing(photo: str) -> str:
    path = Path(photo)
    try:
        near = {entry.name.lower(): entry.name for entry in path.parent.iterdir()}
    except OSError:
        near = {}
    close = difflib.get_close_matches(path.name.lower(), near, n=1, cutoff=0.7)
    hint = f"; did you mean {path.parent / near[close[0]]}?" if close else ""
    return f"no such photograph: {photo}{hint} (an expression that looks like a file goes behind -e)"


def _once(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))
