"""The admin token, which the dashboard wants before it changes anything: made at the first start, or a credential.

It is a file, `admin.token`: in the credentials' directory where somebody put it, else in STATE_DIR/credentials.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from accelerator.errors import AcceleratorError, Source

NAME = "admin.token"
# 256 bits, as RFC 6750 section 5.2 wants: not to be guessed at any rate of tries.
TOKEN_BYTES = 32
# RFC 6750 section 2.1, b64token: other characters don't survive the field. Short ones can be guessed.
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,256}=*")
_FILE_BYTES_MAX = 1024


class TokenError(AcceleratorError):
    """The token can't be read or made. The message never has its content."""

    source = Source.OPERATOR


@dataclass(frozen=True)
class AdminToken:
    text: str = field(repr=False)
    path: Path


def load_admin_token(credentials: Path | None, state: Path) -> AdminToken:
    """The token; one is made, mode 0600, where there is none. Raises TokenError. Blocks for a small file."""
    places = [credentials / NAME] if credentials is not None else []
    own = state / "credentials" / NAME
    for path in (*places, own):
        data = _read(path)
        if data is not None:
            return AdminToken(data.decode("ascii"), path)
    _make(own)
    data = _read(own)
    if data is None:
        raise TokenError("admin-token", f"{own}: has gone")
    return AdminToken(data.decode("ascii"), own)


def _read(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1).removesuffix(b"\n").removesuffix(b"\r")
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise TokenError("admin-token", f"{path}: {fault.strerror}") from fault
    if not _TOKEN.fullmatch(data):
        raise TokenError("admin-token", f"{path}: one line of 16 to 256 letters, digits and -._~+/ is expected")
    return data


def _make(path: Path) -> None:
    """Whole or not at all: another start at the same time finds this one's or makes its own, never half of one."""
    new = path.with_name(f".{NAME}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        finally:
            new.unlink()
    except OSError as fault:
        raise TokenError("admin-token", f"{path}: {fault.strerror}") from fault
