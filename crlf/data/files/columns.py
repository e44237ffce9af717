"""Finds the columns of a table that hold images and labels, by their types or by a given name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from crlf.data.files.decode import HEAD, PICTURES, kind_of
from crlf.data.files.shards import Shard
from crlf.errors import InputError, unknown

LEAST = 4  # pixels per side; smaller arrays are boxes or polygons, not pictures
LABELS = ("label", "labels", "class", "target", "fine_label")  # names of a column of labels


def features(schema: Any) -> dict[str, dict[str, Any]]:
    """The description of the columns that `datasets` wrote: {"image": {"_type": "Image"}, "label": {"_type":
    "ClassLabel", …}}; empty if there is none."""
    try:
        found = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: told for name, told in found.items() if isinstance(told, dict)}
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        return {}


def image(schema: Any, wanted: str, where: str, first: Callable[[str], Any]) -> str:
    """The name of the column with the images.

    Without a given name, it is the first of these kinds that the table has: a column that `datasets` calls an image,
    structs with bytes, bytes, lists of pixels, paths of images.

    Args:
        schema: the pyarrow schema of the table.
        wanted: the name that the user gave, or "".
        where: the name of the data, for messages.
        first: returns a value of the column with this name.

    Raises:
        InputError: there is no such column, there are several of the same kind, or the given one has another type.
    """
    if wanted:
        if not holds_files(typed(schema, wanted, where, "image_column")):
            kinds = "bytes, structs of bytes and path, or paths"
            raise InputError(f"column {wanted!r} of {where!r} must hold {kinds}, not {schema.field(wanted).type}")
        return wanted
    named = features(schema)
    able = [name for name in schema.names if holds_files(schema.field(name).type)]
    binary = [name for name in able if is_binary(schema.field(name).type)]
    listed = [name for name in able if is_list(schema.field(name).type) and looks_like_pixels(first(name))]
    kinds_of = (
        [name for name in able if named.get(name, {}).get("_type") == "Image"],
        [name for name in able if is_struct(schema.field(name).type)],
        [name for name in binary if kind_of(bytes(first(name) or b"")[:HEAD])] or binary,
        listed,
        [name for name in able if str(first(name)).lower().endswith(PICTURES)],
    )
    found = next((names for names in kinds_of if names), [])
    if len(found) == 1:
        return found[0]
    many = f"has several columns of images, {', '.join(found)}" if found else "has no column of images"
    rest = "" if found else f" among {', '.join(schema.names)}"
    raise InputError(f"data {where!r} {many}{rest}: --image-column can name one")


class Label(NamedTuple):
    """A column of labels."""

    name: str
    wanted: bool
    """Whether the user named it."""


def label(schema: Any, wanted: str, where: str) -> tuple[Label | None, list[str]]:
    """The column of labels: the given one, else one that `datasets` calls labels, else one with a name of `LABELS`.

    Args:
        schema: the pyarrow schema of the table.
        wanted: the name that the user gave, or "".
        where: the name of the data, for messages.

    Returns:
        The column or None, and notes on columns with such names that cannot be used.

    Raises:
        InputError: the given column does not exist, or has another type.
    """
    if wanted:
        if not holds_labels(typed(schema, wanted, where, "label_column")):
            raise not_labels(schema, wanted, where)
        return Label(wanted, True), []
    named = features(schema)
    told = [name for name in schema.names if named.get(name, {}).get("_type") == "ClassLabel"]
    called = [name for known in LABELS for name in schema.names if name.lower() == known]
    able = [name for name in dict.fromkeys([*told, *called]) if holds_labels(schema.field(name).type)]
    notes = [
        f"column {name!r} is not used: it must hold whole numbers or texts, not {schema.field(name).type}"
        for name in called
        if name not in able
    ]
    return (Label(able[0], False) if able else None), notes


def not_labels(schema: Any, name: str, where: str) -> InputError:
    return InputError(f"column {name!r} of {where!r} must hold whole numbers or texts, not {schema.field(name).type}")


def typed(schema: Any, name: str, where: str, setting: str) -> Any:
    """The type of a column. Raises InputError if it does not exist."""
    if name not in schema.names:
        raise unknown(f"{setting} of {where!r},", name, schema.names)
    return schema.field(name).type


def plain(kind: Any) -> Any:
    """The type of the values of a dictionary, run-end encoded or extension type; other types are returned unchanged."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def any_of(kind: Any, *names: str) -> bool:
    """Whether a type is one of these by `pyarrow.types`; names that an older pyarrow does not know are ignored."""
    import pyarrow.types as of

    return any(check(kind) for check in (getattr(of, f"is_{name}", None) for name in names) if check)


