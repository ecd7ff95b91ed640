"""A box on loopback with one relay over HTTP, and the encoder that sends into it: 25 pictures a second, sound, a key
frame each second. What is asked of it is each test's own."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay_box import policy_of
from running_box import RunningBox

PATH = "/relay/hall.ts"
ENCODER = (
    "ffmpeg -v error -re -f lavfi -i testsrc2=s=320x240:r=25 -f lavfi -i sine -map 0 -map 1 -c:v libx264 "
    "-pix_fmt yuv420p -preset ultrafast -tune zerolatency -g 25 -b:v 800k -c:a aac -f mpegts"
)


@contextmanager
def running_channel(work: Path) -> Iterator[str]:
    """The stream's URL."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    relays = {"hall": {"from": [f"udp://127.0.0.1:{port}"], "to": [{"http": PATH}]}}
    with RunningBox(work, policy_of(relays=relays)) as box:
        encoder = subprocess.Popen([*ENCODER.split(), f"udp://127.0.0.1:{port}?pkt_size=1316"])
        try:
            host, own_port = box.address()
            yield f"http://{host}:{own_port}{PATH}"
        finally:
            encoder.kill()
            encoder.wait()
