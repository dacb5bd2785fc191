/* The small steps around bubblewrap that Python would make slow or impossible.
 *
 *   init launch UID GID TELEMETRY PROCS... -- BWRAP ARGS...
 *       On the host. Puts the descriptor TELEMETRY at 62, enters the cgroups (writes itself into each
 *       PROCS file), becomes UID:GID (-1: stays who it is), asks to die with its parent, executes bwrap.
 *       So bwrap is limited and unprivileged from its first instruction.
 *
 *   init run CONTROL ADDRESS PORT [PARKED [FILTER]]
 *       Pid 1 of the sandbox (bwrap --as-pid-1). Opens the Runtime API's listener inside the network
 *       namespace and sends it over CONTROL (a unix stream socket); starts the program and its companions
 *       as it is told to, each in a session of its own; reaps orphans; reports raw wait statuses. The
 *       descriptor PARKED (-1: none) is the program's 61: where a prepared runtime waits for its function.
 *       FILTER: a file with the system call filter of log mode, which is loaded here, not by bwrap, since
 *       it has a listener (seccomp_unotify(2)): the supervisor's, sent along with 'L'.
 *
 *   init keep FOLDER
 *       On hosts with nothing but the v1 freezer, beside the supervisor: a frozen process dies of a
 *       SIGKILL only when it is let go, so when standard input ends (the supervisor is gone, however it
 *       went) every group below FOLDER is thawed.
 *
 * Over CONTROL, host byte order:
 *   to the supervisor    'L' + SCM_RIGHTS(listener[, the filter's]) + u16 port
 *   from the supervisor  u32 length of what follows | what << 24, where `what` is 0 for the program, 1 to COMPANIONS
 *                        for that companion, with SCM_RIGHTS(its standard output and error); then
 *                        u32 nofile, u32 argc, u32 envc, NUL-terminated strings: cwd, argv, env
 *   to the supervisor    'S' u32 0  started, or  'S' u32 errno  the exec failed
 *   to the supervisor    'X' u32 wait status  of the program; without companions, pid 1 then ends
 *                        'Y' u32 number << 16 | wait status  of a companion
 *   from the supervisor  u32 8 | SIGNAL << 24, u32 what, u32 signal: to the process group of the program or of
 *                        that companion, if it lives
 *   from the supervisor  u32 SOCKET << 24, with SCM_RIGHTS(a unix socket), over which pid 1 sends
 *                        u32 0 + SCM_RIGHTS(a TCP socket of this network namespace, not connected), or u32 errno
 *
 * CONTROL belongs to pid 1 alone, and pid 1 is not dumpable: code of the same uid can neither trace it
 * nor open its descriptors. End of file on CONTROL means that the supervisor is gone: pid 1 exits, and
 * the kernel kills everything else in the pid namespace.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEYCTL_JOIN_SESSION_KEYRING 1 /* linux/keyctl.h */
#define PARKED_FD 61
#define TELEMETRY_FD 62
#define MAX_MESSAGE (4u << 20)
#define COMPANIONS 10 /* Lambda's limit on extensions */
#define SIGNAL 0x53
#define SOCKET 0x4e
#define LANDLOCK_CREATE_RULESET 444 /* the same on every architecture; older headers have none of it */
#define LANDLOCK_RESTRICT_SELF 446
#define LANDLOCK_VERSION 1 /* LANDLOCK_CREATE_RULESET_VERSION */
#define LANDLOCK_SCOPES 3 /* abstract unix sockets, signals: linux/landlock.h, ABI 6 */
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

static void die(const char *what) {
    fprintf(stderr, "lambox init: %s: %s\n", what, strerror(errno));
    _exit(125);
}

/* ---- launch ---- */

static int launch(int argc, char **argv) {
    pid_t parent = getppid();
    if (argc < 6) { errno = EINVAL; die("launch"); }
    long uid = atol(argv[2]), gid = atol(argv[3]);
    int telemetry = atoi(argv[4]), i = 5;
    if (dup2(telemetry, TELEMETRY_FD) < 0) die("dup2");
    close(telemetry);
    for (; i < argc && strcmp(argv[i], "--") != 0; i++) {
        int fd = open(argv[i], O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, "0", 1) != 1) die(argv[i]);
        close(fd);
    }
    if (i + 1 >= argc) { errno = EINVAL; die("launch"); }
    if (uid >= 0) {
        if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) die("becoming the environment's user");
    }
    /* Whoever started the supervisor may have keys in the session keyring, which a fork inherits
     * (keyrings(7)); a fresh one is empty. Where there are no keyrings there is nothing to leave. */
    syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
    /* After the change of credentials, which clears it. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL)) die("PR_SET_PDEATHSIG");
    if (getppid() != parent) _exit(125);
    execv(argv[i + 1], argv + i + 1);
    die(argv[i + 1]);
    return 125;
}

/* ---- run ---- */

