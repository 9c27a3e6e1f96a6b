// Fetches the ONNX model, chooses what runs it (WebGPU, else WebAssembly) and runs it.
import { readMetadata } from "./onnx-metadata.js";

/**
 * @param {string | null} wanted `webgpu` or `wasm`; null chooses
 * @param {(loaded: number, total: number) => void} onProgress bytes so far; total is 0 where unknown
 * @returns {Promise<{classNames: string[], backend: string, note: string, bytes: number, run: Function}>}
 * @throws {Error} with a message for the page's reader
 */
export async function loadModel(wanted, onProgress) {
  const bytes = await fetchModel(onProgress);
  const classNames = readClassNames(bytes);
  let note = "";
  if (wanted === "webgpu" || (wanted === null && (await hasGpu()))) {
    try {
      return { ...(await start("webgpu", bytes)), classNames, note, bytes: bytes.length };
    } catch (error) {
      note = `WebGPU could not run this model (${error.message})`;
    }
  }
  try {
    return { ...(await start("wasm", bytes)), classNames, note, bytes: bytes.length };
  } catch (error) {
    throw new Error(`The model does not run here: ${error.message}. Build the page (make web) or export the model again.`);
  }
}

async function fetchModel(onProgress) {
  const response = await fetch("model.onnx").catch(() => null);
  if (!response) throw new Error("The page's server does not answer. Start it with make web and reload.");
  if (response.status === 404) throw new Error("There is no model yet. Make one with dvc repro export, then reload.");
  if (!response.ok) throw new Error(`The page's server answered ${response.status} for the model.`);
  const total = Number(response.headers.get("Content-Length"));
  const chunks = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    onProgress((loaded += value.length), total);
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

function readClassNames(bytes) {
  try {
    const names = JSON.parse(readMetadata(bytes).class_names ?? "null");
    if (Array.isArray(names) && names.length > 0) return names.map(String);
    throw new Error("its metadata names no classes");
  } catch (error) {
    throw new Error(`The model file cannot be used: ${error.message}. Export it again: dvc repro export.`);
  }
}

/** Whether there is WebGPU on a real GPU: emulated on the processor it was a hundred times slower than WebAssembly. */
async function hasGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
  } catch {
    return false;
  }
}

/** Only the runtime that is used is fetched: the one with WebGPU is twice as large. */
async function start(provider, bytes) {
  const ort = await import(`./dist/ort.${provider}.min.mjs`);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  const session = await ort.InferenceSession.create(bytes, { executionProviders: [provider] });
  const run = async ({ pixels, width, height }) => {
    const image = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
    const { probabilities } = await session.run({ image });
    return Array.from(probabilities.data);
  };
  await run({ pixels: new Uint8Array(64 * 64 * 3), width: 64, height: 64 }); // compiles what is compiled lazily
  const { numThreads } = ort.env.wasm;
  const threads = numThreads > 1 ? `${numThreads} threads` : "1 thread";
  return { run, backend: provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads}` };
}
