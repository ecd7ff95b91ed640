# System calls on sockets, as C declares them.

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    enum: SHUT_WR
    cdef struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t recv(int, void*, size_t, int)
    ssize_t send(int, const void*, size_t, int)
    ssize_t sendmsg(int, const msghdr*, int)
    int shutdown(int, int)

cdef extern from * nogil:
    """
    #include <errno.h>
    /* Cython takes an assignment to errno for one to a local variable. */
    static inline void acc_set_errno(int error) { errno = error; }
    """
    void acc_set_errno(int)
