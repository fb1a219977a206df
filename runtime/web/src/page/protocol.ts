/** What the page and its worker say to each other. */
import type { Manifest, SelfTest } from "../core";

/** Why something did not work; the page offers another way out for each. */
export type FaultKind = "unreachable" | "unauthorized" | "missing" | "refused" | "picture" | "other";

export class Fault extends Error {
  override readonly name = "Fault";
  constructor(
    readonly kind: FaultKind,
    message: string,
  ) {
    super(message);
  }
}

/** Where the model and what goes with it come from. */
export interface Sources {
  readonly model: string;
  readonly golden: string;
  readonly engine: string;
  /** SHA-256 of the model file. */
  readonly digest: string;
  /** Digests of all models that are still served; what is kept of others is dropped. */
  readonly keep: readonly string[];
  readonly headers: Readonly<Record<string, string>>;
}

export interface Opened {
  readonly manifest: Manifest;
  /** All golden pictures; from an earlier start, if this one repeated it only in part. */
  readonly selfTest: SelfTest;
}

/** Class evidence at each place of the picture, for one label; row-major. */
export interface Heat {
  readonly data: Float32Array;
  readonly height: number;
  readonly width: number;
}

/** One picture's answer, wherever it was computed. */
export interface Answer {
  /** In the order of the manifest's labels. */
  readonly probabilities: readonly number[];
  /** How unlike the training pictures it is; null where the model does not say. */
  readonly novelty: number | null;
  /** In the order of the manifest's labels; empty where the model gives none. */
  readonly heat: readonly Heat[];
  /** Milliseconds, from the file to the pixels, and from the pixels to the answer. */
  readonly decodeMs: number;
  readonly inferenceMs: number;
}

/** Bytes so far, and in all where that is known. */
export interface Progress {
  readonly what: string;
  readonly loaded: number;
  readonly total: number | null;
}

export interface Calls {
  open(sources: Sources): Opened;
  diagnose(file: Blob): { readonly answer: Answer; readonly picture: ImageBitmap };
  /** The picture at a size for a screen; null for what this browser cannot decode. */
  preview(file: Blob): { readonly picture: ImageBitmap | null };
}

export type Request = {
  [Name in keyof Calls]: { id: number; call: Name; argument: Parameters<Calls[Name]>[0] };
}[keyof Calls];

export type Reply =
  | { id: number; value: ReturnType<Calls[keyof Calls]> }
  | { id: number; fault: { kind: FaultKind; message: string } }
  | { id: number; progress: Progress };
