// Runs a model in onnxruntime-web's WebAssembly, as the page in consumers/web does, for other_runtimes.py.
//   node onnxruntime_web.mjs DIST MODEL OUTPUT...
// stdin: the image's shape as four little-endian uint32, then its bytes; again and again.
// stdout: for each a line of JSON, the values of every output as flat lists, or {"error": reason}.
import { readFileSync, readSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [dist, modelPath, ...outputs] = process.argv.slice(2);
const { env, InferenceSession, Tensor } = await import(pathToFileURL(join(dist, "ort.wasm.min.mjs")));
env.wasm.numThreads = 1;
env.wasm.wasmBinary = readFileSync(join(dist, "ort-wasm-simd-threaded.wasm"));
const session = await InferenceSession.create(readFileSync(modelPath), { executionProviders: ["wasm"] });

for (let header = read(16); header !== null; header = read(16)) {
  const shape = Array.from(new Uint32Array(header.buffer));
  const pixels = read(shape.reduce((product, side) => product * side, 1));
  console.log(JSON.stringify(await answer(new Tensor("uint8", pixels, shape))));
}

async function answer(image) {
  try {
    const found = await session.run({ [session.inputNames[0]]: image }, outputs);
    return outputs.map((name) => Array.from(found[name].data));
  } catch (error) {
    return { error: String(error.message ?? error) };
  }
}

// The next `size` bytes of stdin; null at its end.
function read(size) {
  const bytes = new Uint8Array(size);
  for (let count = 0; count < size; ) {
    const more = readSync(0, bytes, count, size - count, null);
    if (more === 0) return null;
    count += more;
  }
  return bytes;
}
