// Copies the runtime's few needed files from node_modules into dist/, after holding each against vendor.json.
// The digests stand in for a lock file: they pin the bytes, and name no registry.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

const here = import.meta.dirname;
const source = join(here, "node_modules", "onnxruntime-web", "dist");
const target = join(here, "dist");
const digests = JSON.parse(readFileSync(join(here, "vendor.json"), "utf-8"));

rmSync(target, { recursive: true, force: true });
mkdirSync(target);
for (const [name, expected] of Object.entries(digests)) {
  const found = createHash("sha256").update(readFileSync(join(source, name))).digest("hex");
  if (found !== expected) {
    rmSync(target, { recursive: true });
    console.error(`error: ${name}: sha256 ${found}, expected ${expected}; delete node_modules and build again`);
    process.exit(1);
  }
  copyFileSync(join(source, name), join(target, name));
  console.log(`dist/${name}`);
}
