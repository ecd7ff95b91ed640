# What a viewer's HTTP/2 frames do: nghttp2's callbacks for what comes in, and the budgets that end floods.
from libc.stdint cimport int32_t, uint8_t

from ext.connection cimport Connection, Worker
from ext.h2 cimport Session
from ext.nghttp2 cimport nghttp2_frame, nghttp2_frame_hd, nghttp2_session

cdef void budget_begin(Session* s) noexcept nogil
cdef void earn(Session* s) noexcept nogil
cdef void spend_reset(Session* s) noexcept nogil
cdef void spend_unknown(Session* s) noexcept nogil
cdef void stream_credit(Worker* w, Connection* c) noexcept nogil
cdef int on_begin_frame(nghttp2_session* engine, const nghttp2_frame_hd* head, void* user) noexcept nogil
cdef int on_begin_headers(nghttp2_session* engine, const nghttp2_frame* frame, void* user) noexcept nogil
cdef int on_header(nghttp2_session* engine, const nghttp2_frame* frame, const uint8_t* name, size_t n, const uint8_t* value,
                   size_t value_length, uint8_t flags, void* user) noexcept nogil
cdef int on_invalid_header(nghttp2_session* engine, const nghttp2_frame* frame, const uint8_t* name, size_t n,
                           const uint8_t* value, size_t value_length, uint8_t flags, void* user) noexcept nogil
cdef int on_frame_recv(nghttp2_session* engine, const nghttp2_frame* frame, void* user) noexcept nogil
cdef int on_data_chunk(nghttp2_session* engine, uint8_t flags, int32_t stream_id, const uint8_t* data, size_t n, void* user) noexcept nogil
