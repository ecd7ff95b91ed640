"""How late trains were, of a histogram by powers of two."""

from __future__ import annotations

import pytest

from accelerator.protocols.lateness import late_p99_ms


@pytest.mark.parametrize(
    ("counts", "expected_ms"),
    [
        ([], 0.0),
        ([0] * 24, 0.0),
        ([5], 0.001),
        ([99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 0.001),
        ([98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], 1.024),
        ([0] * 23 + [1], 8388.608),
    ],
)
def test_the_99th_of_100(counts: list[int], expected_ms: float) -> None:
    assert late_p99_ms(counts) == expected_ms
