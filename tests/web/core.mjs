/** Calls one function of the built core with arguments from the command line; prints its result as JSON. */
import { readFileSync } from "node:fs";

import * as core from "../../runtime/web/dist/runner/pocketdx.js";

const read = (path) => new Uint8Array(readFileSync(path));

const operations = {
  resize: ({ pixels, height, width, size }) => Array.from(core.resize(read(pixels), height, width, size)),
  decide: ({ cases }) => cases.map(({ probabilities, thresholds }) => core.decide(probabilities, thresholds)),
  async outputs({ model, pixels, height, width }) {
    const opened = await core.openModel(read(model));
    const outputs = await opened.run(read(pixels), height, width);
    return Object.fromEntries(
      Object.entries(outputs).map(([name, { data, dims }]) => [name, { data: Array.from(data), dims }]),
    );
  },
  manifest: ({ model }) => core.readManifest(core.readMetadata(read(model))),
  async selfTest({ model, golden }) {
    return core.runSelfTest(await core.openModel(read(model)), read(golden));
  },
  async npz({ archive }) {
    const arrays = await core.readNpz(read(archive));
    return Object.fromEntries([...arrays].map(([name, { dtype, shape, data }]) => [name, { dtype, shape, data: Array.from(data) }]));
  },
  picture: ({ file }) => {
    const { type, bytes } = core.inspectPicture(read(file));
    return { type, length: bytes.length, hex: Buffer.from(bytes).toString("hex") };
  },
};

const [operation, text] = process.argv.slice(2);
let result;
try {
  result = await operations[operation](JSON.parse(text));
} catch (error) {
  if (!(error instanceof core.PocketDxError)) throw error;
  result = { refused: error.message };
}
process.stdout.write(JSON.stringify(result));
