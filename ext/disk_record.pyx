# Checksums and seals of records behind disk_record.pxd. CRC32C by the processor where it can; AES-256-GCM by OpenSSL's EVP.
from libc.string cimport memcpy, memset

import numpy as np

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>
    static uint32_t acc_crc_table[256];
    static void acc_crc_init(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
            acc_crc_table[i] = c;
        }
    }
    static uint32_t acc_crc_soft(uint32_t c, const uint8_t *p, uint64_t n) {
        while (n--) c = c >> 8 ^ acc_crc_table[(c ^ *p++) & 255];
        return c;
    }
    #if defined(__x86_64__)
    #include <nmmintrin.h>
    /* The instruction takes three cycles and begins one each: three parts at a time, put together by tables that say what
       a register becomes behind so many zero bytes (the method of Mark Adler's crc32c.c). 1 MiB: see decisions/0142. */
    #define ACC_LONG 8192
    #define ACC_SHORT 256
    static uint32_t acc_crc_behind[2][4][256];
    static uint32_t acc_gf2_times(const uint32_t *m, uint32_t v) {
        uint32_t sum = 0;
        for (; v; v >>= 1, m++) if (v & 1) sum ^= *m;
        return sum;
    }
    static void acc_gf2_square(uint32_t *to, const uint32_t *m) {
        for (int i = 0; i < 32; i++) to[i] = acc_gf2_times(m, m[i]);
    }
    static void acc_crc_zeros(uint32_t table[4][256], uint32_t bytes) {
        uint32_t m[32], squared[32];
        m[0] = 0x82f63b78u;
        for (int i = 1; i < 32; i++) m[i] = 1u << (i - 1);       /* one zero bit */
        for (uint32_t bits = 1; bits < bytes * 8; bits *= 2) {  /* `bytes` is a power of two */
            acc_gf2_square(squared, m);
            memcpy(m, squared, sizeof m);
        }
        for (uint32_t i = 0; i < 256; i++)
            for (int k = 0; k < 4; k++) table[k][i] = acc_gf2_times(m, i << (8 * k));
    }
    static uint32_t acc_crc_shift(uint32_t table[4][256], uint32_t c) {
        return table[0][c & 255] ^ table[1][c >> 8 & 255] ^ table[2][c >> 16 & 255] ^ table[3][c >> 24];
    }
    __attribute__((target("sse4.2")))
    static uint32_t acc_crc_hard(uint32_t crc, const uint8_t *p, uint64_t n) {
        uint64_t c = crc, c1, c2, v, v1, v2;
        for (int k = 0; k < 2; k++) {
            const uint64_t part = k ? ACC_SHORT : ACC_LONG;
            while (n >= 3 * part) {
                const uint8_t *end = p + part;
                c1 = c2 = 0;
                for (; p < end; p += 8) {
                    memcpy(&v, p, 8); memcpy(&v1, p + part, 8); memcpy(&v2, p + 2 * part, 8);
                    c = _mm_crc32_u64(c, v); c1 = _mm_crc32_u64(c1, v1); c2 = _mm_crc32_u64(c2, v2);
                }
                c = acc_crc_shift(acc_crc_behind[k], (uint32_t)c) ^ c1;
                c = acc_crc_shift(acc_crc_behind[k], (uint32_t)c) ^ c2;
                p += 2 * part; n -= 3 * part;
            }
        }
        while (n >= 8) { memcpy(&v, p, 8); c = _mm_crc32_u64(c, v); p += 8; n -= 8; }
        while (n--) c = _mm_crc32_u8((uint32_t)c, *p++);
        return (uint32_t)c;
    }
    static void acc_crc_parts(void) {
        acc_crc_zeros(acc_crc_behind[0], ACC_LONG);
        acc_crc_zeros(acc_crc_behind[1], ACC_SHORT);
    }
    static int acc_crc_has(void) { __builtin_cpu_init(); return __builtin_cpu_supports("sse4.2") != 0; }
    #else
    #define acc_crc_hard acc_crc_soft
    static void acc_crc_parts(void) {}
    static int acc_crc_has(void) { return 0; }
    #endif
    static int acc_crc_is_hard;
    static void acc_crc_open(void) { acc_crc_init(); acc_crc_parts(); acc_crc_is_hard = acc_crc_has(); }
    static uint32_t acc_crc32c(uint32_t crc, const uint8_t *p, uint64_t n) {
        return ~(acc_crc_is_hard ? acc_crc_hard(~crc, p, n) : acc_crc_soft(~crc, p, n));
    }
    """
    void crc_open "acc_crc_open" ()
    uint32_t crc_of "acc_crc32c" (uint32_t, const uint8_t*, uint64_t)
    uint32_t crc_soft "acc_crc_soft" (uint32_t, const uint8_t*, uint64_t)

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_MD:
        pass
    EVP_CIPHER_CTX* EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX*)
    const EVP_CIPHER* EVP_aes_256_gcm()
    const EVP_MD* EVP_sha256()
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, void*, const unsigned char*, const unsigned char*)
    int EVP_EncryptUpdate(EVP_CIPHER_CTX*, unsigned char*, int*, const unsigned char*, int)
    int EVP_EncryptFinal_ex(EVP_CIPHER_CTX*, unsigned char*, int*)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX*, const EVP_CIPHER*, void*, const unsigned char*, const unsigned char*)
    int EVP_DecryptUpdate(EVP_CIPHER_CTX*, unsigned char*, int*, const unsigned char*, int)
    int EVP_DecryptFinal_ex(EVP_CIPHER_CTX*, unsigned char*, int*)
    int EVP_CIPHER_CTX_ctrl(EVP_CIPHER_CTX*, int, int, void*)
    enum: EVP_CTRL_GCM_GET_TAG
    enum: EVP_CTRL_GCM_SET_TAG

cdef extern from "<openssl/hmac.h>" nogil:
    unsigned char* HMAC(const EVP_MD*, const void*, int, const unsigned char*, size_t, unsigned char*, unsigned int*)

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_cleanse(void*, size_t)

crc_open()

RECORD_DTYPE = np.dtype(
    [("magic", "<u4"), ("version", "<u2"), ("kind", "u1"), ("flags", "u1"), ("header_crc", "<u4"), ("payload_crc", "<u4"),
     ("segment", "<u8"), ("sequence", "<u8"), ("key", "V16"), ("variant", "<u8"), ("generation", "<u8"),
     ("slice_index", "<u4"), ("length", "<u4"), ("total_length", "<u8"), ("wall_ns", "<i8"), ("class_id", "<u4"),
     ("origin_id", "<u4"), ("salt", "V16"), ("tag", "V16")]
)
assert RECORD_DTYPE.itemsize == sizeof(Record) == RECORD_HEADER and sizeof(SegmentHead) == SEGMENT_START

KIND_HEAD, KIND_SLICE, KIND_GONE, KIND_ORIGIN_GONE = RECORD_HEAD, RECORD_SLICE, RECORD_GONE, RECORD_ORIGIN_GONE
KIND_CLASS_GONE = RECORD_CLASS_GONE
START_BYTES = SEGMENT_START
HEADER_BYTES = RECORD_HEADER
PAYLOAD_MOST = RECORD_MOST


cdef uint32_t crc32c(uint32_t crc, const uint8_t* data, uint64_t n) noexcept nogil:
    return crc_of(crc, data, n)


def checksum(data) -> int:
    """CRC32C (RFC 9260 appendix A) of a buffer."""
    cdef const uint8_t[::1] view = memoryview(data).cast("B")
    cdef uint32_t found
    if view.shape[0] == 0:
        return 0
    with nogil:
        found = crc_of(0, &view[0], view.shape[0])
    return found


def checksum_soft(data: bytes) -> int:
    """The same without the processor's help, for the test that holds the two together."""
    return ~crc_soft(0xFFFFFFFF, data, len(data)) & 0xFFFFFFFF


