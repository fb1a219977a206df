/** The core as one plain ES module, with the engine's files beside it: `npm run build:runner`. */
import { copyFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { defineConfig } from "vite";

const ENGINE = dirname(createRequire(import.meta.url).resolve("onnxruntime-web"));
const OUT = "dist/runner";

export default defineConfig({
  publicDir: false,
  // The engine's own module loads its .mjs and .wasm at run time, from where `wasmPaths` says.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "import", "module", "default"] },
  build: {
    target: "es2022",
    outDir: OUT,
    emptyOutDir: true,
    minify: false,
    lib: { entry: "src/runner.ts", formats: ["es"], fileName: () => "pocketdx.js" },
    rolldownOptions: { external: [/^node:/], output: { codeSplitting: false } },
  },
  plugins: [
    {
      name: "engine-files",
      closeBundle() {
        for (const ending of ["mjs", "wasm"]) {
          const name = `ort-wasm-simd-threaded.${ending}`;
          copyFileSync(join(ENGINE, name), join(OUT, name));
        }
      },
    },
  ],
});
