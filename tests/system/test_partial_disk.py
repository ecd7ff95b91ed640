"""Parts on the disk: what a box had of a body before its restart answers ranges, and only the rest is asked for."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from disk_box import MIB, VideoOrigin, body_of, disk_box
from running_box import Response, RunningBox, wait_for

SIZE = 6 * MIB + 77
PATH = f"/v/{SIZE}/film.mp4"
BODY = body_of(PATH)


def ask(box: RunningBox, written: str, *lines: str) -> Response:
    return box.get(PATH, f"Range: bytes={written}", *lines)


def tag_of(response: Response) -> str:
    return response.fields["etag"]


@pytest.mark.rfc("9111#3.3", "an incomplete response on the disk answers ranges wholly inside it, and is completed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_parts_survive_a_restart(tmp_path: Path, number: signal.Signals) -> None:
    with VideoOrigin() as origin, disk_box(tmp_path, origin) as box:
        for written in (f"{4 * MIB}-", "0-2000000"):
            assert ask(box, written).status == 206
        wait_for(lambda: box.stats()["disk_write_bytes"] >= 4 * MIB + 77, what="the parts are on the disk")
        if number == signal.SIGKILL:
            wait_for(lambda: box.stats()["disk_objects"] == 1, what="the head is on the disk")
        box.signal(number)
        box.exit_code(seconds=20)
        asked, sent = origin.n_asked, origin.server.sent
        with RunningBox(box.work, box.policy) as again:
            for written, first, last in (
                ("0-0", 0, 0), (f"{MIB - 1}-{MIB}", MIB - 1, MIB), ("-1", SIZE - 1, SIZE - 1),
                ("-1000000", SIZE - 1_000_000, SIZE - 1), (f"{5 * MIB + 5}-", 5 * MIB + 5, SIZE - 1),
                (f"{4 * MIB}-{SIZE + 99}", 4 * MIB, SIZE - 1),
            ):  # fmt: skip
                response = ask(again, written)
                assert (response.status, response.body) == (206, BODY[first : last + 1]), written
                assert response.fields["content-range"] == f"bytes {first}-{last}/{SIZE}"
            several = ask(again, f"5-9,{5 * MIB}-{5 * MIB + 9},-3")
            assert several.fields["content-type"].startswith("multipart/byteranges")
            for part in (BODY[5:10], BODY[5 * MIB : 5 * MIB + 10], BODY[-3:]):
                assert b"\r\n\r\n" + part + b"\r\n--" in several.body
            assert ask(again, f"{SIZE}-").status == 416
            tag = tag_of(several)
            assert ask(again, "0-9", f"If-Range: {tag}").status == 206
            assert again.get(PATH, f"If-None-Match: {tag}").status == 304
            assert origin.n_asked == asked
            assert ask(again, f"{3 * MIB}-{3 * MIB + 9}").body == BODY[3 * MIB : 3 * MIB + 10]
            assert again.get(PATH).body == BODY
            assert origin.server.sent - sent == 2 * MIB
            assert again.get(PATH, "Range: bytes=0-9", 'If-Range: "other"').body == BODY
            assert origin.server.sent - sent == 2 * MIB


@pytest.mark.rfc("9111#3.4", "MUST NOT combine parts of two representations, nor with those on the disk")
def test_a_new_validator_ends_the_parts_on_the_disk(tmp_path: Path) -> None:
    with VideoOrigin() as origin, disk_box(tmp_path, origin) as box:
        old = tag_of(ask(box, "0-2000000"))
        wait_for(lambda: box.stats()["disk_objects"] == 1 and box.stats()["disk_write_bytes"] >= 2 * MIB, what="kept")
        box.signal(signal.SIGTERM)
        box.exit_code(seconds=20)
        origin.server.edition = 2
        with RunningBox(box.work, box.policy) as again:
            assert tag_of(ask(again, "0-9")) == old
            assert len(ask(again, f"{3 * MIB}-{3 * MIB + 9}").body) == 0  # broken off: there is no more of it
            for written in ("0-9", f"{3 * MIB}-{3 * MIB + 9}"):
                response = ask(again, written)
                assert (response.status, len(response.body)) == (206, 10)
                assert tag_of(response) != old