/* `passed`: where to put a descriptor that came along; closed if there is one too many. */
static void take_head(int fd, void *to, size_t size, int *passed) {
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } u;
    struct iovec data = {to, size};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = u.room, .msg_controllen = sizeof u.room};
    ssize_t got;
    do got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    while (got < 0 && errno == EINTR);
    if (got != (ssize_t)size) _exit(0); /* the supervisor is gone */
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(passed, CMSG_DATA(header), sizeof *passed);
}

static void read_all(int fd, void *to, size_t size) {
    char *p = to;
    while (size) {
        ssize_t got = read(fd, p, size);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) _exit(0); /* the supervisor is gone */
        p += got;
        size -= got;
    }
}

static void tell(int fd, char what, uint32_t value) {
    char message[5];
    message[0] = what;
    memcpy(message + 1, &value, 4);
    if (send(fd, message, 5, MSG_NOSIGNAL) != 5) _exit(0);
}

static int listen_on(const char *address, uint16_t port, uint16_t *real) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t size = sizeof name;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (inet_pton(AF_INET, address, &name.sin_addr) != 1) { errno = EINVAL; die(address); }
    if (bind(fd, (struct sockaddr *)&name, size) || listen(fd, 128)) die("listening");
    if (getsockname(fd, (struct sockaddr *)&name, &size)) die("getsockname");
    *real = ntohs(name.sin_port);
    return fd;
}

/* `watch`: the filter's listener, -1 for none. */
static void send_listener(int control, int listener, int watch, uint16_t port) {
    char byte[3] = {'L'};
    memcpy(byte + 1, &port, 2);
    int fds[2] = {listener, watch}, count = watch < 0 ? 1 : 2;
    struct iovec data = {byte, 3};
    union { char room[CMSG_SPACE(sizeof fds)]; struct cmsghdr align; } u;
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = u.room, .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    if (sendmsg(control, &message, MSG_NOSIGNAL) != 3) die("sending the listener");
}

/* Loads the program in the file `filter` and returns its listener. bwrap has set no_new_privs. */
static int load(int filter) {
    struct stat about;
    if (fstat(filter, &about)) die("the filter");
    size_t size = (size_t)about.st_size;
    struct sock_filter *code = malloc(size);
    if (!code || !size || size / sizeof *code > BPF_MAXINSNS || pread(filter, code, size, 0) != (ssize_t)size) die("the filter");
    close(filter);
    struct sock_fprog program = {.len = (unsigned short)(size / sizeof *code), .filter = code};
    /* Linux 5.19: a signal does not start a call anew once the supervisor has heard of it. */
    unsigned flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
    long watch = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
    if (watch < 0 && errno == EINVAL) watch = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    if (watch < 0) die("the filter's listener");
    free(code);
    return (int)watch;
}

static char **strings(char **at, char *end, uint32_t count, uint32_t extra) {
    char **list = calloc((size_t)count + extra + 1, sizeof *list);
    if (!list) die("calloc");
    for (uint32_t i = 0; i < count; i++) {
        if (*at >= end) { errno = EPROTO; die("start message"); }
        list[i] = *at;
        *at += strlen(*at) + 1;
    }
    return list;
}

static void close_between(unsigned first, unsigned last) {
    if (first > last || syscall(SYS_close_range, first, last, 0) == 0) return;
    /* Before Linux 5.9. Descriptors of host folders may be among them: none may stay. */
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    for (unsigned fd = first; fd <= last && fd < most.rlim_max; fd++) close((int)fd);
}

/* Of all above 2, PARKED_FD (if there is one), TELEMETRY_FD and `report` stay. */
static void close_others(int report, int parked) {
    int keep[3] = {parked >= 0 ? PARKED_FD : TELEMETRY_FD, TELEMETRY_FD, report};
    if (report < TELEMETRY_FD) { keep[0] = report; keep[1] = parked >= 0 ? PARKED_FD : report; keep[2] = TELEMETRY_FD; }
    unsigned from = 3;
    for (int i = 0; i < 3; i++) {
        close_between(from, (unsigned)keep[i] - 1);
        if ((unsigned)keep[i] >= from) from = (unsigned)keep[i] + 1;
    }
    close_between(from, ~0U);
}

static void limit(int what, rlim_t value) {
    struct rlimit both = {value, value};
    if (setrlimit(what, &both)) die("setrlimit");
}

