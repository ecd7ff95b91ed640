# The disk tier's threads: one writes, syncs and unlinks in the order asked; others read and scan. Jobs go down through
# two queues, results come back through one list and a bell. Bytes and positions only: what they mean is the index's.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from ext.disk_record cimport Record
from ext.exchange cimport Bell
from ext.store cimport pthread_mutex_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_cond_t:
        pass
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)

cdef enum:
    NAME_BYTES = 64             # of a file in the directory

cdef enum:                      # Job.kind
    JOB_READ = 0
    JOB_WRITE = 1
    JOB_SYNC = 2
    JOB_SCAN = 3
    JOB_UNLINK = 4
    JOB_REPLACE = 5
    JOB_SHRED = 6
    JOB_WIPE = 7

cdef struct Part:
    const uint8_t* data
    uint64_t n

cdef struct Job:
    Job* next
    uint64_t id
    uint32_t kind
    int32_t error               # 0, an errno, or one of disk_record's
    uint32_t has_key
    uint32_t must_sync          # REPLACE: what it replaces is overwritten; WIPE: payloads are
    uint32_t in_arena           # `memory` is the store's
    uint64_t segment
    uint64_t offset             # WIPE: the class
    uint64_t n                  # READ: payload; WRITE: all of it, with header and padding; SCAN: rows found; WIPE: up to this sequence
    uint64_t end                # SCAN: where the good records end
    int64_t took_ns
    uint8_t* memory             # READ: the payload; WRITE: header, payload, padding; SCAN: rows
    uint64_t* offsets           # SCAN
    Part* parts                 # REPLACE
    uint64_t n_parts
    Record record               # READ: what the header must say
    uint8_t key[32]
    char name[64]               # REPLACE, UNLINK

cdef struct Queue:
    pthread_mutex_t lock
    pthread_cond_t is_filled
    Job* first
    Job* last
    uint32_t is_closing

cdef struct Disk:
    Queue writes
    Queue reads
    pthread_mutex_t lock        # of what is done
    Job* done
    Job* done_last
    Bell bell
    int directory
    uint64_t segment_bytes      # preallocated for each
    uint64_t queued_bytes       # of writes, all of them
    uint64_t aside_bytes        # of those, what the memory limit has room for in any case
    int fd                      # the writer's alone, from here on
    uint64_t segment
    uint64_t bad_segment
    uint32_t is_dirty

cdef bint queue_open(Queue* queue) noexcept nogil
cdef void queue_close(Queue* queue) noexcept nogil
cdef void queue_push(Queue* queue, Job* job) noexcept nogil
cdef void run_writer(Disk* disk) noexcept nogil
cdef void run_reader(Disk* disk) noexcept nogil
