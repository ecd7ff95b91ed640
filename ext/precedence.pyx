# Stepping aside, behind precedence.pxd.
from ext.atomics cimport load_i64_relaxed, load_u32, load_u32_relaxed, store_i64_relaxed, store_u32_relaxed

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE 1
    #endif
    #include <sched.h>
    #include <stdint.h>
    #include <time.h>
    static int64_t acc_now_ns(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static void acc_rest_ns(long ns) {
        struct timespec t = { .tv_nsec = ns };
        nanosleep(&t, 0);
    }
    """
    int64_t acc_now_ns()
    void acc_rest_ns(long)
    int sched_getcpu()

cdef enum:
    # A worker that runs renews its claim each half millisecond; one that is older waits.
    OVERDUE_NS = 100000
    REST_NS = 200000
    # Of each window an edge worker keeps a fifth to itself, whatever the relays want: what nice -10 would leave it is a tenth.
    WINDOW_NS = 20000000
    GIVEN_MAX_NS = 16000000


cdef void claim(Claim* c, int64_t since_ns) noexcept nogil:
    store_u32_relaxed(&c.cpu, <uint32_t>sched_getcpu())
    store_i64_relaxed(&c.since_ns, since_ns)


cdef inline bint is_wanted(Precedence* p, uint32_t n, int64_t now) noexcept nogil:
    """Whether a relay worker waits for this core. As we run here, one that claims it and is overdue doesn't: it waits, if not
    for the core (it was moved, or waits for memory) then as shortly as we will have rested for."""
    cdef uint32_t i
    cdef uint32_t cpu = <uint32_t>sched_getcpu()
    for i in range(n):
        if load_i64_relaxed(&p.claims[i].since_ns) < now - OVERDUE_NS and load_u32_relaxed(&p.claims[i].cpu) == cpu:
            return True
    return False


cdef uint32_t give_way(Precedence* p, Patience* patience) noexcept nogil:
    cdef uint32_t n = load_u32(&p.n), times = 0
    cdef int64_t now, after
    if n == 0:
        return 0
    now = acc_now_ns()
    while is_wanted(p, n, now):
        if now - patience.window_ns >= WINDOW_NS:
            patience.window_ns = now
            patience.given_ns = 0
        if patience.given_ns >= GIVEN_MAX_NS:
            break
        acc_rest_ns(REST_NS)
        times += 1
        after = acc_now_ns()
        patience.given_ns += after - now
        now = after
    return times
