// Owns the console: AWS's line format, framed onto the log descriptor where there is one (SPEC 4.2, 4.3).

import fs from "node:fs";
import { format } from "node:util";

const LEVELS = { TRACE: 0x04, DEBUG: 0x08, INFO: 0x0c, WARN: 0x10, ERROR: 0x14, FATAL: 0x18 };
const TEXT = 0xa55a0003;
const JSON_LINE = 0xa55a0002;

const asJson = process.env.AWS_LAMBDA_LOG_FORMAT?.toUpperCase() === "JSON";
const least = LEVELS[process.env.AWS_LAMBDA_LOG_LEVEL?.toUpperCase()] ?? LEVELS.TRACE;
let requestId = "undefined"; // as AWS prints it during init
let descriptor;

export function setRequestId(id) {
  requestId = id;
}

export function patchConsole() {
  const given = process.env._LAMBDA_TELEMETRY_LOG_FD;
  delete process.env._LAMBDA_TELEMETRY_LOG_FD;
  if (/^\d+$/.test(given ?? "")) descriptor = Number(given);
  console.log = (...args) => log("INFO", args);
  for (const level of Object.keys(LEVELS)) {
    console[level.toLowerCase()] = (...args) => log(level, args);
  }
}

function log(level, args) {
  if (LEVELS[level] < least) return;
  const now = new Date();
  const line = asJson ? jsonLine(level, args, now) : `${now.toISOString()}\t${requestId}\t${level}\t${format(...args)}\n`;
  emit(level, line, now);
}

// `Invoke Error` and the like: the whole error as JSON behind a tab.
export function logError(title, error) {
  const shown = JSON.stringify(error, (_, value) =>
    value instanceof Error
      ? { errorType: value.name, errorMessage: value.message, code: value.code, ...value, stack: value.stack?.split("\n") }
      : value,
  );
  if (asJson) log("ERROR", [title, error]);
  else log("ERROR", [`${title} \t${shown}`]);
}

function jsonLine(level, args, now) {
  const record = { timestamp: now.toISOString(), level, requestId };
  const error = args.find((item) => item instanceof Error);
  record.message = args.length === 1 && !error ? args[0] : format(...args);
  if (error) {
    record.errorType = error.constructor?.name ?? "UnknownError";
    record.errorMessage = error.message;
    record.stackTrace = String(error.stack ?? "").split("\n");
  }
  try {
    return JSON.stringify(record);
  } catch {
    return JSON.stringify({ ...record, message: format(record.message) });
  }
}

function emit(level, line, now) {
  if (descriptor === undefined) {
    process.stdout.write(line.replace(/\n$/, "").replace(/\n/g, "\r") + "\n");
    return;
  }
  const body = Buffer.from(line);
  const head = Buffer.alloc(16);
  head.writeUInt32BE(((asJson ? JSON_LINE : TEXT) | LEVELS[level]) >>> 0, 0);
  head.writeUInt32BE(body.length, 4);
  head.writeBigInt64BE(BigInt(now.valueOf()) * 1000n, 8);
  writeAll(Buffer.concat([head, body]));
}

function writeAll(bytes) {
  for (let sent = 0; sent < bytes.length; ) {
    try {
      sent += fs.writeSync(descriptor, bytes, sent);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}
