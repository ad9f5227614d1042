// The conformance kit for any engine and any source of files; `read(path)` gives the bytes of a file of the kit.

import { TtacError, open, parseTensors } from "../src/index.js";

/** Run every case; `source(path)` is the bundle at a path of the kit.  Returns the largest difference and the counts. */
export async function runKit(ort, { read, source }, options = {}) {
  const kit = JSON.parse(new TextDecoder().decode(await read("kit.json")));
  const result = { cases: kit.cases.length, calls: 0, refused: kit.refused.length, worst: 0 };
  for (const entry of kit.cases) {
    const { tensors } = parseTensors(await read(entry.tensors), entry.tensors);
    const adapter = await open(source(entry.bundle), ort, options);
    for (const [number, call] of entry.calls.entries()) {
      const where = `case ${entry.name}, call ${number}`;
      const difference = await runCall({ ort, adapter, call, tensors, read, where });
      if (!(difference <= kit.tolerance)) throw new Error(`${where} differs by ${difference}`);
      result.worst = Math.max(result.worst, difference);
      result.calls += 1;
    }
    await adapter.release();
  }
  for (const entry of kit.refused) {
    const error = await open(source(entry.bundle), ort, options).then(() => null, (caught) => caught);
    if (!(error instanceof TtacError) || error.kind !== entry.error) {
      throw new Error(`the bundle ${entry.name} gave ${error?.stack}, not an error of the kind ${entry.error}`);
    }
  }
  return result;
}

async function runCall({ ort, adapter, call, tensors, read, where }) {
  const tensor = ({ dtype, data, shape }) => new ort.Tensor(dtype, data, shape);
  const inputs = Object.fromEntries(Object.entries(call.inputs ?? {}).map(([name, key]) => [name, tensor(tensors.get(key))]));
  let outputs = {};
  let saved = null;
  try {
    if (call.call === "step") outputs = await adapter.step(inputs);
    else if (call.call === "predict") outputs = await adapter.predict(inputs);
    else if (call.call === "reset") await adapter.reset();
    else if (call.call === "save") saved = await adapter.save();
    else await adapter.restore(await read(call.file).catch(() => new Uint8Array()));
  } catch (error) {
    if (call.refused && error instanceof TtacError) return 0;
    throw new Error(`${where}: ${error.stack}`, { cause: error });
  }
  if (call.refused) throw new Error(`${where} is not refused`);
  if (saved) {
    const expected = parseTensors(await read(call.file), call.file);
    const found = parseTensors(saved, "the saved state");
    if (found.metadata.bundle !== expected.metadata.bundle) throw new Error(`${where}: the identity of the bundle differs`);
    await adapter.restore(saved);
  }
  const state = adapter.state;
  const stats = adapter.stats;
  delete stats.milliseconds;
  same(Object.keys(state), Object.keys(call.state), `${where}: the state`);
  same(Object.keys(stats), Object.keys(call.stats), `${where}: the stats`);
  const pairs = [
    ...Object.entries(call.outputs ?? {}).map(([name, key]) => [outputs[name], tensors.get(key)]),
    ...Object.entries(call.state).map(([name, key]) => [state[name], tensors.get(key)]),
  ];
  const scalars = Object.entries(call.stats).map(([name, value]) => difference(stats[name], Number(value)));
  return Math.max(0, ...scalars, ...pairs.map(([found, expected]) => differences(found, expected)));
}

function same(found, expected, where) {
  const [a, b] = [[...found].sort().join(), [...expected].sort().join()];
  if (a !== b) throw new Error(`${where} has ${a}, not ${b}`);
}

function differences(found, expected) {
  if (found.type !== expected.dtype || found.dims.join() !== expected.shape.join()) return Infinity;
  return found.data.reduce((worst, value, at) => Math.max(worst, difference(Number(value), Number(expected.data[at]))), 0);
}

function difference(found, expected) {
  if (Object.is(found, expected) || found === expected) return 0;
  const value = Math.abs(found - expected) / (1 + Math.abs(expected));
  return Number.isNaN(value) ? Infinity : value;
}
