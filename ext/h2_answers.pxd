# A stream's answer: how it begins, goes on and ends. The functions that begin one say PENDING or CLOSED.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from ext.connection cimport Connection, Worker
from ext.nghttp2 cimport nghttp2_data_source, nghttp2_frame, nghttp2_nv, nghttp2_session
from ext.store cimport Object
from ext.sockets cimport iovec

cdef int stream_answer(Worker* w, Connection* c, const uint8_t* data, uint32_t n, uint32_t head_length, Object* object,
                       const iovec* parts, int n_parts, int64_t first, int64_t end) noexcept nogil
cdef int stream_short(Worker* w, Connection* c, const uint8_t* text, uint32_t n) noexcept nogil
cdef void stream_interim(Worker* w, Connection* c, const uint8_t* text, uint32_t n) noexcept nogil
cdef int submit(Worker* w, Connection* c, const nghttp2_nv* fields, uint32_t n_fields, bint has_body) noexcept nogil
cdef int stream_pump(Worker* w, Connection* c) noexcept nogil
cdef bint stream_is_stalled(Connection* c) noexcept nogil
cdef void stream_left(Worker* w, Connection* c, bint abruptly) noexcept nogil
cdef ssize_t on_send(nghttp2_session* engine, const uint8_t* data, size_t n, int flags, void* user) noexcept nogil
cdef int send_data(nghttp2_session* engine, nghttp2_frame* frame, const uint8_t* head, size_t n, nghttp2_data_source* source, void* user) noexcept nogil
cdef int on_frame_send(nghttp2_session* engine, const nghttp2_frame* frame, void* user) noexcept nogil
cdef int on_frame_not_send(nghttp2_session* engine, const nghttp2_frame* frame, int error, void* user) noexcept nogil
cdef int on_stream_close(nghttp2_session* engine, int32_t stream_id, uint32_t error, void* user) noexcept nogil
