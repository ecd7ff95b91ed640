"""Changes to a policy's text by bytes, lines and YAML's own words, for the hypothesis test and the fuzz target."""

from __future__ import annotations

from pathlib import Path
from random import Random

from accelerator.policy import Policy, check_texts, compile_policy

ROOT = Path(__file__).resolve().parents[2]
POLICIES = [ROOT / "config" / "accelerator.yaml", *sorted((ROOT / "config" / "examples").glob("*.yaml"))]
SEEDS = [path.read_bytes() for path in POLICIES]

_WORDS = [
    *rb"&a |*a|!!python/object:os.system |! |<<: |? |: |- |{|}|[|]|,|#|>-|'|~|null|true|yes|010|0x1F|1:30".split(b"|"),
    *rb"1e999|.inf|-1|'*'|'*.x'|[::]:80|origins|from: |hosts: |paths: |zones: |512|512MiB|/|..|http://127.0.0.1:8080".split(
        b"|"
    ),
    *(b'"', b"\\", b"\t", b"\r", b"|\n", b"---\n", b"...\n", b"%YAML 1.1\n", b"locked: [origins, a.b]\n", b"9" * 400),
    *(b"\xc2\x85", b"\xe2\x80\xa8", b"\xff", b"\x00", b"\xef\xbb\xbf", b'"\\ud800"', b'"\\x00"', b'"\\e[0m"'),
    *(text.encode() for text in ("\xe9", "\u202e", "\U0001f600")),
]


def mutate(data: bytes, random: Random) -> bytes:
    """`data` with one to eight changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        kind = random.randrange(6)
        place = random.randrange(len(data) + 1)
        lines = data.splitlines(keepends=True) or [b""]
        line = random.randrange(len(lines))
        if kind == 0:
            data = data[:place] + random.choice(_WORDS) + data[place:]
        elif kind == 1:
            data = data[:place] + data[place + random.randrange(1, 20) :]
        elif kind == 2:
            data = data[:place] + bytes([random.randrange(256)]) + data[place + 1 :]
        elif kind == 3:
            data = b"".join([*lines[:line], random.choice(lines), *lines[line:]])
        elif kind == 4:
            data = b"".join(lines[:line] + lines[line + 1 :])
        else:  # another value after a key
            key, colon, _ = lines[line].partition(b":")
            lines[line] = key + colon + b" " + random.choice(_WORDS) + b"\n"
            data = b"".join(lines)
    return data


def check_holds(*files: bytes) -> Policy | None:
    """What must hold of any input: printable problems at a place of their file, or a policy, which compiles."""
    named = [(f"f{number}", data) for number, data in enumerate(files)]
    policy, problems = check_texts(named, "/nowhere")
    assert (policy is None) == any(not problem.is_warning for problem in problems)
    assert list(problems) == sorted(problems) or len(problems) > 1000
    lines = {name: data.count(b"\n") + data.count(b"\r") + 2 for name, data in named}
    for problem in problems:
        assert str(problem).isprintable(), problem
        assert len(problem.message) < 1000, problem
        assert 0 <= problem.line <= lines[problem.file], problem
        assert (problem.column > 0) == (problem.line > 0), problem
    if policy is not None:
        tables = compile_policy(policy)
        assert len([row for row in tables.origins if not row.is_relay]) == len(policy.origins)
        assert all(row.paths for row in tables.hosts)
    return policy
