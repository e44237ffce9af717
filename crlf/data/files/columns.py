"""Which columns of a table hold images and labels: found by their types, or named."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from crlf.data.files.decode import PICTURES
from crlf.data.files.shards import Shard
from crlf.errors import InputError, unknown

LABELS = ("label", "labels", "class", "target", "fine_label")  # names of a column of labels


def features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` wrote of the columns: {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", …}}."""
    try:
        found = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: told for name, told in found.items() if isinstance(told, dict)}
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        return {}


def image(schema: Any, wanted: str, where: str, first: Callable[[str], Any]) -> str:
    """The name of the column of images.

    Of these the first that is there: what `datasets` says is one, a struct with bytes, bytes, paths of images.

    Args:
        wanted: its name, or "".
        where: the data, for messages.
        first: gives a value of a column.

    Raises:
        InputError: there is none, there are several alike, or the one that is wanted is of another type.
    """
    if wanted:
        if not holds_files(typed(schema, wanted, where, "image_column")):
            kinds = "bytes, structs of bytes and path, or paths"
            raise InputError(f"column {wanted!r} of {where!r} must hold {kinds}, not {schema.field(wanted).type}")
        return wanted
    named = features(schema)
    able = [name for name in schema.names if holds_files(schema.field(name).type)]
    kinds_of = (
        [name for name in able if named.get(name, {}).get("_type") == "Image"],
        [name for name in able if is_struct(schema.field(name).type)],
        [name for name in able if is_binary(schema.field(name).type)],
        [name for name in able if str(first(name)).lower().endswith(PICTURES)],
    )
    found = next((names for names in kinds_of if names), [])
    if len(found) == 1:
        return found[0]
    many = f"has several columns of images, {', '.join(found)}" if found else "has no column of images"
    rest = "" if found else f" among {', '.join(schema.names)}"
    raise InputError(f"data {where!r} {many}{rest}: --image-column can name one")


def label(schema: Any, wanted: str, where: str) -> str | None:
    """The name of the column of labels: the one that is wanted, or that `datasets` calls so, or of such a name.

    Raises:
        InputError: the one that is wanted is not there, or of another type.
    """
    if wanted:
        if not holds_labels(typed(schema, wanted, where, "label_column")):
            raise InputError(
                f"column {wanted!r} of {where!r} must hold whole numbers or texts, not {schema.field(wanted).type}"
            )
        return wanted
    able = [name for name in schema.names if holds_labels(schema.field(name).type)]
    named = features(schema)
    told = [name for name in able if named.get(name, {}).get("_type") == "ClassLabel"]
    return next(iter([*told, *(name for name in LABELS if name in able)]), None)


def typed(schema: Any, name: str, where: str, setting: str) -> Any:
    """The type of a column."""
    if name not in schema.names:
        raise unknown(f"{setting} of {where!r},", name, schema.names)
    return schema.field(name).type


def holds_files(kind: Any) -> bool:
    import pyarrow as pa

    return is_struct(kind) or is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_struct(kind: Any) -> bool:
    """Whether this is {bytes, path}, or either of the two."""
    import pyarrow as pa

    names = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    return bool(names & {"bytes", "path"})


def is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_labels(kind: Any) -> bool:
    import pyarrow.types as of

    kind = kind.value_type if of.is_dictionary(kind) else kind
    return any(check(kind) for check in (of.is_integer, of.is_boolean, of.is_string, of.is_large_string))


def labels(splits: Sequence[Sequence[Shard]], column: str, where: str) -> tuple[list[list[int]] | None, list[str]]:
    """The labels of each split as places in the classes, and the classes: named by `datasets`, or the values sorted.

    None in place of the labels where some are missing (null, or -1 as in the test sets of competitions), or all alike.

    Raises:
        InputError: a label has no name among those that `datasets` wrote.
    """
    values = [[value for shard in parts for value in shard.values(column)] for parts in splits]
    different = set().union(*values)
    if None in different or -1 in different or len(different) < 2:
        return None, []
    names = features(splits[0][0].schema).get(column, {}).get("names")
    if not names or isinstance(next(iter(different)), str):
        places = {value: place for place, value in enumerate(sorted(different))}
        return [[places[value] for value in part] for part in values], [str(value) for value in places]
    if not 0 <= min(different) <= max(different) < len(names):
        wrong = max(different) if max(different) >= len(names) else min(different)
        raise InputError(f"labels in column {column!r} of {where!r} must be 0..{len(names) - 1}, not {wrong}")
    return values, list(names)
