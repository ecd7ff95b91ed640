# What the torture test's readers and writer share. Nothing of the appliance uses it.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.atomics cimport exchange_u32, load_u32, store_u64_relaxed
from ext.exchange cimport Mailbox, Ring
from ext.http_head cimport RequestHead
from ext.store cimport Object, Store

cdef enum:
    MAX_READERS = 8
    HELD = 48                   # objects that a reader follows at once
    FILLS = 48                  # objects that the writer fills at once
    N_VARIANTS = 4
    KEY_BYTES = 24
    NO_VARY = 255
    PATIENCE_MS = 20000

cdef enum:                      # what went wrong
    WRONG_BYTE = 1
    WRONG_HEAD = 2
    WRONG_KEY = 3
    WRONG_VARIANT = 4
    LOST_WAKE_UP = 5
    PAST_THE_END = 6
    OVER_THE_LIMIT = 7
    NEVER_RECLAIMED = 8
    LOST_PLACE = 9

cdef struct Held:
    Object* object
    int64_t offset
    uint64_t seed
    bint is_waiting

cdef struct Fill:
    Object* object
    int64_t offset
    int64_t end
    uint64_t seed
    bint is_refill

cdef struct Reader:
    World* world
    uint32_t index
    uint64_t random
    Mailbox mailbox
    Ring ring
    Held held[HELD]
    uint32_t n_held
    uint64_t n_found
    uint64_t n_bytes
    uint64_t n_sleeps
    uint64_t n_wakes
    uint64_t n_wants
    uint32_t is_done

cdef struct World:
    Store store
    Reader readers[MAX_READERS]
    uint32_t n_readers
    uint32_t n_keys
    uint32_t must_stop          # 1: readers take nothing new; 2: end
    uint32_t problem
    uint64_t problem_detail
    uint64_t random
    Fill fills[FILLS]
    uint32_t n_fills
    uint64_t n_operations
    uint64_t n_created
    uint64_t n_finished
    uint64_t n_failed
    uint64_t n_swapped
    uint64_t n_purged
    uint64_t n_marked
    uint64_t n_refilled
    uint64_t n_no_memory
    RequestHead requests[N_VARIANTS]
    const uint8_t* request_bytes[N_VARIANTS]

cdef inline uint64_t chance(uint64_t* state) noexcept nogil:
    """xorshift64* (Vigna 2016)."""
    cdef uint64_t x = state[0]
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    state[0] = x
    return (x * 0x2545F4914F6CDD1DULL) >> 16

cdef inline uint8_t byte_of(uint64_t seed, int64_t offset) noexcept nogil:
    return <uint8_t>((seed + <uint64_t>offset * 0x9E3779B97F4A7C15ULL) >> 40)

cdef inline void key_of(uint32_t key, uint8_t* out) noexcept nogil:
    cdef int i
    for i in range(KEY_BYTES):
        out[i] = <uint8_t>(97 + (key >> (i % 8 * 4) & 15))

cdef inline void problem(World* world, uint32_t what, uint64_t detail) noexcept nogil:
    if load_u32(&world.problem) == 0:       # the first one tells; what follows from it doesn't
        store_u64_relaxed(&world.problem_detail, detail)
        exchange_u32(&world.problem, what)

# --- a reader ---------------------------------------------------------------------------------------------------------
