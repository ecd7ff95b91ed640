# The follower of WebSocket frames behind frames.pxd. Knows no socket and keeps no payload.


cdef uint64_t follow_frame(Frames* frames, const uint8_t* data, uint64_t n) noexcept nogil:
    """Goes on to the end of the frame that is under way, or that begins in `data`. Returns the bytes that it takes of
    `data`: all of them, unless a boundary comes first."""
    cdef uint64_t i = 0
    cdef uint8_t byte
    while i < n:
        if frames.left:
            if frames.left > n - i:
                frames.left -= n - i
                return n
            i += frames.left
            frames.left = 0
            return i
        byte = data[i]
        i += 1
        frames.n_seen += 1
        if frames.n_seen == 1:
            frames.opcode = byte & 15
            continue
        if frames.n_seen == 2:
            frames.length = byte & 127
            frames.n_length = 2 if frames.length == 126 else (8 if frames.length == 127 else 0)
            frames.n_head = 2 + frames.n_length + (4 if byte & 128 else 0)
            if frames.n_length:
                frames.length = 0
        elif frames.n_seen <= 2 + frames.n_length:
            frames.length = frames.length << 8 | byte
        if frames.n_seen < frames.n_head:
            continue
        frames.n_seen = 0
        frames.left = frames.length
        if frames.opcode == OPCODE_CLOSE:
            frames.has_closed = 1
        if frames.left == 0:
            return i
    return n


def frame_ends(data, cuts) -> list:
    """Where frames end in `data`, read in pieces that end at `cuts` (ascending). For tests."""
    cdef Frames frames
    cdef bytes piece
    cdef uint64_t start = 0, at, n
    frames.left = frames.length = 0
    frames.n_seen = frames.n_head = frames.n_length = frames.opcode = frames.has_closed = 0
    ends = []
    for cut in [*cuts, len(data)]:
        piece = bytes(data[start:cut])
        at = 0
        n = len(piece)
        while at < n:
            at += follow_frame(&frames, <const uint8_t*><const char*>piece + at, n - at)
            if is_at_boundary(&frames):
                ends.append(start + at)
        start = cut
    return ends
