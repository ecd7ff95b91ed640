"""How a report reads on a terminal. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Iterator

from accelerator.doctor.finding import Report

_MARKS = {"bad": "BAD ", "warn": "WARN", "info": "info"}


def report_lines(report: Report) -> Iterator[str]:
    """Each finding as its sentence and what mends it, then what could not be looked at, then the sum."""
    document = report.as_dict()
    for each in document["findings"]:
        yield f"{_MARKS[each['level']]} {each['text']}"
        if each["mend"]:
            yield f"     mend: {each['mend']}"
    for each in document["skipped"]:
        yield f"not looked at ({each['check']}): {each['why']}"
    n = sum(each["level"] != "info" for each in document["findings"])
    what = "nothing is in the way" if not n else f"{n} problem{'' if n == 1 else 's'}"
    yield f"{what}; looked at: {', '.join(document['checked'])}"