def space_of(uint64_t length) -> int:
    """Bytes that a record with such a payload takes in its segment."""
    return record_bytes(length)


cdef void segment_compose(SegmentHead* head, uint64_t segment, const uint8_t* salt) noexcept nogil:
    memset(head, 0, sizeof(SegmentHead))
    head.magic = RECORD_MAGIC
    head.version = RECORD_VERSION
    head.segment = segment
    memcpy(head.salt, salt, 16)
    head.crc = crc_of(0, <uint8_t*>head, sizeof(SegmentHead) - 4)


cdef bint segment_check(const SegmentHead* head, uint64_t segment) noexcept nogil:
    return (head.magic == RECORD_MAGIC and head.crc == crc_of(0, <const uint8_t*>head, sizeof(SegmentHead) - 4)
            and head.version == RECORD_VERSION and head.segment == segment)


cdef uint32_t header_crc(const Record* record) noexcept nogil:
    cdef uint32_t zero = 0
    cdef const uint8_t* bytes = <const uint8_t*>record
    cdef uint32_t crc = crc_of(0, bytes, 8)
    crc = crc_of(crc, <uint8_t*>&zero, 4)
    return crc_of(crc, bytes + 12, RECORD_HEADER - 12)


cdef bint derive(const Record* record, const uint8_t* key, uint8_t* out) noexcept nogil:
    """The segment's own key, so that an offset is a nonce that never comes again (docs/decisions/0101)."""
    cdef uint8_t info[32]
    cdef unsigned int n = 32
    memcpy(info, b"accelerator-seg1", 16)
    memcpy(info + 16, record.salt, 16)
    return HMAC(EVP_sha256(), key, 32, info, 32, out, &n) != NULL and n == 32


