// Owns the HTTP conversation with the Runtime API (SPEC 1 and 2.1). Node's standard library only.

import http from "node:http";

const API = process.env.AWS_LAMBDA_RUNTIME_API;
const [HOST, PORT] = API.split(":");
const PREFIX = "/2018-06-01/runtime";
// One connection, kept: idle ones do not hold Node's event loop, so `beforeExit` still comes.
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

let invocationId;

function request(method, path, headers, body) {
  return new Promise((resolve, reject) => {
    const options = { agent, host: HOST, port: PORT, method, path: PREFIX + path, headers };
    const sent = http.request(options, (reply) => {
      const chunks = [];
      reply.on("data", (chunk) => chunks.push(chunk));
      reply.on("error", reject);
      reply.on("end", () => {
        const answer = { status: reply.statusCode, headers: reply.headers, body: Buffer.concat(chunks) };
        if (answer.status < 300) return resolve(answer);
        reject(new Error(`${method} ${path} answered ${answer.status}: ${answer.body}`));
      });
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

function echo(headers) {
  return invocationId ? { ...headers, "Lambda-Runtime-Invocation-Id": invocationId } : headers;
}

export async function next() {
  const answer = await request("GET", "/invocation/next", {});
  invocationId = answer.headers["lambda-runtime-invocation-id"];
  return answer;
}

export function respond(id, result) {
  let text;
  try {
    text = JSON.stringify(result === undefined ? null : result) ?? "null";
  } catch (cause) {
    const error = new Error("Unable to stringify response body", { cause });
    error.name = "Runtime.JSONStringifyError";
    throw error;
  }
  const body = Buffer.from(text);
  const headers = { "Content-Type": "application/json", "Content-Length": body.length };
  return request("POST", `/invocation/${id}/response`, echo(headers), body);
}

export const fail = (id, error) => postError(`/invocation/${id}/error`, error);
export const failInit = (error) => postError("/init/error", error);

function postError(path, error) {
  const shape = errorShape(error);
  const body = Buffer.from(JSON.stringify(shape));
  const headers = {
    "Content-Type": "application/json",
    "Content-Length": body.length,
    "Lambda-Runtime-Function-Error-Type": headerText(shape.errorType),
    "Lambda-Runtime-Function-XRay-Error-Cause": headerText(xrayCause(shape)),
  };
  return request("POST", path, echo(headers), body);
}

// {errorType, errorMessage, trace}, as every Node.js runtime of AWS reports an error.
export function errorShape(error) {
  try {
    if (error instanceof Error || (error && typeof error === "object" && "stack" in error)) {
      return {
        errorType: String(error.name),
        errorMessage: String(error.message),
        trace: String(error.stack ?? "").split("\n"),
      };
    }
    return { errorType: typeof error, errorMessage: String(error), trace: [] };
  } catch {
    return { errorType: "handled", errorMessage: "the error could not be read", trace: [] };
  }
}

function xrayCause(shape) {
  const cause = {
    working_directory: process.cwd(),
    exceptions: [{ type: shape.errorType, message: shape.errorMessage, stack: [] }],
    paths: [],
  };
  const text = JSON.stringify(cause);
  return text.length < 65536 ? text : "";
}

// Header lines carry ASCII without control characters only.
function headerText(text) {
  return text.replace(/[^\x20-\x7e]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

const ERROR_TYPE = "Lambda-Runtime-Function-Error-Type";
const ERROR_BODY = "Lambda-Runtime-Function-Error-Body";

// A streamed response: the request itself is the writable the handler gets. `done` settles with the
// API's answer; `breakOff(error)` ends it with AWS's two trailers.
export function openStream(id) {
  const headers = {
    "Content-Type": "application/octet-stream",
    "Lambda-Runtime-Function-Response-Mode": "streaming",
    "Transfer-Encoding": "chunked",
    Trailer: `${ERROR_TYPE}, ${ERROR_BODY}`,
  };
  const path = `${PREFIX}/invocation/${id}/response`;
  const stream = http.request({ agent, host: HOST, port: PORT, method: "POST", path, headers: echo(headers) });
  const done = new Promise((resolve, reject) => {
    stream.on("error", reject);
    stream.on("response", (reply) => reply.on("end", resolve).on("error", reject).resume());
  });
  done.catch(() => {}); // who waits for it is told; who does not must not crash the process

  let started = false;
  const write = stream.write.bind(stream);
  stream.setContentType = (type) => {
    if (started) throw new Error("Cannot set content-type, too late.");
    stream.setHeader("Content-Type", type);
  };
  stream.write = (chunk, ...rest) => {
    if (!started) {
      started = true;
      stream._onBeforeFirstWrite?.(write);
    }
    const plain = typeof chunk === "string" || chunk instanceof Uint8Array;
    return write(plain ? chunk : JSON.stringify(chunk), ...rest);
  };
  const end = stream.end.bind(stream);
  stream.end = (chunk, ...rest) => {
    if (typeof chunk === "function") return end(chunk);
    if (chunk !== undefined && chunk !== null) stream.write(chunk, typeof rest[0] === "string" ? rest[0] : undefined);
    else if (!started) stream._onBeforeFirstWrite?.(write);
    started = true;
    return end(...rest.filter((item) => typeof item === "function"));
  };
  const breakOff = (error) => {
    const shape = errorShape(error);
    stream.addTrailers({
      [ERROR_TYPE]: headerText(shape.errorType),
      [ERROR_BODY]: Buffer.from(JSON.stringify(shape)).toString("base64"),
    });
    end();
  };
  return { stream, done, breakOff, started: () => started };
}
