/** The page: `npm run build` writes it into the serve package, from where it ships in the wheel. */
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, relative } from "node:path";
import { type Plugin, defineConfig } from "vite";

const ENGINE = dirname(createRequire(import.meta.url).resolve("onnxruntime-web"));
const { version } = JSON.parse(readFileSync(join(ENGINE, "../package.json"), "utf8")) as { version: string };

export default defineConfig({
  base: "./",
  define: { __ENGINE__: JSON.stringify(`engine/onnxruntime-web-${version}.wasmz`) },
  build: {
    target: "es2022",
    outDir: process.env["POCKETDX_WEB_OUT"] ?? "../../serve/pocketdx_serve/web",
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rolldownOptions: {
      input: { index: "index.html", sw: "src/page/sw.ts" },
      output: { entryFileNames: (chunk) => (chunk.name === "sw" ? "sw.js" : "assets/[name]-[hash].js") },
    },
  },
  // The engine's WebAssembly is fetched by the page itself, with progress, and kept; so it is not part of the bundle.
  resolve: { conditions: ["import", "module", "browser", "default"] },
  worker: { format: "es", plugins: () => [noWasmAsset()] },
  plugins: [noWasmAsset(), shellList()],
});

/** The engine's module names its .wasm by `new URL(..., import.meta.url)`, of which Vite would make a 14 MB asset. */
function noWasmAsset(): Plugin {
  return {
    name: "no-wasm-asset",
    enforce: "pre",
    transform(code, id) {
      if (!/ort\.wasm\.bundle\.min\.mjs/.test(id)) return null;
      return code.replace(/new URL\("(ort-wasm-simd-threaded\.wasm)",\s*import\.meta\.url\)/g, 'new URL("$1", self.location.href)');
    },
  };
}

/** Tells the service worker what the page consists of, and under which version to keep it. */
function shellList(): Plugin {
  return {
    name: "shell-list",
    enforce: "post", // index.html is written last
    generateBundle(_options, bundle) {
      const worker = Object.values(bundle).find((each) => each.fileName === "sw.js");
      if (worker?.type !== "chunk") throw new Error("no sw.js in the bundle");
      const hash = createHash("sha256");
      const files: string[] = [];
      const add = (name: string, content: string | Uint8Array) => {
        files.push(name);
        hash.update(name).update(content);
      };
      for (const each of Object.values(bundle).sort((a, b) => (a.fileName < b.fileName ? -1 : 1))) {
        if (each !== worker) add(each.fileName, each.type === "chunk" ? each.code : each.source);
      }
      for (const each of readdirSync("public", { recursive: true, withFileTypes: true })) {
        const path = join(each.parentPath, each.name);
        if (each.isFile()) add(relative("public", path), readFileSync(path));
      }
      if (!files.includes("index.html")) throw new Error("no index.html among the files of the page");
      files.sort();
      const shell = JSON.stringify({ version: hash.digest("hex").slice(0, 16), files });
      worker.code = worker.code.replace(/(["'`])__SHELL__\1/, () => JSON.stringify(shell));
    },
  };
}
