# The turns behind relay_turns.pxd.
from libc.stdint cimport INT64_MAX

from ext.atomics cimport count, load_ptr
from ext.relay cimport *
from ext.relay_send cimport output_due, send_part
from ext.stream cimport Stream, stream_publish


cdef void push(Turns* turns, int64_t due_ns, Relay* r, uint32_t row) noexcept nogil:
    cdef uint32_t at = turns.n, above
    turns.n += 1
    while at:
        above = (at - 1) // 2
        if turns.heap[above].due_ns <= due_ns:
            break
        turns.heap[at] = turns.heap[above]
        at = above
    turns.heap[at].due_ns = due_ns
    turns.heap[at].relay = r
    turns.heap[at].row = row


cdef Turn pop(Turns* turns) noexcept nogil:
    cdef Turn first = turns.heap[0]
    cdef Turn last
    cdef uint32_t at = 0, below
    turns.n -= 1
    last = turns.heap[turns.n]
    while True:
        below = 2 * at + 1
        if below >= turns.n:
            break
        if below + 1 < turns.n and turns.heap[below + 1].due_ns < turns.heap[below].due_ns:
            below += 1
        if turns.heap[below].due_ns >= last.due_ns:
            break
        turns.heap[at] = turns.heap[below]
        at = below
    turns.heap[at] = last
    return first


cdef void note_late(Turns* turns, int64_t late_ns) noexcept nogil:
    cdef uint32_t bucket = 0
    cdef int64_t left_us = late_ns // 1000
    while left_us > 0 and bucket < LATE_BUCKETS - 1:
        left_us >>= 1
        bucket += 1
    count(&turns.late[bucket], 1)


cdef void turns_gather(Turns* turns, Relay* r, int64_t now) noexcept nogil:
    cdef uint32_t i
    cdef Output* o
    cdef int64_t due
    cdef Stream* stream = <Stream*>load_ptr(<void**>&r.stream)
    r.due_ns = r.hole_ns + r.wait_ns if r.hole_ns != INT64_MAX else INT64_MAX
    if stream != NULL:
        due = stream_publish(stream, now)
        if due < r.due_ns:
            r.due_ns = due
    if r.seen == NULL:
        return
    for i in range(r.seen.n_rows):
        o = &r.outputs[r.seen.rows[i].output]
        if r.seen.rows[i].n == 0:
            o.cursor = r.n_ready
        elif output_due(r, o, now, &due):
            if turns.is_ending and o.begun_packets == 0:
                r.due_ns = 0
            else:
                push(turns, due, r, i)
        elif due < r.due_ns:
            r.due_ns = due


cdef void turns_take(Turns* turns, Sender* sender, int64_t now) noexcept nogil:
    cdef int64_t begin = now, after, due
    cdef Turn turn
    cdef Relay* r
    cdef Output* o
    cdef bint was_begun
    while turns.n:
        turn = pop(turns)
        r = turn.relay
        o = &r.outputs[r.seen.rows[turn.row].output]
        was_begun = r.n_begun != 0
        if o.begun_packets == 0:
            o.begun_due_ns = turn.due_ns
            o.begun_used_ns = 0
            note_late(turns, now - turn.due_ns)
        send_part(sender, r, &r.seen.rows[turn.row], now)
        after = acc_now_ns()
        o.begun_used_ns += after - now
        now = after
        if not output_due(r, o, now, &due):
            if due < r.due_ns:
                r.due_ns = due
        elif turns.is_ending and o.begun_packets == 0:
            r.due_ns = 0
        else:
            push(turns, due, r, turn.row)
        if was_begun and r.n_begun == 0:        # what its receivers' change has held back
            r.due_ns = 0
        if now - begin >= SLICE_NS:
            break
    while turns.n:
        turns.n -= 1
        turns.heap[turns.n].relay.due_ns = 0
