/* wan: an emulated link between two network namespaces, for kernels without netem.
 *
 * Two TUN devices (wan0 in each namespace) are joined by one process that applies rate, queue, delay, jitter,
 * loss, duplication and reordering, the same for TCP and UDP. Prints counters as JSON on SIGINT/SIGTERM.
 *
 *   cc -O2 -o wan wan.c
 *   wan NS_A NS_B [--rtt-ms 20] [--loss 0.01] [--rate-mbit 1000] [--queue-kb 2500] [--jitter-ms 0]
 *                 [--dup 0] [--reorder 0] [--seed 1] [--seconds 0]
 *
 * bench/emulator.py makes the namespaces and gives the devices their addresses. loss, dup and reorder are
 * probabilities per packet and direction; a reordered packet skips its delay by a quarter RTT.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 65536 /* packets in flight per direction */
#define MTU_MAX 9216

struct packet { double due; int len; unsigned char data[MTU_MAX]; };
struct direction {
    int in, out;
    struct packet *slot[SLOTS];     /* min-heap on due */
    int count;
    double busy_until;              /* when the emulated transmitter is free */
    uint64_t packets, bytes, lost, queue_dropped, duplicated, reordered;
};

static volatile sig_atomic_t stop;
static void on_signal(int s) { (void)s; stop = 1; }
static double now_s(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static uint64_t rng = 1;
static double uniform(void) { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return (rng >> 11) * (1.0 / 9007199254740992.0); }

static int open_tun(const char *ns) {
    char path[256];
    int self = open("/proc/self/ns/net", O_RDONLY), target, fd;
    struct ifreq ifr = {0};
    snprintf(path, sizeof path, "/var/run/netns/%s", ns);
    if ((target = open(path, O_RDONLY)) < 0 || setns(target, CLONE_NEWNET) < 0) { perror(path); exit(2); }
    if ((fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK)) < 0) { perror("/dev/net/tun"); exit(2); }
    ifr.ifr_flags = IFF_TUN | IFF_NO_PI;
    strcpy(ifr.ifr_name, "wan0");
    if (ioctl(fd, TUNSETIFF, &ifr) < 0) { perror("TUNSETIFF"); exit(2); }
    if (setns(self, CLONE_NEWNET) < 0) { perror("setns"); exit(2); }
    close(target); close(self);
    return fd;
}

static void push(struct direction *d, struct packet *p) {
    int i = d->count++;
    while (i && d->slot[(i - 1) / 2]->due > p->due) { d->slot[i] = d->slot[(i - 1) / 2]; i = (i - 1) / 2; }
    d->slot[i] = p;
}
static struct packet *pop(struct direction *d) {
    struct packet *top = d->slot[0], *last = d->slot[--d->count];
    int i = 0, c;
    while ((c = 2 * i + 1) < d->count) {
        if (c + 1 < d->count && d->slot[c + 1]->due < d->slot[c]->due) c++;
        if (last->due <= d->slot[c]->due) break;
        d->slot[i] = d->slot[c]; i = c;
    }
    if (d->count) d->slot[i] = last;
    return top;
}

static struct packet *pool[2 * SLOTS];
static int pooled;
static struct packet *take(void) { return pooled ? pool[--pooled] : malloc(sizeof(struct packet)); }
static void give(struct packet *p) { if (pooled < 2 * SLOTS) pool[pooled++] = p; else free(p); }

int main(int argc, char **argv) {
    double rtt = 20, loss = 0, rate = 1000, queue = 2500, jitter = 0, dup = 0, reorder = 0, seconds = 0;
    static struct direction dir[2];
    if (argc < 3) { fprintf(stderr, "usage: wan NS_A NS_B [options]\n"); return 2; }
    for (int i = 3; i + 1 < argc; i += 2) {
        double v = atof(argv[i + 1]);
        if (!strcmp(argv[i], "--rtt-ms")) rtt = v; else if (!strcmp(argv[i], "--loss")) loss = v;
        else if (!strcmp(argv[i], "--rate-mbit")) rate = v; else if (!strcmp(argv[i], "--queue-kb")) queue = v;
        else if (!strcmp(argv[i], "--jitter-ms")) jitter = v; else if (!strcmp(argv[i], "--dup")) dup = v;
        else if (!strcmp(argv[i], "--reorder")) reorder = v; else if (!strcmp(argv[i], "--seconds")) seconds = v;
        else if (!strcmp(argv[i], "--seed")) rng = (uint64_t)v * 2654435761u + 1;
        else { fprintf(stderr, "unknown option %s\n", argv[i]); return 2; }
    }
    signal(SIGINT, on_signal); signal(SIGTERM, on_signal);
    int a = open_tun(argv[1]), b = open_tun(argv[2]);
    dir[0].in = a; dir[0].out = b; dir[1].in = b; dir[1].out = a;
    double bytes_per_s = rate * 125000.0, one_way = rtt / 2000.0, started = now_s();
    printf("ready\n"); fflush(stdout);
    while (!stop && (!seconds || now_s() - started < seconds)) {
        double t = now_s(), next = t + 0.05;
        for (int k = 0; k < 2; k++) {
            struct direction *d = &dir[k];
            for (int burst = 0; burst < 256 && d->count < SLOTS - 2; burst++) {
                struct packet *p = take();
                int n = read(d->in, p->data, MTU_MAX);
                if (n <= 0) { give(p); break; }
                t = now_s();
                d->packets++; d->bytes += n;
                if (d->busy_until < t) d->busy_until = t;
                if ((d->busy_until - t) * bytes_per_s > queue * 1024) { d->queue_dropped++; give(p); continue; }
                d->busy_until += n / bytes_per_s;
                if (uniform() < loss) { d->lost++; give(p); continue; }
                p->len = n; p->due = d->busy_until + one_way + (jitter ? uniform() * jitter / 1000.0 : 0);
                if (reorder && uniform() < reorder) { p->due -= one_way / 2; d->reordered++; }
                if (dup && uniform() < dup) {
                    struct packet *q = take(); memcpy(q, p, offsetof(struct packet, data) + n); push(d, q); d->duplicated++;
                }
                push(d, p);
            }
            while (d->count && d->slot[0]->due <= (t = now_s())) {
                struct packet *p = pop(d);
                if (write(d->out, p->data, p->len) < 0 && errno != EAGAIN && errno != EIO) perror("write");
                give(p);
            }
            if (d->count && d->slot[0]->due < next) next = d->slot[0]->due;
        }
        double wait = next - now_s();
        if (wait > 0) {
            struct pollfd fds[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
            struct timespec ts = {(time_t)wait, (long)((wait - (time_t)wait) * 1e9)};
            ppoll(fds, 2, &ts, NULL);
        }
    }
    for (int k = 0; k < 2; k++)
        printf("{\"direction\":\"%s\",\"packets\":%llu,\"bytes\":%llu,\"lost\":%llu,\"queue_dropped\":%llu,\"duplicated\":%llu,\"reordered\":%llu}\n",
               k ? "b-a" : "a-b", (unsigned long long)dir[k].packets, (unsigned long long)dir[k].bytes, (unsigned long long)dir[k].lost,
               (unsigned long long)dir[k].queue_dropped, (unsigned long long)dir[k].duplicated, (unsigned long long)dir[k].reordered);
    return 0;
}
