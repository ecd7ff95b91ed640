"""`python -m accelerator.demo`, what `make run` starts: makes media, serves them, puts the box in front, stays until
Ctrl-C. What the pieces are lives beside this file; here is only their order."""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import socket
import sys
import time
from pathlib import Path

from accelerator.demo import media
from accelerator.demo.origin import HLS_JS
from accelerator.demo.supervise import Children
from accelerator.errors import AcceleratorError

POLICY = Path("config/demo.yaml")
DEFAULT_PORT = 8080  # the box; its admin listener is one above, the demo's origin two above
READY_SEGMENTS = 3  # what players want before they begin


def policy_text(port_base: int) -> str:
    """config/demo.yaml with its three ports moved."""
    text = POLICY.read_text()
    for offset in range(3):
        text = text.replace(f"127.0.0.1:{DEFAULT_PORT + offset}", f"127.0.0.1:<{offset}>")
    for offset in range(3):
        text = text.replace(f"127.0.0.1:<{offset}>", f"127.0.0.1:{port_base + offset}")
    return text


def refuse_busy_ports(ports: list[int]) -> None:
    """Raises AcceleratorError naming the first port that another program listens on."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                message = f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): choose others with --port-base"
                raise AcceleratorError("port", message) from error


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered with 200 within two seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def make_recorded(children: Children, folder: Path) -> None:
    """Makes the DASH presentation and the film once; later starts find them. An interrupted one leaves no folder."""
    if (folder / f"recipe-{media.RECIPE}").exists():
        return
    print("making a DASH presentation and a ten-minute film, once ...", flush=True)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        (unfinished / "dash").mkdir(parents=True)
        for command in media.recorded(unfinished):
            children.run("ffmpeg-recorded", command, deadline_s=300)
        (unfinished / f"recipe-{media.RECIPE}").touch()
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def has_segments(playlists: list[Path]) -> bool:
    try:
        return all(playlist.read_text().count("#EXTINF:") >= READY_SEGMENTS for playlist in playlists)
    except FileNotFoundError:
        return False


def start_channel(children: Children, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("cmaf", "ts"):
        (folder / kind).mkdir(parents=True)
    children.start("ffmpeg-live", media.live(folder, start_epoch_s=int(time.time())))
    playlists = [folder / kind / rendition.name / "index.m3u8" for kind in ("cmaf", "ts") for rendition in media.LADDER]
    children.wait_until(lambda: has_segments(playlists), "the live channel's first segments", deadline_s=60)


def start_origin(children: Children, live: Path, recorded: Path, port: int) -> None:
    command = [sys.executable, "-m", "accelerator.demo.origin", "--port", str(port)]
    children.start("origin", [*command, "--live", str(live), "--recorded", str(recorded)])
    children.wait_until(lambda: answers(port, "/"), "the demo's origin", deadline_s=30)


def start_box(children: Children, work: Path, port_base: int) -> None:
    policy = POLICY
    if port_base != DEFAULT_PORT:
        policy = work / "demo.yaml"
        policy.write_text(policy_text(port_base))
    program = Path(sys.executable).parent / "acceleratord"
    command = [str(program), "--policy", str(policy), "--state-dir", str(work / "box")]
    children.start("acceleratord", command, is_logged=False)
    health = "/.well-known/accelerator/health"
    children.wait_until(lambda: answers(port_base, health), "the box's health answer", deadline_s=30)


def announce(port: int, work: Path, *, has_box: bool) -> None:
    base = f"http://127.0.0.1:{port}"
    print(f"""
  The channel, {"through the box" if has_box else "straight from the origin"}:
    page        {base}/
    HLS, fMP4   {base}/live/cmaf/master.m3u8
    HLS, TS     {base}/live/ts/master.m3u8
    DASH        {base}/dash/manifest.mpd
    MP4         {base}/film.mp4""")
    if has_box:
        accelctl = f"{Path(sys.executable).parent / 'accelctl'} --socket {work / 'box' / 'control.sock'}"
        print(f"""  Statistics:
    live        {accelctl} top
    cache       {accelctl} cache stats
    metrics     http://127.0.0.1:{port + 1}/metrics""")
    print("\n  Ctrl-C ends everything.", flush=True)


def run(arguments: argparse.Namespace) -> None:
    """Raises AcceleratorError when something cannot start or ends by itself, KeyboardInterrupt when told to stop."""
    origin_port = arguments.port_base + 2
    viewers_port = origin_port if arguments.origin_only else arguments.port_base
    refuse_busy_ports([origin_port] if arguments.origin_only else [arguments.port_base + offset for offset in range(3)])
    if not HLS_JS.exists():
        raise AcceleratorError("hls-js", f"{HLS_JS} is missing: run make setup first")
    work: Path = arguments.work_dir
    recorded: Path = arguments.recorded_dir or work / "recorded"
    live = work / "live"
    work.mkdir(parents=True, exist_ok=True)
    with Children(work) as children:
        make_recorded(children, recorded)
        start_channel(children, live)
        start_origin(children, live, recorded, origin_port)
        if not arguments.origin_only:
            start_box(children, work, arguments.port_base)
        announce(viewers_port, work, has_box=not arguments.origin_only)
        ends_s = time.monotonic() + arguments.duration if arguments.duration else float("inf")
        children.wait_until(lambda: time.monotonic() >= ends_s, "the end", deadline_s=None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m accelerator.demo", description="A live channel through the box.")
    parser.add_argument(
        "--port-base",
        type=int,
        default=DEFAULT_PORT,
        metavar="PORT",
        help=f"the box; one above: its admin listener; two above: the demo's origin (default {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("state/demo"), help="media, logs, state (default state/demo)"
    )
    parser.add_argument(
        "--recorded-dir", type=Path, metavar="DIR", help="where DASH and MP4 are (default WORK_DIR/recorded)"
    )
    parser.add_argument("--duration", type=float, default=0, metavar="SECONDS", help="end by itself after this long")
    parser.add_argument("--origin-only", action="store_true", help="no box: play straight from the demo's origin")
    arguments = parser.parse_args()
    if not 1024 <= arguments.port_base <= 65533:
        parser.error("--port-base takes 1024 to 65533")
    try:
        run(arguments)
    except KeyboardInterrupt:
        return 0
    except AcceleratorError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
