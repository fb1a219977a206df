/** Off the page's thread: fetches and tests the model, decodes pictures, answers. Pictures never leave it. */
import { type Model, PocketDxError, type SelfTest, openModel, runSelfTest } from "../core";
import { decode, readsTruly, shrink, squash } from "./decode";
import { type Answer, type Calls, Fault, type Heat, type Opened, type Progress, type Reply, type Request, type Sources } from "./protocol";
import { checkDigest, combined, fetchKept, keepOnly, recall, remember } from "./store";

const NO_GOLDEN =
  "The server has no test pictures (golden.npz) beside this model. Without them the model cannot be tested on this " +
  "device, and is not used.";

/**
 * All golden pictures are run when the model, the engine or the browser is new to each other; that takes seconds on a
 * phone. Each start after that runs this many again, to see that this very process computes as it should.
 */
const LATER_PICTURES = 2;

const modelKey = (digest: string) => `model/${digest}.onnx`;
const goldenKey = (digest: string) => `model/${digest}.golden.npz`;

let model: Model | null = null;

const send = (reply: Reply, transfer: Transferable[] = []) => self.postMessage(reply, { transfer });

self.addEventListener("message", async ({ data }: MessageEvent<Request>) => {
  const { id } = data;
  try {
    const value = await answer(data, (progress) => send({ id, progress }));
    send({ id, value }, "picture" in value && value.picture !== null ? [value.picture] : []);
  } catch (error) {
    send({ id, fault: describe(error) });
  }
});

async function answer(
  request: Request,
  report: (progress: Progress) => void,
): Promise<ReturnType<Calls[keyof Calls]>> {
  switch (request.call) {
    case "open":
      return open(request.argument, report);
    case "diagnose":
      return diagnose(request.argument);
    case "preview":
      return preview(request.argument);
  }
}

async function open(sources: Sources, report: (progress: Progress) => void): Promise<Opened> {
  if (!readsTruly()) {
    throw new Fault(
      "refused",
      "This browser changes the pixels that pages read from pictures (a protection against tracking), so no picture " +
        "can be diagnosed on this device.",
    );
  }
  await model?.close();
  model = null;
  const { digest, headers } = sources;
  const engineName = new URL(sources.engine).pathname.split("/").at(-1) as string;
  const engineKey = `engine/${engineName}`;
  const progress = combined("Downloading the model", report);
  const [engine, file, golden] = await Promise.all([
    fetchKept({ url: sources.engine, key: engineKey, headers: {}, report: progress() }),
    fetchKept({ url: sources.model, key: modelKey(digest), headers, report: progress(), check: (bytes) => checkDigest(bytes, digest) }),
    fetchKept({ url: sources.golden, key: goldenKey(digest), headers, report: progress(), missing: NO_GOLDEN }),
  ]);
  report({ what: "Testing the model on this device", loaded: 0, total: null });
  const opened = await openModel(file, { threads: 1, wasmBinary: await gunzip(engine) });
  const testKey = `tested/${digest}/${engineName}/${encodeURIComponent(navigator.userAgent)}`;
  const before = await recall<SelfTest>(testKey);
  const selfTest = await runSelfTest(opened, golden, before === null ? undefined : LATER_PICTURES);
  if (!selfTest.passed) {
    await opened.close();
    throw new Fault("refused", failure(selfTest));
  }
  if (before === null) await remember(testKey, selfTest);
  model = opened;
  await keepOnly([engineKey, testKey, ...[digest, ...sources.keep].flatMap((each) => [modelKey(each), goldenKey(each)])]);
  return { manifest: opened.manifest, selfTest: before ?? selfTest };
}

function failure({ images, checks }: SelfTest): string {
  const off = checks
    .filter((each) => !each.passed)
    .map((each) => `${each.output} off by ${each.maxDifference.toPrecision(2)}, allowed ${each.tolerance.toPrecision(2)}`);
  return (
    `On this device the model does not answer the ${images} test pictures as the full model does (${off.join("; ")}), ` +
    "so no picture is diagnosed on this device."
  );
}

async function diagnose(file: Blob): Promise<{ answer: Answer; picture: ImageBitmap }> {
  if (model === null) throw new Fault("other", "The model is not ready yet.");
  const { manifest } = model;
  const { size } = manifest.preprocessing;
  const started = performance.now();
  const bitmap = await decode(file);
  try {
    const pixels = squash(bitmap, size);
    const decoded = performance.now();
    const wanted = ["probabilities", "heatmap", "novelty"].filter((each) => manifest.outputs.includes(each));
    const outputs = await model.run(pixels, size, size, wanted);
    const answer = {
      probabilities: Array.from(outputs["probabilities"]?.data ?? []),
      novelty: outputs["novelty"]?.data[0] ?? null,
      heat: heat(outputs["heatmap"]),
      decodeMs: decoded - started,
      inferenceMs: performance.now() - decoded,
    };
    return { answer, picture: await shrink(bitmap) };
  } finally {
    bitmap.close();
  }
}

function heat(output: { data: Float32Array; dims: readonly number[] } | undefined): Heat[] {
  if (output === undefined) return [];
  const [, classes = 0, height = 0, width = 0] = output.dims;
  const length = height * width;
  return Array.from({ length: classes }, (_, index) => ({
    data: output.data.slice(index * length, (index + 1) * length),
    height,
    width,
  }));
}

async function preview(file: Blob): Promise<{ picture: ImageBitmap | null }> {
  try {
    const bitmap = await decode(file);
    try {
      return { picture: await shrink(bitmap) };
    } finally {
      bitmap.close();
    }
  } catch {
    return { picture: null }; // the server's answer, or refusal, says what is the matter
  }
}

async function gunzip(bytes: Uint8Array<ArrayBuffer>): Promise<ArrayBuffer> {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes.buffer; // a proxy has unpacked it on its way
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function describe(error: unknown): { kind: Fault["kind"]; message: string } {
  if (error instanceof Fault) return { kind: error.kind, message: error.message };
  if (error instanceof PocketDxError) return { kind: model === null ? "refused" : "picture", message: error.message };
  return { kind: "other", message: error instanceof Error ? error.message : String(error) };
}
