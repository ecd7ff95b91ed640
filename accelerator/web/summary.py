"""The dashboard's page as it leaves: its language, and the figures in plain text for browsers without scripts.

Everything that enters the page is escaped here: names come from the policy, reasons from origins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from accelerator.control.text import count_text, duration_text, printable, rate_text, ratio_text, size_text

LANGUAGES = ("en", "fr")
_RANGE = re.compile(r"\s*([A-Za-z]{1,8}|\*)(?:-[A-Za-z0-9-]{1,32})?\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?))?\s*")
_UNITS_FR = {"KiB": "Ko", "MiB": "Mo", "GiB": "Go", "TiB": "To", "PiB": "Po", "B": "o", "d": "j"}


def language_of(accepted: str) -> str:
    """The language of ours that Accept-Language likes most (RFC 9110 section 12.5.4); English where it likes none."""
    best, best_weight = "en", 0.0
    for each in accepted[:500].split(","):
        match = _RANGE.fullmatch(each)
        if match is None:
            continue
        weight = float(match[2]) if match[2] is not None else 1.0
        language = match[1].lower()
        if language in LANGUAGES and weight > best_weight:
            best, best_weight = language, weight
    return best


def page_of(template: str, language: str, texts: Mapping[str, str], live: Mapping[str, Any] | None) -> str:
    """`live` None: reading needs the token, so that no figure stands in the page."""
    return template.replace("{{lang}}", language).replace("{{summary}}", _summary(language, texts, live))


def _summary(language: str, texts: Mapping[str, str], live: Mapping[str, Any] | None) -> str:
    rows = [f"<p>{escape(texts['noscript'])}</p>"]
    if live is None:
        return rows[0]
    counters, now = live["counters"], live["now"]
    figures = {
        "verdict": texts[f"level.{live['level']}"],
        "tile.viewers": rate_text(now["to_viewers_bps"]),
        "tile.wan": rate_text(now["from_origin_bps"]),
        "tile.saved": size_text(max(0, counters["bytes_to_viewers"] - counters["bytes_from_origin"])),
        "tile.hits": ratio_text(now["hit_ratio"]),
        "tile.requests": count_text(now["requests_per_s"]),
        "connections": count_text(counters["connections"]),
        "tile.memory": f"{size_text(counters['memory_bytes'])} / {size_text(counters['memory_limit_bytes'])}",
        "uptime": duration_text(live["uptime_s"]),
    }
    if language == "fr":
        figures = {key: _in_french(value) for key, value in figures.items()}
    pairs = [(texts.get(key, key), value) for key, value in figures.items()]
    rows.append(f"<p>{escape(printable(live['site']))}, {escape(printable(live['version']))}</p>")
    rows.append("<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>")
    names = [
        f"<li>{escape(printable(row['name']))}: {escape(texts['level.origin.' + row['level']])}</li>"
        for row in live["origins"]
        if row["level"] != "ok"
    ]
    return "".join(rows) + (f"<ul>{''.join(names)}</ul>" if names else "")


def _in_french(text: str) -> str:
    """The same value, written as the dashboard writes it: decimal comma, spaces between thousands, octets."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "\u202f", text)
    text = re.sub(r"(?<=\d)\.(?=\d)", ",", text)
    return re.sub(r"(?<= )(KiB|MiB|GiB|TiB|PiB|B|d)\b", lambda match: _UNITS_FR[match[1]], text)
