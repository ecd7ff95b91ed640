# What a relay is made of, and who may touch it: its worker owns everything here but Fanout and RelayList, which the
# control plane publishes whole and frees once the worker has begun a pass since. docs/decisions/0120 says why.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ext.relay_wire cimport TsState
from ext.stream cimport Stream

cdef enum:
    MAX_RELAYS = 256            # of a plane; slots, reused
    MAX_RELAY_WORKERS = 16
    MAX_LEGS = 4                # media legs or backups, FEC columns, FEC rows
    MAX_SOURCES = 8             # allowed source networks of a leg
    MAX_OUTPUTS = 16
    TRAIN_PACKETS = 16          # beyond it a train gains little (decision 0120) and bursts more
    ALIGN_KEPT = 1024           # packets of a leg by which it is put beside others: 0.2 s of 50 Mbit/s, 1 s of 10
    FEC_KEPT = 128              # repair packets waiting for their media: L + D of the largest matrix, three times
    DROPOUT_MAX = 3000          # RFC 3550 A.1: a step forward below this is loss, not a restart
    LATE_RUN = 32               # this many late ones with nothing good between them: the source began anew, lower

cdef enum:
    LEG_MEDIA = 0
    LEG_FEC
    LEG_RTX                     # asks for what is missing, and hears the answers (RFC 4588)
    MODE_MERGE = 0              # SMPTE 2022-7: every leg carries the same packets
    MODE_BACKUP                 # the first leg that lives
    OUT_KEEP = 0                # as it came
    OUT_STRIP                   # without the RTP header
    OUT_STAMP                   # with an RTP header of our own
    SEGMENTS_UNKNOWN = 0
    SEGMENTS_ON
    SEGMENTS_OFF                # the kernel or the device refused: for good
    SLOT_RANDOM_ACCESS = 1
    SLOT_REPAIRED = 2
    SLOT_NONE = 4               # a number that stands for nothing: more was thought to be missing than was

cdef enum:                      # columns of a relay's counter row
    R_DATAGRAMS = 0
    R_BYTES
    R_PACKETS
    R_PACKET_BYTES
    R_LOST
    R_REPAIRED
    R_MERGED
    R_REORDERED
    R_DUPLICATE
    R_LATE
    R_EMPTY
    R_RESTARTS
    R_SWITCHES
    R_FEC_PACKETS
    R_REPAIR_REFUSED
    R_DROP_SOURCE
    R_DROP_SENDER
    R_DROP_OWN
    R_DROP_LINK
    R_DROP_OVERSIZE
    R_DROP_MALFORMED
    R_DROP_RTCP
    R_DROP_TYPE
    R_DROP_SSRC
    R_DROP_JUMP
    R_DROP_FORMAT
    R_DROP_APART
    R_DROP_STANDBY
    R_DROP_RATE
    R_DROP_FEC_MALFORMED
    R_DROP_FEC_REFUSED
    R_ASKED
    R_RETRANSMITTED
    R_DROP_RETRANSMITTED
    R_TS_PACKETS
    R_TS_DAMAGED
    R_TS_CONTINUITY
    R_TS_PCR_JUMPS
    R_TS_RANDOM_ACCESS
    R_TS_RATE_BPS
    R_JITTER_NS
    R_LAST_NS
    R_FORMAT
    R_ACTIVE_LEG
    R_PAYLOAD_TYPE              # 255: none seen
    N_RELAY_COUNTERS
    RELAY_STRIDE = 64

cdef enum:                      # columns of a leg's row
    L_DATAGRAMS = 0
    L_BYTES
    L_FIRST
    L_LOST
    L_JITTER_NS
    L_LAST_NS
    L_DROP_KERNEL
    L_APART
    N_LEG_COUNTERS
    LEG_STRIDE = 8

cdef enum:                      # columns of an output's row
    O_PACKETS = 0
    O_BYTES
    O_CALLS
    O_TRAINS
    O_DROP_FULL
    O_DROP_REFUSED
    O_DROP_SIZE
    O_DROP_BACKLOG
    O_RECEIVERS
    O_SEGMENTS
    N_OUTPUT_COUNTERS
    OUTPUT_STRIDE = 16

