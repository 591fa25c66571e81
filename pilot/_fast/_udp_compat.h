/* The system calls of the datagram socket, with Linux's batches and offloads or without them (_fast, L2): see udp.pyx.
 *
 * Every function returns a negative errno on failure. `calls` counts system calls. Without Linux (or with
 * PILOT_UDP_PORTABLE defined) each datagram is its own call and nothing is segmented, behind the same functions. */
#ifndef PILOT_UDP_COMPAT_H
#define PILOT_UDP_COMPAT_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <netinet/in.h>
#include <time.h>

#if defined(__linux__) && !defined(PILOT_UDP_PORTABLE)
#define PILOT_UDP_LINUX 1
#include <linux/errqueue.h>
#else
#define PILOT_UDP_LINUX 0
#endif

/* Socket options, -1 where the system has none. The numbers are Linux's ABI: old headers may lack the names. */
#if PILOT_UDP_LINUX
enum {
    PILOT_IP_MTU_DISCOVER = 10, PILOT_IPV6_MTU_DISCOVER = 23, PILOT_PMTUDISC_PROBE = 3,
    PILOT_IP_RECVERR = 11, PILOT_IPV6_RECVERR = 25,
    PILOT_IP_DONTFRAG = -1, PILOT_IPV6_DONTFRAG = -1,
    PILOT_SOL_UDP = 17, PILOT_UDP_SEGMENT = 103, PILOT_UDP_GRO = 104,
#ifdef SO_RXQ_OVFL
    PILOT_SO_RXQ_OVFL = SO_RXQ_OVFL,
#else
    PILOT_SO_RXQ_OVFL = 40,
#endif
#ifdef SO_SNDBUFFORCE
    PILOT_SO_SNDBUFFORCE = SO_SNDBUFFORCE, PILOT_SO_RCVBUFFORCE = SO_RCVBUFFORCE
#else
    PILOT_SO_SNDBUFFORCE = -1, PILOT_SO_RCVBUFFORCE = -1
#endif
};
#else
enum {
    PILOT_IP_MTU_DISCOVER = -1, PILOT_IPV6_MTU_DISCOVER = -1, PILOT_PMTUDISC_PROBE = -1,
    PILOT_IP_RECVERR = -1, PILOT_IPV6_RECVERR = -1,
#ifdef IP_DONTFRAG
    PILOT_IP_DONTFRAG = IP_DONTFRAG,
#else
    PILOT_IP_DONTFRAG = -1,
#endif
#ifdef IPV6_DONTFRAG
    PILOT_IPV6_DONTFRAG = IPV6_DONTFRAG,
#else
    PILOT_IPV6_DONTFRAG = -1,
#endif
    PILOT_SOL_UDP = 17, PILOT_UDP_SEGMENT = -1, PILOT_UDP_GRO = -1, PILOT_SO_RXQ_OVFL = -1,
    PILOT_SO_SNDBUFFORCE = -1, PILOT_SO_RCVBUFFORCE = -1
};
#endif

#define PILOT_SLOTS 4             /* what one receive call can fill */
#define PILOT_SLOT_BYTES 65536    /* anything smaller loses segments of a merged buffer silently */
#define PILOT_MAX_SEGMENTS 64     /* kernel limit of one segmented send (UDP_MAX_SEGMENTS before 6.9) */
#define PILOT_MAX_PAYLOAD 65507   /* largest IPv4 payload, also of a segmented send before it is cut */

/* An address as in netaddr.pxd: IPv4 in mapped form, `scope` the zone of a link-local IPv6 address. */
typedef struct {
    uint8_t ip[16];
    uint16_t port;
    uint32_t scope;
} pilot_address;

typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} pilot_name;

/* One buffer the kernel filled: datagrams of `stride` bytes (the last may be shorter), all from one source. */
typedef struct {
    uint8_t *data;
    size_t length;
    size_t stride;
    int truncated;                /* data or control message cut short: where it splits is not known */
    pilot_address source;
} pilot_slot;

typedef struct {
    pilot_slot slot[PILOT_SLOTS];
    uint32_t overflow;            /* datagrams the kernel has dropped for want of buffer so far (wraps) */
    uint8_t memory[PILOT_SLOTS][PILOT_SLOT_BYTES];
} pilot_receiver;

/* One entry of the error queue. */
typedef struct {
    int code;                     /* errno */
    uint32_t mtu;                 /* with EMSGSIZE: what the path carries, IP header included; else 0 */
    pilot_address peer;           /* to whom the failed datagram was sent; port 0 if not known */
} pilot_report;

static double pilot_monotonic(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}

