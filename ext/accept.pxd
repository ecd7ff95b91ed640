# Listening sockets of a worker: watched, rested, accepted from.
from libc.stdint cimport int32_t

from ext.connection cimport Listener, Worker
from ext.exchange cimport Message

cdef void on_listen(Worker* w, Message* m) noexcept nogil
cdef void stop_listening(Worker* w, int32_t index) noexcept nogil
cdef void wake_listeners(Worker* w) noexcept nogil
cdef void on_accept(Worker* w, Listener* listener) noexcept nogil