cdef void bound_of(const Record* record, Record* bound) noexcept nogil:
    """What the seal binds: the whole header, but for what is only known afterwards."""
    memcpy(bound, record, sizeof(Record))
    bound.header_crc = 0
    bound.payload_crc = 0
    memset(bound.tag, 0, 16)


cdef bint record_finish(Record* record, uint8_t* payload, uint64_t offset, const uint8_t* key) noexcept nogil:
    """Seals the payload in place (`key` of 32 bytes; NULL: not sealed) and completes the header. False: no seal."""
    cdef uint8_t derived[32]
    cdef uint8_t nonce[12]
    cdef Record bound
    cdef bint done
    record.magic = RECORD_MAGIC
    record.version = RECORD_VERSION
    record.flags = 0
    memset(record.tag, 0, 16)
    if key != NULL:
        record.flags = RECORD_SEALED
        memset(nonce, 0, 12)
        memcpy(nonce, &offset, 8)
        if not derive(record, key, derived):
            return False
        bound_of(record, &bound)
        done = seal(derived, nonce, <uint8_t*>&bound, sizeof(Record), payload, record.length, record.tag)
        OPENSSL_cleanse(derived, 32)
        if not done:
            return False
        record.payload_crc = 0
    else:
        record.payload_crc = crc_of(0, payload, record.length)
    record.header_crc = header_crc(record)
    return True


cdef void record_erase(Record* record) noexcept nogil:
    """Leaves of a header what a scan needs to go on behind it."""
    record.kind = RECORD_ERASED
    memset(record.key, 0, 16)
    memset(record.tag, 0, 16)
    record.variant = 0
    record.generation = 0
    record.slice_index = 0
    record.total_length = 0
    record.origin_id = 0
    record.payload_crc = 0
    record.header_crc = header_crc(record)


cdef int record_check(const Record* record, uint64_t segment) noexcept nogil:
    """Whether a header is whole and belongs into this segment. Says nothing of the payload."""
    if record.magic != RECORD_MAGIC or record.length > RECORD_MOST or record.header_crc != header_crc(record):
        return RECORD_BAD
    if record.version != RECORD_VERSION:
        return RECORD_NEWER
    return RECORD_GOOD if record.segment == segment else RECORD_OTHER


