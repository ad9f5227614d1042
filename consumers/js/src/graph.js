// The graphs of a bundle, read strictly before an engine sees them: the rules of `runtime/graph_check.py`.

import { BY_ELEMENT } from "./dtypes.js";
import { HINT, damaged } from "./errors.js";

const DOMAINS = ["", "ai.onnx", "com.microsoft"];
const LARGEST_ELEMENTS = 2 ** 28;
const MOST_FIELDS = 4_000_000;
const WIRE = { int: 0, fixed64: 1, bytes: 2, fixed32: 5 };

// Message -> field number -> [kind or message of the field, whether it repeats]; other fields are refused.
const schema = (one, many = {}) =>
  new Map([
    ...Object.entries(one).map(([number, kind]) => [Number(number), [kind, false]]),
    ...Object.entries(many).map(([number, kind]) => [Number(number), [kind, true]]),
  ]);
const MODEL = {
  model: schema(
    { 1: "int", 2: "bytes", 3: "bytes", 4: "bytes", 5: "int", 6: "bytes", 7: "graph" },
    { 8: "opset", 14: "entry" },
  ),
  opset: schema({ 1: "bytes", 2: "int" }),
  entry: schema({ 1: "bytes", 2: "bytes" }),
  graph: schema(
    { 2: "bytes", 10: "bytes" },
    { 1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "annotation", 16: "entry" },
  ),
  node: schema({ 3: "bytes", 4: "bytes", 6: "bytes", 7: "bytes" }, { 1: "bytes", 2: "bytes", 5: "attribute", 9: "entry" }),
  attribute: schema(
    { 1: "bytes", 2: "fixed32", 3: "int", 4: "bytes", 5: "tensor", 6: "body", 13: "bytes", 20: "int" },
    { 7: "fixed32", 8: "int", 9: "bytes" },
  ),
  // The subgraph of a Scan: no tensors, no further subgraphs.
  body: schema(
    { 2: "bytes", 10: "bytes" },
    { 1: "innerNode", 11: "value", 12: "value", 13: "value", 14: "annotation", 16: "entry" },
  ),
  innerNode: schema({ 3: "bytes", 4: "bytes", 6: "bytes", 7: "bytes" }, { 1: "bytes", 2: "bytes", 5: "plain", 9: "entry" }),
  plain: schema(
    { 1: "bytes", 2: "fixed32", 3: "int", 4: "bytes", 13: "bytes", 20: "int" },
    { 7: "fixed32", 8: "int", 9: "bytes" },
  ),
  tensor: schema(
    { 2: "int", 8: "bytes", 9: "bytes", 12: "bytes", 14: "int" },
    { 1: "int", 4: "fixed32", 5: "int", 7: "int", 10: "fixed64", 11: "int", 13: "entry", 16: "entry" },
  ),
  value: schema({ 1: "bytes", 2: "type", 3: "bytes" }, { 4: "entry" }),
  type: schema({ 1: "tensorType", 6: "bytes" }),
  tensorType: schema({ 1: "int", 2: "shape" }),
  shape: schema({}, { 1: "size" }),
  size: schema({ 1: "int", 2: "bytes", 3: "bytes" }),
  annotation: schema({ 1: "bytes" }, { 2: "entry" }),
};
const ITEM_BYTES = { 1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2 };
const SHAPE_INPUT = { ConstantOfShape: 0, Expand: 1, Tile: 1, Resize: 3, Pad: 1, Range: 1, OneHot: 1 };

/**
 * Check the ONNX file `bytes`; return its `inputs` and `outputs` (`{ name, dtype, shape }`) and the `external` places
 * (`{ location, offset, length }`) of its tensors.
 */
