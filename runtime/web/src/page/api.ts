/** The server's side: which model it has, and its answers. Addresses are relative: the page may live under a path. */
import { type Manifest, checkManifest } from "../core/manifest";
import { type Answer, Fault, type Sources } from "./protocol";

declare const __ENGINE__: string;

const KEY = "pocketdx.key";
const MODEL = "pocketdx.model.";

export interface ServedModel {
  readonly digest: string;
  readonly manifest: Manifest;
  /** Whether the server was not reached, and this is what it last said. */
  readonly remembered: boolean;
}

const address = (path: string) => new URL(path, document.baseURI).href;
const asked = (path: string, name: string) => address(name === "" ? path : `${path}?model=${encodeURIComponent(name)}`);

/** The key lives in this tab only. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key: string) => sessionStorage.setItem(KEY, key),
};

function headers(): Record<string, string> {
  const key = apiKey.get();
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/** Names of the served models, the default first; empty where the server cannot be asked. Throws "unauthorized". */
export async function modelNames(): Promise<string[]> {
  try {
    const listed = (await json(await ask("v1/models"))) as { models?: { name?: unknown }[] };
    return (listed.models ?? []).map((each) => String(each.name));
  } catch (error) {
    if (error instanceof Fault && error.kind === "unauthorized") throw error;
    return [];
  }
}

/** What is served under a name ("": the default). Throws Fault. */
export async function servedModel(name: string): Promise<ServedModel> {
  const key = MODEL + name;
  try {
    const info = (await json(await ask(asked("v1/model", name)))) as { digest: string; manifest: unknown };
    const manifest = checkManifest(info.manifest);
    localStorage.setItem(key, JSON.stringify(info));
    return { digest: info.digest, manifest, remembered: false };
  } catch (error) {
    const kept = localStorage.getItem(key);
    if (!(error instanceof Fault) || error.kind !== "unreachable" || kept === null) throw error;
    const info = JSON.parse(kept) as { digest: string; manifest: unknown };
    return { digest: info.digest, manifest: checkManifest(info.manifest), remembered: true };
  }
}

/** From where the worker gets a model. */
export function sourcesOf(name: string, digest: string): Omit<Sources, "keep"> {
  return {
    model: asked("v1/model/file", name),
    golden: asked("v1/model/golden", name),
    engine: address(__ENGINE__),
    digest,
    headers: headers(),
  };
}

/** Whether this server has what it takes to run models in the browser; true where it cannot be asked. */
export async function hasEngine(): Promise<boolean> {
  try {
    return (await fetch(address(__ENGINE__), { method: "HEAD" })).status !== 404;
  } catch {
    return true;
  }
}

/** Have the server examine a picture. Throws Fault with the server's own reason. */
export async function diagnoseOnServer(file: Blob, name: string, digest: string, manifest: Manifest): Promise<Answer> {
  const started = performance.now();
  const type = /^image\//.test(file.type) ? file.type : "application/octet-stream";
  const response = await ask(asked("v1/diagnose", name), { method: "POST", body: file, headers: { "Content-Type": type } });
  const reply = (await json(response)) as {
    model: { digest: string };
    results: { probabilities: Record<string, number>; novelty?: number | null }[];
  };
  const elapsed = performance.now() - started;
  const [result] = reply.results;
  if (result === undefined || reply.model.digest !== digest) {
    throw new Fault("other", "The server has another model now; reload this page.");
  }
  const inference = /(?:^|,\s*)inference;dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "")?.[1];
  const inferenceMs = Number(inference ?? 0);
  return {
    probabilities: manifest.labels.map((label) => result.probabilities[label] ?? Number.NaN),
    novelty: result.novelty ?? null,
    heat: [],
    decodeMs: elapsed - inferenceMs,
    inferenceMs,
  };
}

async function ask(url: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(address(url), { ...init, headers: { ...headers(), ...init.headers }, cache: "no-store" });
  } catch {
    throw new Fault("unreachable", "The server cannot be reached. Check the connection, then try again.");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new Fault("unauthorized", "The server asks for a key.");
  const kind = { 400: "picture", 404: "missing", 413: "picture", 415: "picture", 422: "picture" } as const;
  throw new Fault(kind[response.status as keyof typeof kind] ?? "other", await problem(response));
}

async function json(response: Response): Promise<unknown> {
  try {
    return await response.json();
  } catch {
    throw new Fault("other", "The server's answer cannot be read; is another program at this address?");
  }
}

/** One sentence out of problem details (RFC 9457), or of whatever stood between here and the server. */
async function problem(response: Response): Promise<string> {
  const wait = Number(response.headers.get("Retry-After"));
  const later = wait > 0 ? ` Try again in ${wait} s.` : "";
  try {
    const { title, detail } = (await response.json()) as { title?: string; detail?: string };
    if (typeof title === "string") return `${title}: ${detail ?? ""}.${later}`.replace(/\.\./g, ".");
  } catch {
    // Not JSON: a proxy's page.
  }
  return `The server answered with status ${response.status}.${later}`;
}
