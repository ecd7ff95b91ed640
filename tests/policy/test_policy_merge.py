"""Several files: order, merging, locks, limits that count over all files."""

# ruff: noqa: E501 - each line of the tables is one case
from __future__ import annotations

from pathlib import Path

import pytest

from accelerator.policy import Policy, check_policy, check_texts

DSI = """\
version: 1
site: {name: unnamed}
listen: {lan: {address: "127.0.0.1:8080"}}
limits: {drain: 1m}
origins:
  media:
    from: ["https://media.corp.example"]
    hosts: [a, b]
    timeouts: {head: 5s, body: 6s}
"""


def merged(*files: str) -> tuple[Policy | None, list[str]]:
    """The files f0, f1, ... merged, and the problems."""
    policy, problems = check_texts([(f"f{number}", file.encode()) for number, file in enumerate(files)])
    return policy, [str(problem) for problem in problems]


def accepted(*files: str) -> Policy:
    policy, problems = merged(*files)
    assert policy is not None, problems
    return policy


def test_maps_merge_lists_and_scalars_replace() -> None:
    policy = accepted(
        DSI,
        "site: {name: lyon}\n"
        "origins: {media: {hosts: [c], timeouts: {head: 7s}}, more: {from: ['http://x'], hosts: [d]}}\n"
        "listen: {second: {address: '127.0.0.1:8081'}}\n",
    )
    assert policy.site.name == "lyon"
    assert policy.origins["media"].hosts == ("c",)
    assert (policy.origins["media"].timeouts.head, policy.origins["media"].timeouts.body) == (7.0, 6.0)
    assert list(policy.origins) == ["media", "more"]
    assert list(policy.listen) == ["lan", "second"]
    assert policy.limits.drain == 60.0


def test_an_empty_section_changes_nothing_and_an_empty_list_replaces() -> None:
    assert accepted(DSI, "origins:\nlimits:\nlisten: {lan: }\n") == accepted(DSI)
    assert accepted(DSI, "origins: {media: {paths: [/a]}}\n", "origins: {media: {paths: }}\n").origins[
        "media"
    ].paths == ("/",)


def test_a_problem_is_placed_in_the_file_that_caused_it() -> None:
    assert merged(DSI, "cache: {memory: 1}\n", "origins: {media: {hosts: [a b]}}\n")[1] == [
        "f1:1:17: cache.memory: a size needs a unit: KiB, MiB, GiB, kB, MB or GB (did you mean '1MiB'?)",
        "f2:1:27: origins.media.hosts: expected a host name, '*.suffix' or '*', got 'a b'",
    ]
    assert merged(DSI, "origins: {other: {hosts: [a], from: ['http://x']}}\n")[1] == [
        "f1:1:27: origins.other: host 'a' with path '/' belongs to origin 'media' already (f0:8:13)"
    ]


LOCKS = [
    pytest.param("origins.media.from", "origins:\n  media:\n    from: [\"http://x\"]\n", "f1:3:5: 'origins.media.from' can't be set here: f0:10:10 locks it", id="list"),
    pytest.param("origins.media.from", "origins: {media: {from: }}\n", "f1:1:19: 'origins.media.from' can't be set here: f0:10:10 locks it", id="emptied"),
    pytest.param("listen", "listen: {other: {address: '127.0.0.1:1'}}\n", "f1:1:1: 'listen' can't be set here: f0:10:10 locks it", id="section"),
    pytest.param("listen.lan", "listen: {lan: {zones: [x]}}\n", "f1:1:10: 'listen.lan' can't be set here: f0:10:10 locks it", id="below"),
    pytest.param("origins.media.ca", "origins: {media: {ca: x}}\n", "f1:1:19: 'origins.media.ca' can't be set here: f0:10:10 locks it", id="default"),
    pytest.param("cache.memory", "cache: {memory: 1GiB}\n", "f1:1:9: 'cache.memory' can't be set here: f0:10:10 locks it", id="not-there-yet"),
    pytest.param("origins.media.from", "origins: []\n", "f1:1:1: 'origins.media.from' can't be set here: f0:10:10 locks it", id="above"),
    pytest.param("origins.media.from", "origins: {media: x}\n", "f1:1:11: 'origins.media.from' can't be set here: f0:10:10 locks it", id="just-above"),
    pytest.param("limits", "limits: {drain: 1m}\n", "f1:1:1: 'limits' can't be set here: f0:10:10 locks it", id="same-value"),
    pytest.param("locked", "locked: [site]\n", "f1:1:1: 'locked' can't be set here: f0:10:10 locks it", id="locked"),
]  # fmt: skip


