"""RFC 9111, 5861 and 9213 by what fields a response has and whether a second request is answered by it, both profiles:
spellings, precedence, dates, ages; and all final statuses. More of the same kind: test_rfc9111.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from box import GENERIC, MEDIA, Box, get, scenario, sound_box
from clauses import BOTH, rfc, twice
from hostile_origin import reply
from origin_scripts import fields

OLD, NEW = formatdate(1e9, usegmt=True), formatdate(2e9, usegmt=True)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with sound_box(tmp_path_factory.mktemp("fields")) as running:
        yield running


# (clause, what, profiles, fields of the response, reused without asking)
REUSE: list[tuple[str, str, tuple[str, ...], str, bool]] = [
    ("9111#4.2.2", "MUST NOT guess where a lifetime is given; we never guess", BOTH,
     f"Cache-Control: max-age=0 | Last-Modified: {OLD}", False),
    ("9111#4.2.2", "Last-Modified alone makes nothing fresh in generic", (GENERIC,), f"Last-Modified: {OLD}", False),
    ("9111#4.2.1", "Expires counts from Date, not from our clock: an origin that lags", BOTH,
     f"Date: {formatdate(1e9, usegmt=True)} | Expires: {formatdate(1e9 + 60, usegmt=True)}", True),
    ("9111#4.2.1", "Expires counts from Date, not from our clock: an origin that is ahead", BOTH,
     f"Date: {formatdate(2e9, usegmt=True)} | Expires: {formatdate(2e9, usegmt=True)}", False),
    ("9111#5.3", "MUST ignore Expires beside s-maxage", BOTH, f"Cache-Control: s-maxage=60 | Expires: {OLD}", True),
    ("9111#5.3", "MUST ignore Expires beside max-age=0", BOTH, f"Cache-Control: max-age=0 | Expires: {NEW}", False),
    ("9111#5.3", "Expires in another zone than GMT is invalid", BOTH,
     "Expires: Wed, 18 May 2033 03:33:20 UTC", False),
    ("9111#5.3", "Expires with a numeric zone is invalid", BOTH, "Expires: Wed, 18 May 2033 03:33:20 +0100", False),
    ("9111#5.3", "Expires in lower case is a date", BOTH, "Expires: wed, 18 may 2033 03:33:20 gmt", True),
    ("9111#5.3", "Expires as an RFC 850 date", BOTH, "Expires: Wednesday, 18-May-33 03:33:20 GMT", True),
    ("9111#5.3", "Expires with more behind it is invalid", BOTH, f"Expires: {NEW} x", False),
    ("9111#5.3", "empty Expires is invalid", BOTH, "Expires:", False),
    ("9111#5.3", "a month that isn't one", BOTH, "Expires: Wed, 18 Mai 2033 03:33:20 GMT", False),
    ("9111#5.3", "a day of one digit is invalid", BOTH, "Expires: Wed, 8 May 2033 03:33:20 GMT", False),
    ("9111#5.1", "Age beyond 2^31 counts as that", BOTH, "Cache-Control: max-age=4294967296 | Age: 2147483648", False),
    ("9111#5.1", "Age in words is ignored", BOTH, "Cache-Control: max-age=60 | Age: old", True),
    ("9111#5.1", "Age with a unit is ignored", BOTH, "Cache-Control: max-age=60 | Age: 70s", True),
    ("9111#5.1", "empty Age is ignored", BOTH, "Cache-Control: max-age=60 | Age:", True),
    ("9111#5.1", "Age with a sign is ignored", BOTH, "Cache-Control: max-age=60 | Age: +70", True),
    ("9111#5.1", "Age counts against Expires too", BOTH,
     f"Date: {OLD} | Expires: {formatdate(1e9 + 60, usegmt=True)} | Age: 61", False),
    ("9111#5.2", "max-age without an argument is stale", BOTH, "Cache-Control: max-age", False),
    ("9111#5.2", "max-age with an empty argument is stale", BOTH, "Cache-Control: max-age=", False),
    ("9111#5.2", "max-age in single quotes is stale", BOTH, "Cache-Control: max-age='60'", False),
    ("9111#5.2", "max-age with a sign is stale", BOTH, "Cache-Control: max-age=+60", False),
    ("9111#5.2", "a space behind = makes no argument", BOTH, "Cache-Control: max-age= 60", False),
    ("9111#5.2", "leading zeros are a number", BOTH, "Cache-Control: max-age=0060", True),
    ("9111#5.2", "quoted with escapes", BOTH, 'Cache-Control: max-age="6\\0"', True),
    ("9111#5.2", "a longer name is another directive", BOTH, "Cache-Control: xmax-age=60", False),
    ("9111#5.2", "s_maxage is not s-maxage", BOTH, "Cache-Control: s_maxage=60", False),
    ("9111#5.2", "semicolons separate nothing", BOTH, "Cache-Control: max-age=60; no-store", False),
    ("9111#5.2", "no-store in a second line is heard", BOTH, "Cache-Control: max-age=60 | Cache-Control: no-store",
     False),
    ("9111#5.2", "no-store with an argument is heard", BOTH, "Cache-Control: max-age=60, no-store=1", False),
    ("9111#5.2", "private in capitals is heard", BOTH, "Cache-Control: max-age=60, PRIVATE", False),
    ("9111#5.2", "no-store inside a quoted argument is none", BOTH, 'Cache-Control: max-age=60, x="no-store"', True),
    ("9111#5.2.2.1", "max-age=1e3 is stale", BOTH, "Cache-Control: max-age=1e3", False),
    ("9111#5.2.2.1", "max-age=0x3c is stale", BOTH, "Cache-Control: max-age=0x3c", False),
    ("9111#5.2.2.5", "no-store beats public and s-maxage", BOTH, "Cache-Control: public, s-maxage=60, no-store", False),
    ("9111#5.2.2.7", "private beats s-maxage", BOTH, "Cache-Control: s-maxage=60, private", False),
    ("9111#5.2.2.7", 'private="field" next to public', BOTH, 'Cache-Control: public, max-age=60, private="X-A"', False),
    ("9111#5.2.2.9", "public alone gives no lifetime", (GENERIC,), 'Cache-Control: public | ETag: "v"', False),
    ("9111#5.2.2.10", "invalid s-maxage is stale, although max-age is good", BOTH,
     "Cache-Control: max-age=60, s-maxage=x", False),
    ("9111#5.4", "Pragma in a response means nothing", BOTH, "Cache-Control: max-age=60 | Pragma: no-cache", True),
    ("9111#5.5", "Warning means nothing", BOTH, 'Cache-Control: max-age=60 | Warning: 110 - "stale"', True),
    ("9111#4.1", "Vary on what nobody sent", BOTH, "Cache-Control: max-age=60 | Vary: X-Nobody", True),
    ("9111#4.1", "Vary with empty members", BOTH, "Cache-Control: max-age=60 | Vary: , X-Nobody,, ", True),
    ("9111#4.1", "an empty Vary names nothing", BOTH, "Cache-Control: max-age=60 | Vary:", True),
    ("9111#4.1", "* with white space around it", BOTH, "Cache-Control: max-age=60 | Vary:  X-Nobody ,\t* ,", False),
    ("9111#4.1", "Vary with a member that is no name fails", BOTH, "Cache-Control: max-age=60 | Vary: X Y", False),
    ("9111#7.3", "Set-Cookie beside public and s-maxage", BOTH,
     "Cache-Control: public, s-maxage=60 | Set-Cookie: a=b", False),
    ("9213#2.1", "parameters of a member mean nothing", BOTH, "CDN-Cache-Control: max-age=60;x=1", True),
    ("9213#2.1", "of a key twice the last counts (RFC 8941 section 3.2)", BOTH,
     "CDN-Cache-Control: max-age=0, max-age=60", True),
    ("9213#2.1", "a decimal is no delta-seconds: not consumed", BOTH, "CDN-Cache-Control: max-age=60.5", False),
    ("9213#2.1", "a string is no delta-seconds: not consumed", BOTH, 'CDN-Cache-Control: max-age="60"', False),
    ("9213#2.1", "a token is no delta-seconds: not consumed", BOTH, "CDN-Cache-Control: max-age=a", False),
    ("9213#2.1", "a negative number is not consumed", BOTH, "CDN-Cache-Control: max-age=-60", False),
    ("9213#2.1", "no-store=?0 says no", BOTH, "CDN-Cache-Control: max-age=60, no-store=?0", True),
    ("9213#2.1", "no-store=?1 says yes", BOTH, "CDN-Cache-Control: max-age=60, no-store=?1", False),
    ("9213#2.1", "private forbids", BOTH, "Cache-Control: max-age=60 | CDN-Cache-Control: private, max-age=60", False),
    ("9213#2.1", "no-cache demands validation", BOTH,
     'Cache-Control: max-age=60 | CDN-Cache-Control: no-cache | ETag: "v"', False),
    ("9213#2.1", "two lines are one dictionary", BOTH,
     "Cache-Control: no-store | CDN-Cache-Control: public | CDN-Cache-Control: max-age=60", True),
    ("9213#2.1", "unknown members mean nothing", BOTH, "CDN-Cache-Control: max-age=60, x=(1 2), y=:YQ==:", True),
    ("9213#2.1", "s-maxage beats max-age there too", BOTH, "CDN-Cache-Control: max-age=0, s-maxage=60", True),
    ("9213#2.2", "capitals make it invalid, so ignored", BOTH,
     "Cache-Control: max-age=60 | CDN-Cache-Control: No-Store", True),
    ("9213#2.2", "a comma at its end makes it invalid, so ignored", BOTH,
     "Cache-Control: max-age=60 | CDN-Cache-Control: no-store,", True),
    ("9213#2.2", "a quote that never closes makes it invalid, so ignored", BOTH,
     'Cache-Control: max-age=60 | CDN-Cache-Control: x="a, no-store', True),
    ("9213#2.2", "valid: Cache-Control's no-cache is ignored", BOTH,
     'Cache-Control: no-cache | CDN-Cache-Control: max-age=60 | ETag: "v"', True),
    ("9213#2.2", "valid: Expires is ignored, also where it says no lifetime", BOTH,
     f"Expires: {NEW} | CDN-Cache-Control: public", False),
    ("9213#3.1", "another cache's targeted field is not ours", BOTH,
     "Cache-Control: max-age=60 | Example-CDN-Cache-Control: no-store", True),
    ("9213#2.2", "Surrogate-Control is not a targeted field", BOTH,
     "Cache-Control: max-age=60 | Surrogate-Control: no-store", True),
    # Where there is a lifetime for what says nothing (a segment's), invalid must not count as nothing.
    ("9111#4.2.1", "silence about a segment is its kind's lifetime", (MEDIA,), "Content-Type: video/mp2t", True),
    ("9111#5.3", "invalid Expires is the past, not silence", (MEDIA,), "Content-Type: video/mp2t | Expires: 0", False),
    ("9111#5.3", "malformed Expires is the past, not silence", (MEDIA,),
     "Content-Type: video/mp2t | Expires: Wed, 18 May 2033 03:33:20 UTC", False),
    ("9111#4.2.1", "invalid max-age is stale, not silence", (MEDIA,),
     "Content-Type: video/mp2t | Cache-Control: max-age=abc", False),
    ("9111#4.2.1", "max-age without argument is stale, not silence", (MEDIA,),
     "Content-Type: video/mp2t | Cache-Control: max-age", False),
    ("9111#5.2", "a space before = is stale, not silence", (MEDIA,),
     "Content-Type: video/mp2t | Cache-Control: max-age =60", False),
    ("9213#2.1", "what is not consumed is silence", (MEDIA,),
     "Content-Type: video/mp2t | Cache-Control: max-age=0 | CDN-Cache-Control: max-age=1.5", True),
    ("5861#3", "beyond stale-while-revalidate it is validated first", BOTH,
     'Cache-Control: max-age=1, stale-while-revalidate=5 | Age: 10 | ETag: "v"', False),
    ("5861#4", "stale-if-error is no permission where nothing failed", BOTH,
     'Cache-Control: max-age=1, stale-if-error=60 | Age: 10 | ETag: "v"', False),
    ("9111#4.2.4", "must-revalidate changes nothing while fresh", BOTH,
     "Cache-Control: max-age=60, must-revalidate", True),
    ("9111#5.2.2.8", "proxy-revalidate changes nothing while fresh", BOTH,
     "Cache-Control: max-age=60, proxy-revalidate", True),
]  # fmt: skip
ROWS = [
    pytest.param(n, host, *row[3:], id=f"{row[1]}-{host.partition('.')[0]}", marks=rfc(row[0], row[1]))
    for n, row in enumerate(REUSE)
    for host in row[2]
]


@pytest.mark.parametrize(("n", "host", "response", "is_reused"), ROWS)
@scenario
async def test_reuse(box: Box, n: int, host: str, response: str, is_reused: bool) -> None:
    _, two, requests = await twice(box, f"/letter-{n}-{host}", host, response)
    assert (len(requests) == 1) is is_reused, two
    assert ("hit" in two.cache) is is_reused


@rfc("9111#3", "every final status with explicit freshness is stored in generic, but 206 and 304 that nobody asked for")
@scenario
async def test_every_final_status(box: Box) -> None:
    statuses = [status for status in (*range(200, 600), 999) if status not in (206, 304)]
    fresh = fields(cache_control="max-age=60")
    bodiless = (204, 205)
    scripts = {
        b"/final/%d" % status: reply(b"" if status in bodiless else b"x", status=status, fields=fresh)
        for status in statuses
    }
    async with box.origin(scripts) as origin:
        for status in statuses:
            answers = [await get(box, f"/final/{status}", host=GENERIC) for _ in range(2)]
            assert [answer.status for answer in answers] == [status, status]
            assert "hit" in answers[1].cache, status
    assert len(origin.requests) == len(statuses)


@rfc("9111#4.2", "MUST NOT let local time zones count")
def test_the_time_zone_of_the_box_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")

    @scenario
    async def run(box: Box) -> None:
        for host in BOTH:
            for seconds, is_reused in ((60, True), (-60, False)):
                expires = f"Expires: {formatdate(time.time() + seconds, usegmt=True)}"
                _, two, requests = await twice(box, f"/zone-{host}-{seconds}", host, expires)
                assert (len(requests) == 1) is is_reused, two

    with sound_box(tmp_path) as box:
        run(box)
