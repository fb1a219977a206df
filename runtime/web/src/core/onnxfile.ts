/**
 * Read what is needed of an ONNX file without starting an engine; the counterpart of onnxfile.py.
 *
 * An ONNX file is one Protocol Buffers message: a sequence of (field number, wire type, value). Fields that are not
 * needed are stepped over, weights among them.
 * Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
 * Encoding: https://protobuf.dev/programming-guides/encoding/
 */
import { PocketDxError } from "./errors";

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

const GRAPH = 7;
const METADATA = 14;
const KEY = 1;
const VALUE = 2;

const UTF8 = new TextDecoder("utf-8", { fatal: true });

/** Metadata properties of an ONNX model. Throws PocketDxError for bytes that are not one whole model. */
export function readMetadata(bytes: Uint8Array): Map<string, string> {
  const metadata = new Map<string, string>();
  let hasGraph = false;
  for (const [number, value] of fields(bytes)) {
    if (value === null) continue;
    if (number === GRAPH) hasGraph = true;
    if (number === METADATA) {
      const entry = new Map<number, Uint8Array>();
      for (const [inner, bytes] of fields(value)) if (bytes !== null) entry.set(inner, bytes);
      metadata.set(text(entry.get(KEY)), text(entry.get(VALUE)));
    }
  }
  if (!hasGraph) throw notOnnx("no graph in it");
  return metadata;
}

function text(bytes: Uint8Array | undefined): string {
  try {
    return UTF8.decode(bytes ?? new Uint8Array());
  } catch {
    throw notOnnx("a metadata property is not UTF-8");
  }
}

function notOnnx(why: string): PocketDxError {
  return new PocketDxError(`This is not a whole ONNX model (${why}); export it again with \`pocketdx export\`.`);
}

/** Field number and value of each field in turn: null for varints, bytes for everything else. */
function* fields(message: Uint8Array): Generator<[number, Uint8Array | null]> {
  let position = 0;
  const varint = (): number => {
    let result = 0;
    for (let scale = 1; position < message.length && scale <= 2 ** 63; scale *= 128) {
      const byte = message[position++] as number;
      result += (byte & 0x7f) * scale; // a float, exact up to 2^53: more is no length that could fit
      if (byte < 0x80) return result;
    }
    throw notOnnx("cut off, or not protobuf");
  };
  while (position < message.length) {
    const tag = varint();
    const number = Math.floor(tag / 8);
    const wireType = tag % 8;
    if (wireType === VARINT) {
      varint();
      yield [number, null];
      continue;
    }
    let length: number;
    if (wireType === BYTES) length = varint();
    else if (wireType === FIXED32) length = 4;
    else if (wireType === FIXED64) length = 8;
    else throw notOnnx(`wire type ${wireType}`);
    if (number === 0 || position + length > message.length) throw notOnnx("cut off, or not protobuf");
    yield [number, message.subarray(position, position + length)];
    position += length;
  }
}
