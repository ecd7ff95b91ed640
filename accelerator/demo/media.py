"""The demo's media: ffmpeg's command lines for a live channel, a DASH presentation and a long MP4. Runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSansMono-Bold.ttf")
FRAMES_PER_S = 25
SEGMENT_S = 2
CLIP_S = 60
FILM_REPEATS = 10  # of the clip: ten minutes, about 120 MB
WINDOW_SEGMENTS = 10
KEPT_SEGMENTS = 15  # on disk after they left the playlist, for players that are late


@dataclass(frozen=True)
class Rendition:
    """One quality of the ladder. At these three, live encoding takes a fifth of one core."""

    name: str
    width: int
    height: int
    rate_kbps: int


LADDER = (Rendition("720p", 1280, 720, 1500), Rendition("480p", 854, 480, 800), Rendition("360p", 640, 360, 400))
# Changes whenever what recorded() makes changes: an older cache is then made anew.
RECIPE = "2"


def live(folder: Path, *, start_epoch_s: int) -> list[str]:
    """The endless encoder: each rendition is encoded once and written twice, as folder/cmaf (fMP4) and folder/ts.

    Segment numbers begin at the epoch's second and the names of the init segments carry it, so no name ever comes back
    with other bytes and everything but the playlists may be cached for long.
    """
    common = {
        "f": "hls",
        "hls_time": str(SEGMENT_S),
        "hls_list_size": str(WINDOW_SEGMENTS),
        "hls_delete_threshold": str(KEPT_SEGMENTS),
        "hls_flags": "temp_file+delete_segments+program_date_time+independent_segments",
        "start_number": str(start_epoch_s),
        "master_pl_name": "master.m3u8",
        "var_stream_map": " ".join(f"v:{i},a:{i},name:{rendition.name}" for i, rendition in enumerate(LADDER)),
    }
    fragmented = {
        **common,
        "hls_segment_type": "fmp4",
        "hls_fmp4_init_filename": f"init_{start_epoch_s}_%v.mp4",
        "hls_segment_filename": f"{folder}/cmaf/%v/%d.m4s",
    }
    transport = {**common, "hls_segment_type": "mpegts", "hls_segment_filename": f"{folder}/ts/%v/%d.ts"}
    outputs = [
        _tee_output(fragmented, f"{folder}/cmaf/%v/index.m3u8"),
        _tee_output(transport, f"{folder}/ts/%v/index.m3u8"),
    ]
    clock = r"%{gmtime\:%T} UTC  %{n}"
    # repeat-headers: TS needs the parameter sets in the stream, fMP4 (global_header) needs them apart.
    headers = ["-flags", "+global_header", "-x264-params", "repeat-headers=1"]
    return [
        *_ffmpeg(),
        *_sources(clock, is_live=True),
        *_encoders(*range(len(LADDER))),
        *headers,
        "-f",
        "tee",
        "|".join(outputs),
    ]


def recorded(folder: Path) -> list[list[str]]:
    """Commands that, in this order, make clip_*.mp4, and from those dash/manifest.mpd and film.mp4."""
    clips = [folder / f"clip_{rendition.name}.mp4" for rendition in LADDER]
    encode = [*_ffmpeg(), *_sources(r"%{pts\:hms}", is_live=False)]
    for index, clip in enumerate(clips):
        encode += [*_encoders(index), "-t", str(CLIP_S), str(clip)]
    package = [*_ffmpeg()]
    for clip in clips:
        package += ["-i", str(clip)]
    for index in range(len(clips)):
        package += ["-map", f"{index}:v"]
    package += ["-map", "0:a", "-c", "copy", "-f", "dash", "-seg_duration", "4"]
    package += ["-use_template", "1", "-use_timeline", "1", "-adaptation_sets", "id=0,streams=v id=1,streams=a"]
    package += [str(folder / "dash" / "manifest.mpd")]
    loop = [*_ffmpeg(), "-stream_loop", str(FILM_REPEATS - 1), "-i", str(clips[0]), "-c", "copy"]
    loop += ["-movflags", "+faststart", str(folder / "film.mp4")]
    return [encode, package, loop]


def _ffmpeg() -> list[str]:
    return ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "warning", "-y"]


def _sources(clock: str, *, is_live: bool) -> list[str]:
    """Inputs and the filter graph; its outputs are [v0] [a0] [v1] [a1] ... in the ladder's order."""
    pace = ["-re"] if is_live else []
    top = LADDER[0]
    inputs = [*pace, "-f", "lavfi", "-i", f"testsrc2=size={top.width}x{top.height}:rate={FRAMES_PER_S}"]
    inputs += [*pace, "-f", "lavfi", "-i", "sine=frequency=440:beep_factor=4:sample_rate=48000"]
    n = len(LADDER)
    graph = [f"[0:v]{_drawn_clock(clock)}split={n}" + "".join(f"[s{i}]" for i in range(n))]
    graph += [f"[s{i}]scale={r.width}:{r.height}:flags=fast_bilinear[v{i}]" for i, r in enumerate(LADDER)]
    graph += [f"[1:a]asplit={n}" + "".join(f"[a{i}]" for i in range(n))]
    return [*inputs, "-filter_complex", ";".join(graph)]


def _drawn_clock(text: str) -> str:
    """A drawtext filter with a trailing comma; empty when there is no font (testsrc2 draws its own time then)."""
    if not FONT.exists():
        return ""
    place = "x=(w-text_w)/2:y=h-text_h-60:fontsize=64:fontcolor=white:box=1:boxcolor=black@0.6:boxborderw=12"
    return f"drawtext=fontfile={FONT}:text='{text}':{place},"


def _encoders(*indices: int) -> list[str]:
    """Maps and settings of one output that has these renditions of the ladder, each with its sound. ffmpeg applies
    settings to the next output only."""
    frames = str(FRAMES_PER_S * SEGMENT_S)
    words = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-pix_fmt", "yuv420p", "-threads", "2"]
    words += ["-g", frames, "-keyint_min", frames, "-sc_threshold", "0", "-c:a", "aac", "-b:a", "64k", "-ac", "1"]
    for stream, index in enumerate(indices):
        rate = f"{LADDER[index].rate_kbps}k"
        words += ["-map", f"[v{index}]", "-map", f"[a{index}]"]
        words += [f"-b:v:{stream}", rate, f"-maxrate:v:{stream}", rate, f"-bufsize:v:{stream}", rate]
    return words


def _tee_output(options: dict[str, str], url: str) -> str:
    """One output of ffmpeg's tee muxer: values are quoted, for their spaces, and colons in them escaped."""
    escaped = {name: value.replace(":", r"\:") for name, value in options.items()}
    return "[" + ":".join(f"{name}='{value}'" for name, value in escaped.items()) + "]" + url
