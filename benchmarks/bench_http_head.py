"""How long does one request head take? Our parser as the data plane calls it ("C") and as Python does, and httptools.

One core. Prints nanoseconds per head, each the median of five runs, and the ratios to httptools (llhttp), which makes
the same fields as Python objects; so "Python/httptools" compares like with like, and "C" is what a hit pays.
Run: .venv/bin/python benchmarks/bench_http_head.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import httptools

from ext.http_head import bench_parse, parse_request

HEADS = {
    "curl": b"GET /live/720p.m3u8 HTTP/1.1\r\nHost: media.example\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
    "browser": (
        b"GET /live/channel1/720p/segment-0001234.m4s HTTP/1.1\r\nHost: media.lyon.corp.example\r\n"
        b"Connection: keep-alive\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        b"Chrome/126.0.0.0 Safari/537.36\r\nAccept: */*\r\nOrigin: https://portal.corp.example\r\n"
        b"Referer: https://portal.corp.example/watch/1\r\nAccept-Encoding: gzip, deflate, br\r\n"
        b"Accept-Language: fr-FR,fr;q=0.9,en;q=0.8\r\n\r\n"
    ),
    "browser with cookies": (
        b"GET /live/channel1/720p/segment-0001234.m4s?token=" + b"0123456789abcdef" * 8 + b" HTTP/1.1\r\n"
        b"Host: media.lyon.corp.example\r\nConnection: keep-alive\r\nsec-ch-ua-platform: \"Linux\"\r\n"
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        b"Chrome/126.0.0.0 Safari/537.36\r\n"
        b"sec-ch-ua: \"Chromium\";v=\"126\", \"Not-A.Brand\";v=\"8\"\r\nsec-ch-ua-mobile: ?0\r\nAccept: */*\r\n"
        b"Origin: https://portal.corp.example\r\nSec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n"
        b"Sec-Fetch-Dest: empty\r\nReferer: https://portal.corp.example/watch/1\r\nAccept-Encoding: gzip, deflate\r\n"
        b"Accept-Language: fr-FR,fr;q=0.9,en;q=0.8\r\nCookie: session=" + b"0123456789abcdef" * 24 + b"\r\n"
        b"If-None-Match: \"0123456789abcdef\"\r\n\r\n"
    ),
}  # fmt: skip
N_RUNS = 5


class Fields:
    """What a user of httptools needs at least: the target and the fields."""

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def by_httptools(data: bytes) -> None:
    httptools.HttpRequestParser(Fields()).feed_data(data)


def ns_per_head(parse: Callable[[bytes], object], data: bytes, n: int = 20_000) -> float:
    begin = time.perf_counter_ns()
    for _ in range(n):
        parse(data)
    return (time.perf_counter_ns() - begin) / n


def main() -> None:
    ratios = f"{'Python/httptools':>18}{'C/httptools':>13}"
    print(f"{'head':<22}{'bytes':>6}{'C ns':>8}{'Python ns':>11}{'httptools ns':>14}{ratios}")
    for name, data in HEADS.items():
        c = statistics.median(bench_parse(data, 1_000_000) for _ in range(N_RUNS))
        python = statistics.median(ns_per_head(parse_request, data) for _ in range(N_RUNS))
        theirs = statistics.median(ns_per_head(by_httptools, data) for _ in range(N_RUNS))
        ratios = f"{python / theirs:>18.2f}{c / theirs:>13.3f}"
        print(f"{name:<22}{len(data):>6}{c:>8.0f}{python:>11.0f}{theirs:>14.0f}{ratios}")


if __name__ == "__main__":
    main()
