"""Client certificates and log-ins of the credentials directory: shown to nginx and openssl, refused when bad."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from hostile_origin import HostileOrigin
from parent_proxies import StrictProxy, free_port, running_peer
from running_box import RunningBox, policy_for
from upstream_box import OK, Run, client_of, get, run

from accelerator.io.credentials import CredentialError, Credentials
from accelerator.io.origin import ClientCertificate, ParentProxy
from accelerator.io.upstream import OriginSettings, Upstream

__all__ = ["run"]

NAME = "localhost"
_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port} ssl; server_name localhost; ssl_protocols {protocols};
        ssl_certificate {folder}/server.crt; ssl_certificate_key {folder}/server.key;
        ssl_client_certificate {folder}/clients.pem; ssl_verify_client on;
        location / {{ return 200 "$ssl_protocol $ssl_client_s_dn"; }}
    }}
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Servers' files, and credentials: `branch` (right), `stranger` (of an unknown authority)."""
    folder = tmp_path_factory.mktemp("certificates")
    servers, clients = trustme.CA(), trustme.CA()
    servers.cert_pem.write_to_path(str(folder / "servers.pem"))
    clients.cert_pem.write_to_path(str(folder / "clients.pem"))
    for issuer, identity, name in (
        (servers, NAME, "server"), (clients, "branch.corp.example", "branch"), (trustme.CA(), "stranger", "stranger"),
    ):  # fmt: skip
        issued = issuer.issue_cert(identity, common_name=identity)
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for i, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(str(folder / f"{name}.crt"), append=i > 0)
    return folder


@contextmanager
def nginx(folder: Path, protocols: str) -> Iterator[int]:
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    port = free_port()
    path = folder / f"nginx-{port}.conf"
    path.write_text(_NGINX.format(folder=folder, port=port, protocols=protocols))
    with running_peer(["nginx", "-c", str(path), "-p", str(folder)], port):
        yield port


@contextmanager
def openssl(folder: Path, protocol: str) -> Iterator[int]:
    port = free_port()
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-Verify", "2", "-verify_return_error"]
    command += ["-cert", str(folder / "server.crt"), "-key", str(folder / "server.key")]
    command += ["-CAfile", str(folder / "clients.pem"), "-no_dhe", protocol]
    with running_peer(command, port):
        yield port


def settings(folder: Path, port: int, name: str | None, **more: Any) -> OriginSettings:
    certificate = Credentials(folder).client_certificate(name) if name is not None else None
    return OriginSettings(
        "test", (Upstream("https", NAME, port),), ("127.0.0.1",), str(folder / "servers.pem"),
        client_certificate=certificate, **more,
    )  # fmt: skip


@pytest.mark.parametrize("protocol", ["TLSv1.2", "TLSv1.3"])
def test_nginx_that_demands_one(run: Run, folder: Path, protocol: str) -> None:
    async def main() -> None:
        with nginx(folder, protocol) as port:
            client = client_of(settings(folder, port, "branch"))
            for _ in range(2):
                sink = await get(client, b"/")
                assert sink.calls[0] == ("head", 200)
                assert sink.body.startswith(protocol.encode() + b" ")
                assert b"CN=branch.corp.example" in sink.body
            assert client.counters.connections_opened == 1
            # nginx tells by HTTP, not by TLS, that a certificate is missing or unknown.
            for name in (None, "stranger"):
                client.set_settings(settings(folder, port, name))
                assert (await get(client, b"/")).calls[0] == ("head", 400)
            client.set_settings(settings(folder, port, "branch"))
            assert (await get(client, b"/")).calls[0] == ("head", 200)
            await client.close()

    run(main())


@pytest.mark.parametrize("protocol", ["-tls1_2", "-tls1_3"])
def test_openssl_that_demands_one(run: Run, folder: Path, protocol: str) -> None:
    """With TLS 1.3 the refusal comes when the handshake is over for us (RFC 8446 section 4.4.2.4)."""

    async def main() -> None:
        with openssl(folder, protocol) as port:
            for name in ("branch", None, "stranger", "branch"):
                client = client_of(settings(folder, port, name))
                calls = (await get(client, b"/")).calls
                if name == "branch":
                    assert calls[0] == ("head", 200)
                else:
                    assert calls[0][0] == "failed"
                    assert calls[0][1] in ("tls", "reset", "closed")
                await client.close()

    run(main())


def test_inside_a_proxys_tunnel(run: Run, folder: Path) -> None:
    async def main() -> None:
        proxy = await StrictProxy().start()
        with nginx(folder, "TLSv1.3") as port:
            client = client_of(settings(folder, port, "branch", via=ParentProxy("127.0.0.1", proxy.port)))
            assert b"CN=branch.corp.example" in (await get(client, b"/")).body
            assert proxy.heads[0].startswith(b"CONNECT localhost:%d " % port)
            await client.close()
        await proxy.close()

    run(main())


def test_a_certificate_that_is_renewed_is_read_with_the_next_settings(run: Run, folder: Path, tmp_path: Path) -> None:
    async def main() -> None:
        for suffix in ("crt", "key"):
            shutil.copy(folder / f"stranger.{suffix}", tmp_path / f"branch.{suffix}")
        with nginx(folder, "TLSv1.3") as port:
            files = ClientCertificate(str(tmp_path / "branch.crt"), str(tmp_path / "branch.key"))
            upstreams = (Upstream("https", NAME, port),)
            way = OriginSettings("t", upstreams, ("127.0.0.1",), str(folder / "servers.pem"), client_certificate=files)
            client = client_of(way)
            assert (await get(client, b"/")).calls[0] == ("head", 400)
            for suffix in ("crt", "key"):
                shutil.copy(folder / f"branch.{suffix}", tmp_path / f"branch.{suffix}")
            client.set_settings(way)
            sink = await get(client, b"/")
            assert sink.calls[0] == ("head", 200)
            await client.close()

    run(main())


