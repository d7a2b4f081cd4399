/* A service with known truth: sends tokens on time and writes down when it did.
 *
 *   sse_server [--port 0] [--tokens 200] [--ttft-us 50000] [--itl-us 10000] [--nonstream] [--content time|word]
 *              [--serial] [--freeze-n N --freeze-s S] [--notify-n N] [--priority fifo|nice|none] [--truth FILE]
 *
 * One thread, one epoll. Prints "port N" and "priority NAME"; "reached N" at the N-th request (--notify-n). SIGTERM ends
 * it, and then the truth file is written (its layout is at write_truth, read by server.py).
 *
 * Every token is a chunk and a send of its own; its text is the monotonic instant of that send in nanoseconds. The
 * schedule of a stream counts from the kernel's arrival stamp of its request and is kept: a late token moves no other.
 * GET is answered with a list of models. POST is answered as a stream when the body asks for one, else with one JSON
 * text: at the end of the schedule, or at once with --nonstream. A request for fewer than PROBE_TOKENS tokens counts as
 * a probe: it is answered at once, and the truth marks it so.
 *
 * --serial reports the number of the request as `reasoning_tokens` of the usage, so that a client's records can be
 * joined with the truth. --freeze-n stops everything for a while at the N-th request, then goes on where it was.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define NS_PER_US 1000LL
#define CONNECTIONS_MAX 65536       /* file descriptors */
#define REQUESTS_MAX (1LL << 24)    /* rows reserved, not touched until used */
#define TOKENS_TOTAL_MAX (1LL << 28) /* instants reserved, not touched until used */
#define READ_BYTES 65536
#define PROBE_TOKENS 16
#define EVENTS_MAX 256
#define STAMP_DIGITS 16 /* nanoseconds since boot, up to 115 days */
#define IDLE_NS (NS_PER_S / 2)
#define NICE_RAISED (-5)

enum { FLAG_STREAM = 1, FLAG_PROBE = 2, FLAG_DONE = 4 };

typedef struct {        /* one row of the truth file */
    int64_t serial;     /* 1 for the first request that is not a probe; probes have 0 */
    int64_t arrival_ns; /* kernel stamp of the last segment of the request, monotonic */
    int64_t read_ns;    /* when this server read it */
    int64_t base_ns;    /* token i was due at base + TTFT + i * ITL */
    int64_t first_write_ns;
    int64_t last_write_ns;
    int64_t tokens;
    int64_t token_offset; /* of its first instant in the table of instants */
    int64_t max_tokens;   /* asked; -1: not given */
    int64_t flags;
} request_row;

typedef struct {
    int fd;
    char *in; /* unparsed bytes of the request */
    size_t in_len, in_size;
    char *out; /* what the socket did not take */
    size_t out_len, out_size;
    int64_t due_ns, sent, total;
    request_row *row;
    int usage, chat, stream, in_heap;
} connection;

static struct {
    int64_t port, tokens, ttft_ns, itl_ns, freeze_n, freeze_ns, notify_n;
    int nonstream, word, serial;
    const char *priority, *truth;
} option = {.tokens = 200, .ttft_ns = 50000 * NS_PER_US, .itl_ns = 10000 * NS_PER_US, .priority = "fifo"};

static connection *connections[CONNECTIONS_MAX];
static request_row *rows;
static int64_t *token_ns;
static int64_t row_count, token_count, serial_count, accepted_count, blocked_count, thawed_ns;
static connection **heap;
static int64_t heap_count, heap_size;
static int epoll_fd, listener_fd;
static volatile sig_atomic_t ending;