/* Fills `name` for a socket of `family`; 0 if such a socket cannot send there. */
static socklen_t pilot_name_of(int family, const uint8_t ip[16], uint16_t port, uint32_t scope, pilot_name *name)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    memset(name, 0, sizeof *name);
    if (family == AF_INET6) {
        name->v6.sin6_family = AF_INET6;
        name->v6.sin6_port = htons(port);
        name->v6.sin6_scope_id = scope;
        memcpy(&name->v6.sin6_addr, ip, 16);
        return sizeof name->v6;
    }
    if (memcmp(ip, mapped, 12) != 0)
        return 0;
    name->v4.sin_family = AF_INET;
    name->v4.sin_port = htons(port);
    memcpy(&name->v4.sin_addr, ip + 12, 4);
    return sizeof name->v4;
}

static void pilot_address_of(const pilot_name *name, socklen_t length, pilot_address *out)
{
    memset(out, 0, sizeof *out);
    if (length >= (socklen_t) sizeof name->v6 && name->any.sa_family == AF_INET6) {
        memcpy(out->ip, &name->v6.sin6_addr, 16);
        out->port = ntohs(name->v6.sin6_port);
        out->scope = name->v6.sin6_scope_id;
    } else if (length >= (socklen_t) sizeof name->v4 && name->any.sa_family == AF_INET) {
        out->ip[10] = out->ip[11] = 0xff;
        memcpy(out->ip + 12, &name->v4.sin_addr, 4);
        out->port = ntohs(name->v4.sin_port);
    }
}

/* One datagram. Returns 0. */
static int pilot_send_one(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                          uint64_t *calls)
{
    ssize_t n;
    do {
        ++*calls;
        n = sendto(fd, data, length, 0, &to->any, to_length);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

#if PILOT_UDP_LINUX

typedef union {
    char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint32_t))];
    struct cmsghdr align;
} pilot_control;

static void pilot_read_control(struct msghdr *header, pilot_slot *slot, uint32_t *overflow)
{
    struct cmsghdr *c;
    for (c = CMSG_FIRSTHDR(header); c != NULL; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level == PILOT_SOL_UDP && c->cmsg_type == PILOT_UDP_GRO && c->cmsg_len >= CMSG_LEN(sizeof(int))) {
            int stride;
            memcpy(&stride, CMSG_DATA(c), sizeof stride);
            if (stride > 0)
                slot->stride = (size_t) stride;
        } else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == PILOT_SO_RXQ_OVFL
                   && c->cmsg_len >= CMSG_LEN(sizeof(uint32_t))) {
            memcpy(overflow, CMSG_DATA(c), sizeof *overflow);
        }
    }
}

/* Fills the slots with what waits in the socket, in one call for all or, without `batched`, for the first alone.
 * Returns how many; fewer than PILOT_SLOTS of a batch means no more waits. */
