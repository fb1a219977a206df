/** Open a model file and ask it; the counterpart of model.py, on onnxruntime-web. */
import { InferenceSession, Tensor, env } from "onnxruntime-web/wasm";

import { PocketDxError } from "./errors";
import { type Manifest, readManifest } from "./manifest";
import { readMetadata } from "./onnxfile";

/** Values of one output, row-major. */
export interface Output {
  readonly data: Float32Array;
  readonly dims: readonly number[];
}

export interface OpenOptions {
  /** WebAssembly threads; 1 by default. In a browser, more than 1 needs a cross-origin isolated page. */
  readonly threads?: number;
  /** Where onnxruntime-web's .mjs and .wasm files are: a folder's address, or the address of each. */
  readonly wasmPaths?: string | { readonly mjs?: string; readonly wasm?: string };
  /** The engine's WebAssembly itself, where the caller has fetched it already. */
  readonly wasmBinary?: ArrayBuffer;
}

/**
 * A PocketDx model file, ready to answer.
 *
 * One call of `run` at a time is worked on; further ones wait for it.
 */
export class Model {
  private tail: Promise<unknown> = Promise.resolve();

  private constructor(
    readonly manifest: Manifest,
    private readonly session: InferenceSession,
  ) {}

  /** See `openModel`. */
  static async open(bytes: Uint8Array, options: OpenOptions = {}): Promise<Model> {
    const manifest = readManifest(readMetadata(bytes));
    setUp(options);
    let session: InferenceSession;
    try {
      session = await InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 4 });
    } catch (error) {
      throw new PocketDxError(`The model cannot be run here: ${reason(error)}`, { cause: error });
    }
    const missing = manifest.outputs.filter((each) => !session.outputNames.includes(each));
    if (missing.length > 0 || !session.inputNames.includes("image")) {
      await session.release();
      throw new PocketDxError(`The model's graph lacks ${missing.join(", ") || "the input image"}; export it again.`);
    }
    return new Model(manifest, session);
  }

  /**
   * Run the graph on one picture; it resizes and normalises by itself.
   *
   * @param pixels RGB, 0 to 255, row by row: height x width x 3.
   * @param outputs which of the manifest's outputs; all by default.
   * @returns each output with its batch dimension of 1. The arrays are the caller's own.
   */
  async run(
    pixels: Uint8Array,
    height: number,
    width: number,
    outputs: readonly string[] = this.manifest.outputs,
  ): Promise<Record<string, Output>> {
    if (pixels.length !== height * width * 3 || pixels.length === 0) {
      throw new RangeError(`${pixels.length} bytes are not ${height} x ${width} RGB pixels`);
    }
    const turn = this.tail.then(() => this.infer(pixels, height, width, outputs));
    this.tail = turn.catch(() => undefined);
    return turn;
  }

  private async infer(pixels: Uint8Array, height: number, width: number, outputs: readonly string[]) {
    const image = new Tensor("uint8", pixels, [1, height, width, 3]);
    const found = await this.session.run({ image }, [...outputs]);
    const answers: Record<string, Output> = {};
    for (const name of outputs) {
      const tensor = found[name];
      if (tensor?.type !== "float32") throw new PocketDxError(`The model's output ${name} is not float32.`);
      answers[name] = { data: Float32Array.from(tensor.data as Float32Array), dims: [...tensor.dims] };
      tensor.dispose();
    }
    return answers;
  }

  /** Give the engine's memory back. */
  async close(): Promise<void> {
    await this.tail;
    await this.session.release();
  }
}

/**
 * Open a model file.
 *
 * The engine is started once per page, worker or process: the options of the first call hold for all.
 *
 * @param bytes the .onnx file. Throws PocketDxError if it is not a PocketDx model or cannot be run here.
 */
export async function openModel(bytes: Uint8Array, options: OpenOptions = {}): Promise<Model> {
  return Model.open(bytes, options);
}

function setUp(options: OpenOptions): void {
  env.logLevel = "fatal";
  env.wasm.numThreads = options.threads ?? 1;
  env.wasm.proxy = false;
  if (options.wasmPaths !== undefined) env.wasm.wasmPaths = options.wasmPaths;
  if (options.wasmBinary !== undefined) env.wasm.wasmBinary = options.wasmBinary;
}

function reason(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return (message.split("\n")[0] ?? "").slice(0, 300);
}
