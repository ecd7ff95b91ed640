# Who goes first where an edge worker and a relay worker want the same core: the relay worker. Without a privilege, a system
# call that sandboxes refuse, or a core of its own: an edge worker that runs where a relay worker waits steps aside. Decision
# 0241 says what else there was.
from libc.stdint cimport int64_t, uint32_t

cdef enum:
    CLAIMS_MAX = 16             # relay workers

cdef struct Claim:              # of a relay worker, on a cache line of its own; it alone writes
    int64_t since_ns            # when it wanted the core, or will; INT64_MAX: when something comes
    uint32_t cpu                # where it ran last: there it waits
    uint32_t spare[13]

cdef struct Precedence:
    Claim claims[CLAIMS_MAX]
    uint32_t n                  # of those that count

cdef struct Patience:           # of an edge worker
    int64_t window_ns           # since when `given_ns` is counted
    int64_t given_ns

cdef void claim(Claim* claim, int64_t since_ns) noexcept nogil
# Steps aside while a relay worker waits for this core, up to the edge worker's own guaranteed share. Returns how often.
cdef uint32_t give_way(Precedence* precedence, Patience* patience) noexcept nogil