@pytest.mark.parametrize(("lock", "later", "problem"), LOCKS)
def test_a_lock_names_both_files(lock: str, later: str, problem: str) -> None:
    policy, problems = merged(DSI + f"locked: [{lock}]\n", later)
    assert policy is None
    assert problems == [problem]


def test_a_lock_keeps_what_was_there_and_lets_the_rest_in() -> None:
    locked = DSI + "locked: [origins.media.from, listen]\n"
    policy = accepted(locked, "origins: {media: {hosts: [c]}}\nlisten:\nsite: {name: lyon}\n")
    assert policy.origins["media"].hosts == ("c",)
    assert policy.locked == ("origins.media.from", "listen")


def test_a_lock_holds_for_every_later_file_and_none_takes_it_away() -> None:
    files = [
        DSI + "locked: [limits]\n",
        "locked: []\n",
        "locked: [site]\nsite: {name: x}\n",
        "site: {name: y}\nlimits: {drain: 2m}\n",
    ]
    assert merged(*files)[1] == [
        "f3:1:1: 'site' can't be set here: f2:1:10 locks it",
        "f3:2:1: 'limits' can't be set here: f0:10:10 locks it",
    ]
    assert accepted(*files[:3]).locked == ("limits", "site")


def test_a_file_may_set_what_it_locks() -> None:
    assert accepted(DSI + "locked: [limits, site]\n").limits.drain == 60.0
    assert accepted(DSI, "limits: {drain: 2m}\nlocked: [limits]\n").limits.drain == 120.0


def test_files_are_read_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "10-dsi.yaml").write_text(DSI)
    (tmp_path / "50-b.yaml").write_text("site: {name: b}\n")
    (tmp_path / "50-a.yaml").write_text("site: {name: a}\n")
    (tmp_path / ".hidden.yaml").write_text("broken: [\n")
    (tmp_path / "README").write_text("broken: [\n")
    policy, problems = check_policy(tmp_path)
    assert problems == ()
    assert policy is not None
    assert policy.site.name == "b"
    (tmp_path / "60-c.yml").write_text("broken: [\n")
    policy, problems = check_policy(tmp_path)
    assert policy is not None
    assert [str(problem) for problem in problems] == [f"{tmp_path}/60-c.yml: warning: not read: only *.yaml is"]


def test_a_broken_file_of_several_hides_no_other_broken_file(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("a: [\n")
    (tmp_path / "2.yaml").write_text("b: &x 1\n")
    policy, problems = check_policy(tmp_path)
    assert policy is None
    assert [(Path(problem.file).name, problem.line) for problem in problems] == [("1.yaml", 2), ("2.yaml", 1)]


def test_sizes_count_over_all_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.yaml").write_text("#" * 400_000)
    policy, problems = check_policy(tmp_path)
    assert policy is None
    assert [str(problem) for problem in problems] == [
        f"{tmp_path}/2.yaml: with this file the policy is larger than 1 MiB, which no policy is"
    ]
    policy, messages = merged(*(f"l{number}: [{'1,' * 30_000}]\n" for number in range(3)))
    assert policy is None
    assert messages == ["f1:1:39994: more than 50,000 keys and values, which no policy has"]
