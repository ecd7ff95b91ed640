"""TLS towards viewers, on a plane: what is agreed on and refused, tickets, names, records, ends. Peers are Python's own
TLS and openssl s_client. What a policy makes of certificates is tests/system/test_tls_listeners.py's."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable

import pytest
from plane_rig import Rig, Viewer, pattern, wait_until
from tls_rig import authority, certificate, connect, secured, server, ticket_key, tls_rig

openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

SUITES_12 = [
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
]  # fmt: skip
REFUSED_12 = [
    "AES128-GCM-SHA256", "AES256-SHA256", "AES128-SHA", "ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-CCM", "DHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-SHA384", "NULL-SHA256",
]  # fmt: skip

SEND_BUFFER_BYTES = 256 << 10  # as accelerator/dataplane.py sets it


def offering(
    suites: str = "", version: ssl.TLSVersion | None = None, alpn: tuple[str, ...] = (), level: int = 0
) -> ssl.SSLContext:
    context = authority().context()
    context.set_ciphers(f"{suites or 'ALL:COMPLEMENTOFALL'}:@SECLEVEL={level}")
    if version is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = version
        context.minimum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def refused(rig: Rig, context: ssl.SSLContext, counter: str) -> None:
    before = rig.total(counter)
    with pytest.raises(ssl.SSLError):
        connect(rig, context).get("/x")
    wait_until(lambda: rig.total(counter) == before + 1, counter)


def s_client(rig: Rig, *options: str, text: str = "") -> str:
    host, port = rig.address
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", "a", *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


# --- what is agreed on ------------------------------------------------------------------------------------------------


def test_the_newest_version_is_taken_and_answers_are_right(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", pattern(2700))
    viewer = rig.viewer()
    assert secured(viewer).version() == "TLSv1.3"
    reply = viewer.get("/x")
    assert (reply.status, reply.body) == (200, pattern(2700))
    assert rig.total("tls_handshakes") == 1
    assert rig.total("tls_version_12") == 0


@pytest.mark.parametrize("suite", SUITES_12)
def test_version_12_with_ephemeral_keys_and_authenticated_encryption(rigs: Callable[..., Rig], suite: str) -> None:
    issued = authority().issue("a", rsa="-RSA-" in suite)
    rig = rigs(tls=server(issued))
    rig.store("/x", pattern(50_000))
    viewer = connect(rig, offering(suite, ssl.TLSVersion.TLSv1_2))
    assert secured(viewer).cipher()[0] == suite  # type: ignore[index]
    assert viewer.get("/x").body == pattern(50_000)
    assert rig.total("tls_version_12") == 1


@pytest.mark.parametrize("suite", REFUSED_12)
def test_other_suites_of_version_12_are_refused(rigs: Callable[..., Rig], suite: str) -> None:
    rig = rigs(tls=server(certificate(), authority().issue("b", rsa=True)))
    try:
        context = offering(suite, ssl.TLSVersion.TLSv1_2)
    except ssl.SSLError:
        pytest.skip("this client doesn't know it")
    refused(rig, context, "tls_failed_suite")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_older_versions_only_on_a_legacy_listener(rigs: Callable[..., Rig], version: ssl.TLSVersion) -> None:
    refused(tls_rig(rigs), offering("", version), "tls_failed_version")
    rig = rigs(tls=server(certificate(), legacy=True))
    rig.store("/x", pattern(700))
    assert connect(rig, offering("", version)).get("/x").body == pattern(700)
    assert rig.total("tls_version_old") == 1


@openssl
@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        (["-groups", "X25519"], "Server Temp Key: X25519"),
        (["-groups", "P-256"], "Server Temp Key: ECDH, prime256v1"),
        (["-groups", "P-521"], "Server Temp Key: ECDH, secp521r1"),
        (["-groups", "ffdhe2048"], "alert handshake failure"),
        (["-tls1_2", "-groups", "brainpoolP256r1"], "handshake failure"),
        (["-sigalgs", "ECDSA+SHA1", "-tls1_2", "-cipher", "ALL:@SECLEVEL=0"], "alert handshake failure"),
        (["-comp"], "Compression: NONE"),
        (["-alpn", "http/1.1"], "ALPN protocol: http/1.1"),
        (["-alpn", "spdy/3"], "no application protocol"),
        (["-fallback_scsv", "-tls1_2"], "inappropriate fallback"),
    ],
)
def test_the_parameters_in_words_of_openssl(rigs: Callable[..., Rig], options: list[str], outcome: str) -> None:
    assert outcome in s_client(tls_rig(rigs), *options)


@openssl
def test_no_renegotiation(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", b"x")
    said = s_client(rig, "-tls1_2", text="R\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    assert "no renegotiation" in said
    assert "RENEGOTIATING" in said


def test_a_protocol_that_is_not_spoken_is_refused_by_name(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
        connect(rig, offering("", None, ("acme-tls/1",), 2))
    wait_until(lambda: rig.total("tls_failed_suite") == 1)


# --- certificates -----------------------------------------------------------------------------------------------------


def test_certificates_by_name_and_the_first_one_for_everybody_else(rigs: Callable[..., Rig]) -> None:
    names = [("a", "*.corp.example"), ("b",), ("www.corp.example",)]
    issued = [authority().issue(*each) for each in names]
    rig = rigs(tls=server(*issued))

    def shown(name: str | None) -> bytes:
        context = authority().context()
        context.check_hostname = False
        viewer = connect(rig, context, name)
        return secured(viewer).getpeercert(binary_form=True)  # type: ignore[return-value]

    der = [ssl.PEM_cert_to_DER_cert(chain.decode()) for chain, _, _ in issued]
    asked = ("a", "b", "B", "x.corp.example", "www.corp.example", "x.y.corp.example", "corp.example", "other", None)
    assert [der.index(shown(name)) for name in asked] == [0, 1, 1, 0, 2, 0, 0, 0, 0]
    assert der.index(shown("other.example")) == 0


def test_new_certificates_reach_new_connections_and_old_ones_go_on(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", pattern(9000))
    old = rig.viewer()
    first = secured(old).getpeercert(binary_form=True)
    rig.tls = server(authority().issue("a"))
    rig.publish()
    new = rig.viewer()
    assert secured(new).getpeercert(binary_form=True) != first
    rig.tls = server(authority().issue("a"))
    rig.publish()
    for viewer in (old, new):
        assert viewer.get("/x").body == pattern(9000)


@pytest.mark.parametrize(
    ("chain", "key", "why"),
    [
        (certificate()[0], authority().issue("a")[1], "the key is not the certificate's"),
        (b"", certificate()[1], "there is no certificate in it"),
        (certificate()[0], b"nonsense", "the key can't be read"),
        (certificate()[0], certificate()[1][:90], "the key can't be read"),
    ],
    ids=("another's", "none", "nonsense", "cut"),
)
def test_what_does_not_fit_is_refused_in_a_line(chain: bytes, key: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        server((chain, key, []))


# --- tickets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_ticket_is_good_at_every_worker_and_after_a_reload(
    rigs: Callable[..., Rig], version: ssl.TLSVersion
) -> None:
    rig = tls_rig(rigs, workers=2)
    rig.store("/x", b"x")
    context = offering("", version, level=2)
    session = None
    for n in range(8):
        viewer = connect(rig, context, session=session)
        assert secured(viewer).session_reused == (n > 0)
        assert viewer.get("/x").body == b"x"
        session = secured(viewer).session
        if n == 4:
            rig.tls = server(certificate())
            rig.publish()
    assert rig.total("tls_resumed") == 7


@pytest.mark.rfc("RFC 8446 C.4", "a viewer uses a ticket once, and is given another one")
def test_who_comes_back_with_a_ticket_is_given_another_one(rigs: Callable[..., Rig]) -> None:
    """Browsers resumed every other connection only: a resumed one brought no ticket for the next."""
    rig = tls_rig(rigs)
    rig.store("/x", b"x")
    context = authority().context()
    session, ids = None, set()
    for _ in range(4):
        viewer = connect(rig, context, session=session)
        assert viewer.get("/x").body == b"x"  # tickets come before it
        session = secured(viewer).session
        assert session is not None
        ids.add(session.id)
    assert rig.total("tls_resumed") == 3
    assert len(ids) == 4


def test_tickets_of_the_key_before_are_good_and_of_the_one_before_that_not(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", b"x")
    keys = [ticket_key() for _ in range(3)]
    context = authority().context()

    def again(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession]:
        viewer = connect(rig, context, session=session)
        assert viewer.get("/x").body == b"x"
        return bool(secured(viewer).session_reused), secured(viewer).session  # type: ignore[return-value]

    rig.plane.set_ticket_keys([keys[0]], 0)
    _, first = again(None)
    rig.plane.set_ticket_keys([keys[0], keys[1]], 1)
    is_reused, second = again(first)
    assert is_reused
    rig.plane.set_ticket_keys([keys[1], keys[2]], 1)
    assert again(first)[0] is False
    assert again(second)[0] is True


# --- failures ---------------------------------------------------------------------------------------------------------


def test_plain_http_is_told_what_is_wrong(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    viewer = Viewer()
    viewer.connect(rig.address)
    rig.viewers.append(viewer)
    reply = viewer.get("/x")
    assert reply.status == 400
    assert b"HTTPS" in reply.body
    assert reply["connection"] == "close"
    assert viewer.rest() == b""
    assert rig.total("tls_failed_plain") == rig.total("status_400") == 1


@pytest.mark.parametrize(
    ("data", "counter"),
    [
        (b"", "tls_failed_left"),
        (b"\x16\x03\x01\x02\x00\x01", "tls_failed_left"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "tls_failed_broken"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "tls_failed_broken"),
        (b"\x80\x2e\x01\x03\x01", "tls_failed_left"),
        (bytes(4000), "tls_failed_broken"),
    ],
)
def test_what_is_no_handshake_is_counted_by_name(rigs: Callable[..., Rig], data: bytes, counter: str) -> None:
    rig = tls_rig(rigs)
    viewer = Viewer()
    viewer.connect(rig.address)
    viewer.send(data)
    viewer.socket.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionResetError):
        viewer.rest()
    viewer.close()
    wait_until(lambda: rig.total(counter) == 1, f"{counter}: {rig.plane.totals()}")


def test_a_viewer_that_does_not_trust_us_is_counted(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(rig, ssl.create_default_context())
    wait_until(lambda: rig.total("tls_failed_refused") == 1)


def test_slow_handshakes_end_and_hold_nobody_up(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs, head_timeout_ns=1_000_000_000)
    rig.store("/x", b"x")
    slow = [Viewer() for _ in range(20)]
    for each in slow:
        each.connect(rig.address)
        each.send(b"\x16\x03\x01")
    assert rig.viewer().get("/x").body == b"x"
    for each in slow:
        each.rest()
        each.close()
    assert rig.total("tls_failed_slow") == 20


def test_a_record_that_was_changed_ends_the_connection(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    viewer = rig.viewer()
    wait_until(lambda: rig.total("tls_handshakes") == 1)
    raw = socket.socket(fileno=socket.dup(viewer.socket.fileno()))
    raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        viewer.rest()
    raw.close()
    wait_until(lambda: rig.total("tls_broken") == 1)


# --- records and ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 16_083, 16_384, 16_385, 65_536, 70_001, 1_000_003])
def test_bodies_of_every_length_are_right(rigs: Callable[..., Rig], total: int) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", pattern(total))
    viewer = rig.viewer()
    for _ in range(2):
        assert viewer.get("/x").body == pattern(total)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_full_socket_repeats_and_loses_nothing(rigs: Callable[..., Rig], version: ssl.TLSVersion) -> None:
    rig = tls_rig(rigs, send_bytes=8192, slice_bytes=1 << 18)
    rig.store("/x", pattern(2_000_000))
    rig.context = offering("", version, level=2)
    viewers = [rig.viewer(receive_bytes=4096) for _ in range(4)]
    for viewer in viewers:
        for _ in range(2):
            viewer.ask("/x")
    for viewer in viewers:
        for _ in range(2):
            assert viewer.reply().body == pattern(2_000_000)
    assert rig.total("bytes_to_viewers") == 16_000_000


def test_who_is_cut_for_want_of_memory_is_not_said_to_have_left(rigs: Callable[..., Rig]) -> None:
    """Each full socket keeps ciphertext; where the limit has no room for it, the answer is broken off, and said so."""
    rig = tls_rig(rigs, memory=3 << 20, slice_bytes=65_536, send_bytes=4096)
    rig.store("/x", pattern(300_000))
    viewers = [rig.viewer(receive_bytes=4096) for _ in range(60)]
    for viewer in viewers:
        viewer.ask("/x")
    wait_until(lambda: rig.total("requests") == 60)
    ends: list[bytes | None] = []
    for viewer in viewers:
        try:
            ends.append(viewer.reply().body)
        except (ssl.SSLEOFError, ConnectionResetError):  # Python tells a reset as the former
            ends.append(None)
    cut = rig.total("closed_memory")
    assert 0 < cut < 60
    assert rig.total("closed_by_viewer") == 0
    assert ends.count(None) == cut
    assert ends.count(pattern(300_000)) == 60 - cut


def test_who_does_not_read_costs_no_ciphertext(rigs: Callable[..., Rig]) -> None:
    """Each full socket kept a batch of 64 KiB, copied and counted: it is asked before anything is encrypted for it."""
    rig = tls_rig(rigs, send_bytes=SEND_BUFFER_BYTES, slice_bytes=1 << 20)
    rig.store("/x", pattern(4_000_000))
    rig.store("/small", b"small")
    viewers = [rig.viewer(receive_bytes=65_536) for _ in range(12)]
    witness = rig.viewer()
    assert witness.get("/small").body == b"small"
    idle = rig.plane.memory["outside"]
    for viewer in viewers:
        viewer.ask("/x")
    wait_until(lambda: rig.total("requests") == 13)
    sent = -1
    while sent != rig.total("bytes_to_viewers"):  # until all are blocked
        sent = rig.total("bytes_to_viewers") + len(b"small")
        assert witness.get("/small").body == b"small"
    # Beside TLS's own: the head of the request, and that of the answer when it has not left.
    assert rig.plane.memory["outside"] - idle < 12 * 4096
    for viewer in viewers:
        assert viewer.reply().body == pattern(4_000_000)


def test_pipelined_requests_in_one_record_and_one_request_in_many(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    for n in range(10):
        rig.store(f"/{n}", pattern(3000, n))
    viewer = rig.viewer()
    viewer.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(10)))
    assert [viewer.reply().body == pattern(3000, n) for n in range(10)] == [True] * 10
    for byte in b"GET /7 HTTP/1.1\r\nHost: a\r\n\r\n":
        viewer.send(bytes([byte]))
    assert viewer.reply().body == pattern(3000, 7)


def test_readers_while_it_fills(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    stored = rig.begin("/x", 20_000)
    viewers = [rig.viewer() for _ in range(5)]
    for viewer in viewers:
        viewer.ask("/x")
    body, at = pattern(20_000), 0
    for size in (1, 4095, 4096, 5000, 6808):
        at = rig.append(stored, at, body[at : at + size])
    stored.finish(20_000)
    stored.end_fill()
    for viewer in viewers:
        assert viewer.reply().body == body


def test_a_whole_answer_ends_in_good_order_and_a_broken_one_does_not(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", b"whole")
    viewer = rig.viewer()
    assert viewer.get("/x", minor=0).body == b"whole"
    assert secured(viewer).recv(100) == b""  # close_notify: without it this raises
    stored = rig.begin("/y", -1)
    rig.append(stored, 0, b"half")
    viewer = rig.viewer()
    viewer.ask("/y", minor=0)
    viewer.head()
    assert viewer.until(4) == b"half"
    stored.fail()
    stored.end_fill()
    with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
        secured(viewer).recv(100)


def test_a_viewer_that_says_goodbye_is_closed(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", b"x")
    viewer = rig.viewer()
    assert viewer.get("/x").body == b"x"
    secured(viewer).unwrap()
    wait_until(lambda: rig.plane.n_connections == 0)


@openssl
def test_new_keys_in_the_middle_of_a_connection(rigs: Callable[..., Rig]) -> None:
    rig = tls_rig(rigs)
    rig.store("/x", b"<right>")
    host, port = rig.address
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", "a"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        for letter in ("", "k\n", "K\n"):  # of s_client: its own new key, and that of both sides
            if letter:
                peer.stdin.write(letter.encode())
                peer.stdin.flush()
                said = b""
                while b"KEYUPDATE" not in said:
                    said += peer.stdout.read1(4096)
            peer.stdin.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            peer.stdin.flush()
            said = b""
            while b"<right>" not in said:
                piece = peer.stdout.read1(4096)
                assert piece, said
                said += piece
        peer.kill()
    assert rig.total("hits") == 3
    assert rig.total("tls_broken") == 0
