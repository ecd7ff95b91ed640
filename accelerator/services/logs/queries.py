"""What stands for a query wherever something is stored or shown: a short keyed digest, as queries hold credentials.

The key is drawn at each start and is nowhere written, so that nobody who has the logs can try queries. The same query
has the same digest in the access log, in `cache ls` and in texts, until the process ends.
"""

from __future__ import annotations

import re

from accelerator.dataplane import digest_of_query

_QUERY = re.compile(r"\?(\S+)")
_DIGEST = re.compile(r"…[0-9a-f]{12}(?![^'\")\]}>.,;:?!])")
# What may end a sentence or a quotation around a URL, rather than the URL.
_ENDS = "'\")]}>.,;:?!"


def shown_query(query: bytes) -> str:
    """What to write after a path for the query after its `?`; "" stays empty."""
    return f"…{digest_of_query(query)}" if query else ""


def shown_key(key: bytes) -> str:
    """A path with its query, as a request has it, for people and logs."""
    path, mark, query = key.partition(b"?")
    return path.decode("ascii", "backslashreplace") + mark.decode() + shown_query(query)


def without_queries(text: str) -> str:
    """`text` with a digest for whatever follows a question mark without a space."""
    return _QUERY.sub(_replaced, text) if "?" in text else text


def _replaced(match: re.Match[str]) -> str:
    rest = match[1]
    if _DIGEST.match(rest):
        return match[0]  # by us
    query = rest.rstrip(_ENDS)
    if not query:
        return match[0]
    return "?" + shown_query(query.encode("utf-8", "surrogatepass")) + rest[len(query) :]
