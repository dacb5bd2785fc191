/* The load generator: N keep-alive connections, one request in flight on each (closed loop), epoll.
 *
 *   load -p PORT [-H IPV4] [-u PATH] [-c CONNECTIONS] [-n TOTAL | -d SECONDS | -b] [-f FILE | -B BODY]
 *        [-e EXPECTED | -E] [-s FIRST] [-t TIMEOUT_S] [-o FILE]
 *
 *   PATH      one %d in it becomes the number of the request, from FIRST on: many functions, one run
 *   -b        burst: all connections are opened at once and send one request each
 *   -e, -E    the body every answer must have; -E: the one that was sent
 *   -t        a request that takes longer is an error, and its connection starts anew (default 60)
 *   -o        every latency, in the order of the answers: native doubles, microseconds
 *
 * A latency is from the moment before the request is written (burst: before its connection is opened) to
 * the last byte of the answer. Other than status 200, a wrong body, a reset or a late answer is an error
 * and has no latency. One line of JSON is printed:
 *
 *   {"answered":N,"errors":N,"first_error":"...","seconds":S,"min":us,"p50":us,"p90":us,"p99":us,"max":us}
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD, SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, TO_EOF };
#define HEAD_LIMIT 65536

typedef struct {
    int fd, state, status, close_after, busy;
    double began;
    char *head;          /* the request's head; the body is shared */
    size_t head_len, sent;
    char *in;            /* what has come: head, then what is not decoded yet */
    size_t in_len, in_cap;
    char *body;
    size_t body_len, body_cap, left;
} conn;

static struct sockaddr_in address;
static const char *path = "/", *expected;
static char *payload = "";
static size_t payload_len, expected_len;
static long total = -1, started, answered, errors, first;
static double run_for, deadline, timeout_s = 60, *latencies;
static size_t latencies_cap;
static int burst, epoll_fd, echoed;
static char first_error[200];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

static void *grown(void *old, size_t *cap, size_t need, size_t unit) {
    if (need <= *cap) return old;
    while (*cap < need) *cap = *cap ? *cap * 2 : 4096;
    void *grown = realloc(old, *cap * unit);
    if (!grown) die("realloc");
    return grown;
}

static void watch(conn *c, int how, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, how, c->fd, &event) < 0) die("epoll_ctl");
}

static void open_connection(conn *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        fprintf(stderr, "connect: %s\n", strerror(errno));
    }
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static int wanted(void) {
    return total >= 0 ? started < total : now() < deadline;
}

static void begin(conn *c) {
    char target[1024];
    const char *mark = strstr(path, "%d");
    if (mark) {
        snprintf(target, sizeof target, "%.*s%ld%s", (int)(mark - path), path, first + started, mark + 2);
    } else {
        snprintf(target, sizeof target, "%s", path);
    }
    free(c->head);
    int len = asprintf(&c->head,
                       "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                       "Content-Length: %zu\r\n\r\n",
                       target, payload_len);
    if (len < 0) die("asprintf");
    c->head_len = len;
    c->sent = c->in_len = c->body_len = 0;
    c->state = HEAD;
    c->close_after = 0;
    c->busy = 1;
    started++;
    c->began = now();
}

