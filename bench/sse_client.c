/* The reference client: the work that a streaming client in C cannot do without, and no more.
 *
 *   sse_client PORT STREAMS REQUESTS_PER_STREAM MAX_TOKENS [MODEL]
 *
 * A closed loop over kept connections: one epoll, recvmsg with the kernel's arrival stamp, one stamp kept for every
 * chunk that carries a token, the end of the answer told from its last chunk. Prints one JSON line; `cpu_s` is of the
 * loop alone, instants are monotonic.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define READ_BYTES 65536
#define EVENTS_MAX 256
#define PROMPT_BYTES 450 /* about 100 tokens */

static const char MARK[] = "\"content\":\"", END[] = "0\r\n\r\n";

typedef struct {
    int fd;
    long left;
    size_t kept; /* bytes of the last read that may be the beginning of a mark */
    char tail[sizeof MARK];
    int64_t sent_ns, first_ns, last_ns;
    long tokens;
} stream;

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "sse_client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static char request[2048];
static size_t request_len;
static int64_t *stamps_ns;
static long token_count, read_count;

static void make_request(int port, long max_tokens, const char *model) {
    char prompt[PROMPT_BYTES + 1], body[1024];
    for (int i = 0; i < PROMPT_BYTES; i++) prompt[i] = " the"[i % 4];
    prompt[PROMPT_BYTES] = 0;
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"%s\",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"max_tokens\":%ld,"
                     "\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]}",
                     model, max_tokens, prompt);
    request_len = snprintf(request, sizeof request,
                           "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json"
                           "\r\nContent-Length: %d\r\n\r\n%s",
                           port, n, body);
}

static void start(stream *s) {
    s->left--;
    s->tokens = 0;
    s->kept = 0;
    s->sent_ns = clock_ns(CLOCK_MONOTONIC);
    if (send(s->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) fail("send");
}

/* Counts the tokens of one read; true when the answer has ended. */
static int take(stream *s, char *data, size_t len, int64_t arrival_ns) {
    char *at = data;
    char *end = data + len;
    while ((at = memmem(at, end - at, MARK, sizeof MARK - 1))) {
        at += sizeof MARK - 1;
        stamps_ns[token_count++] = arrival_ns;
        if (!s->tokens++) s->first_ns = arrival_ns;
        s->last_ns = arrival_ns;
    }
    int done = len >= sizeof END - 1 && !memcmp(end - (sizeof END - 1), END, sizeof END - 1);
    s->kept = sizeof MARK - 2;
    if (s->kept > len) s->kept = len;
    memcpy(s->tail, data + len - s->kept, s->kept);
    return done;
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) {
        fprintf(stderr, "usage: sse_client PORT STREAMS REQUESTS_PER_STREAM MAX_TOKENS [MODEL]\n");
        return 2;
    }
    int port = atoi(argv[1]), streams = atoi(argv[2]);
    long requests = atol(argv[3]), max_tokens = atol(argv[4]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    make_request(port, max_tokens, argc == 6 ? argv[5] : "m");
    stamps_ns = malloc(sizeof *stamps_ns * (streams * requests * (max_tokens + 1)));
    stream *all = calloc(streams, sizeof *all);
    if (!stamps_ns || !all) fail("memory");
    int epoll_fd = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < streams; i++) {
        int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        if (connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
        all[i].fd = fd;
        all[i].left = requests;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
    double began_cpu_s = cpu_s();
    int64_t began_ns = clock_ns(CLOCK_MONOTONIC);
    int64_t offset_ns = clock_ns(CLOCK_REALTIME) - began_ns;
    for (int i = 0; i < streams; i++) start(&all[i]);
    long open_count = streams, done_count = 0;
    double ttft_sum_s = 0, e2e_sum_s = 0;
    static char buffer[sizeof MARK + READ_BYTES];
    struct epoll_event events[EVENTS_MAX];
    while (open_count) {
        int n = epoll_wait(epoll_fd, events, EVENTS_MAX, -1);
        for (int i = 0; i < n; i++) {
            stream *s = events[i].data.ptr;
            char control[CMSG_SPACE(sizeof(struct timespec)) * 2];
            memcpy(buffer, s->tail, s->kept);
            struct iovec iov = {buffer + s->kept, READ_BYTES};
            struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
            ssize_t len = recvmsg(s->fd, &message, MSG_DONTWAIT);
            if (len < 0 && errno == EAGAIN) continue;
            if (len <= 0) fail("the server closed a connection");
            read_count++;
            int64_t arrival_ns = 0;
            struct cmsghdr *h = CMSG_FIRSTHDR(&message);
            if (h && h->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec t;
                memcpy(&t, CMSG_DATA(h), sizeof t);
                arrival_ns = t.tv_sec * NS_PER_S + t.tv_nsec - offset_ns;
            }
            if (!take(s, buffer, s->kept + len, arrival_ns)) continue;
            done_count++;
            ttft_sum_s += (s->first_ns - s->sent_ns) / 1e9;
            e2e_sum_s += (s->last_ns - s->sent_ns) / 1e9;
            if (s->left) start(s);
            else open_count--;
        }
    }
    int64_t ended_ns = clock_ns(CLOCK_MONOTONIC);
    printf("{\"requests\": %ld, \"tokens\": %ld, \"reads\": %ld, \"wall_s\": %.6f, \"cpu_s\": %.6f, \"ttft_mean_s\": %.6f, "
           "\"e2e_mean_s\": %.6f}\n",
           done_count, token_count, read_count, (ended_ns - began_ns) / 1e9, cpu_s() - began_cpu_s,
           ttft_sum_s / done_count, e2e_sum_s / done_count);
    return 0;
}
