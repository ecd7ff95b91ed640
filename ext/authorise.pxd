# Who may have what: a table of (viewer's credential, object or directory) -> yes or no, until when. Written by the
# control plane, read by workers without a lock. Digests only; what a credential means is not known here.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ext.connection cimport Grant, Worker
from ext.http_head cimport RequestHead

cdef enum:
    GRANT_SLOTS = 65536         # 2 MiB, mapped when used; beyond that the next to end make room
    GRANT_WINDOW = 8            # slots where a tag may be: 4 cache lines
    CREDENTIAL_BYTES = 8192     # of one request; more is no credential
    TAG_BYTES = 17              # what an exchange is joined by: a mark that no key begins with, then the tag

cdef enum:                      # judge()
    JUDGED_UNKNOWN = 0          # to be asked
    JUDGED_YES = 1
    JUDGED_NO = 2

cdef uint32_t judge(Worker* w, const uint8_t* data, const RequestHead* head, uint32_t origin, uint8_t* tag) noexcept nogil
