"""Fuzz target: what is read back from STATE_DIR/policies. Whatever the bytes are, they are an entry that reads back as
itself, or None; nothing is raised, and a wrong checksum is always None.

    .venv/bin/python -m pytest tests/fuzz/fuzz_policy_history.py                  a short run
    PYTHONPATH=. .venv/bin/python tests/fuzz/fuzz_policy_history.py SECONDS [SEED]
"""

from __future__ import annotations

import json
import random
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import mutated, run

from accelerator.services.rollout.history import ORIGINS, OUTCOMES, Entry, decode_entry, encode_entry

DIGEST = "ab" * 32
ENTRY = Entry(
    7, 1_700_000_000.5, "apply", "good", "because", DIGEST, DIGEST, "", "/etc/policy", "/etc",
    (("a.yaml", "version: 1\n"),),
)  # fmt: skip
_SEEDS = [encode_entry(ENTRY).partition(b"\n")[2], b"{}", b"[]", b'{"format": 1}']
_WORDS = [b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"good"', b"true", b'"\\ud800"', b'"number": ', b"9" * 11]


def check(source: random.Random) -> None:
    """The target's invariant: with the right checksum, so that what is behind it is reached."""
    check_body(mutated(source, _SEEDS, _WORDS))


def check_body(body: bytes) -> None:
    data = sha256(body).hexdigest().encode() + b"\n" + body
    entry = decode_entry(data)
    if entry is not None:
        assert entry.by in ORIGINS
        assert entry.outcome in OUTCOMES
        assert entry.position > 0
        assert decode_entry(encode_entry(entry)) == entry
        json.dumps(entry.summary(), allow_nan=False)
        assert all(isinstance(text, bytes) for _, text in entry.texts)
    assert decode_entry(b"0" + data[1:]) is None or data[:1] == b"0"


texts = st.text(max_size=40)
entries = st.builds(
    Entry,
    number=st.integers(1, 10**8 - 1), at_s=st.floats(0, 1e11), by=st.sampled_from(ORIGINS),
    outcome=st.sampled_from(OUTCOMES), reason=texts, digest=st.sampled_from(["", DIGEST]),
    source_digest=st.just(DIGEST), file_digest=st.sampled_from(["", DIGEST]), path=texts, folder=texts,
    files=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    restores=st.none() | st.integers(1, 10**8 - 1), n=st.integers(1, 10**6),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(entries)
def test_what_is_written_is_read_back(entry: Entry) -> None:
    assert decode_entry(encode_entry(entry)) == entry


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_bytes(data: bytes) -> None:
    assert decode_entry(data) is None
    check_body(data)


def test_fuzz_mutated_entries() -> None:
    source = random.Random(3)
    for _ in range(5000):
        check(source)


def test_truncated_anywhere_it_is_no_entry() -> None:
    whole = encode_entry(ENTRY)
    for length in range(len(whole)):
        assert decode_entry(whole[:length]) is None


if __name__ == "__main__":
    run(check)
