// Checked by `npm run types`, and never run: the types accept both engines, and refuse a wrong call.

import * as node from "onnxruntime-node";
import * as web from "onnxruntime-web/wasm";
import { hosted, open, TtacError } from "ttac";
import { bundle, restoreState, saveState } from "ttac/node";

const onNode = await open(bundle("model.ttac"), node, { intraOpNumThreads: 1 });
const inBrowser = await open(hosted("/model.ttac"), web);
const { logits } = await onNode.step({ x: new node.Tensor("float32", new Float32Array(3), [1, 3]) });
const entropy: number = onNode.stats.entropy;
await saveState(onNode, "state.safetensors");
await restoreState(inBrowser, "state.safetensors").catch((error: TtacError) => error.hint);
// @ts-expect-error: a step takes tensors
await inBrowser.step({ x: [1, 2, 3] });
console.log(logits.dims, entropy, inBrowser.manifest.batch.planned);
