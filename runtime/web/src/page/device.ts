/** The worker, as functions that can be awaited. */
import { type Calls, Fault, type Progress, type Reply } from "./protocol";

interface Waiting {
  resolve(value: never): void;
  reject(fault: Fault): void;
  progress(progress: Progress): void;
}

const waiting = new Map<number, Waiting>();
let worker: Worker | null = null;
let last = 0;

/** Call the worker; it is started on first need, and anew after a crash. Rejects with Fault. */
export function call<Name extends keyof Calls>(
  name: Name,
  argument: Parameters<Calls[Name]>[0],
  progress: (progress: Progress) => void = () => undefined,
): Promise<ReturnType<Calls[Name]>> {
  worker ??= start();
  last += 1;
  const id = last;
  worker.postMessage({ id, call: name, argument });
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject, progress });
  });
}

/** Have the worker's code loaded and ready before it is needed. */
export function warmUp(): void {
  worker ??= start();
}

function start(): Worker {
  const started = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
  started.addEventListener("message", ({ data }: MessageEvent<Reply>) => {
    const caller = waiting.get(data.id);
    if ("progress" in data) {
      caller?.progress(data.progress);
      return;
    }
    waiting.delete(data.id);
    if ("fault" in data) caller?.reject(new Fault(data.fault.kind, data.fault.message));
    else caller?.resolve(data.value as never);
  });
  started.addEventListener("error", (event) => {
    event.preventDefault();
    worker = null;
    started.terminate();
    const fault = new Fault("refused", "This browser cannot run the model (or has no memory left for it).");
    for (const each of waiting.values()) each.reject(fault);
    waiting.clear();
  });
  return started;
}
