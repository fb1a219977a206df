/** Asks for the API key, where the server wants one. */
import { apiKey } from "./api";
import { byId } from "./dom";

const dialog = byId("key-dialog", HTMLDialogElement);
const field = byId("key", HTMLInputElement);
const note = byId("key-note", HTMLParagraphElement);

let asking: Promise<boolean> | null = null;

/** Whether a key was given. One question at a time, however many ask. */
export function askForKey(): Promise<boolean> {
  asking ??= new Promise<boolean>((resolve) => {
    note.textContent =
      apiKey.get() === null
        ? "Kept in this tab only, until it is closed."
        : "The server did not accept the key that was given. Kept in this tab only, until it is closed.";
    field.value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "ok" && field.value !== "";
        if (given) apiKey.set(field.value.trim());
        field.value = "";
        asking = null;
        resolve(given);
      },
      { once: true },
    );
  });
  return asking;
}

byId("key-close", HTMLButtonElement).addEventListener("click", () => dialog.close());
