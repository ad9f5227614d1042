// safetensors: 8 bytes with the length of a JSON header, the header, and the data, all little-endian.

import { BY_STORED, DTYPES, count } from "./dtypes.js";
import { damaged } from "./errors.js";
import { Digits, parseStrict, plain } from "./json.js";

const LARGEST_HEADER = 100_000_000;
const METADATA = "__metadata__";

/** `{ tensors, metadata, start }` of the bytes; `tensors` maps name -> `{ dtype, shape, data }`. */
export function parseTensors(bytes, where) {
  try {
    return parsed(bytes);
  } catch (error) {
    return damaged(`the file is not a whole safetensors file: ${error.message}`, where, "copy the file again", error);
  }
}

function parsed(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length < 8 ? Infinity : Number(view.getBigUint64(0, true));
  if (length > Math.min(bytes.length - 8, LARGEST_HEADER)) throw new Error("the header is longer than the file");
  const { [METADATA]: metadata = {}, ...entries } = parseStrict(bytes.subarray(8, 8 + length));
  if (Object.values(metadata).some((text) => typeof text !== "string")) throw new Error("the metadata is no table of strings");
  const spans = Object.entries(entries).map(([name, entry]) => ({ name, ...span(entry) }));
  let end = 0;
  for (const { start, stop } of [...spans].sort((a, b) => a.start - b.start || a.stop - b.stop)) {
    if (start !== end) throw new Error("tensors overlap, or bytes between them belong to none");
    end = stop;
  }
  if (8 + length + end !== bytes.length) throw new Error(`the tensors have ${end} bytes, and the file has others`);
  const body = bytes.subarray(8 + length);
  const tensors = new Map(spans.map(({ name, ...entry }) => [name, tensor(body, entry)]));
  return { tensors, metadata: plain(metadata), start: 8 + length };
}

function span(entry) {
  const keys = Object.keys(entry).sort().join();
  const type = BY_STORED.get(entry.dtype);
  const numbers = keys === "data_offsets,dtype,shape" && type ? [...entry.shape, ...entry.data_offsets] : [null];
  if (numbers.some((n) => !(n instanceof Digits && n.whole && n.value >= 0)) || entry.data_offsets.length !== 2) {
    throw new Error(`a tensor is described by ${JSON.stringify(entry)}`);
  }
  const shape = plain(entry.shape);
  const [start, stop] = plain(entry.data_offsets);
  if (stop - start !== count(shape) * type.size) throw new Error(`a tensor of shape [${shape}] has ${stop - start} bytes`);
  return { type, shape, start, stop };
}

function tensor(body, { type, shape, start, stop }) {
  const bytes = body.slice(start, stop);
  return { dtype: type.dtype, shape, data: new type.array(bytes.buffer, 0, count(shape)) };
}

/** The bytes of a safetensors file of `tensors`, a map of name -> `{ dtype, shape, data }`, and string metadata. */
export function formatTensors(tensors, metadata) {
  const order = [...tensors].sort(
    ([a, x], [b, y]) => DTYPES.get(y.dtype).size - DTYPES.get(x.dtype).size || (a < b ? -1 : 1),
  );
  const header = { [METADATA]: metadata };
  let end = 0;
  for (const [name, { dtype, shape, data }] of order) {
    header[name] = { dtype: DTYPES.get(dtype).stored, shape, data_offsets: [end, (end += data.byteLength)] };
  }
  let text = new TextEncoder().encode(JSON.stringify(header));
  const padded = new Uint8Array(text.length + ((8 - (text.length % 8)) % 8)).fill(32);
  padded.set(text);
  const bytes = new Uint8Array(8 + padded.length + end);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded.length), true);
  bytes.set(padded, 8);
  let at = 8 + padded.length;
  for (const [, { data }] of order) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return bytes;
}
