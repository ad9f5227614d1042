// The conformance kit on onnxruntime-node, and on the WebAssembly build of onnxruntime-web.
// `TTAC_KIT` names the folder that `python -m benchmarks.conformance_kit FOLDER` wrote.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import test from "node:test";

import { inMemory } from "../src/index.js";
import { bundle } from "../src/node.js";
import { runKit } from "./kit.js";

const kit = process.env.TTAC_KIT;
const skip = kit ? false : "set TTAC_KIT to the folder of a conformance kit";
const read = async (path) => new Uint8Array(await readFile(join(kit, path)));

test("the kit passes on onnxruntime-node", { skip }, async (context) => {
  const ort = await import("onnxruntime-node");
  const result = await runKit(ort, { read, source: (path) => bundle(join(kit, path)) });
  context.diagnostic(`onnxruntime-node ${ort.env.versions.node}: ${JSON.stringify(result)}`);
  assert.ok(result.calls > 100 && result.worst < 1e-5);
});

test("the kit passes on onnxruntime-web", { skip }, async (context) => {
  const ort = await import("onnxruntime-web/wasm");
  ort.env.wasm.numThreads = 1;
  // Without `path`, the engine gets bytes, as in a browser.
  const source = (path) => ({ where: path, read: bundle(join(kit, path)).read });
  const result = await runKit(ort, { read, source });
  context.diagnostic(`onnxruntime-web ${ort.env.versions.web}: ${JSON.stringify(result)}`);
  assert.ok(result.calls > 100 && result.worst < 1e-5);
});

test("a missing file of a bundle in memory is refused", async () => {
  await assert.rejects(inMemory({}).read("manifest.json"), { kind: "verification" });
});