/* execvp(3) would run a file without "#!" by /bin/sh; AWS says "exec format error" to it. */
static void execute(char **args, char **env) {
    const char *path = getenv("PATH");
    if (strchr(args[0], '/') || !path) {
        execve(args[0], args, env);
        return;
    }
    int best = ENOENT;
    for (const char *end; ; path = end + 1) {
        char place[4096];
        end = strchrnul(path, ':');
        int fits = snprintf(place, sizeof place, "%.*s%s%s", (int)(end - path), path, end > path ? "/" : "./", args[0]);
        if (fits > 0 && (size_t)fits < sizeof place) execve(place, args, env);
        if (errno != ENOENT && errno != ENOTDIR && errno != EACCES) return;
        if (errno == EACCES) best = EACCES;
        if (!*end) break;
    }
    errno = best;
}

/* A core_pattern that starts a program ("|...") ignores a limit of 0, and would run it on the host for every
 * crash in here; 1 it takes for "none" (core(5)). */
static rlim_t no_core(void) {
    char first = 0;
    int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, &first, 1) != 1) first = 0;
        close(fd);
    }
    return first == '|' ? 1 : 0;
}

/* The host's supervisor may be protected from the out-of-memory killer; what runs in here never is. */
static void mortal(void) {
    prctl(PR_SET_DUMPABLE, 1); /* as pid 1 is not; without it the files of /proc/self are root's */
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t ignored = write(fd, "500", 3);
    (void)ignored;
    close(fd);
}

/* `parked` is to be descriptor 61, -1: there is none. `output` is to be 1 and 2, -1: they are what pid 1's are. */
static void become(char *cwd, char **args, char **env, uint32_t nofile, int report, int parked, int output) {
    sigset_t none;
    sigemptyset(&none);
    /* By system call: glibc keeps signals 32 and 33 to itself, and a caller may have ignored them. */
    unsigned long action[8] = {0}; /* struct kernel_sigaction: SIG_DFL, no flags, no mask */
    for (int sig = 1; sig <= 64; sig++) syscall(SYS_rt_sigaction, sig, action, NULL, 8);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (report == PARKED_FD) report = dup(report); /* CLOEXEC again below */
    if (output >= 0) { dup2(output, 1); dup2(output, 2); }
    if (parked >= 0) dup2(parked, PARKED_FD);
    fcntl(report, F_SETFD, FD_CLOEXEC);
    close_others(report, parked);
    if (output >= 0) close(TELEMETRY_FD); /* the program's */
    setsid();
    umask(022);
    mortal();
    limit(RLIMIT_CORE, no_core());
    limit(RLIMIT_RTPRIO, 0); /* the host's supervisor may have been allowed more than it uses */
    limit(RLIMIT_NICE, 0);
    limit(RLIMIT_NOFILE, nofile);
    if (chdir(cwd) == 0) {
        environ = env;
        execute(args, env);
    }
    int reason = errno;
    ssize_t ignored = write(report, &reason, sizeof reason);
    (void)ignored;
    _exit(126);
}

/* The supervisor connects it: so what it reaches is what can be reached from in here. */
static void send_socket(int over) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    uint32_t reason = fd < 0 ? (uint32_t)errno : 0;
    struct iovec data = {&reason, sizeof reason};
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } u;
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = u.room;
        message.msg_controllen = sizeof u.room;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof(int));
    }
    ssize_t ignored = sendmsg(over, &message, MSG_NOSIGNAL | MSG_DONTWAIT); /* nobody may wait for it any more */
    (void)ignored;
    if (fd >= 0) close(fd);
}

/* What runs in here: the program is the first. 0: never started, or dead and reaped. */
static pid_t running[1 + COMPANIONS];
static int companions; /* there has been one: the supervisor says when pid 1 ends */

/* One message of the supervisor's: what is to be started, or signalled. */
static void obey(int control, const char *address, uint16_t port, int *parked) {
    uint32_t length, head[3];
    int output = -1;
    take_head(control, &length, sizeof length, &output);
    uint32_t number = length >> 24;
    length &= 0xffffff;
    if (number == SIGNAL) {
        uint32_t what[2];
        if (length != sizeof what) { errno = EPROTO; die("signal message"); }
        read_all(control, what, sizeof what);
        if (what[0] <= COMPANIONS && running[what[0]] > 0) kill(-running[what[0]], (int)what[1]);
        return;
    }
    if (number == SOCKET) {
        if (length || output < 0) { errno = EPROTO; die("socket message"); }
        send_socket(output);
        close(output);
        return;
    }
    if (length < 12 || length > MAX_MESSAGE) { errno = EMSGSIZE; die("start message"); }
    if (number > COMPANIONS || running[number] || (number > 0) != (output >= 0)) { errno = EPROTO; die("start message"); }
    length -= 12;
    char *message = malloc(length + 1);
    if (!message) die("malloc");
    read_all(control, head, 12);
    read_all(control, message, length);
    message[length] = 0;
    char *at = message, *end = message + length;
    char *cwd = at;
    at += strlen(at) + 1;
    if (head[1] == 0 || head[1] > length || head[2] > length) { errno = EPROTO; die("start message"); }
    char **args = strings(&at, end, head[1], 0);
    char **env = strings(&at, end, head[2], 1);
    char api[80];
    snprintf(api, sizeof api, "AWS_LAMBDA_RUNTIME_API=%s:%u", address, port);
    env[head[2]] = api;

    int report[2];
    if (pipe2(report, O_CLOEXEC)) die("pipe2");
    pid_t child = fork();
    if (child < 0) {
        tell(control, 'S', errno);
        _exit(0);
    }
    if (child == 0) become(cwd, args, env, head[0], report[1], number ? -1 : *parked, output);
    running[number] = child;
    close(report[1]);
    if (output >= 0) close(output);
    int reason = 0;
    ssize_t got;
    do got = read(report[0], &reason, sizeof reason);
    while (got < 0 && errno == EINTR);
    close(report[0]);
    memset(message, 0, length); /* the function's secrets are its own from here on */
    free(args);
    free(env);
    free(message);
    tell(control, 'S', got == sizeof reason ? (uint32_t)reason : 0);
    if (number) {
        companions = 1;
        return;
    }
    if (*parked >= 0) close(*parked);
    *parked = -1;
    /* The pipes are the runtime's: while pid 1 held them they would never come to their end. */
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null >= 0) { dup2(null, 1); dup2(null, 2); }
    close(TELEMETRY_FD);
}

