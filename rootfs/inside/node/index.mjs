// lambox's own client of the Runtime API for Node.js: runs where AWS's aws-lambda-ric does not install.
// Async, callback and streaming handlers, CommonJS and ES modules. Node's standard library only.

import * as api from "./client.mjs";
import { contextOf, isStreaming, load, setGlobals } from "./handler.mjs";
import { logError, patchConsole, setRequestId } from "./logs.mjs";

let current; // request id while an invocation runs

// Node says `beforeExit` when its event loop is empty: AWS's moment to send a callback's result.
let onEmptyLoop = null;
process.on("beforeExit", () => {
  const act = onEmptyLoop;
  onEmptyLoop = null;
  act?.();
});

async function crash(name, error, code) {
  logError(name === "Runtime.UnhandledPromiseRejection" ? "Unhandled Promise Rejection" : "Uncaught Exception", error);
  const wrapped = error instanceof Error ? error : new Error(String(error));
  if (name) {
    wrapped.message = String(error);
    wrapped.name = name;
  }
  await (current ? api.fail(current, wrapped) : api.failInit(wrapped)).catch(() => {});
  process.exit(code);
}
process.on("uncaughtException", (error) => crash("", error, 129));
process.on("unhandledRejection", (reason) => crash("Runtime.UnhandledPromiseRejection", reason, 128));

// The result of an async handler, or what a callback handler hands to its callback.
function call(handler, event, context) {
  return new Promise((resolve, reject) => {
    let settled = false;
    const done = (error, result) => {
      if (settled) return;
      settled = true;
      onEmptyLoop = null;
      if (error !== undefined && error !== null) reject(error);
      else if (context.callbackWaitsForEmptyEventLoop) onEmptyLoop = () => resolve(result);
      else resolve(result);
    };
    // Nobody called back and nothing is left to run: AWS answers null, an async handler fails.
    onEmptyLoop = () => resolve(null);
    context.done = (error, result) => ((context.callbackWaitsForEmptyEventLoop = false), done(error, result));
    context.succeed = (result) => context.done(null, result);
    context.fail = (error) => context.done(error ?? "handled");
    const returned = handler(event, context, done);
    if (typeof returned?.then !== "function") return;
    onEmptyLoop = () => {
      const error = new Error("The handler's promise will never be settled: nothing is left to run.");
      error.name = "Runtime.NodejsExit";
      reject(error);
    };
    returned.then(resolve, reject);
  }).finally(() => (onEmptyLoop = null));
}

async function invoke(handler, id, event, context) {
  try {
    const result = await call(handler, event, context);
    await api.respond(id, result);
  } catch (error) {
    logError("Invoke Error", error);
    await api.fail(id, error);
  }
}

async function invokeStreaming(handler, id, event, context) {
  const { stream, done, breakOff, started } = api.openStream(id);
  try {
    const returned = handler(event, stream, context);
    if (typeof returned?.then !== "function") {
      throw new Error("Streaming does not support non-async handlers.");
    }
    await returned;
    if (!stream.writableEnded) throw new Error("Response stream is not finished.");
  } catch (error) {
    logError("Invoke Error", error);
    if (!started() && !stream.writableEnded) {
      stream.on("error", () => {}).destroy(); // nothing was sent yet: a plain error tells more
      return api.fail(id, error);
    }
    if (!stream.writableEnded) breakOff(error);
  }
  await done;
}

async function main() {
  setGlobals();
  patchConsole();
  let handler;
  try {
    handler = await load(process.env.LAMBDA_TASK_ROOT, process.env._HANDLER);
  } catch (error) {
    logError("Init Error", error);
    await api.failInit(error);
    process.exit(1);
  }
  const run = isStreaming(handler) ? invokeStreaming : invoke;
  for (;;) {
    const { headers, body } = await api.next();
    const context = contextOf(headers);
    current = context.awsRequestId;
    setRequestId(current);
    await run(handler, current, JSON.parse(body.toString()), context);
    current = undefined;
  }
}

main().catch((error) => {
  logError("Runtime Error", error);
  process.exit(1);
});