cdef struct Network:
    uint8_t address[16]         # IPv4 as ::ffff:a.b.c.d
    uint32_t bits

cdef struct Leg:
    int fd
    uint8_t kind
    uint8_t is_started
    uint8_t has_bad
    uint8_t n_sources           # 0: any source
    uint8_t is_held             # takes what came to `group` by interface `link` and nothing else: IPv6
    uint32_t link               # atomic: set by the control plane when the group is joined; 0: nowhere yet
    uint8_t group[16]
    Network sources[MAX_SOURCES]
    uint32_t ssrc
    uint32_t bad_ssrc           # a packet out of line: the next one in line with it makes a restart (RFC 3550 A.1)
    uint16_t bad_sequence
    uint16_t newest             # A.1 max_seq, A.3 and A.8: this leg's own statistics
    uint64_t cycles             # 32 bits of packets are 50 days of 10 Mbit/s
    uint32_t base
    uint64_t n_received         # since base
    uint64_t n_lost_before      # of bases before
    uint32_t jitter_16          # in RTP units, times 16
    int64_t transit
    int64_t last_ns
    int64_t alive_since_ns
    int64_t sender_ns           # when whoever is the leg's sender sent last; 0: nobody has yet
    uint8_t sender[16]
    int64_t paid_until_ns       # when what was let in would have come, at the relay's bitrate
    uint64_t* counters

cdef struct Kept:
    uint64_t content            # 0: nothing tells it from others
    uint32_t timestamp          # both as the leg has them
    uint16_t sequence

cdef struct Align:              # of a leg: what must be added to its numbers and times to have the relay's
    uint32_t ssrc
    uint32_t time_shift
    uint16_t shift
    uint8_t is_known
    uint8_t is_placed
    uint8_t n_votes
    uint8_t n_strange           # in a row that stood where others do
    uint32_t at
    Kept kept[ALIGN_KEPT]
    # Of a leg whose datagrams have no numbers (MPEG-TS by UDP): those that it was given, and by what.
    uint16_t own_number
    uint16_t per                # transport packets of the largest datagram
    uint64_t last_content
    int64_t last_ns
    int64_t period_ns           # between two that follow each other, on average
    int64_t longest_ns          # the longest of late; falls slowly
    uint8_t continuity[8192]    # by PID, the last counter and 1; 0: none yet

cdef struct Slot:               # of the window; the datagram is at data + index * slot_bytes
    uint64_t sequence           # in window numbers; 0: empty
    int64_t arrival_ns
    uint64_t content            # of legs that are aligned by it
    uint32_t timestamp
    uint16_t length
    uint16_t header_bytes
    uint16_t payload_bytes
    uint8_t flags
    uint8_t leg

cdef struct FecSlot:
    uint64_t base               # in window numbers; 0: empty
    uint32_t timestamp_xor
    uint16_t length_xor
    uint16_t payload_bytes
    uint8_t type_xor
    uint8_t offset
    uint8_t count
    uint8_t n_missing           # of those it covers; where it's wrong it is too low, and the repair is tried in vain
    uint64_t early              # the one that it could give back and that is newer than all that came; 0: none

cdef struct Ask:                # of a packet that was passed over
    uint64_t sequence           # in window numbers; 0: none
    int64_t asked_ns            # the last time
    int64_t next_ns
    uint32_t n

cdef struct Output:
    int fd
    uint8_t format
    uint8_t segments
    uint8_t is_new              # the worker puts the cursor at the newest packet when it first sees it
    uint8_t marker              # of RTP headers of our own
    uint32_t train_packets
    uint32_t train_bytes        # 0: no bound
    int64_t hold_ns
    uint64_t pace_bytes_s       # 0: not paced, unless
    uint8_t is_pace_measured    # by what comes
    uint64_t cursor             # next of `ready` to be sent
    int64_t next_send_ns
    uint32_t begun_packets      # of a train that some receivers have and others wait for; 0: none
    uint32_t begun_at           # how many packets of it are settled, counted over all receivers
    uint16_t begun_sequence     # of its first RTP header of our own
    int64_t begun_due_ns
    int64_t begun_used_ns       # what it has had of the worker's time: see relay_turns.pxd
    uint32_t segment_good       # the largest that was taken as part of a train
    uint32_t segment_limit      # too large for one; 0: none was
    uint32_t n_refused          # receivers in a row whom trains were refused for
    int64_t full_ns             # since when the socket takes nothing; 0: it does
    int64_t retry_ns
    uint32_t ssrc
    uint16_t sequence
    uint64_t* counters

