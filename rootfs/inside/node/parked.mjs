// Node.js, started before its function is known (the protocol stands in ../python/zygote.py). Everything that
// index.mjs needs of Node is loaded, then it waits on descriptor 61 to be told what it is.

import "node:http";
import "node:stream";
import fs from "node:fs";
import "node:path";
import "node:url";
import "node:util";

const PARKED = 61;
const MOST = 4 << 20;

function read(size) {
  const data = Buffer.alloc(size);
  for (let at = 0; at < size; ) {
    const got = fs.readSync(PARKED, data, at, size - at, null);
    if (got === 0) process.exit(0); // the supervisor is gone
    at += got;
  }
  return data;
}

function answer(kind, number) {
  const frame = Buffer.alloc(5);
  frame.write(kind);
  frame.writeUInt32LE(number, 1);
  fs.writeSync(PARKED, frame);
}

fs.writeSync(PARKED, "P");
const length = read(4).readUInt32LE();
if (length > MOST) process.exit(125);
const { argv, env, cwd } = JSON.parse(read(length).toString());
try {
  for (const key of Object.keys(process.env)) delete process.env[key];
  Object.assign(process.env, env);
  process.chdir(cwd);
} catch (error) {
  answer("S", error.errno ? Math.abs(error.errno) : 22);
  process.exit(126);
}
answer("S", 0);
fs.closeSync(PARKED);
process.argv.splice(1, Infinity, ...argv.slice(1));
await import(argv[1]);
