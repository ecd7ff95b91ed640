"""Addresses, URLs, hosts, paths, networks and field names as a policy writes them. No policy here."""

# ruff: noqa: E501 - each line of the tables is one case
from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerator.policy import addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::]:80", "::", 80),
        ("[2001:DB8::0:1]:65535", "2001:db8::1", 65535),
    ],
)
def test_listen_address(text: str, host: str, port: int) -> None:
    assert addresses.parse_listen_address(text) == (host, port)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8080", "expected ADDRESS:PORT"), (":8080", "expected ADDRESS:PORT"), ("*:8080", "expected ADDRESS:PORT"),
        ("localhost:8080", "did you mean '127.0.0.1'"), ("::1:8080", "stands in brackets"), ("[127.0.0.1]:80", "only IPv6"),
        ("127.0.0.1:65536", "from 0 to 65535"), ("127.0.0.1:+80", "from 0 to 65535"), ("127.0.0.1:", "from 0 to 65535"),
        ("127.0.0.1:٨٠", "from 0 to 65535"), ("127.1:80", "not '127.1'"), ("010.0.0.1:80", "not '010.0.0.1'"),
        ("224.0.0.1:80", "multicast"), ("[fe80::1%eth0]:80", "not 'fe80::1%eth0'"), ("[]:80", "only IPv6"), ("[:80", "not '\\['"),
    ],
)  # fmt: skip
def test_listen_address_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        addresses.parse_listen_address(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://media.corp.example", ("https", "media.corp.example", 443)), ("http://A.b/", ("http", "a.b", 80)),
        ("HTTP://10.0.0.1:8000", ("http", "10.0.0.1", 8000)), ("https://[::1]:8443/", ("https", "::1", 8443)),
        ("http://[2001:DB8::1]", ("http", "2001:db8::1", 80)), ("http://media_2", ("http", "media_2", 80)),
    ],
)  # fmt: skip
def test_origin_url(text: str, url: tuple[str, str, int]) -> None:
    assert addresses.parse_origin_url(text) == url
    assert addresses.parse_origin_url(str(addresses.parse_origin_url(text))) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("media.corp.example", "did you mean 'https://media.corp.example'"), ("ftp://a", "expected http://"), ("http:/a", "expected http://"),
        ("//a", "expected http://"), ("http://", "not a host name"), ("http:///", "not a host name"), ("http://a/b", "no path"),
        ("http://a//", "no path"), ("http://a?b", "no path"), ("http://a#b", "no path"), ("http://u:p@a", "no secret"),
        ("http://a:0", "from 1 to 65535"), ("http://a:", "from 1 to 65535"), ("http://a:80:80", "brackets"), ("http://::1", "brackets"),
        ("http://[::1", "no valid IPv6"), ("http://[::1]80", "no valid IPv6"), ("http://[a]", "no valid IPv6"),
        ("http://0.0.0.0", "not an address that one can connect to"), ("http://239.1.1.1", "not an address that one can connect to"),
        ("http://127.1", "not a host name"), ("http://2130706433", "not a host name"), ("http://a b", "not a host name"),
        ("http://a\\b", "not a host name"), ("http://é.example", "not a host name"), ("http://-a", "not a host name"),
        ("http://a..b", "not a host name"), ("http://a\r\nHost: b", "not a host name|brackets|from 1"), ("http://" + "a." * 130 + "b", "not a host name"),
    ],
)  # fmt: skip
def test_origin_url_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.parse_origin_url(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://proxy.corp.example:3128", "proxy.corp.example", 3128),
        ("HTTP://Proxy:80/", "proxy", 80),
        ("http://10.0.0.1:8080", "10.0.0.1", 8080),
        ("http://[2001:db8::0:1]:8080", "2001:db8::1", 8080),
    ],
)
def test_proxy_url(text: str, host: str, port: int) -> None:
    assert addresses.parse_proxy_url(text) == (host, port)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("proxy:3128", "did you mean 'http://proxy:3128'"), ("https://proxy:3128", "expected http://HOST:PORT"), ("socks5://p:1", "expected http"),
        ("http://proxy", "port has to be written"), ("http://[::1]", "port has to be written"), ("http://a:b@proxy:1", "via_credential"),
        ("http://proxy:1/x", "expected http"), ("http://proxy:0", "a port is"), ("http://proxy:", "a port is"), ("http://10.1:80", "not a host name"),
        ("http://0.0.0.0:80", "can connect to"), ("", "expected http"), ("http://:80", "not a host name"), ("http://::1:80", "in brackets"),
    ],
)  # fmt: skip
def test_proxy_url_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.parse_proxy_url(text)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Media.Corp.example", "media.corp.example"),
        ("*.Corp.example", "*.corp.example"),
        ("*", "*"),
        ("10.0.0.1", "10.0.0.1"),
        ("[::0:1]", "[::1]"),
    ],
)
def test_host_pattern(text: str, pattern: str) -> None:
    assert addresses.parse_host_pattern(text) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:80", "did you mean 'a'"), ("http://a", "without scheme"), ("a/b", "without scheme"), ("*a.b", "expected a host name"),
        ("a.*", "expected a host name"), ("*.*", "expected a host name"), ("*.", "expected a host name"), ("", "expected a host name"),
        ("a.", "expected a host name"), ("médias.example", "ASCII"), ("[::1]:80", "no port"), ("[a]", "no port"), ("::1", "without a port"),
    ],
)  # fmt: skip
def test_host_pattern_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.parse_host_pattern(text)


