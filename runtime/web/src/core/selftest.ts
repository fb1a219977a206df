/** Does this model give the full model's answers in this very browser? The counterpart of selftest.py. */
import { PocketDxError } from "./errors";
import type { Output } from "./model";
import type { Manifest } from "./manifest";
import { readNpz } from "./npz";

/** What is asked of a model; `Model` has it. */
export interface Runs {
  readonly manifest: Manifest;
  run(pixels: Uint8Array, height: number, width: number, outputs?: readonly string[]): Promise<Record<string, Output>>;
}

/** One output against the golden values. */
export interface OutputCheck {
  readonly output: string;
  /** Largest absolute difference over all pictures; NaN when an answer is not a number. */
  readonly maxDifference: number;
  readonly tolerance: number;
  readonly passed: boolean;
}

export interface SelfTest {
  readonly images: number;
  readonly checks: readonly OutputCheck[];
  readonly passed: boolean;
}

interface Golden {
  readonly images: readonly { readonly pixels: Uint8Array; readonly height: number; readonly width: number }[];
  readonly outputs: ReadonlyMap<string, Output>;
  readonly tolerances: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

const REMEDY = "export the bundle again with `pocketdx export`.";

/**
 * Run a model on a bundle's golden.npz and compare.
 *
 * @param most how many pictures at most; the smallest, which are the quickest and need the graph's resize. All by
 *   default.
 *
 * Throws PocketDxError if the golden file is damaged or belongs to another model; a model that merely answers
 * otherwise gives a result that did not pass.
 */
export async function runSelfTest(
  model: Runs,
  bytes: Uint8Array,
  most: number = Number.POSITIVE_INFINITY,
): Promise<SelfTest> {
  const golden = await readGolden(bytes);
  const tolerances = golden.tolerances[model.manifest.precision];
  const names = model.manifest.outputs.filter((each) => golden.outputs.has(each));
  if (tolerances === undefined || names.length === 0) {
    throw new PocketDxError(`The golden file has nothing to compare a ${model.manifest.precision} model with; ${REMEDY}`);
  }
  const worst = new Map<string, number>(names.map((each) => [each, 0]));
  const chosen = [...golden.images.entries()].sort(([, a], [, b]) => a.pixels.length - b.pixels.length).slice(0, most);
  for (const [index, image] of chosen) {
    const answers = await model.run(image.pixels, image.height, image.width, names);
    for (const name of names) {
      const wanted = row(golden.outputs.get(name) as Output, index);
      const found = (answers[name] as Output).data;
      if (found.length !== wanted.length) {
        throw new PocketDxError(`The golden file belongs to another model (its ${name} is of another size); ${REMEDY}`);
      }
      worst.set(name, Math.max(worst.get(name) as number, difference(found, wanted))); // NaN stays NaN
    }
  }
  const checks = names.map((output) => {
    const tolerance = tolerances[output];
    if (tolerance === undefined) throw new PocketDxError(`The golden file has no tolerance for ${output}; ${REMEDY}`);
    const maxDifference = worst.get(output) as number;
    return { output, maxDifference, tolerance, passed: maxDifference <= tolerance };
  });
  return { images: chosen.length, checks, passed: checks.every((each) => each.passed) };
}

function difference(found: Float32Array, wanted: Float32Array): number {
  let largest = 0;
  for (let i = 0; i < found.length; i += 1) {
    largest = Math.max(largest, Math.abs((found[i] as number) - (wanted[i] as number)));
  }
  return largest;
}

function row(output: Output, index: number): Float32Array {
  const length = output.data.length / (output.dims[0] as number);
  return output.data.subarray(index * length, (index + 1) * length);
}

/** Contents of a golden.npz, checked; selftest.py describes the keys. */
async function readGolden(bytes: Uint8Array): Promise<Golden> {
  const arrays = await readNpz(bytes);
  const images: Golden["images"][number][] = [];
  const outputs = new Map<string, Output>();
  for (const [name, array] of [...arrays].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (name.startsWith("image_")) {
      const [height, width, channels] = array.shape;
      if (array.dtype !== "uint8" || height === undefined || width === undefined || channels !== 3) {
        throw new PocketDxError(`The golden file's ${name} is no RGB picture; ${REMEDY}`);
      }
      images.push({ pixels: array.data as Uint8Array, height, width });
    } else if (array.dtype === "float32") {
      outputs.set(name, { data: array.data as Float32Array, dims: array.shape });
    }
  }
  for (const [name, output] of outputs) {
    if (output.dims[0] !== images.length || !output.data.every(Number.isFinite)) {
      throw new PocketDxError(`The golden file's ${name} does not hold one row of numbers a picture; ${REMEDY}`);
    }
  }
  const text = arrays.get("tolerances");
  if (images.length === 0 || text?.dtype !== "text") {
    throw new PocketDxError(`The golden file lacks pictures or tolerances; ${REMEDY}`);
  }
  try {
    return { images, outputs, tolerances: JSON.parse((text.data as readonly string[])[0] ?? "") };
  } catch {
    throw new PocketDxError(`The golden file's tolerances are not JSON; ${REMEDY}`);
  }
}
