/** From probabilities to an answer; the counterpart of diagnosis.py. */
import type { Manifest } from "./manifest";

export interface Diagnosis {
  /** The answer; see `decide`. */
  readonly label: string;
  /** Of that label, 0 to 1. */
  readonly probability: number;
  /** Of every label, in the model's order. */
  readonly probabilities: Readonly<Record<string, number>>;
  /** Labels at or above their threshold, in the model's order; without thresholds the most probable one. */
  readonly aboveThreshold: readonly string[];
}

/** Turn one picture's probabilities, in the order of the manifest's labels, into an answer. */
export function diagnose(probabilities: ArrayLike<number>, manifest: Manifest): Diagnosis {
  const each = Array.from(probabilities);
  const { labels } = manifest;
  const { values } = manifest.thresholds;
  if (each.length !== labels.length || !each.every(Number.isFinite)) {
    throw new RangeError(`${each.length} probabilities, not all finite, for ${labels.length} labels`);
  }
  const answer = decide(each, values);
  const above = values === null ? [answer] : found(each, values);
  return {
    label: labels[answer] as string,
    probability: each[answer] as number,
    probabilities: Object.fromEntries(labels.map((label, index) => [label, each[index] as number])),
    aboveThreshold: above.map((index) => labels[index] as string),
  };
}

/** Indices of the labels at or above their threshold. */
export function found(probabilities: readonly number[], thresholds: readonly number[]): number[] {
  return [...probabilities.keys()].filter((i) => (probabilities[i] as number) >= (thresholds[i] as number));
}

/**
 * Index of the answer.
 *
 * Without thresholds: the most probable label. With two labels the second is the positive one, and its threshold
 * alone decides. With more labels: of those at or above their threshold the one that passes it by the largest factor
 * (probability / threshold), else the most probable. Ties go to the earlier label.
 */
export function decide(probabilities: readonly number[], thresholds: readonly number[] | null): number {
  const best = (indices: number[], score: (index: number) => number) =>
    indices.reduce((leader, index) => (score(index) > score(leader) ? index : leader));
  const all = [...probabilities.keys()];
  if (thresholds === null) return best(all, (i) => probabilities[i] as number);
  if (probabilities.length === 2) return (probabilities[1] as number) >= (thresholds[1] as number) ? 1 : 0;
  const above = found(probabilities, thresholds);
  if (above.length === 0) return decide(probabilities, null);
  return best(above, (i) => (probabilities[i] as number) / (thresholds[i] as number));
}
