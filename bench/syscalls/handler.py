"""Measured: a Python function that does, part by part, what functions do. Run by AWS's client under strace."""

# mypy: ignore-errors
from __future__ import annotations

import array
import asyncio
import concurrent.futures
import contextlib
import ctypes
import fcntl
import gzip
import http.server
import json
import lzma
import mmap
import multiprocessing
import os
import random
import resource
import select
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any


def handler(event: dict[str, Any], context: Any) -> dict[str, str]:
    done = {}
    for name, part in list(globals().items()):
        if name.startswith("do_"):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    done[name] = str(part(Path(folder)) or "done")
            except ImportError as exc:
                done[name] = f"left out: {exc}"
    return done


class Loopback(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"" if self.command == "PUT" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that is done hangs up."""


@contextlib.contextmanager
def served() -> Any:
    server = Server(("127.0.0.1", 0), Loopback)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def do_boto3(folder: Path) -> None:
    import boto3

    with served() as url:
        how = {"endpoint_url": url, "region_name": "us-east-1"}
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        boto3.client("lambda", **how, **keys).invoke(FunctionName="f", Payload=b"{}")
        boto3.client("dynamodb", **how, **keys).list_tables()
        s3 = boto3.client("s3", **how, **keys)
        (folder / "up").write_bytes(b"x" * (9 << 20))
        s3.put_object(Bucket="b", Key="k", Body=b"x")
        with contextlib.suppress(Exception):  # an ETag is missing: several threads have sent parts
            s3.upload_file(str(folder / "up"), "b", "k")


def do_subprocess(folder: Path) -> None:
    subprocess.run("ls / | sort | head -3", shell=True, check=True, capture_output=True)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.communicate(b"x" * 100_000)
    subprocess.run(["sleep", "0"], start_new_session=True, cwd=folder, umask=0o77, check=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["sleep", "5"], timeout=0.05, check=False)
    os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
    os.system("true")
    os.popen("true").close()
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitid(os.P_PIDFD, os.pidfd_open(pid), os.WEXITED)


def do_threads(folder: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: sum(range(n)), range(0, 20_000, 100)))
    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=barrier.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.Event().wait(0.01)
    threading.stack_size(1 << 20)
    threading.Thread(target=time.sleep, args=(0.001,)).start()
    threading.stack_size(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    signal.sigtimedwait([signal.SIGUSR1], 1)


def square(number: int) -> int:
    return number * number


def do_multiprocessing(folder: Path) -> str:
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=theirs.send, args=("x",))
        process.start()
        ours.recv()
        process.join()
    if not os.access("/dev/shm", os.W_OK):
        return "no /dev/shm, as on AWS: Queue, Pool and Lock left out"
    queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=queue.put, args=("x",))
    process.start()
    queue.get()
    process.join()
    with multiprocessing.Pool(2) as pool:
        pool.map(square, range(20))
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        list(executor.map(square, range(20)))
    from multiprocessing import shared_memory

    room = shared_memory.SharedMemory(create=True, size=1 << 16)
    room.close()
    room.unlink()
    lock, value = multiprocessing.Lock(), multiprocessing.Value("i", 0)
    with lock, value.get_lock():
        value.value += 1
    return ""


def do_asyncio(folder: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"hello\n")
        await reader.readline()
        writer.close()
        unix = await asyncio.start_unix_server(echo, str(folder / "s"))
        unix.close()
        child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        await child.communicate(b"x")
        await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(20)))
        await asyncio.to_thread(time.sleep, 0.001)
        await asyncio.get_running_loop().getaddrinfo("localhost", 80)
        server.close()

    asyncio.run(main())


def do_sqlite(folder: Path) -> None:
    for mode in ("delete", "wal", "memory"):
        with contextlib.closing(sqlite3.connect(folder / f"{mode}.db")) as base:
            base.execute(f"pragma journal_mode={mode}")
            base.execute("pragma mmap_size=1000000")
            base.execute("create table t (a)")
            base.executemany("insert into t values (?)", ((n,) for n in range(5000)))
            base.commit()
            base.execute("select sum(a) from t order by a").fetchall()
            base.execute("vacuum")


def do_ssl(folder: Path) -> None:
    key, cert = folder / "key", folder / "cert"
    command = (
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = Server(("127.0.0.1", 0), Loopback)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    trust = ssl.create_default_context(cafile=str(cert))
    url = f"https://localhost:{server.server_address[1]}/"
    urllib.request.urlopen(url, context=trust).read()
    server.shutdown()
    server.server_close()


def do_files(folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    one.write_bytes(os.urandom(300_000))
    shutil.copy2(one, two)
    shutil.copytree("/etc/ssl", folder / "tree", symlinks=True, ignore_dangling_symlinks=True)
    for _ in os.walk(folder):
        pass
    os.chmod(one, 0o600)
    os.utime(one, (1, 1))
    os.symlink("one", folder / "link")
    os.link(one, folder / "hard")
    os.replace(two, folder / "three")
    os.mkfifo(folder / "pipe")
    os.chown(one, -1, -1)
    os.statvfs(folder)
    os.access(one, os.R_OK)
    with contextlib.suppress(OSError):
        os.setxattr(one, "user.a", b"b")
    os.getxattr(one, "user.a") if "user.a" in os.listxattr(one) else None
    with one.open("r+b") as file, (folder / "four").open("w+b") as other:
        number, to = file.fileno(), other.fileno()
        fcntl.flock(number, fcntl.LOCK_EX)
        fcntl.lockf(to, fcntl.LOCK_EX)
        os.copy_file_range(number, to, 1000)
        os.sendfile(to, number, 0, 1000)
        os.posix_fallocate(to, 0, 8192)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        os.preadv(number, [bytearray(10)], 0)
        os.pwritev(to, [b"x"], 0)
        os.pread(number, 5, 0)
        os.pwrite(to, b"y", 3)
        os.fsync(to)
        os.fdatasync(to)
        os.ftruncate(to, 10)
        with mmap.mmap(number, 0) as area:
            area[:10] = b"0123456789"
            area.flush()
            area.madvise(mmap.MADV_SEQUENTIAL)
        os.readv(number, [bytearray(10)])
        os.writev(to, [b"a", b"b"])
    os.truncate(one, 5)
    folder_fd = os.open(folder, os.O_RDONLY)
    os.stat("one", dir_fd=folder_fd)
    os.listdir(folder_fd)
    os.mkdir("new", dir_fd=folder_fd)
    os.rename("new", "newer", src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    os.fchdir(folder_fd)
    os.getcwd()
    os.chdir("/")
    os.close(folder_fd)
    os.sync()
    shutil.disk_usage(folder)
    shutil.rmtree(folder / "tree")
    with contextlib.suppress(OSError):
        os.mknod(folder / "plain")
    os.open(folder, os.O_TMPFILE | os.O_RDWR)


def do_archives(folder: Path) -> None:
    (folder / "data").write_bytes(b"data" * 10_000)
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        tar.add(folder / "data", "data")
    with tarfile.open(folder / "a.tar.gz") as tar:
        tar.extractall(folder / "out")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "data")
    gzip.compress(b"x" * 100_000)
    lzma.compress(b"x" * 100_000)


def do_os(folder: Path) -> None:
    os.getloadavg()
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.sched_yield()
    os.sched_getscheduler(0)
    os.sched_getparam(0)
    os.sched_get_priority_max(0)
    os.sched_rr_get_interval(0)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(0)
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
    os.times(), os.getgroups(), os.uname()
    os.umask(os.umask(0o22))
    os.getpgid(0), os.getsid(0), os.getppid(), os.getresuid(), os.getresgid()
    os.setuid(os.getuid()), os.setgid(os.getgid())
    os.memfd_create("x"), os.eventfd(0)
    read, write = os.pipe2(os.O_CLOEXEC)
    os.write(write, b"x")
    source = os.memfd_create("y")
    os.splice(read, source, 1)
    os.getrandom(4)
    resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
    resource.prlimit(0, resource.RLIMIT_AS)
    resource.getrusage(resource.RUSAGE_SELF)
    os.openpty()
    os.isatty(1)
    time.get_clock_info("monotonic"), time.clock_getres(time.CLOCK_REALTIME)
    random.SystemRandom().random()
    ctypes.CDLL(None).personality(0xFFFFFFFF)
    ctypes.CDLL(None).prctl(15, b"name", 0, 0, 0)
    faulty = ctypes.CDLL(None).inotify_init1(0)
    ctypes.CDLL(None).inotify_add_watch(faulty, str(folder).encode(), 2)


def do_signals(folder: Path) -> None:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.pause()
    signal.alarm(0)
    signal.getitimer(signal.ITIMER_REAL)
    os.kill(os.getpid(), 0)
    signal.raise_signal(signal.SIGALRM)
    write = os.pipe()[1]
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.set_wakeup_fd(-1)
    signal.sigpending()
    import faulthandler

    faulthandler.enable()
    faulthandler.dump_traceback_later(30)
    faulthandler.cancel_dump_traceback_later()


def do_sockets(folder: Path) -> None:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    udp.sendto(b"x", udp.getsockname())
    udp.recvfrom(10)
    one, two = socket.socketpair()
    socket.send_fds(one, [b"x"], [0])
    socket.recv_fds(two, 1, 1)
    one.sendmsg([b"a", b"b"])
    two.recvmsg(10)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "s"))
    unix.listen()
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(str(folder / "s"))
    accepted, _ = unix.accept()
    accepted.shutdown(socket.SHUT_RDWR)
    socket.create_server(("::1", 0), family=socket.AF_INET6).close() if socket.has_ipv6 else None
    with contextlib.suppress(OSError):
        socket.getaddrinfo("example.com", 80)
    socket.if_nameindex(), socket.gethostname()
    poll, epoll = select.poll(), select.epoll()
    poll.register(udp)
    epoll.register(udp.fileno())
    poll.poll(1), epoll.poll(0.001), select.select([udp], [], [], 0.001)


def do_numbers(folder: Path) -> None:
    import numpy

    big = numpy.random.default_rng(1).random((600, 600))
    numpy.linalg.svd(big @ big)
    numpy.fft.fft(big)
    numpy.save(folder / "n.npy", big)
    numpy.load(folder / "n.npy", mmap_mode="r").sum()
    numpy.memmap(folder / "m", dtype="float32", mode="w+", shape=(1000, 1000))[:] = 1
    numpy.zeros((4000, 4000)).sum()


def do_tables(folder: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"a": range(20_000), "b": ["x", "y"] * 10_000})
    frame.to_csv(folder / "t.csv")
    pandas.read_csv(folder / "t.csv").groupby("b").sum()


def do_processes(folder: Path) -> None:
    import psutil

    me = psutil.Process()
    me.memory_full_info(), me.open_files(), me.num_threads(), me.ionice(), me.cpu_affinity()
    psutil.cpu_percent(), psutil.virtual_memory(), psutil.disk_partitions(), psutil.net_if_addrs()


def do_cryptography(folder: Path) -> None:
    from cryptography.fernet import Fernet

    Fernet(Fernet.generate_key()).encrypt(b"x")


def do_memory(folder: Path) -> None:
    hoard = [bytearray(1 << 20) for _ in range(40)]
    del hoard[::2]
    array.array("d", range(1_000_000)).extend(range(10))
    area = mmap.mmap(-1, 1 << 20)
    area.resize(2 << 20)
    area.close()
    sys.setrecursionlimit(3000)
    json.dumps(list(range(200_000)))
