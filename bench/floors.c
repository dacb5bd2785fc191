/* What this host can do at best.
 *
 *   floors serve            the least an HTTP server can be: prints its port, reads requests with a
 *                           Content-Length, answers {"hello": {"n": 1}}; until standard input closes
 *   floors fork N           N times fork + exit + wait; one latency in microseconds per line
 *   floors spawn N CMD...   N times posix_spawn + wait of a command; the same
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

#define MOST 1024
#define ROOM 65536
static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n"
                             "{\"hello\": {\"n\": 1}}";

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int serve(void) {
    static char *buffers[MOST];
    static size_t filled[MOST];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    if (bind(listener, (void *)&address, size) || listen(listener, 1024) ||
        getsockname(listener, (void *)&address, &size)) {
        perror("floors serve");
        return 2;
    }
    for (int fd = 0; fd <= listener; fd += listener) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event); /* standard input that is /dev/null: never, fine */
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == 0) return 0;
            if (fd == listener) {
                int fresh = accept(listener, NULL, NULL);
                if (fresh < 0) continue;
                if (fresh >= MOST) {
                    close(fresh);
                    continue;
                }
                setsockopt(fresh, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                struct epoll_event event = {.events = EPOLLIN, .data.fd = fresh};
                epoll_ctl(epoll, EPOLL_CTL_ADD, fresh, &event);
                if (!buffers[fresh]) buffers[fresh] = malloc(ROOM + 1);
                filled[fresh] = 0;
                continue;
            }
            char *buffer = buffers[fd];
            ssize_t got = recv(fd, buffer + filled[fd], ROOM - filled[fd], 0);
            if (got <= 0) {
                close(fd);
                continue;
            }
            filled[fd] += got;
            buffer[filled[fd]] = 0;
            char *end = strstr(buffer, "\r\n\r\n"), *length = strcasestr(buffer, "content-length:");
            if (!end || end + 4 + (length ? atol(length + 15) : 0) > buffer + filled[fd]) continue;
            filled[fd] = 0; /* no pipelining: one request is all there is */
            if (send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL) < 0) close(fd);
        }
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "serve")) return serve();
    int forking = argc == 3 && !strcmp(argv[1], "fork");
    if (!forking && (argc < 4 || strcmp(argv[1], "spawn"))) return 2;
    for (int i = atoi(argv[2]); i > 0; i--) {
        int status;
        pid_t pid;
        double began = now_us();
        if (forking) {
            if (!(pid = fork())) _exit(0);
        } else if (posix_spawnp(&pid, argv[3], NULL, NULL, argv + 3, environ)) {
            perror(argv[3]);
            return 2;
        }
        if (pid < 0 || waitpid(pid, &status, 0) < 0 || status) {
            fprintf(stderr, "floors: status %d of %s\n", status, forking ? "fork" : argv[3]);
            return 2;
        }
        printf("%.1f\n", now_us() - began);
    }
    return 0;
}
