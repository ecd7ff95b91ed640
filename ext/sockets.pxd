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

cdef extern from "<poll.h>" nogil:
    enum: POLLOUT
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd*, unsigned long, int)


cdef extern from * nogil:
    """
    #define _GNU_SOURCE 1
    #include <stdint.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <netinet/in.h>
    /* The mark of what a socket sends; `address`: its peer's, IPv4 mapped. A listener of IPv6 takes IPv4 too, whose
       mark is the IPv4 option's on such a socket also. */
    static inline void acc_mark_socket(int fd, const uint8_t *address, uint8_t dscp) {
        static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
        int value = dscp << 2;
        if (memcmp(address, mapped, sizeof(mapped)) == 0)
            setsockopt(fd, IPPROTO_IP, IP_TOS, &value, sizeof(value));
        else
            setsockopt(fd, IPPROTO_IPV6, IPV6_TCLASS, &value, sizeof(value));
    }
    """
    void acc_mark_socket(int, const unsigned char*, unsigned char)


cdef inline bint socket_has_room(int fd) noexcept nogil:
    """Whether a third of the socket's buffer is free. If not, the kernel tells when it is (an edge), as after EAGAIN."""
    cdef pollfd asked
    asked.fd = fd
    asked.events = POLLOUT
    asked.revents = 0
    return poll(&asked, 1, 0) != 0