cdef struct Destination:
    uint8_t address[28]         # struct sockaddr_in or sockaddr_in6
    uint32_t length

cdef struct FanoutRow:
    uint32_t output
    uint32_t first
    uint32_t n
    uint32_t spare

cdef struct Fanout:             # immutable once published
    uint32_t n_rows
    FanoutRow rows[MAX_OUTPUTS]
    Destination* destinations

cdef struct Relay:
    Fanout* fanout              # read by acquire, after the receive
    uint32_t id                 # slot and how often it was taken: what epoll events carry
    uint32_t n_legs
    uint32_t n_media            # those of them that carry media
    uint32_t ssrc
    uint8_t wanted_format       # FORMAT_DETECT or FORMAT_RTP
    uint8_t format
    uint8_t mode
    uint8_t active              # leg, in MODE_BACKUP
    uint8_t payload_type        # 255: any
    uint8_t seen_type
    uint8_t is_started
    uint8_t newest_leg
    uint8_t is_wrapped          # each datagram stands behind an RTP header of our own: taken off again
    uint8_t inner_format
    uint8_t other_format        # while nothing is known of what comes: how the last datagrams looked
    uint8_t n_other
    uint32_t other_ssrc
    uint8_t came_from[16]       # whose datagram is being taken
    uint32_t line_ssrc          # of legs that are aligned: the source that all of them count as; 0: none yet
    Align* aligns               # by leg; NULL: legs are merged by their numbers as they come
    uint32_t clock_hz
    uint32_t slot_bytes
    uint32_t late_run
    uint16_t newest_rtp
    int64_t wait_ns             # how long a hole may wait for a late packet, another leg, or repair
    int64_t failover_ns
    uint64_t cap_bytes_s        # of each leg; 0: any
    uint64_t rate_bytes_s       # of what is released, an average of the last seconds; 0: not measured yet
    uint64_t rate_bytes         # R_PACKET_BYTES when it was measured last
    int64_t rate_ns
    int64_t good_ns             # arrival of the last packet that was in line
    int64_t hole_ns             # since when `next` is missed; INT64_MAX: no hole
    int64_t due_ns              # when the worker must look again
    uint64_t mask               # of the window, whose size is a power of two
    uint64_t next               # window number of the packet to be released next
    uint64_t newest             # highest one stored
    uint64_t n_ready
    uint64_t oldest_unsent      # at most what the slowest output still has to send
    uint64_t* ready             # released window numbers, dense
    Slot* slots
    uint8_t* data
    FecSlot* fec                # NULL: no leg of repair packets
    uint8_t* fec_data
    uint8_t* fec_rows           # by slot of the window, which repair packet covers it: its index and 1; 0: none
    uint8_t* fec_columns
    uint32_t fec_next
    uint64_t fec_early          # no repair packet's `early` is below
    Ask* asks                   # by slot; NULL: nothing is asked for again
    int64_t ask_ns              # when to ask next
    int64_t ask_again_ns
    int64_t ask_trip_ns
    uint32_t ask_leg
    uint32_t ask_ssrc
    uint32_t ask_length
    uint8_t ask_to[28]          # struct sockaddr_in or sockaddr_in6
    uint8_t ask_name[16]        # RFC 7022: random
    uint8_t rtx_type
    uint32_t n_begun            # outputs with a train that is begun
    Fanout* seen                # of this pass; while a train is begun, its
    Stream* stream              # read by acquire; NULL: nobody reads it over HTTP
    TsState* ts
    uint64_t* counters
    Leg legs[MAX_LEGS]
    Output outputs[MAX_OUTPUTS]

cdef struct RelayList:          # immutable once published
    uint32_t n
    Relay* relays[MAX_RELAYS]   # by slot; NULL: free

cdef inline uint8_t* slot_data(Relay* r, uint64_t sequence) noexcept nogil:
    return r.data + (sequence & r.mask) * r.slot_bytes
