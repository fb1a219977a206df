// What Node and the page do alike: open a model with PocketDx's runtime for the web, and run pictures through it.

export async function open(runner, bytes, threads) {
  const { openModel } = await import(runner);
  return openModel(bytes, { threads });
}

/**
 * @param model opened.
 * @param shapes [height, width] of each picture.
 * @param pixels of all pictures, uint8 RGB, one after the other.
 * @returns `outputs`: name and dims of each, in order; `values`: theirs, float32, one after the other.
 */
export async function respond(model, shapes, pixels) {
  const found = new Map();
  let start = 0;
  for (const [height, width] of shapes) {
    const end = start + height * width * 3;
    const answers = await model.run(pixels.subarray(start, end), height, width);
    for (const [name, answer] of Object.entries(answers)) {
      if (!found.has(name)) found.set(name, []);
      found.get(name).push(answer);
    }
    start = end;
  }
  const outputs = [];
  const parts = [];
  for (const [name, answers] of found) {
    outputs.push([name, [answers.length, ...answers[0].dims.slice(1)]]);
    parts.push(...answers.map((answer) => answer.data));
  }
  const values = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let position = 0;
  for (const part of parts) {
    values.set(part, position);
    position += part.length;
  }
  return { outputs, values };
}

/** Bytes of a message: the length of its JSON, the JSON, then plain bytes. */
export function pack(content, bytes) {
  const text = new TextEncoder().encode(JSON.stringify(content));
  const message = new Uint8Array(4 + text.length + bytes.byteLength);
  new DataView(message.buffer).setUint32(0, text.length, true);
  message.set(text, 4);
  message.set(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength), 4 + text.length);
  return message;
}

/** The other way: the JSON's content, and the bytes in a buffer of their own. */
export function unpack(message) {
  const length = new DataView(message.buffer, message.byteOffset).getUint32(0, true);
  const content = JSON.parse(new TextDecoder().decode(message.subarray(4, 4 + length)));
  return { content, bytes: message.slice(4 + length) };
}