def holds_files(kind: Any) -> bool:
    return is_struct(kind) or is_binary(kind) or is_text(kind) or is_list(kind)


def is_struct(kind: Any) -> bool:
    """Whether this is a struct with a field `bytes` or `path`."""
    kind = plain(kind)
    names = {kind.field(i).name for i in range(kind.num_fields)} if any_of(kind, "struct") else set()
    return bool(names & {"bytes", "path"})


def is_binary(kind: Any) -> bool:
    return any_of(plain(kind), "binary", "large_binary", "binary_view", "fixed_size_binary")


def is_text(kind: Any) -> bool:
    return any_of(plain(kind), "string", "large_string", "string_view")


def is_list(kind: Any) -> bool:
    """Whether this is a list of bytes, or nested lists of pixels."""
    lists = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    kind = plain(kind)
    if not any_of(kind, *lists):
        return False
    while any_of(kind, *lists):
        kind = plain(kind.value_type)
    return any_of(kind, "integer")  # pandas stores Python integers as int64


def looks_like_pixels(value: Any) -> bool:
    """Whether a list holds the bytes of an image file, or pixels in 0..255: (H, W), (H, W, C) or (C, H, W)."""
    if value is None or not len(value):
        return False
    try:
        if isinstance(value[0], int):
            return bool(kind_of(bytes(value[:HEAD])))
        pixels = np.asarray(value, dtype=np.uint8)
    except (ValueError, TypeError, OverflowError):  # ragged, or not bytes, such as the corners of boxes
        return False
    return pixels.ndim in (2, 3) and sorted(pixels.shape)[-2] >= LEAST


def holds_labels(kind: Any) -> bool:
    kind = plain(kind)
    return is_text(kind) or is_binary(kind) or any_of(kind, "integer", "boolean", "floating", "decimal", "null")


class NoLabel(Exception):
    """A value cannot be a label."""


def as_label(value: Any) -> int | bool | str | None:
    """Convert a value to a label: a whole number or a text; None if it is missing.

    Raises:
        NoLabel: the value is a fraction, or bytes that are not UTF-8 text.
    """
    if value is None or value == -1 or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None  # the test sets of competitions have -1 as labels
    if isinstance(value, str | bytes) and not value.strip():
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise NoLabel("it holds bytes that are no text") from None
    if isinstance(value, float | Decimal):
        if not math.isfinite(value) or value != int(value):
            raise NoLabel(f"it holds fractions, such as {value}")
        return int(value)
    return value


def labels(
    splits: Sequence[Sequence[Shard]], column: Label, where: str
) -> tuple[list[list[int]] | None, list[str], str]:
    """The labels of each split as indices of the classes, the classes, and the reason if labels are not used.

    The classes are those that `datasets` wrote, or the sorted values. A missing label is -1. The labels are None if all
    training labels are missing, or if all labels are the same; a second split without labels has only -1.

    Raises:
        InputError: a label is not among the classes that `datasets` wrote, or the given column holds no labels.
    """
    schema = splits[0][0].schema
    try:
        values = [[as_label(value) for shard in parts for value in shard.values(column.name)] for parts in splits]
    except NoLabel as error:
        if column.wanted:
            raise not_labels(schema, column.name, where) from error
        return None, [], str(error)
    different = {value for part in values for value in part}
    different.discard(None)
    if not different or all(value is None for value in values[0]):
        count = sum(map(len, values))
        return (
            None,
            [],
            f"all of its {count:,} labels are missing" if not different else "those to train on are missing",
        )
    if len(different) < 2:
        return None, [], "all of its labels are the same"
    names = features(schema).get(column.name, {}).get("names")
    if not names or any(isinstance(value, str) for value in different):
        if len({isinstance(value, str) for value in different}) > 1:  # shards of two types
            values = [[None if value is None else str(value) for value in part] for part in values]
            different = set(map(str, different))
        places = {value: place for place, value in enumerate(sorted(different))}  # type: ignore[type-var]
        return [[places.get(value, -1) for value in part] for part in values], [str(value) for value in places], ""
    low, high = min(different), max(different)  # type: ignore[type-var]
    if not 0 <= low <= high < len(names):  # type: ignore[operator]
        wrong = high if high >= len(names) else low  # type: ignore[operator]
        raise InputError(f"labels in column {column.name!r} of {where!r} must be 0..{len(names) - 1}, not {wrong}")
    return [[-1 if value is None else value for value in part] for part in values], list(names), ""  # type: ignore[misc]
