// Streams its answer: every part is with the caller as soon as it is written.

export const handler = awslambda.streamifyResponse(async (event, stream) => {
  stream.setContentType("text/plain");
  for (let part = 1; part <= (event.parts ?? 5); part++) {
    stream.write(`part ${part} at ${new Date().toISOString()}\n`);
    await new Promise((resolve) => setTimeout(resolve, event.pause_ms ?? 200));
    if (event.fail_at === part) throw new Error(`broken off after part ${part}`);
  }
  stream.end();
});
