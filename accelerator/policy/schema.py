"""The JSON Schema of the policy, for editors, made from the model. What a schema can't say, check.py says.

`python -m accelerator.policy.schema` prints it; config/accelerator.schema.json is that, committed.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from accelerator.policy.model import Policy
from accelerator.policy.shape import keys_of

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def policy_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of one whole policy, each key described. A file of a directory may lack required keys."""
    schema = Policy.model_json_schema(by_alias=True)
    _finish(schema, Policy)
    for model in _sections(Policy):
        _finish(schema["$defs"][model.__name__], model)
    return {"$schema": _DIALECT, "title": "Policy of the video accelerator", **schema}


def _sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    below = {key.section for key in keys_of(model).values() if key.section is not None}
    return below.union(*(_sections(section) for section in below))


def _finish(schema: dict[str, Any], model: type[BaseModel]) -> None:
    schema.pop("title", None)
    schema.pop("description", None)
    # Defaults as a policy writes them (512MiB), which pydantic gives as values where a type has a schema of its own.
    defaults = model.model_construct().model_dump(mode="json", by_alias=True)
    for name, key in schema["properties"].items():
        key.pop("title", None)
        default = key.pop("default", None)
        if default is not None and not isinstance(default, dict):
            key["default"] = defaults[name]
        if "patternProperties" in key:
            key["additionalProperties"] = False
        if name not in schema.get("required", ()):
            schema["properties"][name] = _may_be_empty(key)


def _may_be_empty(key: dict[str, Any]) -> dict[str, Any]:
    """`origins:` with nothing after it counts as left out, which editors read as null."""
    if "$ref" in key:
        return {"anyOf": [{"$ref": key.pop("$ref")}, {"type": "null"}], **key}
    return {**key, "type": [key["type"], "null"]} if key.get("type") in ("object", "array") else key


def schema_text() -> str:
    """The schema as it is committed and printed by `accelctl policy schema`."""
    return json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
