/** What a model file says about itself; defined in manifest.py, read here. */
import { PocketDxError } from "./errors";

export const MANIFEST_KEY = "pocketdx.manifest";
/** The newest manifest version that this code reads. */
export const SCHEMA_VERSION = 1;

/** The part of the manifest that is used here; see `Manifest` in manifest.py for each field's meaning. */
export interface Manifest {
  readonly schema_version: number;
  readonly name: string;
  readonly labels: readonly string[];
  readonly architecture: string;
  readonly precision: string;
  readonly preprocessing: { readonly size: number };
  readonly temperature: number;
  readonly thresholds: { readonly values: readonly number[] | null; readonly method: string };
  readonly novelty_cutoff: number | null;
  readonly intended_use: string;
  readonly created: string;
  readonly outputs: readonly string[];
}

/**
 * The manifest in a model's metadata. Throws PocketDxError where there is none, or one that this code cannot follow.
 *
 * The Python runtime checked every field when the file was exported; checked here is what the answer depends on.
 */
export function readManifest(metadata: ReadonlyMap<string, string>): Manifest {
  const json = metadata.get(MANIFEST_KEY);
  if (json === undefined) {
    throw new PocketDxError("An ONNX file without a PocketDx manifest; make one with `pocketdx export`.");
  }
  let raw: unknown;
  try {
    raw = JSON.parse(json);
  } catch {
    throw invalid("it is not JSON");
  }
  return checkManifest(raw);
}

/** A manifest out of parsed JSON: of a model file, or of a server's `GET /v1/model`. */
export function checkManifest(raw: unknown): Manifest {
  if (!isObject(raw)) throw invalid("it is not an object");
  const version = raw["schema_version"];
  if (typeof version === "number" && version > SCHEMA_VERSION) {
    throw new PocketDxError(
      `The model was written by a newer PocketDx (manifest version ${version}, this one reads up to ` +
        `${SCHEMA_VERSION}); install the newer version.`,
    );
  }
  need(version === SCHEMA_VERSION, "schema_version");
  for (const name of ["name", "architecture", "precision", "intended_use", "created"]) {
    need(typeof raw[name] === "string", name);
  }
  const labels = raw["labels"];
  need(Array.isArray(labels) && labels.length >= 2 && labels.every((each) => typeof each === "string"), "labels");
  const preprocessing = raw["preprocessing"];
  need(isObject(preprocessing) && isWhole(preprocessing["size"], 1, 4096), "preprocessing.size");
  const spec = preprocessing as Record<string, unknown>;
  need(spec["resize"] === "squash" && spec["interpolation"] === "bilinear", "preprocessing.resize");
  need(spec["antialias"] === true && spec["color"] === "RGB", "preprocessing");
  const thresholds = raw["thresholds"];
  need(isObject(thresholds) && typeof thresholds["method"] === "string", "thresholds");
  const values = (thresholds as Record<string, unknown>)["values"];
  need(
    values === null ||
      (Array.isArray(values) &&
        values.length === (labels as unknown[]).length &&
        values.every((each) => typeof each === "number" && each > 0 && each <= 1)),
    "thresholds.values",
  );
  const cutoff = raw["novelty_cutoff"];
  need(cutoff === null || typeof cutoff === "number", "novelty_cutoff");
  const outputs = raw["outputs"];
  need(Array.isArray(outputs) && outputs.length > 0, "outputs");
  return raw as unknown as Manifest;
}

function need(condition: boolean, field: string): void {
  if (!condition) throw invalid(`${field} is missing or wrong`);
}

function invalid(why: string): PocketDxError {
  return new PocketDxError(`The model's manifest is invalid: ${why}; export it again with \`pocketdx export\`.`);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isWhole(value: unknown, least: number, most: number): boolean {
  return Number.isInteger(value) && (value as number) >= least && (value as number) <= most;
}