# -- the directory ---------------------------------------------------------------------------------------------------


def test_certificates_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    credentials = Credentials(tmp_path)
    cases: dict[str, tuple[str | None, str | None, str]] = {
        "none": (None, None, "none.crt: No such file"),
        "keyless": ("branch.crt", None, "keyless.key: No such file"),
        "mixed": ("branch.crt", "stranger.key", "mixed.crt with .*KEY_VALUES_MISMATCH|mixed.crt with .*mismatch"),
        "garbage": ("servers.pem", "clients.pem", "garbage.crt with "),
    }
    for name, (certificate, key, message) in cases.items():
        for source, suffix in ((certificate, "crt"), (key, "key")):
            if source is not None:
                shutil.copy(folder / source, tmp_path / f"{name}.{suffix}")
        with pytest.raises(CredentialError, match=message):
            credentials.client_certificate(name)
    # A key with a passphrase is refused at once; nobody is asked for it.
    shutil.copy(folder / "branch.crt", tmp_path / "locked.crt")
    encrypt = ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", str(folder / "branch.key"), "-out"]
    subprocess.run([*encrypt, str(tmp_path / "locked.key")], check=True)
    with pytest.raises(CredentialError, match=r"locked\.crt with .*locked\.key"):
        credentials.client_certificate("locked")
    with pytest.raises(CredentialError, match="no directory"):
        Credentials(None).client_certificate("x")


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"branch:secret", b"Basic YnJhbmNoOnNlY3JldA=="),
        (b"branch:secret\n", b"Basic YnJhbmNoOnNlY3JldA=="),
        (b"branch:secret\r\n", b"Basic YnJhbmNoOnNlY3JldA=="),
        (b"a:b:c", b"Basic YTpiOmM="),
        (b"a:", b"Basic YTo="),
        ("a:é".encode(), b"Basic YTrDqQ=="),
        *((bad, None) for bad in (b"", b"a", b":b", b"a:b\nc:d\n", b"a:b\x00", b"a:\xff", b"a\t:b")),
        (b"a:" + b"b" * 1024, None),
    ],
)
def test_log_ins(content: bytes, value: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "proxy.login").write_bytes(content)
    if value is not None:
        assert Credentials(tmp_path).basic_authorization("proxy") == value
        return
    with pytest.raises(CredentialError, match=r"proxy\.login: expected one line") as caught:
        Credentials(tmp_path).basic_authorization("proxy")
    assert "b" * 10 not in caught.value.message


def test_a_missing_log_in(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"proxy\.login: No such file"):
        Credentials(tmp_path).basic_authorization("proxy")


# -- the daemon ------------------------------------------------------------------------------------------------------


def test_the_daemon_starts_and_reloads_with_credentials_or_says_which_origin_lacks_them(
    folder: Path, tmp_path: Path
) -> None:
    with nginx(folder, "TLSv1.3") as port:
        good = policy_for(f"https://localhost:{port}", origins={"media": {
            "resolve": ["127.0.0.1"], "ca": str(folder / "servers.pem"), "client_certificate": "branch",
        }})  # fmt: skip
        lacking = RunningBox(tmp_path / "lacking", good).spawn()
        assert lacking.exit_code() == 1
        assert "origins.media.client_certificate: client certificate: " in lacking.output
        assert "/state/credentials/branch.crt: No such file" in lacking.output
        box = RunningBox(tmp_path / "box", good)
        credentials = box.state / "credentials"
        credentials.mkdir(parents=True)
        box.state.chmod(0o700)
        for suffix in ("crt", "key"):
            shutil.copy(folder / f"branch.{suffix}", credentials)
        with box:
            assert b"CN=branch.corp.example" in box.get("/a").body
            generation = box.status()["policy"]["generation"]
            output = box.reload({"origins": {"media": {"client_certificate": "other"}}})
            assert "origins.media.client_certificate" in output
            output = box.reload({"origins": {"media": {
                "client_certificate": "branch", "via": "http://127.0.0.1:9", "via_credential": "proxy",
            }}})  # fmt: skip
            assert "origins.media.via_credential: log-in: " in output
            unusable = tmp_path / "unusable.pem"
            unusable.write_text("no certificate\n")
            for path, reason in ((unusable, "NO_CERTIFICATE"), (tmp_path / "missing.pem", "No such file")):
                output = box.reload({"origins": {"media": {"ca": str(path)}}})
                assert f"origins.media.ca: CA file {path}: " in output
                assert reason in output
            assert box.status()["policy"]["generation"] == generation
            assert b"CN=branch.corp.example" in box.get("/b").body


# -- addresses of which one has a bad certificate --------------------------------------------------------------------


def test_an_address_whose_certificate_is_wrong_leaves_the_field_to_the_next(run: Run, folder: Path) -> None:
    async def main() -> None:
        contexts = []
        for identity in ("server", "stranger"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / f"{identity}.crt", folder / f"{identity}.key")
            contexts.append(context)
        right, wrong = HostileOrigin(tls=contexts[0]), HostileOrigin(tls=contexts[1])
        wrong.host = "127.0.0.2"
        await right.start()
        await wrong.start(right.port)
        way = settings(folder, right.port, None)
        client = client_of(replace(way, resolve=("127.0.0.2", "127.0.0.1")))
        assert (await get(client, b"/ok")).calls == OK
        assert client.counters.connect_failures == 1
        await client.close()
        await right.close()
        await wrong.close()

    run(main())
