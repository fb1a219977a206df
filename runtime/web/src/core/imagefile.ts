/**
 * Look at a picture's bytes before the browser decodes them, as the Python runtime does before Pillow.
 *
 * Browsers are forgiving: they show half of a picture that was cut off, turn 16 bits into 8 and CMYK into RGB each in
 * their own way, and apply colour profiles. A diagnosis must not come from such pixels. So what is cut off or not plain
 * 8-bit is refused here, and colour profiles are cut out: the model was trained on pixels without them.
 */
import { PocketDxError } from "./errors";

export interface PictureFile {
  readonly type: "image/jpeg" | "image/png" | "image/webp" | "image/bmp" | "image/heic" | "image/avif";
  /** The file without its colour profile; the very bytes given where there was none. */
  readonly bytes: Uint8Array;
}

/** Check a file. Throws PocketDxError, with the reason and a remedy, for what cannot be diagnosed from here. */
export function inspectPicture(bytes: Uint8Array): PictureFile {
  if (bytes.length === 0) throw new PocketDxError("The file is empty; choose another one.");
  if (starts(bytes, [0xff, 0xd8, 0xff])) return { type: "image/jpeg", bytes: jpeg(bytes) };
  if (starts(bytes, [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a])) return { type: "image/png", bytes: png(bytes) };
  if (ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 12) === "WEBP") return { type: "image/webp", bytes: webp(bytes) };
  if (ascii(bytes, 0, 2) === "BM") return { type: "image/bmp", bytes };
  if (ascii(bytes, 4, 8) === "ftyp") {
    const brand = ascii(bytes, 8, 12);
    if (/^(heic|heix|heim|heis|mif1|msf1)$/.test(brand)) return { type: "image/heic", bytes };
    if (/^avi[fs]$/.test(brand)) return { type: "image/avif", bytes };
  }
  if (starts(bytes, [0x49, 0x49, 0x2a, 0x00]) || starts(bytes, [0x4d, 0x4d, 0x00, 0x2a])) throw elsewhere("A TIFF");
  if (ascii(bytes, 128, 132) === "DICM") throw elsewhere("A DICOM file");
  throw new PocketDxError("This is not a picture that can be read here; choose a JPEG, PNG or WebP file.");
}

function elsewhere(what: string): PocketDxError {
  return new PocketDxError(`${what} cannot be read in a browser; switch to the server, or save it as PNG.`);
}

function cutOff(what: string): PocketDxError {
  return new PocketDxError(`The ${what} file is cut off or damaged; copy it again from where it came from.`);
}

function notPlain(what: string): PocketDxError {
  return new PocketDxError(`${what}, which browsers read each in their own way; switch to the server.`);
}

const SOI = 0xd8;
const EOI = 0xd9;
const SOS = 0xda;
const APP2 = 0xe2;
const NOT_FRAMES = new Set([0xc4, 0xc8, 0xcc]);

/** Walk a JPEG by its markers (ITU-T T.81, annex B) to its end; without ICC profiles (APP2). */
function jpeg(bytes: Uint8Array): Uint8Array {
  const profiles: [number, number][] = [];
  let scans = 0;
  let framed = false;
  let position = 2;
  for (;;) {
    // In entropy-coded data 0xFF is followed by a stuffed 0, a restart number or a fill byte; the rest are markers.
    position = bytes.indexOf(0xff, position);
    if (position < 0 || position + 1 >= bytes.length) throw cutOff("JPEG");
    const marker = bytes[position + 1] as number;
    if (marker === 0 || marker === 0xff || (marker >= 0xd0 && marker < SOI)) {
      position += marker === 0xff ? 1 : 2;
      continue;
    }
    if (marker === EOI && framed && scans > 0) return without(bytes, profiles);
    const end = position + 2 + (((bytes[position + 2] ?? 0) << 8) | (bytes[position + 3] ?? 0));
    if (marker === EOI || marker === SOI || end < position + 4 || end > bytes.length) throw cutOff("JPEG");
    if (marker >= 0xc0 && marker <= 0xcf && !NOT_FRAMES.has(marker)) {
      framed = true;
      if (bytes[position + 4] !== 8) throw notPlain("This JPEG has more than 8 bits a colour");
      if (bytes[position + 9] === 4) throw notPlain("This JPEG is made for print (CMYK)");
    } else if (marker === SOS) {
      scans += 1;
    } else if (marker === APP2 && ascii(bytes, position + 4, position + 15) === "ICC_PROFILE") {
      profiles.push([position, end]);
    }
    position = end;
  }
}

const COLOUR_CHUNKS = new Set(["iCCP", "gAMA", "cHRM", "sRGB", "cICP", "mDCV", "cLLI"]);

/** Walk a PNG by its chunks (W3C PNG, third edition) to its end; without those that would change its colours. */
function png(bytes: Uint8Array): Uint8Array {
  const colours: [number, number][] = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let position = 8; position + 12 <= bytes.length; ) {
    const end = position + 12 + view.getUint32(position);
    const type = ascii(bytes, position + 4, position + 8);
    if (end > bytes.length) break;
    if (type === "IHDR" && bytes[position + 16] === 16) throw notPlain("This PNG has 16 bits a colour");
    if (type === "acTL") throw new PocketDxError("This PNG is animated; save the one picture that is meant.");
    if (COLOUR_CHUNKS.has(type)) colours.push([position, end]);
    if (type === "IEND") return without(bytes, colours);
    position = end;
  }
  throw cutOff("PNG");
}

/** Walk a WebP by its chunks (RFC 9649); without its ICC profile. */
function webp(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const size = 8 + view.getUint32(4, true);
  if (size > bytes.length) throw cutOff("WebP");
  const profiles: [number, number][] = [];
  let flags = -1;
  for (let position = 12; position + 8 <= size; ) {
    const type = ascii(bytes, position, position + 4);
    const length = view.getUint32(position + 4, true);
    const end = position + 8 + length + (length % 2);
    if (type === "VP8X") flags = position + 8;
    if (type === "ANIM") throw new PocketDxError("This WebP is animated; save the one picture that is meant.");
    if (type === "ICCP") profiles.push([position, end]);
    position = end;
  }
  if (profiles.length === 0 || flags < 0) return bytes;
  const rest = without(bytes, profiles);
  new DataView(rest.buffer).setUint32(4, rest.length - 8 - (bytes.length - size), true);
  rest[flags] = (rest[flags] as number) & ~0x20; // "has an ICC profile"; VP8X is always the first chunk
  return rest;
}

function without(bytes: Uint8Array, parts: readonly [number, number][]): Uint8Array {
  if (parts.length === 0) return bytes;
  const rest = new Uint8Array(bytes.length - parts.reduce((sum, [from, to]) => sum + to - from, 0));
  let read = 0;
  let written = 0;
  for (const [from, to] of [...parts, [bytes.length, bytes.length] as const]) {
    rest.set(bytes.subarray(read, from), written);
    written += from - read;
    read = to;
  }
  return rest;
}

function starts(bytes: Uint8Array, magic: readonly number[]): boolean {
  return magic.every((byte, index) => bytes[index] === byte);
}

function ascii(bytes: Uint8Array, from: number, to: number): string {
  return String.fromCharCode(...bytes.subarray(from, to));
}
