/** Numbers and answers in words. */
import { type Diagnosis, diagnose } from "../core/diagnosis";
import type { Manifest } from "../core/manifest";
import type { Answer } from "./protocol";

const PERCENT = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });

export const percent = (value: number) => PERCENT.format(value);
export const seconds = (ms: number) => (ms < 995 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
export const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

/** What the page says of one picture. */
export interface Verdict {
  readonly diagnosis: Diagnosis;
  /** Whether the model itself gives grounds not to take its answer as it stands. */
  readonly doubtful: boolean;
  readonly reasons: readonly string[];
}

/** The answer and its reasons, from probabilities, thresholds and novelty; nothing else goes into it. */
export function verdict(answer: Answer, manifest: Manifest): Verdict {
  const diagnosis = diagnose(answer.probabilities, manifest);
  const { values, method } = manifest.thresholds;
  const reasons: string[] = [];
  let doubtful = false;
  const shown = (label: string) => percent(diagnosis.probabilities[label] ?? Number.NaN);
  if (values === null) {
    reasons.push(`${diagnosis.label} is the most probable of ${manifest.labels.length} labels.`);
  } else if (manifest.labels.length === 2) {
    const positive = manifest.labels[1] as string;
    const reaches = diagnosis.label === positive ? "reaches" : "stays below";
    reasons.push(`${positive}, at ${shown(positive)}, ${reaches} its threshold of ${percent(values[1] as number)} (${method}).`);
  } else if (diagnosis.aboveThreshold.length === 0) {
    doubtful = true;
    reasons.push(`No label reaches its threshold (${method}); ${diagnosis.label} is merely the most probable.`);
  } else {
    for (const label of diagnosis.aboveThreshold) {
      const threshold = values[manifest.labels.indexOf(label)] as number;
      reasons.push(`${label}, at ${shown(label)}, reaches its threshold of ${percent(threshold)} (${method}).`);
    }
    if (diagnosis.aboveThreshold.length > 1) {
      doubtful = true;
      reasons.push(`Several labels reach their thresholds; ${diagnosis.label} passes its own by the largest factor.`);
    }
  }
  if (answer.novelty !== null && manifest.novelty_cutoff !== null) {
    const novel = answer.novelty > manifest.novelty_cutoff;
    doubtful ||= novel;
    const figures = `novelty ${answer.novelty.toPrecision(3)}, cut-off ${manifest.novelty_cutoff.toPrecision(3)}`;
    reasons.push(novel ? `The picture is unlike those the model was trained on (${figures}).` : `The picture is like those the model was trained on (${figures}).`);
  }
  return { diagnosis, doubtful, reasons };
}
