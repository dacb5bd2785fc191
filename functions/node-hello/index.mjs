// A greeting from Node.js: an ES module with an async handler.

export const handler = async (event, context) => {
  const name = event.name ?? "world";
  console.log("greeting %s, %d ms are left", name, context.getRemainingTimeInMillis());
  return { greeting: `Hello, ${name}!`, function: context.functionName, node: process.version };
};
