// Owns finding the function's handler and its context object.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const STREAMING = Symbol.for("aws.lambda.runtime.handler.streaming");
const PRELUDE_TYPE = "application/vnd.awslambda.http-integration-response";

function problem(name, message) {
  const error = new Error(message);
  error.name = name;
  return error;
}

// What handlers find as the global `awslambda`.
export function setGlobals() {
  const HttpResponseStream = {
    // Status and headers travel as JSON and eight NULs before the first byte (SPEC 2.4).
    from(stream, prelude) {
      stream.setContentType(PRELUDE_TYPE);
      stream._onBeforeFirstWrite = (write) => {
        write(JSON.stringify(prelude));
        write(new Uint8Array(8));
      };
      return stream;
    },
  };
  globalThis.awslambda = {
    ...globalThis.awslambda,
    HttpResponseStream,
    streamifyResponse(handler) {
      handler[STREAMING] = "response";
      return handler;
    },
  };
}

export const isStreaming = (handler) => handler[STREAMING] === "response";

export async function load(root, name) {
  if (name.includes("..")) {
    throw problem("Runtime.MalformedHandlerName", `'${name}' is not a valid handler name.`);
  }
  const [, file, member] = path.basename(name).match(/^([^.]*)\.(.*)$/) ?? [];
  if (member === undefined) throw problem("Runtime.MalformedHandlerName", "Bad handler");
  const folder = path.dirname(name);
  const module = await loadModule(root, folder, file);
  const handler = findIn(module, member) ?? findIn(module.default, member);
  if (handler === undefined) {
    throw problem("Runtime.HandlerNotFound", `${name} is undefined or not exported`);
  }
  if (typeof handler !== "function") {
    throw problem("Runtime.HandlerNotFound", `${name} is not a function`);
  }
  return handler;
}

const findIn = (module, member) => member.split(".").reduce((found, key) => found?.[key], module);

async function loadModule(root, folder, file) {
  const require = createRequire(path.join(root, "index.js"));
  const base = path.resolve(root, folder, file);
  try {
    for (const extension of ["", ".js", ".mjs", ".cjs"]) {
      const place = base + extension;
      if (!fs.existsSync(place) || !fs.statSync(place).isFile()) continue;
      // A .js file is what its nearest package.json says: import() knows, and reads CommonJS too.
      return await import(pathToFileURL(place).href);
    }
    return require(require.resolve(file, { paths: [root, path.join(root, folder)] }));
  } catch (error) {
    if (error instanceof SyntaxError) throw renamed("Runtime.UserCodeSyntaxError", error);
    if (error?.code === "MODULE_NOT_FOUND" || error?.code === "ERR_MODULE_NOT_FOUND") {
      throw renamed("Runtime.ImportModuleError", error);
    }
    throw error;
  }
}

function renamed(name, error) {
  const found = problem(name, String(error));
  found.stack = error.stack?.replace(/^\w*Error/, name);
  return found;
}

export function contextOf(headers) {
  const deadline = Number(headers["lambda-runtime-deadline-ms"]);
  const trace = headers["lambda-runtime-trace-id"];
  if (trace) process.env._X_AMZN_TRACE_ID = trace;
  else delete process.env._X_AMZN_TRACE_ID;
  const env = process.env;
  return {
    callbackWaitsForEmptyEventLoop: true,
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
    clientContext: parsed(headers["lambda-runtime-client-context"]),
    identity: parsed(headers["lambda-runtime-cognito-identity"]),
    invokedFunctionArn: headers["lambda-runtime-invoked-function-arn"],
    awsRequestId: headers["lambda-runtime-aws-request-id"],
    tenantId: headers["lambda-runtime-aws-tenant-id"],
    getRemainingTimeInMillis: () => deadline - Date.now(),
  };
}

const parsed = (text) => (text === undefined ? undefined : JSON.parse(text));
