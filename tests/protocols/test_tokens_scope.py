"""What a scope covers, and which paths nothing covers; where a request carries its credential."""

from __future__ import annotations

import pytest

from accelerator.protocols.tokens.presented import Places, one_token, without_parameters
from accelerator.protocols.tokens.scope import EVERYWHERE, Scope, is_ambiguous, matches
from accelerator.protocols.tokens.verdict import Reason, Refused


@pytest.mark.parametrize(
    "path",
    [
        b"", b"a", b"/a/../b", b"/..", b"/.", b"/a/.", b"/a/./b", b"/a/%2e%2e/b", b"/a/.%2E/b", b"/a/%2e/b",
        b"/a/..;x/b", b"/a/..%3bx/b", b"/a%2fb", b"/a%2F..%2Fb", b"/a\\..\\b", b"//a", b"/a//b", b"/a\0b", b"/a%00b",
        b"/a%5cb", b"/a%252e%252e/b", b"/a%", b"/a%2", b"/a%zz", b"/a b", b"/a#b", b"/a\x7f",
    ],
)  # fmt: skip
def test_nothing_covers_a_path_that_an_origin_may_read_otherwise(path: bytes) -> None:
    assert is_ambiguous(path)
    assert not EVERYWHERE.covers(path)
    assert not Scope("object", (path,)).covers(path)
    assert not Scope("acl", (b"*",)).covers(path)


@pytest.mark.parametrize("path", [b"/", b"/a", b"/a/", b"/...", b"/a.b/..c", b"/%20", b"/a;b", b"/\xc3\xa9"])
def test_other_paths_are_plain(path: bytes) -> None:
    assert not is_ambiguous(path)
    assert EVERYWHERE.covers(path)
    assert EVERYWHERE.covers_directory(path)


def test_what_is_covered() -> None:
    directory = Scope("directory", (b"/live/",))
    assert directory.covers(b"/live/a/b.ts")
    assert directory.covers_directory(b"/live/a/b.ts")
    assert not directory.covers(b"/lively/a.ts")
    assert not directory.covers(b"/live")
    one = Scope("object", (b"/a/b.ts",))
    assert one.covers(b"/a/b.ts")
    assert not one.covers_directory(b"/a/b.ts")
    acl = Scope("acl", (b"/a/*.ts", b"/b*"))
    assert acl.covers(b"/a/x/y.ts")
    assert not acl.covers_directory(b"/a/x/y.ts")
    assert acl.covers_directory(b"/b/x.mp4")
    assert acl.covers(b"/bc.mp4")
    assert not acl.covers_directory(b"/bc.mp4"), "its directory is the root"


@pytest.mark.parametrize(
    ("pattern", "text", "does"),
    [
        (b"*", b"", True), (b"", b"", True), (b"?", b"", False), (b"a*b*c", b"aXbYc", True), (b"a*b*c", b"aXbY", False),
        (b"**", b"x", True), (b"a?c", b"abc", True), (b"*a", b"ba", True), (b"*a", b"ab", False), (b"a*", b"ba", False),
    ],
)  # fmt: skip
def test_patterns(pattern: bytes, text: bytes, does: bool) -> None:
    assert matches(pattern, text) is does


def test_a_pattern_of_stars_takes_no_exponential_time() -> None:
    assert not matches(b"*a" * 300 + b"b", b"a" * 2000)


PLACES = Places((b"token",), (b"authorization",), (b"t",))


@pytest.mark.parametrize(
    ("target", "fields", "token"),
    [
        (b"/a?token=x", [], b"x"),
        (b"/a?b=c&token=x%7E", [], b"x~"),
        (b"/a", [(b"Authorization", b"Bearer x")], b"x"),
        (b"/a", [(b"authorization", b"x")], b"x"),
        (b"/a", [(b"Cookie", b"a=b; t=x")], b"x"),
        (b"/a?token=x", [(b"Cookie", b"t=x")], b"x"),
        (b"/a?token=x", [(b"Cookie", b"t=y")], Reason.SEVERAL),
        (b"/a?token=x&token=x", [], Reason.SEVERAL),
        (b"/a", [(b"Authorization", b"x"), (b"Authorization", b"x")], Reason.SEVERAL),
        (b"/a", [(b"Cookie", b"t=x; t=x")], Reason.SEVERAL),
        (b"/a?Token=x", [], Reason.MISSING),
        (b"/a?token=%", [], Reason.MALFORMED),
        (b"/a?token=%+1", [], Reason.MALFORMED),
        (b"/a?token=" + b"x" * 4097, [], Reason.TOO_LONG),
        (b"/a", [], Reason.MISSING),
    ],
)
def test_where_a_token_is(target: bytes, fields: list[tuple[bytes, bytes]], token: object) -> None:
    if isinstance(token, Reason):
        with pytest.raises(Refused) as refused:
            one_token(target, fields, PLACES)
        assert refused.value.reason is token
    else:
        assert one_token(target, fields, PLACES) == token


def test_a_query_without_its_credential() -> None:
    assert without_parameters(b"a=1&token=x&b", [b"token"]) == b"a=1&b"
    assert without_parameters(b"token", [b"token"]) == b""
    assert without_parameters(b"", [b"token"]) == b""
