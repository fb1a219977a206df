// Runs in the browser's page: fetches the model and requests from the server that it came from, posts the answers.
import { open, pack, respond, unpack } from "./respond.mjs";

const threads = Number(new URLSearchParams(location.search).get("threads"));
const post = (path, body) => fetch(path, { method: "POST", body });

async function main() {
  // Held open: the server takes its end for the end of this page.
  fetch("alive").then((response) => response.text());
  if (threads > 1 && !crossOriginIsolated) throw new Error("the page is not cross-origin isolated: no threads");
  const bytes = new Uint8Array(await (await fetch("model")).arrayBuffer());
  const model = await open(new URL("runner/pocketdx.js", location.href).href, bytes, threads);
  await post("ready", JSON.stringify({ browser: navigator.userAgent, isolated: crossOriginIsolated, threads }));
  for (;;) {
    const { content, bytes: pixels } = unpack(new Uint8Array(await (await fetch("next")).arrayBuffer()));
    const { outputs, values } = await respond(model, content.shapes, pixels);
    await post("answer", pack({ outputs }, values));
  }
}

main().catch((error) => post("error", String(error?.message ?? error)));