static void fail(const char *what) {
    fprintf(stderr, "sse_server: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

static int64_t monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* ---- what is due next: a binary heap of streams */

static void heap_push(connection *c) {
    if (heap_count == heap_size) {
        heap_size = heap_size ? heap_size * 2 : 1024;
        heap = realloc(heap, heap_size * sizeof *heap);
        if (!heap) fail("heap");
    }
    int64_t i = heap_count++;
    while (i > 0 && heap[(i - 1) / 2]->due_ns > c->due_ns) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = c;
    c->in_heap = 1;
}

static void heap_sift_down(int64_t i) {
    connection *c = heap[i];
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= heap_count) break;
        if (child + 1 < heap_count && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= c->due_ns) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = c;
}

static void heap_pop(void) {
    heap[0]->in_heap = 0;
    heap[0] = heap[--heap_count];
    if (heap_count) heap_sift_down(0);
}

static void heap_remove(connection *c) {
    for (int64_t i = 0; i < heap_count; i++)
        if (heap[i] == c) {
            heap[i] = heap[--heap_count];
            break;
        }
    for (int64_t i = heap_count / 2 - 1; i >= 0; i--) heap_sift_down(i);
    c->in_heap = 0;
}

/* ---- texts */

static const char HEAD_STREAM[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

static size_t put_chunk(char *out, const char *data, size_t len) {
    size_t n = sprintf(out, "%zx\r\n", len);
    memcpy(out + n, data, len);
    memcpy(out + n + len, "\r\n", 2);
    return n + len + 2;
}

typedef struct {
    char text[512];
    size_t len, stamp_at;
} token_template;

/* [chat][last]: one chunk with a place for the stamp. */
static token_template templates[2][2];

static void make_templates(void) {
    for (int chat = 0; chat < 2; chat++)
        for (int last = 0; last < 2; last++) {
            char event[400], mark[] = "@@@@@@@@@@@@@@@@";
            const char *word = option.word ? " the" : mark, *finish = last ? "\"length\"" : "null";
            int n = chat ? sprintf(event,
                                   "data: {\"id\":\"chatcmpl-0f1e2d3c4b5a\",\"object\":\"chat.completion.chunk\","
                                   "\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":"
                                   "{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                                   word, finish)
                         : sprintf(event,
                                   "data: {\"id\":\"cmpl-0f1e2d3c4b5a\",\"object\":\"text_completion\","
                                   "\"created\":1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"text\":\"%s\","
                                   "\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                                   word, finish);
            token_template *t = &templates[chat][last];
            t->len = put_chunk(t->text, event, n);
            char *at = memmem(t->text, t->len, mark, STAMP_DIGITS);
            t->stamp_at = at ? (size_t)(at - t->text) : 0;
        }
}

static size_t put_usage(char *out, connection *c, int64_t tokens) {
    int64_t serial = option.serial ? c->row->serial : 0;
    return sprintf(out,
                   "{\"prompt_tokens\":100,\"completion_tokens\":%lld,\"total_tokens\":%lld"
                   ",\"completion_tokens_details\":{\"reasoning_tokens\":%lld}}",
                   (long long)tokens, (long long)tokens + 100, (long long)serial);
}

static size_t put_tail(char *out, connection *c) {
    char event[600];
    size_t n = 0, len = 0;
    if (c->usage) {
        len = sprintf(event,
                      "data: {\"id\":\"chatcmpl-0f1e2d3c4b5a\",\"object\":\"chat.completion.chunk\","
                      "\"created\":1700000000,\"model\":\"m\",\"choices\":[],\"usage\":");
        len += put_usage(event + len, c, c->total);
        len += sprintf(event + len, "}\n\n");
        n = put_chunk(out, event, len);
    }
    n += put_chunk(out + n, "data: [DONE]\n\n", 14);
    memcpy(out + n, "0\r\n\r\n", 5);
    return n + 5;
}

/* A whole answer, padded to about 500 bytes. */
static size_t put_answer(char *out, connection *c, int64_t tokens) {
    char body[1000], text[200];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    size_t n = c->chat ? sprintf(body,
                                 "{\"id\":\"chatcmpl-0f1e2d3c4b5a\",\"object\":\"chat.completion\",\"created\":"
                                 "1700000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
                                 "\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"length\"}],\"usage\":",
                                 text)
                       : sprintf(body,
                                 "{\"id\":\"cmpl-0f1e2d3c4b5a\",\"object\":\"text_completion\",\"created\":1700000000,"
                                 "\"model\":\"m\",\"choices\":[{\"index\":0,\"text\":\"%s\",\"finish_reason\":"
                                 "\"length\"}],\"usage\":",
                                 text);
    n += put_usage(body + n, c, tokens);
    n += sprintf(body + n, "}");
    size_t head = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", n);
    memcpy(out + head, body, n);
    return head + n;
}

/* ---- connections */

static void close_connection(connection *c) {
    if (c->in_heap) heap_remove(c);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* Sends what it can and keeps the rest. False: the client is gone. */
static int put(connection *c, const char *data, size_t len) {
    ssize_t sent = 0;
    if (!c->out_len) {
        sent = send(c->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno != EAGAIN) return 0;
            sent = 0;
        }
        if ((size_t)sent == len) return 1;
        blocked_count++;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.fd = c->fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    }
    size_t left = len - sent;
    if (c->out_len + left > c->out_size) {
        c->out_size = (c->out_len + left) * 2;
        c->out = realloc(c->out, c->out_size);
        if (!c->out) fail("output");
    }
    memcpy(c->out + c->out_len, data + sent, left);
    c->out_len += left;
    return 1;
}

static int flush(connection *c) {
    ssize_t sent = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) return errno == EAGAIN;
    memmove(c->out, c->out + sent, c->out_len - sent);
    c->out_len -= sent;
    if (!c->out_len) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = c->fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
    }
    return 1;
}

/* ---- requests */

static int64_t number_after(const char *body, size_t len, const char *key) {
    const char *at = memmem(body, len, key, strlen(key));
    if (!at) return -1;
    at += strlen(key);
    const char *end = body + len;
    while (at < end && (*at == ' ' || *at == ':')) at++;
    int64_t value = 0;
    int digits = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++, digits++) value = value * 10 + (*at - '0');
    return digits ? value : -1;
}

static int true_after(const char *body, size_t len, const char *key) {
    const char *at = memmem(body, len, key, strlen(key));
    if (!at) return 0;
    at += strlen(key);
    const char *end = body + len;
    while (at < end && (*at == ' ' || *at == ':')) at++;
    return end - at >= 4 && !memcmp(at, "true", 4);
}

static void freeze(void) {
    struct timespec t = {option.freeze_ns / NS_PER_S, option.freeze_ns % NS_PER_S};
    int64_t began_ns = monotonic_ns();
    while (nanosleep(&t, &t) && errno == EINTR && !ending) {
    }
    thawed_ns = monotonic_ns();
    int64_t lasted_ns = thawed_ns - began_ns;
    for (int64_t i = 0; i < heap_count; i++) { /* all by the same amount: the heap stays one */
        heap[i]->due_ns += lasted_ns;
        heap[i]->row->base_ns += lasted_ns;
    }
}

/* False: the connection was closed. */
static int send_token(connection *c) {
    char out[2048];
    size_t n = 0;
    int first = c->sent == 0, last = c->sent == c->total - 1;
    token_template *t = &templates[c->chat][last];
    if (first) {
        memcpy(out, HEAD_STREAM, sizeof HEAD_STREAM - 1);
        n = sizeof HEAD_STREAM - 1;
    }
    memcpy(out + n, t->text, t->len);
    size_t stamp_at = n + t->stamp_at;
    n += t->len;
    if (last) n += put_tail(out + n, c);
    int64_t now_ns = monotonic_ns();
    if (t->stamp_at) {
        int64_t value = now_ns;
        for (int i = STAMP_DIGITS - 1; i >= 0; i--, value /= 10) out[stamp_at + i] = '0' + value % 10;
    }
    token_ns[c->row->token_offset + c->sent] = now_ns;
    if (first) c->row->first_write_ns = now_ns;
    c->row->last_write_ns = now_ns;
    c->row->tokens = ++c->sent;
    if (!put(c, out, n)) {
        close_connection(c);
        return 0;
    }
    if (last) {
        c->row->flags |= FLAG_DONE;
        c->row = NULL;
    } else {
        c->due_ns = c->row->base_ns + option.ttft_ns + c->sent * option.itl_ns;
    }
    return 1;
}

static int send_answer(connection *c) {
    char out[2048];
    size_t n = put_answer(out, c, c->total);
    c->row->first_write_ns = c->row->last_write_ns = monotonic_ns();
    c->row->tokens = c->total;
    c->row->flags |= FLAG_DONE;
    int alive = put(c, out, n);
    c->row = NULL;
    if (!alive) close_connection(c);
    return alive;
}

static int begin_request(connection *c, const char *head, size_t head_len, const char *body, size_t len,
                         int64_t arrival_ns) {
    if (head_len < 5 || memcmp(head, "POST ", 5)) {
        static const char models[] =
            "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"owned_by\":\"bench\"}]}";
        char out[300];
        size_t n = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                           sizeof models - 1, models);
        if (!put(c, out, n)) {
            close_connection(c);
            return 0;
        }
        return 1;
    }
    if (row_count == REQUESTS_MAX || token_count + option.tokens > TOKENS_TOTAL_MAX) {
        errno = ENOSPC;
        fail("the truth has no more room");
    }
    const char *line_end = memchr(head, '\r', head_len);
    size_t line = line_end ? (size_t)(line_end - head) : head_len;
    request_row *row = &rows[row_count++];
    int64_t asked = number_after(body, len, "\"max_tokens\"");
    if (asked < 0) asked = number_after(body, len, "\"max_completion_tokens\"");
    int probe = asked >= 0 && asked < PROBE_TOKENS;
    c->row = row;
    c->chat = memmem(head, line, "/chat/", 6) != NULL;
    c->stream = true_after(body, len, "\"stream\"");
    c->usage = true_after(body, len, "\"include_usage\"");
    c->sent = 0;
    c->total = probe ? (asked ? asked : 1) : option.tokens;
    row->max_tokens = asked;
    row->arrival_ns = arrival_ns;
    row->base_ns = arrival_ns > thawed_ns ? arrival_ns : thawed_ns;
    row->read_ns = monotonic_ns();
    row->serial = probe ? 0 : ++serial_count;
    row->flags = (c->stream ? FLAG_STREAM : 0) | (probe ? FLAG_PROBE : 0);
    row->token_offset = token_count;
    if (c->stream && !option.nonstream) token_count += c->total;
    if (probe || option.nonstream) {
        if (!c->stream || option.nonstream) return send_answer(c);
        while (c->row)
            if (!send_token(c)) return 0;
        return 1;
    }
    c->due_ns = row->base_ns + option.ttft_ns + (c->stream ? 0 : (c->total - 1) * option.itl_ns);
    heap_push(c);
    if (row->serial == option.notify_n) {
        printf("reached %lld\n", (long long)row->serial);
        fflush(stdout);
    }
    if (row->serial == option.freeze_n) freeze();
    return 1;
}

