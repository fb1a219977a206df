/** Large files, kept on this device: the model and its golden inputs by the model's digest, the engine by its name. */
import { Fault, type Progress } from "./protocol";

const CACHE = "pocketdx-files-1";

export interface Wanted {
  readonly url: string;
  /** What the bytes are kept under; it names their content, so that other content has another key. */
  readonly key: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Told how many bytes have come, of how many. */
  report(loaded: number, total: number | null): void;
  /** Throws for bytes that are not what they should be; they are then not kept. */
  check?(bytes: Uint8Array<ArrayBuffer>): Promise<void>;
  /** What to say where the server has no such file. */
  readonly missing?: string;
}

/** Bytes from this device's cache, or from the server, and then kept. Throws Fault. */
export async function fetchKept(wanted: Wanted): Promise<Uint8Array<ArrayBuffer>> {
  const { key } = wanted;
  const check = async (bytes: Uint8Array<ArrayBuffer>) => wanted.check?.(bytes);
  const cache = await openCache();
  const address = keyAddress(key);
  const kept = await cache?.match(address);
  if (kept !== undefined) {
    const bytes = new Uint8Array(await kept.arrayBuffer());
    try {
      await check(bytes);
      return bytes;
    } catch {
      await cache?.delete(address); // damaged on this device: fetch it again
    }
  }
  const bytes = await download(wanted);
  await check(bytes);
  try {
    await cache?.put(address, new Response(bytes));
  } catch {
    // No room: it works all the same, only not offline.
  }
  return bytes;
}

/** Keep a small value. */
export async function remember(key: string, value: unknown): Promise<void> {
  try {
    await (await openCache())?.put(keyAddress(key), new Response(JSON.stringify(value)));
  } catch {
    // No room: then it is found out again.
  }
}

/** What was kept by `remember`, or null. */
export async function recall<T>(key: string): Promise<T | null> {
  const kept = await (await openCache())?.match(keyAddress(key));
  return kept === undefined ? null : ((await kept.json()) as T);
}

/** Drop what no key names any more: earlier models, earlier engines. */
export async function keepOnly(keys: readonly string[]): Promise<void> {
  const cache = await openCache();
  const wanted = new Set(keys.map(keyAddress));
  for (const request of (await cache?.keys()) ?? []) {
    if (!wanted.has(request.url)) await cache?.delete(request);
  }
}

/** Throws Fault "refused" unless the bytes have this SHA-256. */
export async function checkDigest(bytes: Uint8Array<ArrayBuffer>, digest: string): Promise<void> {
  // Plain http beyond localhost has no crypto.subtle; there the page itself could be changed on its way as well.
  if (globalThis.crypto?.subtle === undefined) return;
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== digest) {
    throw new Fault("refused", "The model that arrived is not the one the server names (its digest differs). Try again.");
  }
}

async function openCache(): Promise<Cache | null> {
  try {
    return (await globalThis.caches?.open(CACHE)) ?? null;
  } catch {
    return null; // private windows of some browsers
  }
}

function keyAddress(key: string): string {
  return new URL(`/.kept/${key}`, self.location.origin).href;
}

async function download({ url, headers, report, missing }: Wanted): Promise<Uint8Array<ArrayBuffer>> {
  let response: Response;
  try {
    response = await fetch(url, { headers, cache: "no-cache" });
  } catch {
    throw new Fault("unreachable", "The server cannot be reached, and not all of the model is on this device yet.");
  }
  if (response.status === 401 || response.status === 403) throw new Fault("unauthorized", "The server asks for a key.");
  if (!response.ok || response.body === null) {
    const path = new URL(url).pathname;
    const absent = response.status === 404 ? missing : undefined;
    throw new Fault("missing", absent ?? `The server did not give ${path} (status ${response.status}). Try again.`);
  }
  const length = Number(response.headers.get("Content-Length"));
  const total = length > 0 && !response.headers.has("Content-Encoding") ? length : null;
  const parts: Uint8Array[] = [];
  let loaded = 0;
  report(0, total);
  try {
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      loaded += part.value.length;
      report(loaded, total);
    }
  } catch {
    throw new Fault("unreachable", "The connection broke off while the model was on its way. Try again.");
  }
  if (total !== null && loaded !== total) {
    throw new Fault("unreachable", "The connection broke off while the model was on its way. Try again.");
  }
  const bytes = new Uint8Array(loaded);
  let position = 0;
  for (const part of parts) {
    bytes.set(part, position);
    position += part.length;
  }
  return bytes;
}

/** Sums the progress of several files: all of one download, as the user sees it. */
export function combined(what: string, send: (progress: Progress) => void): () => (l: number, t: number | null) => void {
  const files: { loaded: number; total: number | null }[] = [];
  return () => {
    const file = { loaded: 0, total: null as number | null };
    files.push(file);
    return (loaded, total) => {
      Object.assign(file, { loaded, total });
      const totals = files.map((each) => each.total);
      const known = totals.every((each) => each !== null);
      send({
        what,
        loaded: files.reduce((sum, each) => sum + each.loaded, 0),
        total: known ? totals.reduce<number>((sum, each) => sum + (each as number), 0) : null,
      });
    };
  };
}
