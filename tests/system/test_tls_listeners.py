"""Viewers' listeners over TLS on the running box: certificates by policy and file, reloads, expiry, tickets through an
upgrade, and clients as people have them. What is agreed on in a handshake is tests/dataplane/test_tls.py's."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import signal
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from certified import Certified
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from recording_origin import GOOD_BODY, RecordingOrigin
from running_box import HOST, RunningBox, policy_for, read_response, wait_for
from test_upgrade import UpgradedBox

GET = f"GET /good/film HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def policy(origin: RecordingOrigin, **listen: Any) -> dict[str, Any]:
    row = {"lan-tls": {"address": "127.0.0.1:0", "tls": "site"}}
    return policy_for(origin.url, listen=row | listen)


@pytest.fixture
def origin() -> Iterator[RecordingOrigin]:
    with RecordingOrigin() as running:
        yield running


@pytest.fixture
def made(tmp_path: Path) -> Certified:
    certified = Certified(tmp_path / "state" / "credentials")
    certified.put("site", HOST, "*.corp.example")
    return certified


@pytest.fixture
def box(tmp_path: Path, made: Certified, origin: RecordingOrigin) -> Iterator[RunningBox]:
    with RunningBox(tmp_path, policy(origin)) as running:
        yield running


def secured(
    box: RunningBox, context: ssl.SSLContext, *, host: str = HOST, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    return context.wrap_socket(box.connect("lan-tls"), server_hostname=host, session=session)


def body_over(connected: ssl.SSLSocket, request: bytes = GET) -> bytes:
    connected.sendall(request)
    return read_response(connected)[0].body


def events(box: RunningBox, kind: str) -> list[dict[str, Any]]:
    return [event for event in box.control("events")["events"] if event["kind"] == kind]


def test_the_same_video_over_both(box: RunningBox, made: Certified) -> None:
    with secured(box, made.context()) as viewer:
        assert body_over(viewer) == GOOD_BODY
        assert viewer.version() == "TLSv1.3"
    assert box.get("/good/film").body == GOOD_BODY
    assert box.stats()["hits"] == 1
    row = next(each for each in box.status()["listeners"] if each["name"] == "lan-tls")
    assert row["tls"] == ["site"]
    (certificate,) = box.status()["certificates"]
    assert (certificate["name"], certificate["listeners"], certificate["state"]) == ("site", ["lan-tls"], "ok")
    assert certificate["hosts"] == [HOST, "*.corp.example"]
    assert box.metrics()["accelerator_certificate_not_after_seconds{site}"] == certificate["not_after_s"]
    assert box.metrics()["accelerator_tls_handshakes_total"] == 1


def test_a_new_certificate_by_sighup_and_who_is_connected_notices_nothing(box: RunningBox, made: Certified) -> None:
    with secured(box, made.context()) as old:
        before = old.getpeercert(binary_form=True)
        made.put("site", HOST)
        box.reload()
        with secured(box, made.context()) as new:
            assert new.getpeercert(binary_form=True) != before
            assert body_over(new) == GOOD_BODY
        assert body_over(old) == GOOD_BODY


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "site.crt").unlink(), "site.crt: No such file or directory"),
        (lambda folder: (folder / "site.key").unlink(), "site.key: No such file or directory"),
        (lambda folder: (folder / "site.crt").write_text("nonsense"), "site.crt: no certificate in PEM"),
        (lambda folder: (folder / "site.key").write_text("nonsense"), "certificate 'site': the key can't be read"),
        (
            lambda folder: (folder / "site.key").write_bytes(trustme.CA().issue_cert("x").private_key_pem.bytes()),
            "certificate 'site': the key is not the certificate's",
        ),
    ],
)
def test_files_that_do_not_fit_change_nothing(box: RunningBox, made: Certified, spoil: Any, said: str) -> None:
    with secured(box, made.context()) as before:
        shown = before.getpeercert(binary_form=True)
    spoil(made.folder)
    output = box.reload()
    assert "listen.lan-tls.tls: certificate" in output
    assert said in output
    assert "Traceback" not in output
    with secured(box, made.context()) as after:
        assert after.getpeercert(binary_form=True) == shown
        assert body_over(after) == GOOD_BODY


def test_a_start_without_the_certificate_is_refused_in_a_line(tmp_path: Path, origin: RecordingOrigin) -> None:
    running = RunningBox(tmp_path, policy(origin)).spawn()
    try:
        assert running.exit_code(seconds=20) == 1
    finally:
        running.kill()
    assert "listen.lan-tls.tls: certificate: " in running.output
    assert "Traceback" not in running.output


def test_the_end_of_a_certificate_is_told(tmp_path: Path, made: Certified, origin: RecordingOrigin) -> None:
    made.put("soon", "soon.example", days=20.5)
    made.put("sooner", "sooner.example", days=2.5)
    made.put("over", "over.example", days=-1)
    names = {"lan-tls": {"address": "127.0.0.1:0", "tls": ["site", "soon", "sooner", "over"]}}
    with RunningBox(tmp_path, policy(origin, **names)) as running:
        told = {event["what"] for event in events(running, "certificate-expiry")}
        assert told == {"certificate 'soon' expires in 20 days", "certificate 'sooner' expires in 2 days"}
        (expired,) = events(running, "certificate-expired")
        assert "'over' has expired" in expired["what"]
        assert "accelctl csr over" in expired["advice"]
        states = {row["name"]: row["state"] for row in running.status()["certificates"]}
        assert states == {"site": "ok", "soon": "expiring", "sooner": "expiring", "over": "expired"}
        shown = running.accelctl("status").stdout
        assert "over" in shown
        assert "expired" in shown


def test_a_response_is_stapled_while_it_is_good(box: RunningBox, made: Certified) -> None:
    certificate = x509.load_pem_x509_certificate((made.folder / "site.crt").read_bytes())
    key = serialization.load_pem_private_key(made.ca.private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(made.ca.cert_pem.bytes())
    now = datetime.datetime.now(datetime.UTC)

    def put(ends: datetime.datetime) -> None:
        response = ocsp.OCSPResponseBuilder().add_response(
            cert=certificate, issuer=issuer, algorithm=hashes.SHA256(), cert_status=ocsp.OCSPCertStatus.GOOD,
            this_update=now - datetime.timedelta(days=9), next_update=ends, revocation_time=None,
            revocation_reason=None,
        ).responder_id(ocsp.OCSPResponderEncoding.HASH, issuer).sign(key, hashes.SHA256())  # fmt: skip
        (made.folder / "site.ocsp").write_bytes(response.public_bytes(serialization.Encoding.DER))

    def said() -> str:
        host, port = box.address("lan-tls")
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-status", "-servername", HOST]
        return subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=False).stdout

    assert "OCSP response: no response sent" in said()
    put(now + datetime.timedelta(days=2))
    box.reload()
    assert "OCSP Response Status: successful" in said()
    assert box.status()["certificates"][0]["stapled"] is True
    put(now - datetime.timedelta(days=1))
    box.reload()
    assert "OCSP response: no response sent" in said()
    assert events(box, "certificate-ocsp")


def test_tickets_outlive_an_upgrade(tmp_path: Path, made: Certified, origin: RecordingOrigin) -> None:
    running = UpgradedBox(tmp_path, policy(origin))
    running.former = []
    context = made.context()
    with running:
        try:
            with secured(running, context) as before:
                assert body_over(before) == GOOD_BODY
                session = before.session
                running.upgrade()
                assert body_over(before) == GOOD_BODY  # the one before answers who is connected
            with secured(running, context, session=session) as after:
                assert after.session_reused
                assert body_over(after) == GOOD_BODY
        finally:
            for process in running.former:
                process.terminate()
                process.wait(20)


def test_a_stop_lets_answers_over_tls_end(box: RunningBox, made: Certified) -> None:
    with secured(box, made.context()) as viewer:
        viewer.sendall(GET[:-2])
        box.signal(signal.SIGTERM)
        viewer.sendall(b"\r\n")
        with contextlib.suppress(ConnectionError):
            assert read_response(viewer)[0].body == GOOD_BODY
    assert box.exit_code(seconds=20) == 0


def test_plain_http_gets_a_clear_answer(box: RunningBox) -> None:
    reply = box.get("/good/film", listener="lan-tls")
    assert reply.status == 400
    assert b"HTTPS" in reply.body


def test_the_access_log_says_which_listener(tmp_path: Path, made: Certified, origin: RecordingOrigin) -> None:
    with RunningBox(tmp_path, policy(origin) | {"logs": {"access": {"enabled": True}}}) as running:
        with secured(running, made.context()) as viewer:
            assert body_over(viewer) == GOOD_BODY
        folder = running.state / "logs"
        lines = wait_for(lambda: [line for path in folder.glob("access*") for line in path.read_text().splitlines()])
        line = json.loads(lines[0])
        assert (line["listener"], line["http"], line["tls"]) == ("lan-tls", "HTTP/1.1", "1.3")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(box: RunningBox, made: Certified, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(made.ca.cert_pem.bytes())
    host, port = box.address("lan-tls")
    url = f"https://{HOST}:{port}/good/film"
    command = ["curl", "-sS", "--fail", "--cacert", str(authority), "--resolve", f"{HOST}:{port}:{host}", url]
    done = subprocess.run([*command, url], capture_output=True, timeout=20, check=True)
    assert done.stdout == GOOD_BODY * 2
    done = subprocess.run([*command, "--range", "3-9"], capture_output=True, timeout=20, check=True)
    assert done.stdout == GOOD_BODY[3:10]
    refused = subprocess.run([*command, "--tls-max", "1.1"], capture_output=True, timeout=20, check=False)
    assert refused.returncode == 35


def test_csr_makes_a_key_and_a_request_that_becomes_a_certificate(box: RunningBox, made: Certified) -> None:
    arguments = ["csr", "new", "--credentials", str(made.folder)]
    done = box.accelctl(*arguments, "--policy", str(box.policy_path))
    assert (done.returncode, done.stderr) == (0, "")
    key = made.folder / "new.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first = key.read_bytes()
    request = x509.load_pem_x509_csr((made.folder / "new.csr").read_bytes())
    assert request.is_signature_valid
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOST]
    issuer = x509.load_pem_x509_certificate(made.ca.cert_pem.bytes())
    now = datetime.datetime.now(datetime.UTC)
    issued = (
        x509.CertificateBuilder().subject_name(request.subject).issuer_name(issuer.subject)
        .public_key(request.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .sign(serialization.load_pem_private_key(made.ca.private_key_pem.bytes(), None), hashes.SHA256())
    )  # fmt: skip
    (made.folder / "new.crt").write_bytes(issued.public_bytes(serialization.Encoding.PEM))
    box.reload({"listen": {"lan-tls": {"tls": "new"}}})
    with secured(box, made.context()) as viewer:
        assert body_over(viewer) == GOOD_BODY
    assert box.accelctl(*arguments, "--host", "a.example,b.example").returncode == 0
    assert key.read_bytes() == first
    refused = box.accelctl(*arguments)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