static int pilot_receive(int fd, pilot_receiver *receiver, int batched, uint64_t *calls)
{
    struct mmsghdr messages[PILOT_SLOTS];
    struct iovec vectors[PILOT_SLOTS];
    pilot_name names[PILOT_SLOTS];
    pilot_control controls[PILOT_SLOTS];
    int i, n;
    memset(messages, 0, sizeof messages);
    for (i = 0; i < PILOT_SLOTS; i++) {
        struct msghdr *header = &messages[i].msg_hdr;
        vectors[i].iov_base = receiver->memory[i];
        vectors[i].iov_len = PILOT_SLOT_BYTES;
        header->msg_name = &names[i];
        header->msg_namelen = sizeof names[i];
        header->msg_iov = &vectors[i];
        header->msg_iovlen = 1;
        header->msg_control = &controls[i];
        header->msg_controllen = sizeof controls[i];
    }
    do {
        ++*calls;
        if (batched) {
            n = recvmmsg(fd, messages, PILOT_SLOTS, MSG_DONTWAIT, NULL);
        } else {
            ssize_t length = recvmsg(fd, &messages[0].msg_hdr, MSG_DONTWAIT);
            n = length < 0 ? -1 : 1;
            messages[0].msg_len = length < 0 ? 0 : (unsigned int) length;
        }
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    for (i = 0; i < n; i++) {
        struct msghdr *header = &messages[i].msg_hdr;
        pilot_slot *slot = &receiver->slot[i];
        slot->data = receiver->memory[i];
        slot->length = slot->stride = messages[i].msg_len;
        slot->truncated = (header->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
        pilot_read_control(header, slot, &receiver->overflow);
        pilot_address_of(&names[i], header->msg_namelen, &slot->source);
    }
    return n;
}

/* Takes one entry off the error queue: 1, or 0 when it is empty. */
static int pilot_next_report(int fd, pilot_report *report, uint64_t *calls)
{
    union { char bytes[512]; struct cmsghdr align; } control;
    char payload[1];
    struct iovec vector = {payload, sizeof payload};
    struct msghdr header;
    struct cmsghdr *c;
    pilot_name name;
    ssize_t n;
    memset(&header, 0, sizeof header);
    memset(report, 0, sizeof *report);
    header.msg_name = &name;
    header.msg_namelen = sizeof name;
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    header.msg_control = &control;
    header.msg_controllen = sizeof control;
    do {
        ++*calls;
        n = recvmsg(fd, &header, MSG_ERRQUEUE | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return 0;
    for (c = CMSG_FIRSTHDR(&header); c != NULL; c = CMSG_NXTHDR(&header, c)) {
        struct sock_extended_err error;
        if (!((c->cmsg_level == IPPROTO_IP && c->cmsg_type == PILOT_IP_RECVERR)
              || (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == PILOT_IPV6_RECVERR))
            || c->cmsg_len < CMSG_LEN(sizeof error))
            continue;
        memcpy(&error, CMSG_DATA(c), sizeof error);
        report->code = (int) error.ee_errno;
        if (error.ee_errno == EMSGSIZE)
            report->mtu = error.ee_info;
    }
    pilot_address_of(&name, header.msg_namelen, &report->peer);
    return 1;
}

/* One burst the kernel cuts into datagrams of `segment` bytes; segment < length. Returns 0. */
static int pilot_send_segmented(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                                size_t segment, uint64_t *calls)
{
    union { char bytes[CMSG_SPACE(sizeof(uint16_t))]; struct cmsghdr align; } control;
    struct iovec vector = {(void *) data, length};
    struct msghdr header;
    struct cmsghdr *c;
    uint16_t size = (uint16_t) segment;
    ssize_t n;
    memset(&header, 0, sizeof header);
    memset(&control, 0, sizeof control);
    header.msg_name = (void *) to;
    header.msg_namelen = to_length;
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    header.msg_control = &control;
    header.msg_controllen = sizeof control;
    c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = PILOT_SOL_UDP;
    c->cmsg_type = PILOT_UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof size);
    memcpy(CMSG_DATA(c), &size, sizeof size);
    do {
        ++*calls;
        n = sendmsg(fd, &header, 0);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : 0;
}

/* Up to PILOT_MAX_SEGMENTS datagrams of `segment` bytes in one call. Returns how many were sent, at least one. */
static int pilot_send_split(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                            size_t segment, uint64_t *calls)
{
    struct mmsghdr messages[PILOT_MAX_SEGMENTS];
    struct iovec vectors[PILOT_MAX_SEGMENTS];
    unsigned int count = 0;
    size_t at = 0;
    int n;
    while (count < PILOT_MAX_SEGMENTS && at < length) {
        size_t rest = length - at;
        struct msghdr *header = &messages[count].msg_hdr;
        memset(header, 0, sizeof *header);
        vectors[count].iov_base = (void *) (data + at);
        vectors[count].iov_len = rest < segment ? rest : segment;
        at += vectors[count].iov_len;
        header->msg_name = (void *) to;
        header->msg_namelen = to_length;
        header->msg_iov = &vectors[count];
        header->msg_iovlen = 1;
        count++;
    }
    do {
        ++*calls;
        n = sendmmsg(fd, messages, count, 0);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

#else

static int pilot_receive(int fd, pilot_receiver *receiver, int batched, uint64_t *calls)
{
    int i;
    (void) batched;
    for (i = 0; i < PILOT_SLOTS; i++) {
        pilot_slot *slot = &receiver->slot[i];
        pilot_name name;
        struct iovec vector = {receiver->memory[i], PILOT_SLOT_BYTES};
        struct msghdr header;
        ssize_t n;
        memset(&header, 0, sizeof header);
        header.msg_name = &name;
        header.msg_namelen = sizeof name;
        header.msg_iov = &vector;
        header.msg_iovlen = 1;
        do {
            ++*calls;
            n = recvmsg(fd, &header, 0);
        } while (n < 0 && errno == EINTR);
        if (n < 0)
            return i > 0 ? i : -errno;
        slot->data = receiver->memory[i];
        slot->length = slot->stride = (size_t) n;
        slot->truncated = (header.msg_flags & MSG_TRUNC) != 0;
        pilot_address_of(&name, header.msg_namelen, &slot->source);
    }
    return i;
}

static int pilot_next_report(int fd, pilot_report *report, uint64_t *calls)
{
    (void) fd, (void) report, (void) calls;
    return 0;
}

static int pilot_send_segmented(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                                size_t segment, uint64_t *calls)
{
    (void) fd, (void) to, (void) to_length, (void) data, (void) length, (void) segment, (void) calls;
    return -EINVAL;
}

static int pilot_send_split(int fd, const pilot_name *to, socklen_t to_length, const uint8_t *data, size_t length,
                            size_t segment, uint64_t *calls)
{
    int sent = 0;
    size_t at = 0;
    while (sent < PILOT_MAX_SEGMENTS && at < length) {
        size_t n = length - at < segment ? length - at : segment;
        int result = pilot_send_one(fd, to, to_length, data + at, n, calls);
        if (result < 0)
            return sent > 0 ? sent : result;
        at += n;
        sent++;
    }
    return sent;
}

#endif
#endif