static void parse(connection *c, int64_t arrival_ns) {
    while (!c->row && c->in_len) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return;
        size_t head_len = end - c->in + 4, body_len = 0;
        for (char *at = c->in; at < end; at++)
            if (*at == '\n' && !strncasecmp(at + 1, "content-length:", 15)) body_len = strtoul(at + 16, NULL, 10);
        if (c->in_len < head_len + body_len) return;
        if (!begin_request(c, c->in, head_len, c->in + head_len, body_len, arrival_ns)) return;
        c->in_len -= head_len + body_len;
        memmove(c->in, c->in + head_len + body_len, c->in_len);
        c->in[c->in_len] = 0;
    }
}

static void readable(connection *c) {
    for (;;) {
        if (c->in_len + READ_BYTES + 1 > c->in_size) {
            c->in_size = c->in_len + READ_BYTES + 1;
            c->in = realloc(c->in, c->in_size);
            if (!c->in) fail("input");
        }
        char control[CMSG_SPACE(sizeof(struct timespec)) * 2];
        struct iovec iov = {c->in + c->in_len, READ_BYTES};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(c->fd, &message, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            close_connection(c);
            return;
        }
        int64_t now_ns = monotonic_ns(), arrival_ns = now_ns;
        for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h))
            if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec t;
                memcpy(&t, CMSG_DATA(h), sizeof t);
                arrival_ns = t.tv_sec * NS_PER_S + t.tv_nsec - (clock_ns(CLOCK_REALTIME) - now_ns);
            }
        c->in_len += n;
        c->in[c->in_len] = 0;
        int fd = c->fd;
        parse(c, arrival_ns);
        if (connections[fd] != c || (size_t)n < READ_BYTES) return;
    }
}

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listener_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= CONNECTIONS_MAX) {
            close(fd);
            continue;
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        connection *c = calloc(1, sizeof *c);
        if (!c) fail("connection");
        c->fd = fd;
        connections[fd] = c;
        accepted_count++;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* 16 numbers, then the rows, then the instants of the tokens; all int64, host order. */
static void write_truth(int fifo) {
    if (!option.truth) return;
    FILE *file = fopen(option.truth, "wb");
    if (!file) fail(option.truth);
    int64_t head[16] = {0x31485455525450LL, row_count,      token_count,    sizeof(request_row) / 8,
                        option.ttft_ns,     option.itl_ns,  accepted_count, blocked_count,
                        fifo,               option.tokens};
    fwrite(head, sizeof head, 1, file);
    fwrite(rows, sizeof *rows, row_count, file);
    fwrite(token_ns, sizeof *token_ns, token_count, file);
    if (fclose(file)) fail(option.truth);
}

static void on_term(int signal_number) {
    (void)signal_number;
    ending = 1;
}

static void *reserve(size_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) fail("reserve");
    return at;
}

