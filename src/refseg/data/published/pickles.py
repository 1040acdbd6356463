"""Reads a pickle from a stranger without running anything in it."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from refseg.errors import RefsegError, first_line

MAX_BYTES = 1 << 30
"""The largest file that is read. The published files are far below it."""

_PLAIN = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
})  # fmt: skip
"""The instructions of a pickle that build plain containers, numbers and strings, and nothing else."""

_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})

_HASHABLE = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"})
_MAX_HASHABLE = 10_000
"""The most tuples in one file. Nested ones are hashed by recursion in C, and a very deep key ends the process."""


class _PlainUnpickler(pickle.Unpickler):
    """A second wall behind `_check`. It refuses everything that would be imported."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, identity: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object outside itself")


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle of lists, tuples, dicts, sets, numbers and strings, in any protocol (also Python 2's).

    Every instruction is checked before the first one runs. The whole file is refused if one instruction would import,
    call or build anything else, or would reserve more memory than the size of the file explains. Strings that
    Python 2 wrote as bytes are read as UTF-8. Raises RefsegError if the file is refused, damaged or unreadable.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as fault:
        raise RefsegError(f"{path} cannot be read ({fault.strerror}); check its path and permissions") from fault
    if size > MAX_BYTES:
        raise RefsegError(f"{path} has {size:,} bytes, more than any published file, and is not read; check what it is")
    try:
        _check(content, path)
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
    except RefsegError:
        raise
    except Exception as fault:  # a damaged pickle surfaces as nearly any error
        raise RefsegError(
            f"{path} is not a whole pickle of plain data ({first_line(fault)}); get a new copy"
        ) from fault


def _check(content: bytes, path: Path) -> None:
    """Raises RefsegError at the first instruction that is not plain."""
    asked, hashable = "", 0
    for count, (instruction, argument, position) in enumerate(pickletools.genops(content)):
        name = instruction.name
        if name not in _PLAIN:
            asked = _wanted(name, argument)
        elif name in _PUTS and argument is not None and argument > count:
            asked = f"it numbers an object {argument} after {count} instructions"  # memory is reserved up to there
        elif name in _HASHABLE:
            hashable += 1
            asked = f"it holds more than {_MAX_HASHABLE} tuples" if hashable > _MAX_HASHABLE else ""
        if asked:
            raise RefsegError(
                f"{path} is refused: {asked} at byte {position}, and a dataset is plain lists, numbers and strings; "
                "get a new copy from its publisher"
            )


def _wanted(name: str, argument: Any) -> str:
    if name in ("GLOBAL", "INST"):
        return f"it asks for {'.'.join(str(argument).split())!r}"
    return f"it uses the instruction {name}"
