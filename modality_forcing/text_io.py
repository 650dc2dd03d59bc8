"""Text, JSON and CSV from files of users: every fault of a file is one line that names it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.tree import JsonObject

T = TypeVar("T")
_MAX_DEPTH = 100  # of nested JSON, far from the recursion limit of those who walk it
_MAX_SHOWN = 40  # characters of a value in a message
_NO_OBJECT = "its value is not an object"
_CHECKSUM = "checksum"  # key of an object


def split_lines(text: str) -> list[str]:
    r"""Returns the lines of a text, which end at \n, \r\n and \r only.

    `str.splitlines` also splits at U+0085, U+2028 and others, which strings may contain.
    """
    lines = re.split(r"\r\n|\r|\n", text)
    return lines if lines[-1] else lines[:-1]


def parse_json(text: str, finite: bool = True, *, surrogates: bool = False) -> Any:
    """Returns the value of a JSON text; raises ValueError with the reason in one line.

    Refuses duplicate keys, more than 100 nested levels, integers beyond the range of a float, and
    half of a surrogate pair, which no file can hold.

    finite: whether to refuse NaN and infinities, which Python writes though JSON has none.
    surrogates: whether halves of surrogate pairs are kept, for callers that replace them.
    """
    decoder = _FINITE if finite else _ANY_NUMBER
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"{error.msg}: {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > _MAX_DEPTH or "\\ud" in text.lower():
        _check_values(value, surrogates)
    return value


def parse_object(text: str, finite: bool = True) -> JsonObject:
    """Returns the object of a JSON text, see `parse_json`; raises ValueError for other values."""
    value = parse_json(text, finite)
    if not isinstance(value, dict):
        raise ValueError(_NO_OBJECT)
    return value


def read_json(
    path: Path,
    *,
    what: str = "is not valid JSON",
    hint: str,
    finite: bool = True,
    surrogates: bool = False,
) -> Any:
    """Returns the value in a file, see `parse_json`; raises UserError, `what` with the reason."""
    text = paths.read_text(path, hint)
    try:
        return parse_json(text, finite, surrogates=surrogates)
    except ValueError as error:
        raise UserError(f"{what} ({error})", where=path, hint=hint) from error


def read_object(
    path: Path, *, what: str = "is not a JSON object", hint: str, finite: bool = True
) -> JsonObject:
    """Returns the object in a file, see `parse_json`; raises UserError, `what` with the reason."""
    value = read_json(path, what=what, hint=hint, finite=finite)
    if not isinstance(value, dict):
        raise UserError(f"{what} ({_NO_OBJECT})", where=path, hint=hint)
    return value


def read_lines(path: Path, parse: Callable[[str], T], what: str) -> list[T]:
    """Returns the parsed lines of a file, without a last one that a kill cut short.

    parse: raises ValueError with the reason. Raises UserError, `what` with the reason, for any
    other line that does not parse.
    """
    lines = split_lines(paths.read_text(path))
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(parse(line))
        except ValueError as error:
            if number == len(lines):
                break
            where = f"{path}, line {number}"
            raise UserError(f"{what} ({error})", where=where, hint="remove the line") from error
    return found


def json_checksum(content: Mapping[Any, object]) -> str:
    """Returns a checksum (SHA-256, 16 digits) of what JSON keeps of a mapping."""
    kept = json.loads(json.dumps(content))  # its keys are texts, which sort in another order
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def with_checksum(content: Mapping[str, object]) -> JsonObject:
    """Returns an object to write as JSON, with a checksum that `read_verified` compares."""
    return {**content, _CHECKSUM: json_checksum(content)}


def read_verified(path: Path, *, what: str, hint: str, finite: bool = True) -> JsonObject:
    """Returns the object in a file of this package, without its checksum.

    Raises UserError as `read_object` does, and if the object is not that of the checksum. Files of
    earlier versions have none.
    """
    content = read_object(path, what=what, hint=hint, finite=finite)
    stored = content.pop(_CHECKSUM, None)
    if stored is not None and stored != json_checksum(content):
        raise UserError(f"{what} (its checksum differs)", where=path, hint=hint)
    return content


def parse_number(value: object) -> float:
    """Returns a number of a JSON value; raises ValueError for all else, as for true and "1"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shorten(repr(value))} is not a number")
    return float(value)


def parse_count(value: object) -> int:
    """Returns a whole number of 0 or more of a JSON value; raises ValueError for all else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{shorten(repr(value))} is not a count")
    return value


def parse_text(value: object) -> str:
    """Returns a text of a JSON value; raises ValueError for all else."""
    if not isinstance(value, str):
        raise ValueError(f"{shorten(repr(value))} is not a text")
    return value


def parse_csv(text: str) -> list[tuple[int, dict[str, str | None]]]:
    """Returns the line number and the cells by column of the rows below a header.

    Cells may have any length. Spaces around the header's names and before cells are dropped.
    Missing cells at the end of a row are None. Raises ValueError with the reason for two columns of
    one name, for more cells than the header has, and for quotes that do not end.
    """
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))  # of the whole process
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        return list(_csv_rows(reader))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def check_unique(names: Sequence[str], kind: str) -> None:
    """Raises ValueError for the name that is there most often, if that is more than once."""
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise ValueError(f"{kind} {shorten(repr(name))} is there {count} times")


def list_some(names: Iterable[object], shown: int = 3) -> str:
    """Returns the first names of a list, and how many more there are."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


def shorten(text: str) -> str:
    """Returns a text for a message, a long one without its end."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _csv_rows(reader: Any) -> Iterator[tuple[int, dict[str, str | None]]]:
    header: list[str] = []
    for cells in filter(None, reader):
        if not header:
            header = [name.strip() for name in cells]
            check_unique([name for name in header if name], "column")
            continue
        if len(cells) > len(header):
            raise ValueError(f"line {reader.line_num} has more cells than the header")
        missing = [None] * (len(header) - len(cells))
        yield reader.line_num, dict(zip(header, [*cells, *missing], strict=True))


def _unique_keys(pairs: list[tuple[str, object]]) -> JsonObject:
    result = dict(pairs)
    if len(result) < len(pairs):
        check_unique([key for key, _ in pairs], "key")
    return result


def _parse_int(text: str) -> int:
    _parse_finite(text)
    return int(text)


def _parse_finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {shorten(text)} is too large")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


_FINITE = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_int=_parse_int,
    parse_float=_parse_finite,
    parse_constant=_refuse_constant,
)
_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_int=_parse_int)
_TOO_DEEP = f"more than {_MAX_DEPTH} nested levels"


def _check_values(value: object, surrogates: bool) -> None:
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str) and not surrogates:
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"half of a surrogate pair in {shorten(ascii(item))}") from error
        elif isinstance(item, dict | list):
            if depth == _MAX_DEPTH:
                raise ValueError(_TOO_DEEP)
            children = [*item, *item.values()] if isinstance(item, dict) else item
            pending += [(child, depth + 1) for child in children]
