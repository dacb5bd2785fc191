// Measured: a Java bootstrap's habits.
import com.sun.net.httpserver.HttpServer;
import java.io.RandomAccessFile;
import java.net.*;
import java.net.http.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.nio.file.*;
import java.nio.file.attribute.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;

public class Main {
    public static void main(String[] args) throws Exception {
        Path folder = Files.createTempDirectory("measured");
        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Long>> sums = new ArrayList<>();
        for (int n = 0; n < 50; n++) {
            int base = n;
            sums.add(pool.submit(() -> LongStream.range(base, base + 200000).map(x -> x * x % 7).sum()));
        }
        for (Future<Long> sum : sums) sum.get();
        pool.shutdown();
        IntStream.range(0, 100000).parallel().map(x -> x * 2).sum();

        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, 5);
            exchange.getResponseBody().write("hello".getBytes());
            exchange.close();
        });
        server.start();
        URI uri = URI.create("http://127.0.0.1:" + server.getAddress().getPort() + "/");
        HttpClient.newHttpClient().send(HttpRequest.newBuilder(uri).build(), HttpResponse.BodyHandlers.ofString());
        uri.toURL().openStream().readAllBytes();
        server.stop(0);
        try { InetAddress.getByName("example.com"); } catch (UnknownHostException none) { }
        Collections.list(NetworkInterface.getNetworkInterfaces());
        try (DatagramSocket udp = new DatagramSocket(0, InetAddress.getLoopbackAddress())) {
            udp.send(new DatagramPacket(new byte[4], 4, udp.getLocalSocketAddress()));
            udp.receive(new DatagramPacket(new byte[4], 4));
        }
        Path socket = folder.resolve("s");
        try (ServerSocketChannel unix = ServerSocketChannel.open(StandardProtocolFamily.UNIX)) {
            unix.bind(UnixDomainSocketAddress.of(socket));
            SocketChannel.open(UnixDomainSocketAddress.of(socket)).close();
            unix.accept().close();
        }
        Selector selector = Selector.open();
        selector.select(5);
        selector.close();

        Process child = new ProcessBuilder("sh", "-c", "cat | sort").directory(folder.toFile()).start();
        child.getOutputStream().write("x".getBytes());
        child.getOutputStream().close();
        child.getInputStream().readAllBytes();
        child.waitFor();
        Process slow = new ProcessBuilder("sleep", "5").start();
        slow.destroyForcibly().waitFor();

        Path file = folder.resolve("f");
        Files.write(file, new byte[300000]);
        Files.copy(file, folder.resolve("g"), StandardCopyOption.COPY_ATTRIBUTES);
        Files.move(folder.resolve("g"), folder.resolve("h"), StandardCopyOption.ATOMIC_MOVE);
        Files.createSymbolicLink(folder.resolve("l"), file);
        Files.createLink(folder.resolve("i"), file);
        Files.setLastModifiedTime(file, FileTime.fromMillis(1000));
        Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("rw-------"));
        Files.getFileStore(file).getUsableSpace();
        try { Files.setAttribute(file, "user:a", ByteBuffer.wrap(new byte[1])); } catch (Exception none) { }
        try (RandomAccessFile random = new RandomAccessFile(file.toFile(), "rw"); FileChannel channel = random.getChannel()) {
            var area = channel.map(FileChannel.MapMode.READ_WRITE, 0, 4096);
            area.put(0, (byte) 1);
            area.force();
            FileLock lock = channel.lock();
            lock.release();
            channel.force(true);
            channel.truncate(100);
            channel.transferTo(0, 100, FileChannel.open(folder.resolve("t"), StandardOpenOption.CREATE, StandardOpenOption.WRITE));
        }
        WatchService watcher = folder.getFileSystem().newWatchService();
        folder.register(watcher, StandardWatchEventKinds.ENTRY_CREATE);
        Files.createFile(folder.resolve("new"));
        watcher.poll(200, TimeUnit.MILLISECONDS);
        watcher.close();
        try (Stream<Path> tree = Files.walk(Path.of("/etc/ssl"))) { tree.count(); }
        new java.security.SecureRandom().nextInt();
        java.security.KeyPairGenerator.getInstance("RSA").generateKeyPair();
        byte[][] hoard = new byte[100][];
        for (int n = 0; n < 400; n++) hoard[n % 100] = new byte[1 << 20];
        System.gc();
        java.lang.management.ManagementFactory.getOperatingSystemMXBean().getSystemLoadAverage();
        Runtime.getRuntime().availableProcessors();
        try (Stream<Path> tree = Files.walk(folder)) {
            tree.sorted(Comparator.reverseOrder()).forEach(path -> path.toFile().delete());
        }
    }
}
