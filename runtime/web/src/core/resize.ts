/**
 * Pillow's antialiased bilinear resize, to the last bit.
 *
 * The Python runtime squashes a picture with Pillow before the graph sees it. The same arithmetic here (Pillow's
 * Resample.c, 8 bits per channel: triangle filter, weights in fixed point, rows first, both passes rounded to 8 bits)
 * gives the page the same pixels as the server, and needs no more memory than a few rows: the graph's own resize of a
 * 12-megapixel photograph would take 300 MB of float32.
 */

const PRECISION_BITS = 32 - 8 - 2;
const HALF = 1 << (PRECISION_BITS - 1);
const CHANNELS = 3;

interface Weights {
  /** First source index of each result. */
  readonly starts: Int32Array;
  /** How many source values each result takes. */
  readonly counts: Int32Array;
  /** `stride` weights for each result, in units of 2^-22. */
  readonly values: Int32Array;
  readonly stride: number;
}

/** Weights for `source` values to `size`; Pillow's precompute_coeffs and normalize_coeffs_8bpc. */
function weights(source: number, size: number): Weights {
  const scale = source / size;
  const filterScale = Math.max(scale, 1);
  const support = filterScale; // of the triangle filter: 1
  const stride = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(size);
  const counts = new Int32Array(size);
  const values = new Int32Array(size * stride);
  const row = new Float64Array(stride);
  for (let target = 0; target < size; target += 1) {
    const center = (target + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(source, Math.trunc(center + support + 0.5)) - start;
    let sum = 0;
    for (let i = 0; i < count; i += 1) {
      const weight = Math.max(0, 1 - Math.abs((i + start - center + 0.5) * (1 / filterScale)));
      row[i] = weight;
      sum += weight;
    }
    for (let i = 0; i < count; i += 1) {
      const weight = sum === 0 ? (row[i] as number) : (row[i] as number) / sum;
      values[target * stride + i] = Math.trunc(0.5 + weight * (1 << PRECISION_BITS));
    }
    starts[target] = start;
    counts[target] = count;
  }
  return { starts, counts, values, stride };
}

/** Squashes a picture to a square while its rows come in, strip by strip. */
export class Squash {
  private readonly across: Weights;
  private readonly narrow: Uint8Array;
  private rows = 0;

  /**
   * @param height of the picture, pixels
   * @param width of the picture, pixels
   * @param size side of the result, pixels
   */
  constructor(
    private readonly height: number,
    private readonly width: number,
    private readonly size: number,
  ) {
    this.across = weights(width, size);
    this.narrow = new Uint8Array(height * size * CHANNELS);
  }

  /**
   * Take the next rows.
   *
   * @param pixels `rows` x width x `step`
   * @param step bytes a pixel: 3 for RGB, 4 for RGBA, whose alpha is left out
   */
  add(pixels: Uint8Array | Uint8ClampedArray, rows: number, step: 3 | 4): void {
    if (this.rows + rows > this.height || pixels.length < rows * this.width * step) {
      throw new RangeError("more rows than the picture has, or fewer pixels than the rows");
    }
    const { starts, counts, values, stride } = this.across;
    const { size, width, narrow } = this;
    let out = this.rows * size * CHANNELS;
    if (width === size) {
      for (let pixel = 0; pixel < rows * width * step; pixel += step) {
        narrow[out] = pixels[pixel] as number;
        narrow[out + 1] = pixels[pixel + 1] as number;
        narrow[out + 2] = pixels[pixel + 2] as number;
        out += CHANNELS;
      }
    } else {
      for (let row = 0; row < rows; row += 1) {
        const line = row * width * step;
        for (let target = 0; target < size; target += 1) {
          let red = HALF;
          let green = HALF;
          let blue = HALF;
          let weight = target * stride;
          const last = weight + (counts[target] as number);
          for (let pixel = line + (starts[target] as number) * step; weight < last; weight += 1, pixel += step) {
            const value = values[weight] as number;
            red += (pixels[pixel] as number) * value;
            green += (pixels[pixel + 1] as number) * value;
            blue += (pixels[pixel + 2] as number) * value;
          }
          narrow[out] = red >> PRECISION_BITS; // weights are positive and sum to 1: no clipping is needed
          narrow[out + 1] = green >> PRECISION_BITS;
          narrow[out + 2] = blue >> PRECISION_BITS;
          out += CHANNELS;
        }
      }
    }
    this.rows += rows;
  }

  /** The square, RGB, size x size x 3, once all rows are in. */
  result(): Uint8Array {
    if (this.rows !== this.height) throw new RangeError(`${this.rows} of ${this.height} rows have come in`);
    const { height, size, narrow } = this;
    if (height === size) return narrow;
    const { starts, counts, values, stride } = weights(height, size);
    const line = size * CHANNELS;
    const square = new Uint8Array(size * line);
    const sums = new Int32Array(line);
    for (let target = 0; target < size; target += 1) {
      sums.fill(HALF);
      for (let i = 0; i < (counts[target] as number); i += 1) {
        const value = values[target * stride + i] as number;
        const from = ((starts[target] as number) + i) * line;
        for (let x = 0; x < line; x += 1) sums[x] = (sums[x] as number) + (narrow[from + x] as number) * value;
      }
      for (let x = 0; x < line; x += 1) square[target * line + x] = (sums[x] as number) >> PRECISION_BITS;
    }
    return square;
  }
}

/** Squash RGB pixels (height x width x 3) to size x size x 3. */
export function resize(pixels: Uint8Array, height: number, width: number, size: number): Uint8Array {
  const squash = new Squash(height, width, size);
  squash.add(pixels, height, 3);
  return squash.result();
}
