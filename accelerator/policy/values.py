"""What one key of a policy may hold, as types: quantities with bounds, names, addresses. No section lives here.

Values come as the text that was written (see units.py) and are converted by what their key expects. Values that already
have the right type are taken too, so that a dump can be read again. An empty section counts as left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from accelerator.policy import addresses, units

T = TypeVar("T")

MEBIBYTE = 2**20

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
SITE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,6})?"


def _quantity(
    parse: Callable[[str], T], form: Callable[[T], str], unit_names: Mapping[str, int], lowest: str, highest: str
) -> tuple[PlainValidator, PlainSerializer, WithJsonSchema]:
    """A number with a unit between two bounds, which are written as a policy writes them; dumped as text again."""
    low: Any = parse(lowest)
    high: Any = parse(highest)

    def convert(value: object) -> T:
        if isinstance(value, str):
            value = parse(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"expected text such as '{highest}'")
        if not low <= value <= high:
            raise ValueError(f"must be from {lowest} to {highest}")
        return value  # type: ignore[return-value]  # T is the int or float that `parse` gives

    schema = {"type": "string", "pattern": f"{_QUANTITY}({'|'.join(unit_names)})$"}
    return PlainValidator(convert), PlainSerializer(form, return_type=str), WithJsonSchema(schema)


def size_between(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_size_bytes, units.format_size, units.SIZE_UNITS, lowest, highest)


def rate_between(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_rate_bps, units.format_rate, units.RATE_UNITS, lowest, highest)


def rate_or(word: str, lowest: str, highest: str) -> Any:
    """A rate, or a word that stands for one, which is -1 then."""
    validator, serializer, schema = rate_between(lowest, highest)

    def convert(value: object) -> Any:
        return -1 if value in (word, -1) else validator.func(value)

    def form(value: int) -> str:
        return word if value == -1 else str(serializer.func(value))

    pattern = {"type": "string", "pattern": f"^{word}$|{schema.json_schema['pattern']}"}
    return PlainValidator(convert), PlainSerializer(form, return_type=str), WithJsonSchema(pattern)


def percent_between(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_percent, units.format_percent, units.PERCENT_UNITS, lowest, highest)


def time_between(lowest: str, highest: str) -> Any:
    return _quantity(units.parse_time_s, units.format_time, units.TIME_UNITS_MS, lowest, highest)


def text_of(parse: Callable[[str], T], pattern: str | None = None, example: str | None = None) -> Any:
    """Text that `parse` reads; dumped as text again."""

    def convert(value: object) -> T:
        if isinstance(value, list | dict) or value is None:
            raise ValueError("expected text")
        return parse(str(value))

    schema: dict[str, Any] = {"type": "string"}
    if pattern is not None:
        schema["pattern"] = pattern
    if example is not None:
        schema["examples"] = [example]
    return PlainValidator(convert), PlainSerializer(str), WithJsonSchema(schema)


def whole_between(lowest: int, highest: int) -> Any:
    def convert(value: object) -> int:
        if isinstance(value, str):
            value = units.parse_whole(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("expected a whole number")
        if not lowest <= value <= highest:
            raise ValueError(f"must be from {lowest} to {highest}")
        return value

    return PlainValidator(convert), WithJsonSchema({"type": "integer", "minimum": lowest, "maximum": highest})


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError("expected true or false")
    return units.parse_switch(value)


def worker_count(value: object) -> int:
    if value == "auto":
        return 0
    if isinstance(value, str):
        try:
            value = units.parse_whole(value)
        except ValueError:
            raise ValueError(f"expected auto or a number of workers, got {units.quoted(str(value))}") from None
        if not 1 <= value <= 64:
            raise ValueError("must be auto, or from 1 to 64")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("expected auto or a number of workers")
    return value


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{units.quoted(value)} is not a name: a letter, then letters, digits, '-' and '_', at most 64 characters"
        )
    return value


def site_name(value: str) -> str:
    if not SITE_NAME.fullmatch(value):
        raise ValueError(
            f"{units.quoted(value)} is not a site's name: letters, digits, '.', '-' and '_', at most 64 characters"
        )
    return value


def _file_name(value: object, info: ValidationInfo) -> addresses.FileName:
    if not isinstance(value, str) or not value or "\0" in value or "\n" in value:
        raise ValueError("expected text, the name of a file")
    folder: str = (info.context or {}).get("folder", "")
    return addresses.FileName(value, os.path.join(folder, value))


def empty_means(none: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: none() if value is None else value)


Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
NAME_SCHEMA = {"type": "string", "pattern": f"^{_NAME.pattern}$"}
Names = Annotated[
    tuple[Name, ...],
    BeforeValidator(lambda value: () if value is None else (value,) if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [NAME_SCHEMA, {"type": "array", "items": NAME_SCHEMA, "maxItems": 64}]}),
]
Network = Annotated[IPv4Network | IPv6Network, *text_of(addresses.parse_network, example="10.12.0.0/22")]
ListenAddress = Annotated[
    addresses.Address, *text_of(addresses.parse_listen_address, r"^.+:[0-9]{1,5}$", "127.0.0.1:8080")
]
OriginUrl = Annotated[
    addresses.OriginUrl,
    *text_of(addresses.parse_origin_url, r"^[hH][tT][tT][pP][sS]?://[^/?#@]+/?$", "https://media.corp.example"),
]
ProxyUrl = Annotated[
    addresses.ProxyUrl,
    *text_of(addresses.parse_proxy_url, r"^[hH][tT][tT][pP]://[^/?#@]+:[0-9]{1,5}/?$", "http://proxy.corp.example:3128"),
]
HostPattern = Annotated[str, *text_of(addresses.parse_host_pattern, example="media.lyon.corp.example")]
PathPrefix = Annotated[str, *text_of(addresses.parse_path_prefix, r"^/[^?# ]*$", "/live")]
PinnedAddress = Annotated[str, *text_of(addresses.parse_pinned_address, example="10.0.0.20")]
Method = Annotated[str, *text_of(addresses.parse_method, example="POST")]
FieldName = Annotated[str, *text_of(addresses.parse_field_name, example="X-Tenant")]
ParameterName = Annotated[
    str, *text_of(addresses.parse_parameter_name, r"^[A-Za-z0-9_.~-]{1,64}$", "token")
]
CredentialField = Annotated[str, *text_of(addresses.parse_credential_field, example="Authorization")]
InterfaceName = Annotated[str, *text_of(addresses.parse_interface_name, r"^[^/: ]{1,15}$", "eth0")]
MulticastNetwork = Annotated[
    IPv4Network | IPv6Network, *text_of(addresses.parse_multicast_network, example="239.0.0.0/8")
]
ShortText = Annotated[str, *text_of(addresses.parse_short_text, example="portal")]
FileName = Annotated[
    addresses.FileName,
    PlainValidator(_file_name),
    PlainSerializer(lambda file: file.written),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
Switch = Annotated[bool, PlainValidator(_switch), WithJsonSchema({"type": "boolean"})]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_left_out(cls, value: Any) -> Any:
        return {} if value is None else value
