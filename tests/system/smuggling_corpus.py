"""Requests that two readers may cut differently, written from the descriptions of the attacks (RFC 9112 section 11.2).

Each tries to get `GET /smuggled/...` past the box as a request of its own: the box must never send it on. A payload is
bytes with `{outer}` and `{hidden}` in place of the targets. No test here.
"""

from __future__ import annotations

HIDDEN = b"GET {hidden} HTTP/1.1\r\nHost: video.example\r\nX-Smuggled: yes\r\n\r\n"
HOST = b"Host: video.example\r\n"
CHUNKED_END = b"0\r\n\r\n"


def _post(*lines: bytes, body: bytes = b"", method: bytes = b"POST") -> bytes:
    fields = b"".join(line + b"\r\n" for line in lines)
    return method + b" {outer} HTTP/1.1\r\n" + HOST + fields + b"\r\n" + body


def _corpus() -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def add(name: str, payload: bytes) -> None:
        assert name not in found, name
        found[name] = payload

    # One field says where the body ends, the other says that there is none, or a longer one: all methods that differ.
    for method in (b"GET", b"POST", b"HEAD", b"OPTIONS", b"DELETE"):
        name = method.decode()
        add(f"{name} CL hides", _post(b"Content-Length: %d" % len(HIDDEN), body=HIDDEN, method=method))
        add(
            f"{name} CL.TE",
            _post(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=CHUNKED_END + HIDDEN, method=method),
        )
        add(
            f"{name} TE.CL",
            _post(
                b"Transfer-Encoding: chunked",
                b"Content-Length: 4",
                body=b"5c\r\n" + HIDDEN + CHUNKED_END,
                method=method,
            ),
        )
        add(
            f"{name} TE hides",
            _post(
                b"Transfer-Encoding: chunked",
                body=b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n" + CHUNKED_END,
                method=method,
            ),
        )

    lengths = {
        "0 then n": (b"Content-Length: 0", b"Content-Length: 90"),
        "n then 0": (b"Content-Length: 90", b"Content-Length: 0"),
        "list": (b"Content-Length: 0, 90",),
        "same twice": (b"Content-Length: 90", b"Content-Length: 90"),
        "plus": (b"Content-Length: +90",),
        "minus": (b"Content-Length: -90",),
        "zeros": (b"Content-Length: 0000000090",),
        "hex": (b"Content-Length: 0x5a",),
        "octal": (b"Content-Length: 0o132",),
        "underscore": (b"Content-Length: 9_0",),
        "exponent": (b"Content-Length: 9e1",),
        "point": (b"Content-Length: 90.0",),
        "text after": (b"Content-Length: 90a",),
        "comma after": (b"Content-Length: 90,",),
        "semicolon": (b"Content-Length: 90;a",),
        "quoted": (b'Content-Length: "90"',),
        "space within": (b"Content-Length: 9 0",),
        "tab before": (b"Content-Length:\t90",),
        "tab after": (b"Content-Length: 90\t",),
        "vertical tab": (b"Content-Length: \x0b90",),
        "form feed": (b"Content-Length: 90\x0c",),
        "NUL after": (b"Content-Length: 90\0",),
        "NBSP": (b"Content-Length: \xa090",),
        "Arabic": ("Content-Length: \u0669\u0660".encode(),),
        "wraps 32": (b"Content-Length: 4294967386",),
        "wraps 64": (b"Content-Length: 18446744073709551706",),
        "name with space": (b"Content-Length : 90",),
        "name with tab": (b"Content-Length\t: 90",),
        "name after space": (b" Content-Length: 90",),
        "name with NUL": (b"Content-Length\0: 90",),
        "name with underscore": (b"Content_Length: 90",),
        "name quoted": (b'"Content-Length": 90',),
        "name folded": (b"Content-\r\n Length: 90",),
        "value folded": (b"Content-Length:\r\n 90",),
        "folded by tab": (b"Content-Length:\r\n\t90",),
        "after bare CR": (b"X: a\rContent-Length: 90",),
        "after bare LF": (b"X: a\nContent-Length: 90",),
        "bare CR in value": (b"Content-Length: 9\r0",),
        "colon twice": (b"Content-Length:: 90",),
        "no value": (b"Content-Length:",),
        "upper case": (b"CONTENT-LENGTH: 90",),
        "long s": ("Content-Length\u017f: 90".encode(),),
    }
    for name, lines in lengths.items():
        add(f"CL {name}", _post(*lines, body=HIDDEN, method=b"GET"))

    codings = {
        "upper": (b"Transfer-Encoding: CHUNKED",),
        "tab": (b"Transfer-Encoding:\tchunked",),
        "tab after": (b"Transfer-Encoding: chunked\t",),
        "spaces": (b"Transfer-Encoding:    chunked   ",),
        "list": (b"Transfer-Encoding: identity, chunked",),
        "list after": (b"Transfer-Encoding: chunked, identity",),
        "gzip first": (b"Transfer-Encoding: gzip, chunked",),
        "twice": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        "twice in one": (b"Transfer-Encoding: chunked, chunked",),
        "then identity": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        "identity then": (b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"),
        "x first": (b"Transfer-Encoding: xchunked",),
        "x after": (b"Transfer-Encoding: chunkedx",),
        "parameter": (b"Transfer-Encoding: chunked;q=1",),
        "semicolon": (b"Transfer-Encoding: chunked;",),
        "comma first": (b"Transfer-Encoding: ,chunked",),
        "comma after": (b"Transfer-Encoding: chunked,",),
        "quoted": (b'Transfer-Encoding: "chunked"',),
        "single quotes": (b"Transfer-Encoding: 'chunked'",),
        "brackets": (b"Transfer-Encoding: [chunked]",),
        "vertical tab": (b"Transfer-Encoding: \x0bchunked",),
        "form feed": (b"Transfer-Encoding: \x0cchunked",),
        "NUL": (b"Transfer-Encoding: \0chunked",),
        "NUL after": (b"Transfer-Encoding: chunked\0",),
        "DEL": (b"Transfer-Encoding: chunked\x7f",),
        "NBSP": (b"Transfer-Encoding: \xa0chunked",),
        "high bit": (b"Transfer-Encoding: \xe3hunked",),
        "name with space": (b"Transfer-Encoding : chunked",),
        "name with tab": (b"Transfer-Encoding\t: chunked",),
        "name after space": (b" Transfer-Encoding: chunked",),
        "name after tab": (b"\tTransfer-Encoding: chunked",),
        "name with NUL": (b"Transfer-Encoding\0: chunked",),
        "name with underscore": (b"Transfer_Encoding: chunked",),
        "name with dot": (b"Transfer.Encoding: chunked",),
        "name prefixed": (b"X-Transfer-Encoding: chunked",),
        "name in quotes": (b'"Transfer-Encoding": chunked',),
        "folded": (b"Transfer-Encoding:\r\n chunked",),
        "folded by tab": (b"Transfer-Encoding:\r\n\tchunked",),
        "folded name": (b"Transfer-\r\n Encoding: chunked",),
        "behind a fold": (b"X: a\r\n b\r\nTransfer-Encoding: chunked",),
        "after bare CR": (b"X: a\rTransfer-Encoding: chunked",),
        "after bare LF": (b"X: a\nTransfer-Encoding: chunked",),
        "after CR CR": (b"X: a\r\r\nTransfer-Encoding: chunked",),
        "after LF CR": (b"X: a\n\rTransfer-Encoding: chunked",),
        "bare CR within": (b"Transfer-Encoding: chun\rked",),
        "bare LF within": (b"Transfer-Encoding: chun\nked",),
        "bare LF before": (b"Transfer-Encoding:\nchunked",),
        "empty": (b"Transfer-Encoding:",),
        "empty then chunked": (b"Transfer-Encoding:", b"Transfer-Encoding: chunked"),
        "colon twice": (b"Transfer-Encoding:: chunked",),
        "named by Connection": (b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked"),
        "backslash": (b"Transfer-Encoding: \\chunked",),
        "encoded": (b"Transfer-Encoding: %63hunked",),
        "MIME": (b"Transfer-Encoding: =?utf-8?q?chunked?=",),
        "long s": ("Tran\u017ffer-Encoding: chunked".encode(),),
        "with TE": (b"TE: trailers, chunked", b"Transfer-Encoding: chunked"),
        "content coding": (b"Content-Encoding: chunked",),
    }
    for name, lines in codings.items():
        add(f"TE {name}", _post(*lines, body=CHUNKED_END + HIDDEN))
        add(f"CL and TE {name}", _post(b"Content-Length: 5", *lines, body=CHUNKED_END + HIDDEN, method=b"GET"))

    chunks = {
        "plus": b"+0\r\n\r\n",
        "minus": b"-0\r\n\r\n",
        "0x": b"0x0\r\n\r\n",
        "space before": b" 0\r\n\r\n",
        "space after": b"0 \r\n\r\n",
        "zeros": b"0000\r\n\r\n",
        "bare LF": b"0\n\n",
        "bare CR": b"0\r\r\n\r\n",
        "extension": b"0;a=b\r\n\r\n",
        "extension with LF": b"0;a\nb\r\n\r\n",
        "extension with CR": b"0;a\rb\r\n\r\n",
        "quoted extension": b'0;a="\r\n\r\n"\r\n\r\n',
        "trailer": b"0\r\nX: y\r\n\r\n",
        "trailer CL": b"0\r\nContent-Length: 90\r\n\r\n",
        "trailer TE": b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "huge": b"fffffffffffffffff\r\n",
        "wraps": b"10000000000000000\r\n",
        "underscore": b"0_0\r\n\r\n",
        "no size": b"\r\n\r\n",
        "not hex": b"g\r\n\r\n",
        "no CRLF after data": b"1\r\na0\r\n\r\n",
        "two bytes after data": b"1\r\naXX0\r\n\r\n",
        "missing end": b"1\r\na\r\n",
    }
    for name, body in chunks.items():
        add(f"chunk {name}", _post(b"Transfer-Encoding: chunked", body=body + HIDDEN))

    # Targets and request lines that could become two.
    add("LF in the target", b"GET {outer}\nGET {hidden} HTTP/1.1\r\n" + HOST + b"\r\n")
    add("CRLF in the target", b"GET {outer}\r\nGET {hidden} HTTP/1.1\r\n" + HOST + b"\r\n")
    add("CR in the target", b"GET {outer}\rGET {hidden} HTTP/1.1\r\n" + HOST + b"\r\n")
    add("space in the target", b"GET {outer} GET {hidden} HTTP/1.1\r\n" + HOST + b"\r\n")
    add("line in the target", b"GET {outer} HTTP/1.1\r\n\r\nGET {hidden} HTTP/1.1\r\n" + HOST + b"\r\n")
    add("version in the target", b"GET {outer} HTTP/1.1 HTTP/1.1\r\n" + HOST + b"\r\n" + b"GET {hidden}\r\n\r\n")
    add("HTTP/0.9 behind", b"GET {outer}\r\n\r\n" + HIDDEN)
    add("no version", b"GET {outer} \r\n" + HOST + b"\r\n" + HIDDEN)
    add("other version", b"GET {outer} HTTP/1.1x\r\n" + HOST + b"\r\n" + HIDDEN)
    add(
        "HTTP/1.0 with TE",
        b"GET {outer} HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED_END + HIDDEN,
    )
    add("absolute-form, other host", b"GET http://other.example{outer} HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN)
    add("absolute-form, user", b"GET http://other@video.example{outer} HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN)
    add("absolute-form, backslash", b"GET http://video.example\\@other{outer} HTTP/1.1\r\n" + HOST + b"\r\n" + HIDDEN)
    add("absolute-form twice", b"GET http://video.example/http://other{hidden} HTTP/1.2x\r\n" + HOST + b"\r\n")
    add("two Hosts", b"GET {outer} HTTP/1.1\r\n" + HOST + b"Host: other.example\r\n\r\n" + HIDDEN)
    add("Host folded", b"GET {outer} HTTP/1.1\r\nHost:\r\n video.example\r\n\r\n" + HIDDEN)
    add("Host with CR", b"GET {outer} HTTP/1.1\r\nHost: video.example\rX: a\r\n\r\n" + HIDDEN)
    add("Host with space", b"GET {outer} HTTP/1.1\r\nHost : video.example\r\n\r\n" + HIDDEN)
    add("CR LF CR ends the head", b"GET {outer} HTTP/1.1\r\n" + HOST + b"\r" + HIDDEN)
    add("LF LF ends the head", b"GET {outer} HTTP/1.1\r\n" + HOST[:-2] + b"\n\n" + HIDDEN)
    add("CR CR ends the head", b"GET {outer} HTTP/1.1\r\n" + HOST[:-2] + b"\r\r" + HIDDEN)
    add("NUL ends the head", b"GET {outer} HTTP/1.1\r\n" + HOST + b"\0\r\n" + HIDDEN)
    add("hidden in a value", b"GET {outer} HTTP/1.1\r\n" + HOST + b"X: a\r\n\x0b\r\n" + HIDDEN)
    add("hidden behind a bare LF", b"GET {outer} HTTP/1.1\r\n" + HOST + b"X: a\n\nGET {hidden} HTTP/1.1\r\n\r\n")
    add("hidden behind a bare CR", b"GET {outer} HTTP/1.1\r\n" + HOST + b"X: a\r\rGET {hidden} HTTP/1.1\r\n\r\n")
    add(
        "Upgrade h2c",
        _post(
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
            b"Content-Length: 90",
            body=HIDDEN,
            method=b"GET",
        ),
    )
    add(
        "WebSocket",
        _post(
            b"Connection: Upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Version: 777",
            b"Content-Length: 90",
            body=HIDDEN,
            method=b"GET",
        ),
    )
    add("Expect", _post(b"Expect: 100-continue", b"Content-Length: 90", body=HIDDEN, method=b"GET"))
    add("odd Expect", _post(b"Expect: y 100-continue", b"Content-Length: 90", body=HIDDEN, method=b"GET"))
    add("folded Expect", _post(b"Expect:\r\n 100-continue", b"Content-Length: 90", body=HIDDEN, method=b"GET"))
    add("CONNECT", b"CONNECT video.example:80 HTTP/1.1\r\nHost: video.example:80\r\n\r\n" + HIDDEN)
    add("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN)
    add("unknown method", _post(b"Content-Length: 90", body=HIDDEN, method=b"BREW"))
    add("TRACE", _post(b"Content-Length: 90", body=HIDDEN, method=b"TRACE"))
    add("close, then more", _post(b"Connection: close", body=HIDDEN, method=b"GET"))
    add("HTTP/1.0, then more", b"GET {outer} HTTP/1.0\r\n" + HOST + b"\r\n" + HIDDEN)
    for name, payload in _bodies().items():
        add(name, payload)
    return found


def _bodies() -> dict[str, bytes]:
    """Bodies that a passing box has to cut where its origin does."""
    found: dict[str, bytes] = {}
    te = b"Transfer-Encoding: chunked"
    whole = b"3\r\nabc\r\n"
    # Chunk sizes that overflow, stop short, or are written as one reader of two understands them.
    sizes = {
        "overflows 32 bits": b"100000003", "overflows 64 bits": b"10000000000000003", "sixteen digits": b"f" * 16,
        "fifteen digits": b"f" * 15, "many zeros": b"0" * 40 + b"3", "sign and zero": b"+3", "negative": b"-3",
        "0x": b"0x3", "0X": b"0X3", "h": b"3h", "space within": b"0 3", "tab before": b"\t3", "tab after": b"3\t",
        "NUL after": b"3\0", "comma": b"3,0", "point": b"3.0", "exponent": b"3e0", "full width": "\uff13".encode(),
        "underscore": b"0_3", "quotes": b'"3"', "CR after": b"3\r", "vertical tab": b"3\x0b", "empty": b"",
        "colon": b"3:", "percent": b"%33", "equals": b"3=3",
    }  # fmt: skip
    for name, size in sizes.items():
        found[f"size {name}"] = _post(te, body=size + b"\r\nabc\r\n" + CHUNKED_END + HIDDEN)
    # Line ends: what one reader takes for the end of a size line or of data, and another for a part of it.
    ends = {
        "LF after size": b"3\nabc\r\n", "CR after size": b"3\rabc\r\n", "CR CR LF after size": b"3\r\r\nabc\r\n",
        "LF LF after size": b"3\n\nabc\r\n", "LF after data": b"3\r\nabc\n", "CR after data": b"3\r\nabc\r",
        "nothing after data": b"3\r\nabc", "CRLF twice after data": b"3\r\nabc\r\n\r\n",
        "space after data": b"3\r\nabc \r\n",
        "data one longer": b"3\r\nabcd\r\n", "data one shorter": b"3\r\nab\r\n", "LF for the last": whole + b"0\n\n",
        "last with CR CR": whole + b"0\r\n\r\r\n", "last with LF behind": whole + b"0\r\n\n",
    }  # fmt: skip
    for name, body in ends.items():
        found[f"end {name}"] = _post(te, body=body + CHUNKED_END + HIDDEN)
    # Extensions (TERM.EXT, EXT.TERM, TERM.SPILL, SPILL.TERM): a line end in one, or one that hides a chunk.
    extensions = {
        "bare semicolon": b"3;\r\nabc\r\n", "name": b"3;a\r\nabc\r\n", "LF ends it": b"3;a\nabc\r\n",
        "LF in it": b"3;\n0\r\nabc\r\n", "CR in it": b"3;\rx\r\nabc\r\n", "NUL in it": b"3;\0\r\nabc\r\n",
        "quoted CRLF": b'3;a="\r\n"\r\nabc\r\n', "open quote": b'3;a="\r\nabc\r\n',
        "size behind it": b"3;5\r\nabc\r\n",
        "long": b"3;" + b"a" * 2000 + b"\r\nabc\r\n", "on the last chunk": whole + b"0;a=b\r\n\r\n",
        "LF on the last chunk": whole + b"0;\n\r\n\r\n", "space before": b"3 ;a\r\nabc\r\n",
    }  # fmt: skip
    for name, body in extensions.items():
        found[f"extension {name}"] = _post(te, body=body + CHUNKED_END + HIDDEN)
    # Trailers that a careless reader merges into the head.
    for field in (b"Content-Length: 90", b"Transfer-Encoding: chunked", b"Host: other.example", b"Connection: close",
                  b"Authorization: Basic YTpi", b"Expect: 100-continue", b"X-Forwarded-For: 10.0.0.1", b"Upgrade: h2c",
                  b"Cookie: session=1", b" folded", b"no colon", b"Space : before", b"NUL: \0", b"LF: a\nb",
                  b"Trailer: Content-Length", b": empty"):  # fmt: skip
        found[f"trailer {field!r}"] = _post(te, body=whole + b"0\r\n" + field + b"\r\n\r\n" + HIDDEN)
    found["trailers without end"] = _post(te, body=whole + b"0\r\n" + b"X: y\r\n" * 2000 + b"\r\n" + HIDDEN)
    # Expect: who waits and who doesn't see the body elsewhere (0.CL and CL.0).
    length = b"Content-Length: %d" % len(HIDDEN.replace(b"{hidden}", b"/smuggled/000"))
    for name, lines in {
        "with a length": (length,), "with chunks": (te,), "twice": (b"Expect: 100-continue", length),
        "with both": (length, te), "and close": (b"Connection: close", length),
    }.items():  # fmt: skip
        found[f"Expect {name}"] = _post(b"Expect: 100-continue", *lines, body=whole + CHUNKED_END + HIDDEN)
    for name, value in {"list": b"100-continue, 100-continue", "parameter": b"100-continue;q=1",
                        "tab": b"100-continue\tx", "other": b"200-ok", "empty": b""}.items():  # fmt: skip
        found[f"Expect {name} value"] = _post(b"Expect: " + value, length, body=HIDDEN)
    # Bodies of methods that have none, and what comes right behind a whole one.
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PUT", b"PATCH", b"M-SEARCH"):
        name = method.decode()
        found[f"{name} body, then more"] = _post(b"Content-Length: 3", body=b"abc" + HIDDEN, method=method)
        found[f"{name} chunks, then more"] = _post(te, body=whole + CHUNKED_END + HIDDEN, method=method)
        found[f"{name} cut short"] = _post(b"Content-Length: 5000", body=HIDDEN, method=method)
    found["HTTP/1.0 body, then more"] = (
        b"POST {outer} HTTP/1.0\r\n" + HOST + b"Connection: keep-alive\r\nContent-Length: 3\r\n\r\nabc" + HIDDEN
    )
    found["body, then CRLFs, then more"] = _post(b"Content-Length: 3", body=b"abc\r\n\r\n" + HIDDEN)
    found["body, then LF, then more"] = _post(b"Content-Length: 3", body=b"abc\n" + HIDDEN)
    found["chunks, then half a head"] = _post(te, body=whole + CHUNKED_END + HIDDEN[:30])
    return found


CORPUS = _corpus()
# Names that frame nothing: every compliant reader sees what follows as the next request, or as none.
NOT_FRAMING = frozenset({"CL name with underscore", "TE name with underscore", "TE name with dot", "TE name prefixed",
                         "TE content coding"})  # fmt: skip
