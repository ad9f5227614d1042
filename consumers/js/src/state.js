// State files: the adapted state, with a checksum, bound to the bundle by its identity.

import { count, DTYPES, isFinite } from "./dtypes.js";
import { damaged, usage } from "./errors.js";
import { formatTensors, parseTensors } from "./safetensors.js";

const FORMAT = "ttac-state-2";
const BLANK = "0".repeat(64);
const AGAIN = "save the state again";

/** The bytes of a state file; `tensors` maps name -> `{ dtype, shape, data }`. */
export async function formatState(tensors, identity, sha256) {
  const bytes = formatTensors(tensors, { format: FORMAT, bundle: identity, checksum: BLANK });
  const digest = await sha256(bytes);
  bytes.set(new TextEncoder().encode(digest), checksumAt(bytes, BLANK));
  return bytes;
}

/** The tensors of a state file of this bundle. */
export async function parseState(bytes, manifest, sha256, where) {
  const { tensors, metadata } = parseTensors(bytes, where);
  if (metadata.format === FORMAT) await checkDigest(bytes, metadata.checksum ?? "", sha256, where);
  if (metadata.bundle !== manifest.identity) {
    usage("the state belongs to another model, method or settings", where, "restore it into the bundle it was saved from");
  }
  if (metadata.format !== FORMAT) usage(`the state has the format ${metadata.format}, not ${FORMAT}`, where, AGAIN);
  checkTensors(tensors, manifest.state, where);
  checkPlausible(tensors, where, AGAIN);
  return tensors;
}

/** Refuse tensors that do not fit the state table by name, dtype and shape. */
export function checkTensors(tensors, specs, where) {
  const odd = [...tensors.keys()].find((name) => !specs.has(name)) ?? [...specs.keys()].find((name) => !tensors.has(name));
  if (odd !== undefined) damaged(`the state has or lacks \`${odd}\`, unlike the state table`, where, "copy the file again");
  for (const [name, { dtype, shape }] of specs) {
    const tensor = tensors.get(name);
    if (tensor.dtype !== dtype || tensor.shape.join() !== shape.join() || tensor.data.length !== count(shape)) {
      damaged(`\`${name}\` is ${tensor.dtype} [${tensor.shape}], the state table says ${dtype} [${shape}]`, where);
    }
  }
}

/** Refuse values that are not finite, and negative variances. */
export function checkPlausible(tensors, where, hint) {
  for (const [name, { dtype, data }] of tensors) {
    if (!isFinite(dtype, data)) damaged(`\`${name}\` is not finite`, where, hint);
    if (/\.var$|^adam\.v(\/|$)/.test(name) && DTYPES.get(dtype).array !== Uint16Array && data.some((value) => value < 0)) {
      damaged(`the variance \`${name}\` is negative`, where, hint);
    }
  }
}

async function checkDigest(bytes, checksum, sha256, where) {
  const at = /^[0-9a-f]{64}$/.test(checksum) ? checksumAt(bytes, checksum) : -1;
  if (at >= 0) {
    const blank = bytes.slice();
    blank.set(new TextEncoder().encode(BLANK), at);
    if ((await sha256(blank)) === checksum) return;
  }
  damaged("the state is damaged: its content does not match its checksum", where, "copy the file again");
}

/** The place of the digits in the header; -1 unless they occur once. */
function checksumAt(bytes, digits) {
  const length = 8 + Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header = new TextDecoder("latin1").decode(bytes.subarray(0, length));
  const at = header.indexOf(digits);
  return header.indexOf(digits, at + 1) < 0 ? at : -1;
}