static void reap(int control) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (uint32_t number = 0; number <= COMPANIONS; number++)
            if (pid == running[number]) {
                running[number] = 0;
                if (number) {
                    tell(control, 'Y', number << 16 | (uint32_t)status);
                } else {
                    tell(control, 'X', (uint32_t)status);
                    if (!companions) _exit(0);
                }
            }
}

/* Abstract unix sockets are a network namespace's: with the host's network come those of its desktop, its
 * message bus and other lamboxes. Landlock keeps from them since Linux 6.12, and from signalling whoever is
 * outside; before, nothing does (docs/security.md). */
static void keep_to_own_sockets(void) {
    struct { uint64_t fs, net, scoped; } rules = {0, 0, LANDLOCK_SCOPES};
    if (syscall(LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_VERSION) < 6) return;
    int fd = (int)syscall(LANDLOCK_CREATE_RULESET, &rules, sizeof rules, 0);
    if (fd < 0 || syscall(LANDLOCK_RESTRICT_SELF, fd, 0)) die("landlock");
    close(fd);
}

static int run(int argc, char **argv) {
    if (argc < 5 || argc > 7) { errno = EINVAL; die("run"); }
    int parked = argc > 5 ? atoi(argv[5]) : -1;
    if (prctl(PR_SET_DUMPABLE, 0)) die("PR_SET_DUMPABLE");
    int control = atoi(argv[2]);
    fcntl(control, F_SETFD, FD_CLOEXEC);
    uint16_t port;
    int listener = listen_on(argv[3], (uint16_t)atoi(argv[4]), &port);
    int watch = argc == 7 ? load(atoi(argv[6])) : -1;
    send_listener(control, listener, watch, port);
    close(listener);
    if (watch >= 0) close(watch); /* who holds it decides what is allowed */

    if (atoi(argv[4]) == 0) keep_to_own_sockets(); /* a port of the kernel's choice: the host's network */
    sigset_t chld;
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, NULL);
    int children = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
    if (children < 0) die("signalfd");

    struct pollfd wait_for[2] = {{.fd = control, .events = POLLIN}, {.fd = children, .events = POLLIN}};
    for (;;) {
        if (poll(wait_for, 2, -1) < 0) {
            if (errno != EINTR) die("poll");
            continue;
        }
        if (wait_for[1].revents) {
            struct signalfd_siginfo drained;
            while (read(children, &drained, sizeof drained) > 0) {}
            reap(control);
        }
        if (wait_for[0].revents) obey(control, argv[3], port, &parked);
    }
    return 0;
}

/* ---- keep ---- */

static int keep(int argc, char **argv) {
    if (argc != 3) { errno = EINVAL; die("keep"); }
    char byte;
    ssize_t got;
    do got = read(0, &byte, 1);
    while (got > 0 || (got < 0 && errno == EINTR));
    DIR *folder = opendir(argv[2]);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s/freezer.state", argv[2], entry->d_name);
        int fd = entry->d_name[0] == '.' ? -1 : open(path, O_WRONLY | O_CLOEXEC);
        if (fd < 0) continue;
        ssize_t ignored = write(fd, "THAWED", 6);
        (void)ignored;
        close(fd);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "launch") == 0) return launch(argc, argv);
    if (argc > 1 && strcmp(argv[1], "run") == 0) return run(argc, argv);
    if (argc > 1 && strcmp(argv[1], "keep") == 0) return keep(argc, argv);
    fprintf(stderr, "lambox init: launch, run or keep; see init.c\n");
    return 125;
}