cdef int record_open(Record* record, uint8_t* payload, uint64_t offset, const uint8_t* key) noexcept nogil:
    """Checks a payload whose header is good, and unseals it in place."""
    cdef uint8_t derived[32]
    cdef uint8_t nonce[12]
    cdef Record bound
    cdef bint done
    if not record.flags & RECORD_SEALED:
        # Where a key is set, nothing unsealed is believed: else who can write to the disk could put anything there.
        if key != NULL and record.length:
            return RECORD_BAD
        return RECORD_GOOD if record.payload_crc == crc_of(0, payload, record.length) else RECORD_BAD
    if key == NULL:
        return RECORD_LOCKED
    memset(nonce, 0, 12)
    memcpy(nonce, &offset, 8)
    if not derive(record, key, derived):
        return RECORD_BAD
    bound_of(record, &bound)
    done = unseal(derived, nonce, <uint8_t*>&bound, sizeof(Record), payload, record.length, record.tag)
    OPENSSL_cleanse(derived, 32)
    return RECORD_GOOD if done else RECORD_BAD


cdef bint seal(const uint8_t* key, const uint8_t* nonce, const uint8_t* bound, uint64_t n_bound, uint8_t* data, uint64_t n, uint8_t* tag) noexcept nogil:
    """AES-256-GCM in place; `tag` gets 16 bytes."""
    cdef EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new()
    cdef int used = 0
    cdef bint done
    if context == NULL:
        return False
    done = (EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, nonce) == 1
            and EVP_EncryptUpdate(context, NULL, &used, bound, <int>n_bound) == 1
            and (n == 0 or EVP_EncryptUpdate(context, data, &used, data, <int>n) == 1)
            and EVP_EncryptFinal_ex(context, tag, &used) == 1
            and EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, 16, tag) == 1)
    EVP_CIPHER_CTX_free(context)
    return done


cdef bint unseal(const uint8_t* key, const uint8_t* nonce, const uint8_t* bound, uint64_t n_bound, uint8_t* data, uint64_t n, const uint8_t* tag) noexcept nogil:
    """The inverse of seal(). False: it was sealed with another key, nonce or bound data, or has changed since."""
    cdef EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new()
    cdef int used = 0
    cdef uint8_t expected[16]
    cdef bint done
    if context == NULL:
        return False
    memcpy(expected, tag, 16)
    done = (EVP_DecryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, nonce) == 1
            and EVP_DecryptUpdate(context, NULL, &used, bound, <int>n_bound) == 1
            and (n == 0 or EVP_DecryptUpdate(context, data, &used, data, <int>n) == 1)
            and EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, 16, expected) == 1
            and EVP_DecryptFinal_ex(context, expected, &used) == 1)
    EVP_CIPHER_CTX_free(context)
    return done


def seal_bytes(bytes key, bytes nonce, bytes bound, bytes data) -> bytes:
    """AES-256-GCM: ciphertext and tag. `key` has 32 bytes, `nonce` 12. Raises ValueError."""
    cdef bytearray out = bytearray(data) + bytearray(16)
    if len(key) != 32 or len(nonce) != 12:
        raise ValueError("a key of 32 bytes and a nonce of 12")
    if not seal(key, nonce, bound, len(bound), <uint8_t*><char*>out, len(data), <uint8_t*><char*>out + len(data)):
        raise ValueError("no AES-256-GCM")
    return bytes(out)


def unseal_bytes(bytes key, bytes nonce, bytes bound, bytes data) -> bytes | None:
    """The inverse of seal_bytes(); None: another key, or changed. Raises ValueError for lengths that can't be."""
    cdef bytearray out = bytearray(data)
    if len(key) != 32 or len(nonce) != 12 or len(data) < 16:
        raise ValueError("a key of 32 bytes, a nonce of 12, a tag of 16")
    cdef uint64_t n = len(data) - 16
    if not unseal(key, nonce, bound, len(bound), <uint8_t*><char*>out, n, <uint8_t*><char*>out + n):
        return None
    return bytes(out[:n])
