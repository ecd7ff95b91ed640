# Whose turn it is: the trains that may leave, the longest due first. No kernel call but the clock's; what a turn does is
# relay_send's.
#
# A train to thousands of receivers takes many milliseconds. It is sent in parts, and between two parts stands where a train
# would that was due as much later as it has had of the worker's time. So others that become due meanwhile go before its rest,
# and one that is short is sent whole before later ones: first come, first served, which keeps the longest delay short.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ext.relay cimport MAX_OUTPUTS, MAX_RELAYS, Relay, RelayList
from ext.relay_send cimport Sender

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>
    static int64_t acc_now_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    int64_t acc_now_ns()

cdef enum:
    TURNS_MAX = 4096            # MAX_RELAYS * MAX_OUTPUTS
    # After this the worker looks whether something has come: a packet's hold begins when it is received.
    SLICE_NS = 500000
    # The worker is short of time when it has used more than 5/8 of such a window, and no longer below 1/4: in pairs its
    # packets cost half.
    PRESSED_WINDOW_NS = 50000000
    # A train that is begun so late, after it could have been, owes to another a place where nothing else is to be done.
    LATE_NS = 1500000
    # So many of them in a window: each is a train more, and they shall not become what the worker has no time for.
    SPREAD_MOST = 3
    # Columns of a worker's row: trains by how late their first packet was sent, after its hold or its pace. Column
    # W_LATE + n: less than 2^n microseconds. How long the worker has been short of time; trains that left early for it.
    W_PASSES = 0
    W_LATE = 1
    LATE_BUCKETS = 24
    W_PRESSED_NS = 25
    W_EARLY = 26
    WORKER_STRIDE = 32

cdef struct Turn:
    int64_t due_ns
    Relay* relay
    uint32_t row                # of its fan-out

cdef struct Turns:              # a binary heap, the earliest on top
    uint32_t n
    bint is_ending              # no train is begun: those that are shall end
    bint is_pressed             # short of time: what leaves alone waits for company
    uint32_t n_owed             # trains that were late in this window
    uint32_t n_spread           # those that left early for it
    int64_t window_ns           # when it began
    int64_t idle_ns             # how long the worker has slept in it
    uint32_t is_always_early    # for tests: any train may leave before its hold is over
    uint64_t* row               # a worker's, from above
    Turn heap[TURNS_MAX]

# Counts time that the worker has slept.
cdef void turns_rested(Turns* turns, int64_t now, int64_t slept_ns) noexcept nogil
# Nothing may leave: while it is pressed and trains were late, because many of them become due together again and again, the
# one that would be due next leaves now, so that its input's turns move to where there is time.
cdef bint turns_spread(Turns* turns, RelayList* relays, int64_t now) noexcept nogil
# Takes in what may leave of a relay; sets relay.due_ns to when it must be looked at again for the rest.
cdef void turns_gather(Turns* turns, Relay* relay, int64_t now) noexcept nogil
# Sends until nothing may leave or SLICE_NS are over. What is left over is due at once: relay.due_ns is 0.
cdef void turns_take(Turns* turns, Sender* sender, int64_t now) noexcept nogil
