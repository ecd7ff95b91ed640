# C11 memory orders for Cython, by gcc's __atomic builtins. Names: load = acquire, store = release, *_relaxed, *_seq
# (sequentially consistent). No fences: ThreadSanitizer can't see them, so every ordering here is carried by an access.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #define acc_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define acc_load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define acc_load_seq(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define acc_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define acc_store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
    #define acc_store_seq(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    #define acc_add(p, v) __atomic_fetch_add((p), (v), __ATOMIC_ACQ_REL)
    #define acc_add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
    #define acc_or(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
    #define acc_and(p, v) __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
    #define acc_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
    static inline int acc_cas_ptr(void **p, void *expected, void *desired) {
        return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
    }
    /* In sanitized builds only: threads rest where the order of two accesses matters, so that races of a nanosecond are
       met in seconds. -DACC_PERTURB has it without a sanitizer. */
    #if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(ACC_PERTURB)
    #include <sched.h>
    #include <stdint.h>
    #include <unistd.h>
    static inline void acc_perturb(void) {
        /* In the thread's own block: what the loader allocates for a module instead, it frees unseen by the sanitizer. */
        static __thread unsigned x __attribute__((tls_model("initial-exec")));
        x = x * 1664525u + 1013904223u + (unsigned)((uintptr_t)&x >> 6);
        if ((x >> 16 & 2047) == 0) usleep(300);
        else if ((x >> 16 & 63) == 0) sched_yield();
    }
    #else
    #define acc_perturb() ((void)0)
    #endif
    /* Adds to a counter that has one writer: a plain add, made visible to readers without a locked instruction. */
    #define acc_count(p, v) __atomic_store_n((p), __atomic_load_n((p), __ATOMIC_RELAXED) + (v), __ATOMIC_RELAXED)
    """
    uint64_t load_u64 "acc_load" (uint64_t*)
    int64_t load_i64 "acc_load" (int64_t*)
    uint32_t load_u32 "acc_load" (uint32_t*)
    uint8_t load_u8 "acc_load" (uint8_t*)
    void* load_ptr "acc_load" (void**)
    void* load_ptr_seq "acc_load_seq" (void**)
    uint64_t load_u64_relaxed "acc_load_relaxed" (uint64_t*)
    int64_t load_i64_relaxed "acc_load_relaxed" (int64_t*)
    uint32_t load_u32_relaxed "acc_load_relaxed" (uint32_t*)
    uint8_t load_u8_relaxed "acc_load_relaxed" (uint8_t*)
    uint32_t load_u32_seq "acc_load_seq" (uint32_t*)
    uint64_t load_u64_seq "acc_load_seq" (uint64_t*)
    int64_t load_i64_seq "acc_load_seq" (int64_t*)
    void store_u64 "acc_store" (uint64_t*, uint64_t)
    void store_i64 "acc_store" (int64_t*, int64_t)
    void store_u32 "acc_store" (uint32_t*, uint32_t)
    void store_u8 "acc_store" (uint8_t*, uint8_t)
    void store_ptr "acc_store" (void**, void*)
    void store_u8_relaxed "acc_store_relaxed" (uint8_t*, uint8_t)
    void store_u64_relaxed "acc_store_relaxed" (uint64_t*, uint64_t)
    void store_i64_relaxed "acc_store_relaxed" (int64_t*, int64_t)
    void store_u32_relaxed "acc_store_relaxed" (uint32_t*, uint32_t)
    void store_u32_seq "acc_store_seq" (uint32_t*, uint32_t)
    void store_i64_seq "acc_store_seq" (int64_t*, int64_t)
    uint64_t add_u64 "acc_add" (uint64_t*, uint64_t)
    uint64_t add_u64_relaxed "acc_add_relaxed" (uint64_t*, uint64_t)
    uint32_t add_u32 "acc_add" (uint32_t*, uint32_t)
    uint32_t or_u32 "acc_or" (uint32_t*, uint32_t)
    uint32_t and_u32 "acc_and" (uint32_t*, uint32_t)
    uint64_t or_u64 "acc_or" (uint64_t*, uint64_t)
    uint64_t exchange_u64 "acc_exchange" (uint64_t*, uint64_t)
    uint32_t exchange_u32 "acc_exchange" (uint32_t*, uint32_t)
    void* exchange_ptr "acc_exchange" (void**, void*)
    int cas_ptr "acc_cas_ptr" (void**, void*, void*)
    void perturb "acc_perturb" ()
    void count "acc_count" (uint64_t*, uint64_t)
