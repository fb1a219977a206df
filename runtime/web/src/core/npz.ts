/** Read NumPy's .npz: a zip archive of .npy arrays; stored or deflated, nothing else. */
import { PocketDxError } from "./errors";

/** One array, in C order. Strings (dtype <U...) come as one string each. */
export interface NpyArray {
  readonly dtype: "uint8" | "float32" | "text";
  readonly shape: readonly number[];
  readonly data: Uint8Array | Float32Array | readonly string[];
}

const END_OF_DIRECTORY = 0x06054b50;
const DIRECTORY_ENTRY = 0x02014b50;
const STORED = 0;
const DEFLATED = 8;
const MAGIC = "\x93NUMPY";

/**
 * All arrays of an archive, by name without ".npy".
 *
 * Format: PKWARE's APPNOTE 4.3 for the zip, numpy.lib.format for the arrays.
 * Throws PocketDxError for bytes that are neither, and for dtypes other than uint8, float32 and text.
 */
export async function readNpz(bytes: Uint8Array): Promise<Map<string, NpyArray>> {
  const arrays = new Map<string, NpyArray>();
  try {
    for (const [name, member] of await members(bytes)) arrays.set(name.replace(/\.npy$/, ""), parseNpy(member));
  } catch (error) {
    if (error instanceof PocketDxError) throw error;
    throw new PocketDxError("This is not a whole .npz file.", { cause: error });
  }
  return arrays;
}

async function members(bytes: Uint8Array): Promise<[string, Uint8Array][]> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (view.getUint32(end, true) !== END_OF_DIRECTORY) end -= 1; // a RangeError below 0: not a zip
  const count = view.getUint16(end + 10, true);
  let entry = view.getUint32(end + 16, true);
  const found: [string, Uint8Array][] = [];
  for (let index = 0; index < count; index += 1) {
    if (view.getUint32(entry, true) !== DIRECTORY_ENTRY) throw new RangeError("no directory entry");
    const method = view.getUint16(entry + 10, true);
    const packed = view.getUint32(entry + 20, true);
    const size = view.getUint32(entry + 24, true);
    const nameLength = view.getUint16(entry + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(entry + 46, entry + 46 + nameLength));
    const local = view.getUint32(entry + 42, true);
    // The local header repeats name and extra field, with lengths of its own.
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const body = bytes.subarray(start, start + packed);
    const member = method === DEFLATED ? await inflate(body) : body;
    if ((method !== STORED && method !== DEFLATED) || member.length !== size) throw new RangeError("cut off");
    found.push([name, member]);
    entry += 46 + nameLength + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
  }
  return found;
}

async function inflate(bytes: Uint8Array): Promise<Uint8Array> {
  const stream = new Blob([bytes as Uint8Array<ArrayBuffer>]).stream();
  return new Uint8Array(await new Response(stream.pipeThrough(new DecompressionStream("deflate-raw"))).arrayBuffer());
}

function parseNpy(bytes: Uint8Array): NpyArray {
  const latin1 = (from: number, to: number) => String.fromCharCode(...bytes.subarray(from, to));
  if (latin1(0, 6) !== MAGIC) throw new RangeError("not .npy");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = bytes[6] as number;
  const start = version === 1 ? 10 : 12;
  const dataStart = start + (version === 1 ? view.getUint16(8, true) : view.getUint32(8, true));
  const header = latin1(start, dataStart);
  const descr = /'descr':\s*'([^']+)'/.exec(header)?.[1] ?? "";
  const shapeText = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1] ?? "";
  const shape = shapeText.split(",").map((each) => each.trim()).filter(Boolean).map(Number);
  const count = shape.reduce((product, each) => product * each, 1);
  if (/'fortran_order':\s*True/.test(header) && shape.length > 1) throw unreadable("an array in Fortran order");
  // A copy: float32 must be aligned, and the archive need not stay in memory. (A Node Buffer's slice makes none.)
  const data = new Uint8Array(bytes.subarray(dataStart));
  if (descr === "|u1") return { dtype: "uint8", shape, data: whole(data, count) };
  if (descr === "<f4") return { dtype: "float32", shape, data: new Float32Array(whole(data, 4 * count).buffer) };
  const letters = Number(/^<U(\d+)$/.exec(descr)?.[1] ?? Number.NaN);
  if (Number.isNaN(letters)) throw unreadable(`an array of type ${descr}`);
  const points = new Uint32Array(whole(data, 4 * letters * count).buffer);
  const texts = Array.from({ length: count }, (_, index) =>
    String.fromCodePoint(...points.subarray(index * letters, (index + 1) * letters)).replace(/\0+$/, ""),
  );
  return { dtype: "text", shape, data: texts };
}

function whole(data: Uint8Array, length: number): Uint8Array {
  if (data.length !== length) throw new RangeError("cut off");
  return data;
}

function unreadable(what: string): PocketDxError {
  return new PocketDxError(`The .npz file holds ${what}, which is not read here.`);
}