static void read_options(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--nonstream")) { option.nonstream = 1; continue; }
        if (!strcmp(name, "--serial")) { option.serial = 1; continue; }
        const char *value = ++i < argc ? argv[i] : "";
        if (!strcmp(name, "--port")) option.port = atoll(value);
        else if (!strcmp(name, "--tokens")) option.tokens = atoll(value);
        else if (!strcmp(name, "--ttft-us")) option.ttft_ns = atoll(value) * NS_PER_US;
        else if (!strcmp(name, "--itl-us")) option.itl_ns = atoll(value) * NS_PER_US;
        else if (!strcmp(name, "--freeze-n")) option.freeze_n = atoll(value);
        else if (!strcmp(name, "--freeze-s")) option.freeze_ns = (int64_t)(atof(value) * 1e9);
        else if (!strcmp(name, "--notify-n")) option.notify_n = atoll(value);
        else if (!strcmp(name, "--content")) option.word = !strcmp(value, "word");
        else if (!strcmp(name, "--priority")) option.priority = value;
        else if (!strcmp(name, "--truth")) option.truth = value;
        else {
            fprintf(stderr, "sse_server: unknown option %s\n", name);
            exit(2);
        }
    }
    if (option.tokens < 1) option.tokens = 1;
}

static const char *take_priority(void) {
    struct sched_param param = {.sched_priority = 1};
    if (!strcmp(option.priority, "fifo") && !sched_setscheduler(0, SCHED_FIFO, &param)) return "fifo";
    if (strcmp(option.priority, "none") && !setpriority(PRIO_PROCESS, 0, NICE_RAISED)) return "nice";
    return "none";
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    struct sigaction action = {.sa_handler = on_term};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_TIMERSLACK, 1UL);
    rows = reserve(REQUESTS_MAX * sizeof *rows);
    token_ns = reserve(TOKENS_TOTAL_MAX * sizeof *token_ns);
    make_templates();
    listener_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(listener_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener_fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(option.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener_fd, (struct sockaddr *)&address, sizeof address) || listen(listener_fd, 4096)) fail("listen");
    socklen_t len = sizeof address;
    getsockname(listener_fd, (struct sockaddr *)&address, &len);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener_fd, &event);
    const char *priority = take_priority();
    printf("port %d\npriority %s\n", ntohs(address.sin_port), priority);
    fflush(stdout);
    struct epoll_event events[EVENTS_MAX];
    while (!ending) {
        int64_t now_ns = monotonic_ns();
        /* At most EVENTS_MAX sends before the sockets are looked at again, so that arrivals wait no long time. */
        for (int i = 0; i < EVENTS_MAX && heap_count && heap[0]->due_ns <= now_ns; i++) {
            connection *c = heap[0];
            if (c->stream) {
                if (!send_token(c)) continue;
                if (c->row) heap_sift_down(0);
                else heap_pop();
            } else {
                heap_pop();
                if (!send_answer(c)) continue;
            }
            if (!c->row && c->in_len) parse(c, monotonic_ns());
        }
        now_ns = monotonic_ns();
        int64_t wait_ns = heap_count ? heap[0]->due_ns - now_ns : IDLE_NS;
        if (wait_ns < 0) wait_ns = 0;
        if (wait_ns > IDLE_NS) wait_ns = IDLE_NS;
        struct timespec timeout = {wait_ns / NS_PER_S, wait_ns % NS_PER_S};
        int n = syscall(SYS_epoll_pwait2, epoll_fd, events, EVENTS_MAX, &timeout, NULL, 0);
        if (n < 0 && errno != EINTR) fail("epoll_pwait2 (needs Linux 5.11)");
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener_fd) {
                accept_all();
                continue;
            }
            if ((events[i].events & EPOLLOUT) && connections[fd] && !flush(connections[fd])) {
                close_connection(connections[fd]);
                continue;
            }
            if ((events[i].events & ~EPOLLOUT) && connections[fd]) readable(connections[fd]);
        }
    }
    write_truth(!strcmp(priority, "fifo"));
    return 0;
}
