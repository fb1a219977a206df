/** Something about a model file, a golden file or a picture that the user can act on; one sentence. */
export class PocketDxError extends Error {
  override readonly name = "PocketDxError";
}