/* The socket takes what it can; EPOLLOUT stays on while something is left. 0: fine, -1: broken. */
static int pump_out(conn *c) {
    while (c->sent < c->head_len + payload_len) {
        int in_head = c->sent < c->head_len;
        struct iovec parts[2] = {
            {c->head + c->sent, in_head ? c->head_len - c->sent : 0},
            {payload + (in_head ? 0 : c->sent - c->head_len),
             payload_len - (in_head ? 0 : c->sent - c->head_len)},
        };
        struct msghdr message = {.msg_iov = in_head ? parts : parts + 1, .msg_iovlen = in_head ? 2 : 1};
        ssize_t done = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (done < 0) {
            if (errno == EAGAIN) return 0;
            return -1;
        }
        c->sent += done;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    return 0;
}

static void failed(const char *format, ...) {
    errors++;
    if (!first_error[0]) {
        va_list args;
        va_start(args, format);
        vsnprintf(first_error, sizeof first_error, format, args);
        va_end(args);
        for (char *p = first_error; *p; p++) {
            if (*p == '"' || *p == '\\') *p = '\'';
            if (*p < 32) *p = ' ';
        }
    }
}

static void keep(conn *c, const char *data, size_t len) {
    c->body = grown(c->body, &c->body_cap, c->body_len + len + 1, 1);
    memcpy(c->body + c->body_len, data, len);
    c->body_len += len;
    c->body[c->body_len] = 0;
}

static int parse_head(conn *c, char *end) {
    *end = 0;
    if (sscanf(c->in, "HTTP/1.%*d %d", &c->status) != 1) return -1;
    c->state = TO_EOF;
    for (char *line = strstr(c->in, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) {
            c->left = strtoul(line + 15, NULL, 10);
            c->state = SIZED;
        } else if (!strncasecmp(line, "transfer-encoding: chunked", 26)) {
            c->state = CHUNK_SIZE;
        } else if (!strncasecmp(line, "connection: close", 17)) {
            c->close_after = 1;
        }
    }
    return 0;
}

/* Decodes what has come. 1: the answer is complete, 0: more is needed, -1: not HTTP. */
static int decode(conn *c, int at_eof) {
    char *at = c->in, *stop = c->in + c->in_len, *line;
    int done = 0;
    while (!done) {
        size_t have = stop - at;
        if (c->state == HEAD) {
            line = memmem(at, have, "\r\n\r\n", 4);
            if (!line) {
                if (have > HEAD_LIMIT) return -1;
                break;
            }
            if (parse_head(c, line) < 0) return -1;
            at = line + 4;
            if (c->state == SIZED && c->left == 0) done = 1;
        } else if (c->state == SIZED || c->state == CHUNK_DATA) {
            size_t take = have < c->left ? have : c->left;
            keep(c, at, take);
            at += take;
            c->left -= take;
            if (c->left) break;
            if (c->state == SIZED) done = 1;
            c->state = CHUNK_END;
        } else if (c->state == CHUNK_END) {
            if (have < 2) break;
            at += 2;
            c->state = CHUNK_SIZE;
        } else if (c->state == CHUNK_SIZE || c->state == TRAILERS) {
            line = memmem(at, have, "\r\n", 2);
            if (!line) break;
            if (c->state == TRAILERS) {
                done = line == at;
            } else {
                c->left = strtoul(at, NULL, 16);
                c->state = c->left ? CHUNK_DATA : TRAILERS;
            }
            at = line + 2;
        } else { /* TO_EOF */
            keep(c, at, have);
            at = stop;
            if (!at_eof) break;
            c->close_after = done = 1;
        }
    }
    c->in_len = stop - at;
    memmove(c->in, at, c->in_len);
    return done;
}

static void next(conn *c, int fresh);

static void finish(conn *c) {
    double took = (now() - c->began) * 1e6;
    c->busy = 0;
    int right = echoed ? c->body_len == payload_len && !memcmp(c->body, payload, payload_len)
                       : !expected || (c->body_len == expected_len && !memcmp(c->body, expected, expected_len));
    if (c->status != 200) {
        failed("status %d: %.120s", c->status, c->body_len ? c->body : "");
    } else if (!right) {
        failed("wrong body of %zu bytes: %.120s", c->body_len, c->body_len ? c->body : "");
    } else {
        latencies = grown(latencies, &latencies_cap, answered + 1, sizeof *latencies);
        latencies[answered++] = took;
    }
    next(c, c->close_after);
}

static void broken(conn *c, const char *why) {
    if (c->busy) failed("%s", why);
    c->busy = 0;
    next(c, 1);
}

/* The next request on this connection, if one is still wanted. */
static void next(conn *c, int fresh) {
    int more = !burst && wanted();
    if (fresh || !more) {
        close(c->fd);
        c->fd = -1;
    }
    if (!more) return;
    begin(c);
    if (fresh) {
        open_connection(c);
        return;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    if (pump_out(c) < 0) broken(c, strerror(errno));
}

static void readable(conn *c) {
    for (;;) {
        c->in = grown(c->in, &c->in_cap, c->in_len + 65536, 1);
        ssize_t got = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len - 1, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got < 0) return broken(c, strerror(errno));
        if (got == 0) {
            if (c->busy && c->state == TO_EOF && decode(c, 1) == 1) return finish(c);
            return broken(c, "connection closed");
        }
        c->in_len += got;
        int done = decode(c, 0);
        if (done < 0) return broken(c, "not HTTP");
        if (done) return finish(c);
    }
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double p) {
    if (!answered) return 0;
    long rank = (long)(p * answered + 0.999999) - 1;
    return latencies[rank < 0 ? 0 : rank];
}

static char *file_content(const char *name, size_t *len) {
    FILE *file = fopen(name, "rb");
    if (!file) die(name);
    fseek(file, 0, SEEK_END);
    *len = ftell(file);
    rewind(file);
    char *data = malloc(*len + 1);
    if (!data || fread(data, 1, *len, file) != *len) die(name);
    fclose(file);
    return data;
}

int main(int argc, char **argv) {
    const char *host = "127.0.0.1", *out = NULL;
    long connections = 1, port = 0;
    for (int option; (option = getopt(argc, argv, "H:p:u:c:n:d:bf:B:e:Es:t:o:")) != -1;) {
        switch (option) {
        case 'H': host = optarg; break;
        case 'p': port = atol(optarg); break;
        case 'u': path = optarg; break;
        case 'c': connections = atol(optarg); break;
        case 'n': total = atol(optarg); break;
        case 'd': run_for = atof(optarg); break;
        case 'b': burst = 1; break;
        case 'f': payload = file_content(optarg, &payload_len); break;
        case 'B': payload = optarg; payload_len = strlen(optarg); break;
        case 'e': expected = optarg; expected_len = strlen(optarg); break;
        case 'E': echoed = 1; break;
        case 's': first = atol(optarg); break;
        case 't': timeout_s = atof(optarg); break;
        case 'o': out = optarg; break;
        default: return 2;
        }
    }
    if (burst) total = connections;
    if (!port || connections < 1 || (total < 0 && run_for <= 0)) {
        fprintf(stderr, "load: -p PORT and one of -n, -d, -b are needed\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) die(host);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    conn *all = calloc(connections, sizeof *all);
    if (epoll_fd < 0 || !all) die("start");

    double start = now(), checked = start;
    deadline = start + run_for;
    long open = connections;
    for (long i = 0; i < connections; i++) {
        all[i].fd = -1;
        if (!wanted()) continue;
        begin(&all[i]);
        open_connection(&all[i]);
    }
    while (open) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll_fd, events, 256, 100);
        for (int i = 0; i < count; i++) {
            conn *c = events[i].data.ptr;
            if (c->fd < 0) continue;
            if (events[i].events & EPOLLOUT && pump_out(c) < 0) {
                broken(c, strerror(errno));
                continue;
            }
            if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) readable(c);
        }
        if (now() - checked > 0.1) {
            checked = now();
            for (long i = 0; i < connections; i++) {
                if (all[i].busy && checked - all[i].began > timeout_s) broken(&all[i], "no answer in time");
            }
        }
        open = 0;
        for (long i = 0; i < connections && !open; i++) open += all[i].fd >= 0;
    }
    double seconds = now() - start;
    if (out) {
        FILE *file = fopen(out, "wb");
        if (!file || fwrite(latencies, sizeof *latencies, answered, file) != (size_t)answered) die(out);
        fclose(file);
    }
    if (answered) qsort(latencies, answered, sizeof *latencies, by_size);
    printf("{\"answered\":%ld,\"errors\":%ld,\"first_error\":\"%s\",\"seconds\":%.6f,"
           "\"min\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}\n",
           answered, errors, first_error, seconds, percentile(0), percentile(0.5), percentile(0.9),
           percentile(0.99), percentile(1));
    return 0;
}
