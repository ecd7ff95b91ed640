"""What `accelctl steering …` prints, from a policy. The command line asks nobody else about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerator.doctor.text import report_lines
from accelerator.policy.model import Policy
from accelerator.steering.matrix import as_csv, as_rows, as_text, flow_matrix
from accelerator.steering.pages import document_of, first_document_of, pac_of
from accelerator.steering.recipes import RecipeError, plan_of, recipe


class SteeringError(Exception):
    """The policy has no such thing: one clear line."""


def run(what: str, policy: Policy, options: Mapping[str, Any]) -> tuple[dict[str, Any], Iterable[str], bool]:
    """The JSON document, the lines in its place, and whether all is well."""
    if what == "matrix":
        rows = flow_matrix(policy)
        text = as_csv(rows) if options["format"] == "csv" else as_text(rows)
        return {"flows": as_rows(rows)}, text.splitlines(), True
    if what == "recipes":
        try:
            text = recipe(options["router"], plan_of(policy, options["box"], options["interface"]))
        except (RecipeError, ValueError) as fault:
            raise SteeringError(str(fault)) from None
        return {"router": options["router"], "recipe": text}, text.splitlines(), True
    from accelerator.steering.lanes import Viewer, try_lane

    page = options["page"] or "https://portal.example"
    url = options["url"] or ""
    if not page.startswith(("https://", "http://")) or (url and not url.startswith(("https://", "http://"))):
        raise SteeringError("--page and --url are URLs: https://HOST/…")
    if options["ca"] and not Path(options["ca"]).is_file():
        raise SteeringError(f"--ca: there is no file {options['ca']}")
    report = try_lane(options["lane"], policy, Viewer(page, options["box"] or "", options["ca"] or "", url))
    return {"lane": options["lane"], **report.as_dict()}, report_lines(report), report.is_ok


def document_text(policy: Policy, first: str | None = None) -> str:
    """With `first`, where players ask again: the document that they get before."""
    text = document_of(policy) if first is None else first_document_of(policy, first)
    if text is None:
        raise SteeringError("the policy has no steering.document")
    return text


def pac_text(policy: Policy) -> str:
    text = pac_of(policy)
    if text is None:
        raise SteeringError("the policy has no steering.proxy")
    return text
