"""Requests that look like the product's flows, made from a seed: (object, size in bytes) in the order asked for.

Public video traces can't be had, so each flow is generated from what is known of it: how viewers start, read on and
leave, and how far back they go. What is assumed stands at each function. Objects of one flow have numbers of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Trace = list[tuple[int, int]]
FLOW = 1 << 32  # numbers of one flow's objects
MB = 1_000_000


def webcast(seed: int = 1) -> Trace:
    """A live event: 6,000 viewers, three renditions of a 4 s segment, 30 segments; each viewer asks for each segment
    of his rendition within 4 s of its publication, one in fifty goes back up to two minutes for a while."""
    rng = np.random.default_rng(seed)
    sizes = np.array([400_000, 1_200_000, 2_500_000])
    rendition = rng.choice(3, 6000, p=[0.2, 0.5, 0.3])
    trace: Trace = []
    for segment in range(30):
        present = np.flatnonzero(rng.random(6000) < min(1.0, 0.2 + segment / 10))
        order = rng.permutation(present)
        back = np.where(rng.random(len(order)) < 0.02, rng.integers(1, 31, len(order)), 0)
        for viewer, late in zip(order.tolist(), back.tolist(), strict=True):
            at = max(0, segment - late)
            trace.append((FLOW + at * 3 + int(rendition[viewer]), int(sizes[rendition[viewer]])))
    return trace


def library(
    alpha: float, *, seed: int = 2, titles: int = 400, sessions: int = 2500, together: int = 60, flow: int = 2,
    abandon: float = 0.03, choose: Callable[[np.random.Generator], int] | None = None,
) -> Trace:  # fmt: skip
    """Video on demand: titles of 20 to 120 segments of 6 s (0.6 to 2.4 MB) asked for by Zipf's law; a session reads in
    order from the start and is left with 3 % probability after each segment (a quarter of the viewers sees the 45th);
    `together` sessions at a time."""
    catalogue, rng = np.random.default_rng(flow), np.random.default_rng(seed)
    lengths = catalogue.integers(20, 121, titles)
    sizes = catalogue.integers(600_000, 2_400_000, titles)
    weights = 1 / np.arange(1, titles + 1) ** alpha
    ranks = catalogue.permutation(titles)
    names = rng.choice(titles, sessions, p=weights / weights.sum())
    begun = 0
    active: list[list[int]] = []
    trace: Trace = []
    while begun < sessions or active:
        while len(active) < together and begun < sessions:
            title = choose(rng) if choose is not None else int(ranks[names[begun]])
            active.append([title, 0])
            begun += 1
        which = int(rng.integers(len(active)))
        title, at = active[which]
        trace.append((flow * FLOW + title * 1000 + at, int(sizes[title])))
        active[which][1] += 1
        if active[which][1] >= lengths[title] or rng.random() < abandon:
            active[which] = active[-1]
            active.pop()
    return trace


def training(seed: int = 3) -> Trace:
    """A training day: 300 people see one of two titles of 90 segments to its end, beginning over two hours."""
    return library(
        1.0, seed=seed, titles=2, sessions=300, together=150, flow=3, abandon=0.001, choose=lambda rng:
        int(rng.random() < 0.3)
    )  # fmt: skip


def signage(seed: int = 4, rounds: int = 40) -> Trace:
    """40 screens in step play one loop of 80 files of 5 to 40 MB: what LRU is worst at, where the loop doesn't fit."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5 * MB, 40 * MB, 80)
    return [(4 * FLOW + file, int(sizes[file])) for _ in range(rounds) for file in range(80) for _ in range(3)]


def prepositioning(seed: int = 5) -> Trace:
    """The night: 6,000 segments fetched once, a tenth of which the day's library asks for (the same numbers as
    `library`)."""
    rng = np.random.default_rng(seed)
    sizes = dict(library(0.9))
    day = sorted(sizes)
    chosen = rng.permutation(len(day))[:600]
    fetched = [(day[at], sizes[day[at]]) for at in chosen.tolist()]
    new = [(5 * FLOW + at, int(rng.integers(600_000, 2_400_000))) for at in range(5400)]
    return [(fetched + new)[at] for at in rng.permutation(6000).tolist()]


def crawl(seed: int = 6) -> Trace:
    """A crawler: 12,000 small and large objects, each once."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(rng.lognormal(12.5, 1.6, 12000), 200, 30 * MB).astype(int)
    return [(6 * FLOW + at, int(size)) for at, size in enumerate(sizes.tolist())]


def downloads(seed: int = 7) -> Trace:
    """Whole recordings as one MP4 each, 50 to 500 MB: 150 of them, most asked for once or twice."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(50 * MB, 500 * MB, 150)
    names = rng.choice(150, 400, p=(1 / np.arange(1, 151) ** 0.8) / (1 / np.arange(1, 151) ** 0.8).sum())
    return [(7 * FLOW + name, int(sizes[name])) for name in names.tolist()]


def mixed(*traces: Trace, seed: int = 8) -> Trace:
    """Several flows at once, each in its own order, spread over the same time."""
    rng = np.random.default_rng(seed)
    which = np.repeat(np.arange(len(traces)), [len(trace) for trace in traces])
    rng.shuffle(which)
    places = [iter(trace) for trace in traces]
    return [next(places[at]) for at in which.tolist()]


def all_traces() -> dict[str, Callable[[], Trace]]:
    return {
        "webcast": webcast,
        "library, Zipf 0.7": lambda: library(0.7),
        "library, Zipf 0.9": lambda: library(0.9),
        "library, Zipf 1.1": lambda: library(1.1),
        "training day": training,
        "signage loop": signage,
        "library + night": lambda: [*library(0.9), *prepositioning(), *library(0.9, seed=12, sessions=1500)],
        "library + crawl": lambda: mixed(library(0.9), crawl()),
        "library + MP4": lambda: mixed(library(0.9), downloads()),
        "working day": lambda: mixed(
            webcast()[::4], library(0.9), training(), signage(rounds=10), crawl()[:4000], downloads()[:100]
        ),
    }
