/**
 * Puts the engine (onnxruntime-web's WebAssembly, 14 MB) beside the built page, packed to a quarter.
 *
 * It is not in the repository; a wheel that was built after `make web` holds it. Without it the page says that it
 * cannot diagnose on the device, and uses the server.
 */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";

const engine = dirname(createRequire(import.meta.url).resolve("onnxruntime-web"));
const { version } = JSON.parse(readFileSync(join(engine, "../package.json"), "utf8"));
const wasm = readFileSync(join(engine, "ort-wasm-simd-threaded.wasm"));
const folder = join(import.meta.dirname, "../../../serve/pocketdx_serve/web/engine");
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
// Not ".gz": servers would unpack that on the way, and the page could not show how much has arrived.
writeFileSync(join(folder, `onnxruntime-web-${version}.wasmz`), gzipSync(wasm, { level: 9 }));