export function checkGraph(bytes, where) {
  try {
    const graph = one(new Reader(bytes).message(0, bytes.length, "model"), 7, new Map());
    const nodes = graph.get(1) ?? [];
    const inside = nodes.flatMap((node) => (node.get(5) ?? []).flatMap((attribute) => attribute.get(5) ?? []));
    const tensors = [...(graph.get(5) ?? []), ...inside];
    const external = tensors.map(checkTensor).filter(Boolean);
    const constants = smallConstants(graph);
    for (const node of nodes) checkNode(node, constants);
    const initial = new Set((graph.get(5) ?? []).map((tensor) => text(tensor, 8)));
    const inputs = (graph.get(11) ?? []).map(port).filter(({ name }) => !initial.has(name));
    return { inputs, outputs: (graph.get(12) ?? []).map(port), external };
  } catch (error) {
    return damaged(`the graph is not a whole ONNX file of ttac: ${error.message}`, where, HINT, error);
  }
}

class Reader {
  constructor(data) {
    this.data = data;
    this.fields = 0;
  }

  /** Field number -> its values, of the message in data[at, end). */
  message(at, end, kind) {
    const fields = new Map();
    while (at < end) {
      const [tag, after] = this.varint(at);
      const [number, wire] = [Number(tag >> 3n), Number(tag & 7n)];
      const [content, many] = (tag >> 32n ? undefined : MODEL[kind].get(number)) ?? fail(`a ${kind} has the unknown field ${number}`);
      if (!fields.has(number)) fields.set(number, []);
      const values = fields.get(number);
      if (values.length && !many) fail(`a ${kind} has the field ${number} twice`);
      at = after;
      if (wire === 0 && content === "int") {
        const [value, next] = this.varint(at);
        values.push(value);
        at = next;
      } else if (wire === 2) {
        const [length, start] = this.varint(at);
        if (length > BigInt(end - start)) fail("a field is longer than its message");
        at = start + Number(length);
        this.delimited(values, content, many, start, at);
      } else if ((wire === 1 || wire === 5) && WIRE[content] === wire) {
        at += wire === 1 ? 8 : 4;
        values.push(null);
      } else fail(`a ${kind} has the field ${number} with wire type ${wire}`);
      if ((this.fields += 1) > MOST_FIELDS) fail(`it has more than ${MOST_FIELDS} fields`);
    }
    if (at !== end) fail("a message ends inside a field");
    return fields;
  }

  delimited(values, content, many, start, end) {
    if (content === "bytes") values.push(this.data.subarray(start, end));
    else if (MODEL[content]) values.push(this.message(start, end, content));
    else if (!many) fail("a single number is packed");
    else if (content === "int") {
      while (start < end) {
        const [value, next] = this.varint(start);
        values.push(value);
        start = next;
      }
      if (start !== end) fail("packed numbers end inside a number");
    } else {
      const size = content === "fixed32" ? 4 : 8;
      if ((end - start) % size) fail("packed numbers end inside a number");
      for (; start < end; start += size) values.push(null);
    }
  }

  varint(at) {
    let value = 0n;
    for (let index = 0; index < 10; index += 1) {
      const byte = this.data[at + index] ?? fail("it ends inside a number");
      value |= BigInt(byte & 0x7f) << BigInt(7 * index);
      if (byte < 0x80 && value >> 64n === 0n) return [value, at + index + 1];
    }
    return fail("a number is longer than 64 bits");
  }
}

function fail(problem) {
  throw new Error(problem);
}

const one = (message, number, otherwise) => message.get(number)?.[0] ?? otherwise;
const text = (message, number) => new TextDecoder("utf-8", { fatal: true }).decode(one(message, number, new Uint8Array()));

function port(value) {
  const name = text(value, 1);
  const type = one(one(value, 2, new Map()), 1, null) ?? fail(`\`${name}\` is no tensor`);
  const sizes = one(type, 2, new Map()).get(1) ?? [];
  const shape = sizes.map((size) => (size.has(1) ? Number(one(size, 1)) : text(size, 2)));
  return { name, dtype: BY_ELEMENT.get(Number(one(type, 1, 0n)))?.dtype, shape };
}

