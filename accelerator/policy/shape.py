"""Which keys the policy has at which place, read from the model. No policy is read or checked here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from accelerator.policy.model import Policy


class Key(NamedTuple):
    """A key of a section: as written, its field, the section below it, if any, and whether names, or a list's items,
    stand between them."""

    name: str
    field: str
    info: FieldInfo
    section: type[BaseModel] | None
    is_named: bool
    is_listed: bool


@cache
def keys_of(section: type[BaseModel]) -> Mapping[str, Key]:
    """The keys of a section as they are written."""
    keys = {}
    for field, info in section.model_fields.items():
        name = info.alias or field
        below, outer = _section_in(info.annotation), get_origin(info.annotation)
        keys[name] = Key(name, field, info, below, outer is Mapping, below is not None and outer is tuple)
    return keys


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def section_at(path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """The section whose keys stand directly below `path`, or None where names, items or nothing stand. Of a lock, which
    names no items, a list is the end."""
    section: type[BaseModel] | None = Policy
    is_name = is_list = False
    for step in path:
        if is_name or (isinstance(step, int) and is_list):
            is_name = is_list = False
            continue
        key = keys_of(section).get(str(step)) if section is not None else None
        if key is None:
            return None
        section, is_name, is_list = key.section, key.is_named, key.is_listed
    return None if is_name or is_list else section


def every_key() -> Iterator[tuple[str, Key]]:
    """(dotted path with NAME for a name, key) for each key of the policy."""
    return _every_key(Policy, "")


def _every_key(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Key]]:
    for name, key in keys_of(section).items():
        yield prefix + name, key
        if key.section is not None:
            yield from _every_key(key.section, f"{prefix}{name}.{'NAME.' if key.is_named else ''}")
