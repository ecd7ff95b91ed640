# The turns behind relay_turns.pxd.
from libc.stdint cimport INT64_MAX

from ext.atomics cimport count, load_ptr, load_u32
from ext.relay cimport *
from ext.relay_send cimport output_due, relay_see, send_part
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
    count(&turns.row[W_LATE + bucket], 1)


cdef void note_owed(Turns* turns, Relay* r, Output* o, int64_t now, int64_t due_ns) noexcept nogil:
    """A train of two and more could have left when its second packet was there."""
    cdef int64_t arrival_ns
    if r.n_ready - o.cursor > 1:
        arrival_ns = r.slots[r.ready[(o.cursor + 1) & r.mask] & r.mask].arrival_ns
        if arrival_ns > due_ns:
            due_ns = arrival_ns
    if now - due_ns > LATE_NS:
        turns.n_owed += 1


cdef void turns_rested(Turns* turns, int64_t now, int64_t slept_ns) noexcept nogil:
    cdef int64_t window = now - turns.window_ns
    turns.idle_ns += slept_ns
    if window < PRESSED_WINDOW_NS:
        return
    if turns.is_pressed:
        count(&turns.row[W_PRESSED_NS], <uint64_t>window)
    turns.is_pressed = turns.idle_ns < (window * 3 // 4 if turns.is_pressed else window * 3 // 8)
    turns.window_ns = now
    turns.idle_ns = 0
    turns.n_owed = turns.n_spread = 0


cdef bint turns_spread(Turns* turns, RelayList* relays, int64_t now) noexcept nogil:
    cdef Relay* r
    cdef Output* o
    cdef uint32_t i, k
    cdef int64_t due
    cdef Turn best
    cdef bint is_owed = turns.is_pressed and turns.n_spread < min(turns.n_owed, <uint32_t>SPREAD_MOST)
    if turns.is_ending or not (is_owed or load_u32(&turns.is_always_early)):
        return False
    best.relay = NULL
    best.due_ns = 0
    for i in range(relays.n):
        r = relays.relays[i]
        if r == NULL or r.n_begun:
            continue
        relay_see(r)
        if r.seen == NULL:
            continue
        for k in range(r.seen.n_rows):
            o = &r.outputs[r.seen.rows[k].output]
            if r.seen.rows[k].n == 0 or o.cursor == r.n_ready or o.next_send_ns > now or o.retry_ns > now:
                continue
            if o.hold_ns == 0 or o.train_packets < 2:
                continue
            due = r.slots[r.ready[o.cursor & r.mask] & r.mask].arrival_ns + o.hold_ns
            if due > best.due_ns:
                best.due_ns, best.relay, best.row = due, r, k
    if best.relay == NULL:
        return False
    turns.n_spread += 1
    count(&turns.row[W_EARLY], 1)
    push(turns, now, best.relay, best.row)
    return True


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
        elif output_due(r, o, turns.is_pressed, now, &due):
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
            note_owed(turns, r, o, now, turn.due_ns)
        send_part(sender, r, &r.seen.rows[turn.row], now)
        after = acc_now_ns()
        o.begun_used_ns += after - now
        now = after
        if not output_due(r, o, turns.is_pressed, now, &due):
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