function checkTensor(tensor) {
  const [name, kind] = [text(tensor, 8), Number(one(tensor, 2, 0n))];
  const sizes = tensor.get(1) ?? [];
  const item = ITEM_BYTES[kind];
  if (!item || sizes.some((size) => size >> 31n)) fail(`tensor \`${name}\` has the type ${kind} and the shape [${sizes}]`);
  const needed = sizes.reduce((product, size) => product * size, BigInt(item));
  if (one(tensor, 14, 0n) === 1n) return checkExternal(tensor, name, needed);
  if (tensor.has(13) || one(tensor, 14, 0n)) fail(`tensor \`${name}\` has external data, and it is not marked as external`);
  const typed = [4, 5, 7, 10, 11].reduce((sum, number) => sum + (tensor.get(number)?.length ?? 0), 0);
  const stored = tensor.has(9) ? one(tensor, 9).length : item * typed;
  if (BigInt(stored) !== needed) fail(`tensor \`${name}\` of shape [${sizes}] has ${stored} bytes`);
  return null;
}

function checkExternal(tensor, name, needed) {
  const list = tensor.get(13) ?? [];
  const entries = new Map(list.map((entry) => [text(entry, 1), text(entry, 2)]));
  const known = ["location", "offset", "length", "checksum"];
  if (entries.size !== list.length || [...entries.keys()].some((key) => !known.includes(key))) {
    fail(`tensor \`${name}\` describes its external data by ${[...entries.keys()]}`);
  }
  const [offset, length] = [entries.get("offset") ?? "0", entries.get("length") ?? String(needed)];
  if (![offset, length].every((number) => /^\d{1,18}$/.test(number))) fail(`tensor \`${name}\` has external data at ${offset}`);
  if (BigInt(length) !== needed || [4, 5, 7, 9, 10, 11].some((number) => tensor.has(number))) {
    fail(`tensor \`${name}\` needs ${needed} bytes of external data, and ${length} are stated`);
  }
  return { location: entries.get("location") ?? "", offset: Number(offset), length: Number(length) };
}

function smallConstants(graph) {
  const found = new Map();
  const add = (name, tensor) => one(tensor, 2, 0n) === 7n && found.set(name, integers(tensor));
  for (const tensor of graph.get(5) ?? []) add(text(tensor, 8), tensor);
  for (const node of graph.get(1) ?? []) {
    if (text(node, 4) !== "Constant") continue;
    for (const attribute of node.get(5) ?? []) {
      for (const tensor of attribute.get(5) ?? []) add(decode(one(node, 2, new Uint8Array())), tensor);
    }
  }
  return found;
}

const decode = (bytes) => new TextDecoder().decode(bytes);

function integers(tensor) {
  if ((tensor.get(1) ?? []).reduce((product, size) => product * size, 1n) > 64n) return [];
  const raw = one(tensor, 9, new Uint8Array());
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const stored = Array.from({ length: Math.floor(raw.length / 8) }, (_, index) => view.getBigInt64(8 * index, true));
  return raw.length ? stored : (tensor.get(7) ?? []).map((value) => BigInt.asIntN(64, value));
}

function checkNode(node, constants) {
  const [domain, kind, name] = [text(node, 7), text(node, 4), text(node, 3)];
  if (!DOMAINS.includes(domain)) fail(`node \`${name}\` is of the operator domain \`${domain}\``);
  for (const body of (node.get(5) ?? []).flatMap((attribute) => attribute.get(6) ?? [])) {
    if (kind !== "Scan" || domain) fail(`node \`${name}\` (${kind}) has a subgraph`);
    for (const inner of body.get(1) ?? []) checkNode(inner, new Map());
  }
  const inputs = node.get(1) ?? [];
  if (Object.hasOwn(SHAPE_INPUT, kind) && inputs.length > SHAPE_INPUT[kind]) {
    const sizes = constants.get(decode(inputs[SHAPE_INPUT[kind]])) ?? [];
    const elements = sizes.filter((size) => size > 0n).reduce((product, size) => product * size, 1n);
    if (elements > BigInt(LARGEST_ELEMENTS)) fail(`node \`${name}\` makes a tensor of [${sizes}]`);
  }
}
