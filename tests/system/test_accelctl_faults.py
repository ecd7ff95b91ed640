"""Every `accelctl` command where something is missing: one clear line, the right exit code, never a traceback, and with
--json one document. In this process: the commands are many, and each starts for a fifth of a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509

from accelerator.cli import main
from accelerator.control.commands import COMMANDS

# What is needed besides the name, so that the fault is the only one.
WORDS = {
    "relay show": ["hall"], "relay add-receiver": ["hall", "10.0.0.1:5004"],
    "relay remove-receiver": ["hall", "10.0.0.1:5004"], "cache purge": ["http://media.example/"],
    "cache erase": ["film"], "policy diff": ["POLICY"], "policy apply": ["POLICY"],
    "steering test": ["hosts"], "steering recipes": ["linux"], "top": ["--once"], "relay top": ["--once"],
}  # fmt: skip
POLICY = """
version: 1
site: {name: lyon}
listen: {lan: {address: "127.0.0.1:8080"}}
origins: {media: {from: ["http://127.0.0.1:9"], hosts: [media.example, 10.0.0.7]}}
"""
NEEDS_DAEMON = [
    each.name for each in COMMANDS if each.name not in ("doctor", "policy check", "policy schema", "csr", "log verify")
]
READS_POLICY = ["policy check", "policy diff", "policy apply", "doctor", "csr", "steering matrix", "steering pac",
                "steering document", "steering recipes", "steering test", "log verify"]  # fmt: skip


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", NEEDS_DAEMON)
def test_without_a_daemon(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    words = [word.replace("POLICY", str(tmp_path / "policy.yaml")) for word in WORDS.get(name, [])]
    for options in ([], ["--json"]):
        socket = str(tmp_path / "none.sock")
        code, out, err = said(capsys, "--socket", socket, *options, *name.split(), *words)
        assert code == 3
        assert err.startswith("accelctl: no ")
        assert err.count("\n") == 1
        assert not options or json.loads(out)["error"]["kind"] == "no-daemon"
        assert options or out == ""


@pytest.mark.parametrize("name", READS_POLICY)
def test_without_the_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\0\xff\xfe")
    words = {"csr": ["site", "--credentials", str(tmp_path), "--policy"], "doctor": ["--listen", "0", "--policy"]}.get(
        name, [] if name.startswith(("policy", "log")) else [*WORDS.get(name, []), "--policy"]
    )
    for file in ("missing.yaml", "binary.yaml", "binary.yaml/below"):
        path = str(tmp_path / file)
        for options in ([], ["--json"]):
            command = ["--socket", str(tmp_path / "none.sock"), *options, *name.split(), *words, path]
            code, out, err = said(capsys, *command)
            assert code == 1
            assert err.count("\n") == 1
            assert path in err
            assert "Errno" not in err
            assert not options or json.loads(out)["ok"] is False


def test_a_request_where_there_is_no_directory_or_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It said that a key was missing which it should have made; it made files called .key and n\\nx.key."""
    code, _, err = said(capsys, "csr", "site", "--credentials", str(tmp_path / "none"), "--host", "a.example")
    assert (code, err) == (
        1,
        f"accelctl: {tmp_path}/none: there is no such directory: make it with mkdir -m 700, or name another\n",
    )
    for name in ("", "..", "n\nx", "a/b", "-x"):
        code, _, err = said(capsys, "csr", "--credentials", str(tmp_path), "--host", "a.example", "--", name)
        assert code == 1
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_request_for_addresses_has_them_as_addresses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate with the DNS name 10.0.0.7 was one that no browser takes for https://10.0.0.7/."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    words = ("csr", "site", "--credentials", str(tmp_path), "--policy", str(tmp_path / "policy.yaml"))
    assert said(capsys, *words)[0] == 0
    request = x509.load_pem_x509_csr((tmp_path / "site.csr").read_bytes())
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["media.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


def test_the_pac_is_a_document_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json it printed the script itself."""
    (tmp_path / "policy.yaml").write_text(
        POLICY.replace("127.0.0.1:8080", "10.0.0.1:8080") + 'steering: {proxy: {address: "10.0.0.1:8080"}}\n'
    )
    code, out, _ = said(capsys, "--json", "steering", "pac", "--policy", str(tmp_path / "policy.yaml"))
    assert code == 0
    assert "FindProxyForURL" in json.loads(out)["pac"]
