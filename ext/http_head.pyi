"""Types of what ext/http_head.pyx gives to Python. The C contract is http_head.pxd."""

class HeadError(Exception):
    status: int
    reason: str
    def __init__(self, status: int, reason: str) -> None: ...

class Request:
    method: bytes
    target: bytes
    path: bytes
    host: bytes
    authority: bytes
    minor: int
    keep_alive: bool
    chunked: bool
    expects_continue: bool
    content_length: int
    fields: list[tuple[bytes, bytes]]
    length: int

class Response:
    status: int
    reason: bytes
    minor: int
    keep_alive: bool
    chunked: bool
    content_length: int
    fields: list[tuple[bytes, bytes]]
    length: int

def parse_request(data: bytes | bytearray | memoryview, may_connect: bool = False) -> Request | None: ...
def parse_response(data: bytes | bytearray | memoryview) -> Response | None: ...
def request_numbers(data: bytes | bytearray | memoryview) -> dict[str, object]: ...
def bench_parse(data: bytes, n: int) -> float: ...
