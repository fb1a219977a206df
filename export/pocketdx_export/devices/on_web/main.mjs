// Runs one model with PocketDx's runtime for the web, in this Node or in a headless browser, and answers as
// devices/worker.py says. Node's own modules alone.
//
//     node main.mjs node RUNNER FOLDER THREADS
//     node main.mjs browser RUNNER FOLDER THREADS BROWSER
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath, pathToFileURL } from "node:url";

import { open, pack, respond, unpack } from "./respond.mjs";

const [where, runner, folder, threads, browser] = process.argv.slice(2);
const say = (content) => writeSync(1, `${JSON.stringify(content)}\n`);
console.log = console.info = console.error; // what libraries print is not an answer

const HERE = fileURLToPath(new URL(".", import.meta.url));
const TYPES = { ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm" };
const HEADERS = {
  // Without the two, a page has no shared memory and so no threads.
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cache-Control": "no-store",
};
const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--no-default-browser-check",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-extensions",
  "--disable-dev-shm-usage",
  "--disable-renderer-backgrounding",
];

async function inNode() {
  const bytes = new Uint8Array(readFileSync(join(folder, "model")));
  const model = await open(pathToFileURL(join(runner, "pocketdx.js")).href, bytes, Number(threads));
  return {
    about: { software: { node: process.versions.node }, threads: Number(threads) },
    ask: (shapes, pixels) => respond(model, shapes, pixels),
  };
}

/** Serve the page on loopback, under a secret path, and start the browser on it. */
function inBrowser() {
  return new Promise((resolve, reject) => {
    let fail = reject; // of the page's start, then of the request that waits
    let answered = null;
    let waiting = null; // the page's response that gets the next request
    let queued = null;
    const root = `/${randomBytes(16).toString("hex")}/`;
    const handOut = () => {
      if (!waiting || !queued) return;
      waiting.writeHead(200, HEADERS).end(queued);
      waiting = queued = null;
    };
    const ask = (shapes, pixels) =>
      new Promise((yes, no) => {
        [answered, fail] = [yes, no];
        queued = pack({ shapes }, pixels);
        handOut();
      });
    const posts = {
      ready: (body) => {
        const { browser: agent, ...rest } = JSON.parse(body.toString());
        const version = /Chrom(?:e|ium)\/([\d.]+)/.exec(agent)?.[1] ?? agent;
        resolve({ about: { software: { chromium: version }, ...rest }, ask });
      },
      answer: (body) => {
        const { content, bytes } = unpack(new Uint8Array(body));
        answered({ outputs: content.outputs, values: bytes });
      },
      error: (body) => fail(new Error(body.toString())),
    };
    const server = createServer((request, response) => {
      const { pathname } = new URL(request.url, "http://127.0.0.1");
      const name = pathname.startsWith(root) ? pathname.slice(root.length) : null;
      if (request.method === "POST" && name in posts) {
        const chunks = [];
        request.on("data", (chunk) => chunks.push(chunk));
        request.on("end", () => {
          response.writeHead(204, HEADERS).end();
          posts[name](Buffer.concat(chunks));
        });
      } else if (name === "next") {
        waiting = response;
        handOut();
      } else if (name === "alive") {
        response.writeHead(200, HEADERS).flushHeaders();
        request.on("close", () => fail(new Error("the browser's page is gone: it crashed, or ran out of memory")));
      } else {
        const found = name === null ? null : read(name);
        response.writeHead(found ? 200 : 404, { ...HEADERS, "Content-Type": found?.type ?? "text/plain" });
        response.end(found?.content ?? "");
      }
    });
    server.listen(0, "127.0.0.1", () => {
      const profile = join(folder, "profile");
      mkdirSync(profile);
      const url = `http://127.0.0.1:${server.address().port}${root}?threads=${threads}`;
      const started = spawn(browser, [...FLAGS, `--user-data-dir=${profile}`, url], {
        stdio: ["ignore", "ignore", "inherit"],
      });
      started.on("error", (error) => fail(error));
      started.on("exit", (code, signal) => fail(new Error(`the browser ended (${signal ?? `status ${code}`})`)));
    });
  });
}

function read(name) {
  if (name === "") {
    const content = '<!doctype html><meta charset="utf-8"><script type="module" src="page.mjs"></script>';
    return { type: "text/html; charset=utf-8", content };
  }
  if (name === "model") return { type: "application/octet-stream", content: readFileSync(join(folder, "model")) };
  const file = /^(?:runner\/([\w.-]+)|([\w]+\.mjs))$/.exec(name);
  if (!file) return null;
  try {
    const content = readFileSync(file[1] ? join(runner, file[1]) : join(HERE, file[2]));
    return { type: TYPES[extname(name)] ?? "application/octet-stream", content };
  } catch {
    return null; // the browser asks for more than there is, its icon for one
  }
}

async function main() {
  const { about, ask } = await (where === "browser" ? inBrowser() : inNode());
  say({ ready: { architecture: "wasm32", ...about } });
  for await (const line of createInterface({ input: process.stdin })) {
    const { shapes } = JSON.parse(line);
    const { outputs, values } = await ask(shapes, new Uint8Array(readFileSync(join(folder, "pictures"))));
    writeFileSync(join(folder, "answers"), values);
    say({ outputs });
  }
}

main()
  .then(() => process.exit(0))
  .catch((error) => {
    say({ error: String(error?.message ?? error).split("\n")[0] });
    process.exit(1);
  });
