/** The core for programs: the engine's files lie beside this module, and are found without being told. */
import { type Model, type OpenOptions, openModel as open } from "./core";

export * from "./core";

/** As `openModel` of the core; `wasmPaths` is the folder of this module unless told otherwise. */
export async function openModel(bytes: Uint8Array, options: OpenOptions = {}): Promise<Model> {
  const beside = new URL(/* @vite-ignore */ "./", import.meta.url).href;
  return open(bytes, { wasmPaths: beside, ...options });
}
