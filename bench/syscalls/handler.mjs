// Measured: a Node.js function that does, part by part, what functions do. Run by its client under strace.
import { createRequire } from "node:module";
const require = createRequire(import.meta.url);
const [fs, os, path, http, https, net, dgram, dns, crypto, zlib, child, v8, vm, util, events] = [
  "fs", "os", "path", "http", "https", "net", "dgram", "dns", "crypto", "zlib", "child_process", "v8", "vm", "util", "events",
].map((name) => require(`node:${name}`));
const { Worker } = require("node:worker_threads");
const { pipeline } = require("node:stream/promises");
const { setTimeout: sleep } = require("node:timers/promises");
const run = util.promisify(child.execFile);
const closed = (server) => new Promise((resolve) => server.close(resolve));
const listening = (server, ...where) => new Promise((resolve) => server.listen(...where, resolve));

const parts = {
  async files(folder) {
    const [one, two] = [path.join(folder, "one"), path.join(folder, "two")];
    fs.writeFileSync(one, crypto.randomBytes(300000));
    await fs.promises.copyFile(one, two, fs.constants.COPYFILE_FICLONE);
    fs.cpSync("/etc/ssl", path.join(folder, "tree"), { recursive: true, verbatimSymlinks: true });
    const watcher = fs.watch(folder, () => {});
    const handle = await fs.promises.open(one, "r+");
    await handle.read(Buffer.alloc(10), 0, 10, 0);
    await handle.write("x", 0);
    await handle.writev([Buffer.from("a"), Buffer.from("b")]);
    await handle.readv([Buffer.alloc(2)]);
    await handle.sync(); await handle.datasync(); await handle.truncate(100); await handle.utimes(1, 1);
    await handle.chmod(0o600); await handle.stat(); await handle.close();
    await fs.promises.rename(two, path.join(folder, "three"));
    await fs.promises.symlink("one", path.join(folder, "link"));
    await fs.promises.link(one, path.join(folder, "hard"));
    await fs.promises.lutimes(path.join(folder, "link"), 1, 1);
    fs.realpathSync(path.join(folder, "link")); fs.readlinkSync(path.join(folder, "link"));
    fs.chownSync(one, process.getuid(), process.getgid()); fs.accessSync(one); fs.statfsSync(folder);
    fs.mkdtempSync(path.join(folder, "t-")); fs.appendFileSync(one, "y"); fs.existsSync("/nowhere");
    for await (const _ of await fs.promises.opendir(folder, { recursive: true })) {}
    watcher.close();
    fs.watchFile(one, { interval: 10 }, () => {}); await sleep(30); fs.unwatchFile(one);
    process.chdir(folder); process.cwd(); process.umask(0o22); process.chdir("/");
    await fs.promises.rm(path.join(folder, "tree"), { recursive: true });
  },
  async http() {
    const server = http.createServer((request, response) => request.pipe(response));
    await listening(server, 0, "127.0.0.1");
    const url = `http://127.0.0.1:${server.address().port}`;
    await (await fetch(url, { method: "POST", body: "x".repeat(200000) })).text();
    const agent = new http.Agent({ keepAlive: true });
    for (let n = 0; n < 3; n++)
      await new Promise((resolve) => http.get(url, { agent }, (reply) => reply.resume().on("end", resolve)));
    agent.destroy(); server.closeAllConnections(); await closed(server);
  },
  async https(folder) {
    const [key, cert] = ["key", "cert"].map((name) => path.join(folder, name));
    await run("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", cert]);
    const server = https.createServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) }, (_, response) => response.end("x"));
    await listening(server, 0, "127.0.0.1");
    await new Promise((resolve, reject) => https.get({ host: "localhost", port: server.address().port, family: 4, ca: fs.readFileSync(cert) },
      (reply) => reply.resume().on("end", resolve)).on("error", reject));
    server.closeAllConnections(); await closed(server);
  },
  async sockets(folder) {
    const server = net.createServer((socket) => socket.end("x"));
    await listening(server, path.join(folder, "s"));
    await new Promise((resolve) => net.connect(path.join(folder, "s")).resume().on("close", resolve));
    await closed(server);
    const udp = dgram.createSocket("udp4");
    await new Promise((resolve) => udp.bind(0, "127.0.0.1", resolve));
    udp.send("x", udp.address().port, "127.0.0.1");
    await events.once(udp, "message");
    udp.setBroadcast(true); udp.setTTL(3); udp.close();
    await dns.promises.lookup("localhost");
    await dns.promises.lookup("example.com").catch(() => {});
    await new dns.promises.Resolver({ timeout: 200, tries: 1 }).resolve4("example.com").catch(() => {});
  },
  async children() {
    await run("sh", ["-c", "ls / | sort | head -2"]);
    child.execSync("true"); child.spawnSync("cat", { input: "x".repeat(100000) });
    const echo = child.spawn("cat", { stdio: "pipe", detached: true });
    echo.stdin.end("x"); await events.once(echo, "close");
    const forked = child.fork("-e", ["process.send('x'); process.disconnect()"], { execArgv: [] }).on("error", () => {});
    await Promise.race([events.once(forked, "exit"), sleep(3000)]);
    const slow = child.spawn("sleep", ["5"]); slow.kill(); await events.once(slow, "exit");
  },
  async workers() {
    const shared = new SharedArrayBuffer(4);
    const code = "const { workerData, parentPort } = require('worker_threads');" +
      "Atomics.wait(new Int32Array(workerData), 0, 0, 20); parentPort.postMessage('x');";
    await Promise.all([1, 2, 3].map(() => events.once(new Worker(code, { eval: true, workerData: shared }), "message")));
  },
  async crypto() {
    await util.promisify(crypto.pbkdf2)("a", "b", 1000, 32, "sha256");
    await util.promisify(crypto.scrypt)("a", "b", 32);
    await util.promisify(crypto.generateKeyPair)("rsa", { modulusLength: 2048 });
    crypto.createHash("sha256").update("x").digest(); crypto.randomUUID(); crypto.randomBytes(100000);
    await crypto.subtle.digest("SHA-256", Buffer.from("x"));
  },
  async streams(folder) {
    const file = path.join(folder, "f");
    fs.writeFileSync(file, "x".repeat(1000000));
    await pipeline(fs.createReadStream(file), zlib.createGzip(), fs.createWriteStream(`${file}.gz`));
    await pipeline(fs.createReadStream(`${file}.gz`), zlib.createGunzip(), fs.createWriteStream(`${file}.out`));
    zlib.brotliCompressSync("x".repeat(10000));
  },
  async wasm() {
    const code = Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0, 5, 3, 1, 0, 1, 7, 7, 1, 3, 97, 100, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 106, 11]);
    const { instance } = await WebAssembly.instantiate(code);
    for (let n = 0; n < 100000; n++) instance.exports.add(n, 1);
    new WebAssembly.Memory({ initial: 10, maximum: 100 }).grow(50);
  },
  async machine() {
    os.cpus(); os.loadavg(); os.networkInterfaces(); os.userInfo(); os.totalmem(); os.freemem(); os.uptime(); os.hostname();
    os.setPriority(0, os.getPriority(0)); os.availableParallelism(); os.version();
    process.memoryUsage(); process.resourceUsage(); process.hrtime.bigint(); process.kill(process.pid, 0); process.title = "x";
    process.report.getReport(); v8.getHeapStatistics(); v8.serialize({ a: 1 }); vm.runInNewContext("1 + 1");
    process.once("SIGUSR2", () => {}); process.kill(process.pid, "SIGUSR2"); await sleep(5);
    process.setuid(process.getuid()); process.setgid(process.getgid()); process.getgroups();
    for await (const _ of v8.getHeapSnapshot()) break;
    const { Session } = require("node:inspector"); const session = new Session(); session.connect();
    await new Promise((resolve) => session.post("Profiler.enable", () => session.post("Profiler.start", () => resolve())));
    await new Promise((resolve) => session.post("Profiler.stop", () => resolve())); session.disconnect();
  },
  async memory() {
    let hoard = Array.from({ length: 60 }, () => Buffer.alloc(1 << 20, 1));
    hoard = Array.from({ length: 300000 }, (_, n) => ({ n })); hoard.length = 0;
    for (let n = 0; n < 200; n++) new Function("a", `return a + ${n}`)(n);
    await sleep(20);
  },
};

export const handler = async () => {
  const done = {};
  for (const [name, part] of Object.entries(parts)) {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), "measured-"));
    await part(folder);
    fs.rmSync(folder, { recursive: true });
    done[name] = "done";
  }
  return done;
};