@pytest.mark.parametrize(
    ("text", "prefix"), [("/", "/"), ("/live", "/live"), ("/live/", "/live"), ("/a%2Fb/~c", "/a%2Fb/~c")]
)
def test_path_prefix(text: str, prefix: str) -> None:
    assert addresses.parse_path_prefix(text) == prefix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("live", "did you mean '/live'"), ("", "starts with"), ("/a?b", "no query"), ("/a b", "no query"), ("/é", "no query"), ("/%2", "no query"),
        ("//", "no empty"), ("/a//b", "no empty"), ("/a/../b", "no empty"), ("/.", "no empty"), ("/" + "a" * 1025, "at most 1,024"),
    ],
)  # fmt: skip
def test_path_prefix_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.parse_path_prefix(text)


@pytest.mark.parametrize("text", ["10.12.0.0/22", "0.0.0.0/0", "2001:db8::/32", "10.0.0.1", "::1"])
def test_network(text: str) -> None:
    assert str(addresses.parse_network(text)).startswith(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.12.0.1/22", "did you mean '10.12.0.0/22'"), ("10.0.0.0/33", "at most 32"), ("::/129", "at most 128"), ("10.0.0.0/", "expected a network"),
        ("10.0.0.0/255.0.0.0", "expected a network"), ("10.0/8", "expected a network"), ("a", "expected a network"), ("::1%a/64", "expected a network"),
    ],
)  # fmt: skip
def test_network_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        addresses.parse_network(text)


@pytest.mark.parametrize(
    "text",
    ["Host", "Range", "if-none-match", "Connection", "X-Forwarded-For", "Proxy-Authorization", "a b", "", "a:b", "é"],
)
def test_field_name_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"never forwarded|expected the name"):
        addresses.parse_field_name(text)


@pytest.mark.parametrize(
    "parse",
    [
        addresses.parse_listen_address, addresses.parse_origin_url, addresses.parse_host_pattern, addresses.parse_path_prefix,
        addresses.parse_network, addresses.parse_pinned_address, addresses.parse_field_name, addresses.parse_proxy_url,
    ],
)  # fmt: skip
@given(text=st.text(max_size=40) | st.text(alphabet="0123456789abcx.:/[]*%@?#-_ ", max_size=40))
def test_any_text_gives_a_value_that_reads_the_same_or_a_clear_line(parse: Callable[[str], object], text: str) -> None:
    try:
        value = parse(text)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert parse(str(value)) == value
    assert message == "" or message.isprintable()
