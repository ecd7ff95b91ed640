"""One viewer's request as it goes to its origin, whole, conditional, or for a part. Decides nothing on answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerator.errors import OriginError
from accelerator.protocols.byte_ranges import ranges_of, united
from accelerator.protocols.fields import get_all, get_first
from accelerator.protocols.representation import partial_range, selected_etag
from accelerator.protocols.upstream_fields import upstream_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerator.dataplane import Exchange
    from accelerator.io.origin import Upstream
    from accelerator.io.response import Response, Sink
    from accelerator.io.upstream import Body, Call
    from accelerator.protocols.byte_ranges import ByteRange
    from accelerator.services.origins.origins import Origin


class UpstreamRequest:
    """`request` is the viewer's parsed head. Requests and body bytes are counted here."""

    def __init__(self, plane: Any, origin: Origin, request: Any, site: bytes) -> None:
        self.origin = origin
        self.method: bytes = request.method
        self.fields: list[tuple[bytes, bytes]] = request.fields
        # Path and query as received (RFC 9110 section 7.7); absolute-form loses its authority only.
        path: bytes = request.path
        self.target = path if path.startswith(b"/") else b"/" + path
        self._plane = plane
        self._site = site

    def send(
        self,
        sink: Sink,
        *,
        validators: tuple[bytes | None, bytes | None] | None = None,
        byte_ranges: Sequence[ByteRange] = (),
        if_range: bytes | None = None,
        avoid: Upstream | None = None,
        extra: Sequence[tuple[bytes, bytes]] = (),
        body: Body | None = None,
        idempotent: bool = True,
    ) -> Call:
        """`extra`: fields besides those that travel. `body`, `idempotent`: as UpstreamClient.request takes them."""
        fields = upstream_fields(
            self.fields, self.origin.rules, host=self.host(), site=self._site, method=self.method,
            validators=validators, byte_ranges=byte_ranges, if_range=if_range,
        )  # fmt: skip
        self._plane.count("upstream_requests")
        if validators is not None:
            self._plane.count("validations")
        return self.origin.client.request(
            self.method, self.target, [*fields, *extra], sink, idempotent=idempotent, avoid=avoid, body=body
        )

    def host(self) -> bytes:
        """The Host that is sent; empty: the upstream's own name."""
        if self.origin.policy.upstream_host != "viewer":
            return b""
        return plain_host(get_first(self.fields, b"host") or b"")

    def received(self, n: int) -> None:
        """`n` body bytes have come."""
        self._plane.count("bytes_from_origin", n)
        self.origin.bytes_from_origin += n


def plain_host(authority: bytes) -> bytes:
    """A viewer's Host in its one spelling: lower case, no port, no root dot. It goes up and is not part of the key, so
    whatever one viewer could vary in it would be in what all others are given."""
    host = authority.lower()
    if not host.endswith(b"]"):
        name, colon, _ = host.rpartition(b":")
        host = name if colon else host
    return host.removesuffix(b".")


def own_condition(fields: list[tuple[bytes, bytes]]) -> tuple[bytes | None, bool]:
    """A viewer's If-Range for the origin to judge, where we have nothing to compare it with; False: it can't be judged,
    which makes the request one for the whole (RFC 9110 section 13.1.5). Without it, he would add a part of what is
    there now to what he has of something else."""
    values = get_all(fields, b"if-range")
    return (values[0] if values else None), len(values) <= 1


def has_range(exchange: Exchange) -> bool:
    """Whether the viewer asks for ranges that we understand: of several, the exchange names the first."""
    return (exchange.range_first, exchange.range_last) != (-1, -1)


def has_several_ranges(fields: list[tuple[bytes, bytes]]) -> bool:
    """Whether Range names more than one."""
    return b"," in (get_first(fields, b"range") or b"")


def several_ranges(fields: list[tuple[bytes, bytes]]) -> list[ByteRange]:
    """The viewer's ranges as they may go to an origin; none where there are too many."""
    return united(ranges_of(get_first(fields, b"range") or b""))


def asked_range(exchange: Exchange) -> ByteRange:
    """The viewer's own range."""
    if exchange.range_first < 0:
        # `-0` is no byte at all, and 416 once the length is known: what tells that costs one slice.
        return (-exchange.range_last, None) if exchange.range_last else (0, 0)
    return exchange.range_first, None if exchange.range_last < 0 else exchange.range_last


def aligned_range(exchange: Exchange, slice_bytes: int) -> ByteRange | None:
    """The slices that the viewer's range touches; None: from the start without end, which needs no Range."""
    first, last = asked_range(exchange)
    if first < 0:
        return first, None
    first -= first % slice_bytes
    if last is None:
        return (first, None) if first else None
    return first, last - last % slice_bytes + slice_bytes - 1


def continuation(response: Response, offset: int, etag: bytes | None, total: int) -> tuple[int, int, bool] | None:
    """How a response goes on at `offset` with the representation (strong `etag`, `total` bytes); None: it does not.

    (body bytes to skip, where the part ends, exclusive, whether it is the whole body). A 200 with the same strong tag
    is the same bytes, from an origin that ignores Range.
    """
    if etag is None or selected_etag(response.fields) != etag:
        return None
    if response.status == 200:
        return (offset, total, True) if response.content_length == total else None
    if response.status != 206:
        return None
    try:
        part = partial_range(response.fields)
    except OriginError:
        return None
    if part is None or part.first != offset or part.total not in (total, None) or part.last >= total:
        return None
    return 0, part.last + 1, False
