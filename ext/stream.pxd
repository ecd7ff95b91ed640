# A stream: the endless body of a relay over HTTP, in a ring of transport packets. One relay worker writes it, edge workers
# read it, each reader with a cursor of its own. No HTTP here, and no decision who may read.
#
# The ring is cut into chunks. A chunk leaves the window before it is written again, and is written again only when every
# edge worker has begun a pass since: so what a worker has found in the window is good until its pass ends, as with
# objects (ext/reclaim.pyx), and nobody takes a lock. docs/decisions/0200-streams-over-http.md
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.exchange cimport Mailbox
from ext.layout cimport MAX_WORKERS
from ext.relay_wire cimport TS_BYTES, TsState
from ext.store cimport Store

cdef enum:
    CHUNK_BYTES = 65424         # 348 transport packets: none is ever cut by a chunk's or the ring's end
    MIN_CHUNKS = 8
    TABLE_BYTES = 1128          # six packets of one table
    BELL_BITS = 64              # streams share bits beyond; a bell that rings for another costs a look
    PUBLISH_BYTES = 262144      # readers are told of so much at once, whatever the time

cdef struct TableCopy:          # the packets of the last whole PAT or PMT
    uint32_t n_building
    uint32_t n_whole
    uint32_t needed             # bytes of payload that its section takes
    uint32_t gathered
    uint8_t building[TABLE_BYTES]
    uint8_t whole[TABLE_BYTES]

cdef struct Chunk:
    int64_t entry               # where a reader may begin: the first random access point in it; -1: none
    uint64_t epoch              # by which the chunk that left the window when this one began may be written again
    uint32_t n_tables           # PAT and PMT as they were before it
    uint8_t tables[2 * TABLE_BYTES]

cdef struct Stream:
    Store* store
    uint8_t* data
    Chunk* chunks
    uint64_t size               # of this allocation: struct, chunks and data
    uint64_t capacity
    int64_t n_chunks
    int64_t n_spare             # of them, out of the window and not yet written again
    int64_t hold_ns             # readers are told of what came within so long at once
    int64_t silence_ns          # after so long without anything they are let go
    uint32_t index
    uint32_t n_workers
    Mailbox* mailboxes[MAX_WORKERS]
    uint64_t padding_writer[8]
    # The writer's own.
    int64_t written
    int64_t entry_chunk
    int64_t told_ns
    int64_t first_ns
    uint32_t pmt_pid
    TableCopy pat
    TableCopy pmt
    uint64_t padding_published[8]
    # Written by the writer, read by all. Positions are bytes since the beginning; they never come back.
    int64_t oldest              # what is before it may be written over
    int64_t published           # what is before it may be read
    int64_t published_ns
    int64_t entry               # number of the newest chunk with an entry; -1: none
    uint64_t n_packets
    uint64_t n_refused          # datagrams that are no transport packets
    uint64_t n_stalled          # packets lost because a worker's pass would not end
    uint64_t padding_readers[8]
    # Written by readers.
    uint32_t waiting            # bit w: worker w has readers who wait
    uint32_t is_closed
    uint32_t readers
    uint64_t refs
    uint64_t n_skips
    uint64_t n_bytes

cdef bint stream_is_entry(const TsState* ts, const uint8_t* packet) noexcept nogil
# The writer's: takes whole transport packets; tells readers when it is time, and returns when it will be.
cdef void stream_take(Stream* stream, const TsState* ts, const uint8_t* data, uint32_t length, int64_t now) noexcept nogil
cdef int64_t stream_publish(Stream* stream, int64_t now) noexcept nogil
# Anybody's: wakes every worker that has readers.
cdef void stream_ring(Stream* stream, uint32_t mask) noexcept nogil
# Readers', inside a pass.
cdef const uint8_t* stream_at(Stream* stream, int64_t position, uint64_t* n) noexcept nogil
cdef bint stream_has_passed(Stream* stream, int64_t position) noexcept nogil
cdef bint stream_enter(Stream* stream, int64_t* position, const uint8_t** tables, uint32_t* n_tables) noexcept nogil
cdef bint stream_wait(Stream* stream, int64_t seen, uint32_t worker) noexcept nogil
