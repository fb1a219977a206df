/** How the model stands: one line, a bar while something is on its way, buttons where something can be done. */
import { byId } from "./dom";
import type { Progress } from "./protocol";
import { megabytes } from "./words";

export type State = "busy" | "ready" | "trouble";

const box = byId("status", HTMLDivElement);
const text = byId("status-text", HTMLSpanElement);
const progressBar = byId("status-progress", HTMLProgressElement);
const actions = byId("status-actions", HTMLParagraphElement);

export function showStatus(state: State, words: string, buttons: readonly HTMLButtonElement[] = []): void {
  box.dataset["state"] = state;
  text.textContent = words;
  progressBar.hidden = true;
  actions.replaceChildren(...buttons);
  actions.hidden = buttons.length === 0;
}

/** The bar moves with each piece; the words change rarely, as a screen reader reads each change out. */
export function showProgress({ what, loaded, total }: Progress): void {
  const words = total === null ? `${what}…` : `${what} (${megabytes(total)})…`;
  if (text.textContent !== words) showStatus("busy", words);
  progressBar.hidden = false;
  if (total === null || total === 0) {
    progressBar.removeAttribute("value");
  } else {
    progressBar.max = total;
    progressBar.value = loaded;
  }
}
