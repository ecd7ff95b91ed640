"""Collects the bytes of a response head and finds the final one behind interim ones. No socket, no bodies."""

from __future__ import annotations

import re
from collections.abc import Callable

from accelerator.errors import OriginError
from accelerator.io.response import ParseResponse, Response

HEAD_BYTES_MAX = 65536
# Clients must take several (RFC 9110 section 15.2), an origin must not keep us busy with them.
INTERIM_MAX = 16
_HEAD_END = re.compile(rb"\n\r?\n")  # bare LF too: the parser must see and refuse it rather than wait for more


class HeadReader:
    """Reads one exchange's head in `scratch` (HEAD_BYTES_MAX bytes), into which the caller receives at `filled`.
    `interim` hears of each 1xx head. `allows_switch`: another protocol was asked for, so a 101 is final."""

    __slots__ = (
        "_allows_switch", "_head_error", "_interim", "_parse", "_parse_again_at", "_scratch", "_searched", "filled",
        "n_interim",
    )  # fmt: skip

    def __init__(
        self,
        scratch: bytearray,
        parse: ParseResponse,
        head_error: type[Exception],
        interim: Callable[[Response], None],
        *,
        allows_switch: bool = False,
    ) -> None:
        self._allows_switch = allows_switch
        self.filled = 0
        self._interim = interim
        self.n_interim = 0
        self._scratch = scratch
        self._parse = parse
        self._head_error = head_error
        self._searched = 0
        self._parse_again_at = 0

    def move(self, scratch: bytearray) -> None:
        """Goes on in memory that is this exchange's own."""
        scratch[: self.filled] = memoryview(self._scratch)[: self.filled]
        self._scratch = scratch

    def received(self, n: int) -> tuple[Response, int] | None:
        """`n` more bytes stand at `filled`. Returns the final head and where the body begins; None: more are needed.

        Raises OriginError('bad-head' or 'interim-flood').
        """
        self.filled += n
        start = 0
        while True:
            response = self._parse_one(start)
            if response is None:
                break
            start += response.length
            if response.status >= 200 or (response.status == 101 and self._allows_switch):
                return response, start
            if response.status == 101:
                raise OriginError("bad-head", "101 without Upgrade asked")
            self.n_interim += 1
            if self.n_interim > INTERIM_MAX:
                raise OriginError("interim-flood", f"more than {INTERIM_MAX} interim responses")
            self._interim(response)
            self._searched, self._parse_again_at = start, 0
        if start:
            self._scratch[: self.filled - start] = self._scratch[start : self.filled]
            self.filled -= start
            self._searched -= start
        if self.filled >= HEAD_BYTES_MAX:
            raise OriginError("bad-head", f"head above {HEAD_BYTES_MAX} bytes")
        return None

    def _parse_one(self, start: int) -> Response | None:
        """Parses when an end of head is there, or twice as much as last time: a dripping head costs linear time."""
        n = self.filled
        match = _HEAD_END.search(self._scratch, max(start, self._searched - 2), n)
        self._searched = n
        if n == start or (match is None and n - start < self._parse_again_at):
            return None
        self._parse_again_at = 2 * (n - start)
        end = n if match is None else match.end()
        try:
            response = self._parse(bytes(memoryview(self._scratch)[start:end]))
        except self._head_error as exc:
            raise OriginError("bad-head", f"malformed or ambiguous head ({exc})") from exc
        if response is None and match is not None:
            # Every parser that we could be given reads a head to its first empty line, or refuses it.
            raise OriginError("bad-head", "empty line before the end of the head")
        return response
