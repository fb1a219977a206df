/** From a picture file to the model's pixels, with the browser's own decoder. */
import { Squash, inspectPicture } from "../core";
import { Fault } from "./protocol";

/** Rows read back at a time: 4000 pixels wide, 2 MB instead of the whole picture's 48. */
const STRIP_PIXELS = 524_288;
const PREVIEW_SIDE = 800;

const AS_STORED: ImageBitmapOptions = { colorSpaceConversion: "none", imageOrientation: "from-image" };

/** A decoded picture, upright. Close it. Throws Fault "picture" with the reason and a remedy. */
export async function decode(file: Blob): Promise<ImageBitmap> {
  const picture = inspectPicture(new Uint8Array(await file.arrayBuffer()));
  try {
    return await createImageBitmap(new Blob([picture.bytes as BlobPart], { type: picture.type }), AS_STORED);
  } catch {
    const name = picture.type.replace("image/", "").toUpperCase();
    const why = /HEIC|AVIF/.test(name) ? `This browser cannot read ${name} pictures` : `The ${name} picture is damaged`;
    throw new Fault("picture", `${why}, or it is too large for this device; choose another one, or use the server.`);
  }
}

/** RGB pixels, size x size x 3: what the Python runtime makes of the same file. Alpha is composited on black. */
export function squash(bitmap: ImageBitmap, size: number): Uint8Array {
  const { width, height } = bitmap;
  const rows = Math.max(1, Math.min(height, Math.floor(STRIP_PIXELS / width)));
  const context = canvas(width, rows);
  const squash = new Squash(height, width, size);
  for (let top = 0; top < height; top += rows) {
    const count = Math.min(rows, height - top);
    context.clearRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
    squash.add(context.getImageData(0, 0, width, count).data, count, 4);
  }
  return squash.result();
}

/** The picture at a size for a screen. */
export async function shrink(bitmap: ImageBitmap): Promise<ImageBitmap> {
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(bitmap.width, bitmap.height));
  return createImageBitmap(bitmap, {
    resizeWidth: Math.max(1, Math.round(bitmap.width * scale)),
    resizeHeight: Math.max(1, Math.round(bitmap.height * scale)),
    resizeQuality: "medium",
  });
}

/**
 * Whether this browser hands out the pixels that are in a picture.
 *
 * Some change what is read from a canvas, a little or wholly, so that pages cannot recognise a device by it (Brave,
 * Firefox's resistFingerprinting, some extensions). Good for privacy; but then no diagnosis may come from it.
 */
export function readsTruly(): boolean {
  const side = 32;
  const context = canvas(side, side);
  const drawn = context.createImageData(side, side);
  for (let i = 0; i < drawn.data.length; i += 1) drawn.data[i] = i % 4 === 3 ? 255 : (i * 7919 + (i >> 5) * 31) % 256;
  context.putImageData(drawn, 0, 0);
  const second = canvas(side, side);
  second.drawImage(context.canvas, 0, 0);
  const read = second.getImageData(0, 0, side, side).data;
  return read.every((value, index) => value === drawn.data[index]);
}

function canvas(width: number, height: number): OffscreenCanvasRenderingContext2D {
  // Opaque: it starts black, and a transparent picture drawn on it is composited on black.
  const options = { alpha: false, willReadFrequently: true, colorSpace: "srgb" } as const;
  const context = new OffscreenCanvas(width, height).getContext("2d", options);
  if (context === null) throw new Fault("picture", "This device has no memory left for the picture; close other pages.");
  return context;
}
