// Samples with NaN or infinite values: a step runs without them, and their rows of the output are NaN, or 0 in integers.

import { DTYPES, count, isFinite } from "./dtypes.js";
import { usage } from "./errors.js";

/** Check the user's inputs, name -> tensor; return them as a map. */
export function checkInputs(given, manifest) {
  const inputs = manifest.inputs.map((spec) => [spec.name, checked(given[spec.name], spec, manifest)]);
  const odd = Object.keys(given).find((name) => !manifest.inputs.some((spec) => spec.name === name));
  if (odd !== undefined) usage(`the model has no input \`${odd}\``, "the input", "pass an object, name to tensor");
  const axes = sampleAxes(manifest);
  const counts = inputs.filter(([name]) => axes.get(name) >= 0).map(([name, tensor]) => tensor.dims[axes.get(name)]);
  if (new Set(counts).size > 1) {
    usage("the inputs differ in their number of samples", "the input", "pass one batch");
  }
  checkSizes(inputs, manifest);
  return new Map(inputs);
}

/** Refuse an open size that is too small or too large, no multiple, or different in two inputs. */
function checkSizes(inputs, { inputs: specs, sizes }) {
  const seen = new Map();
  inputs.forEach(([name, { dims }], number) => {
    specs[number].shape.forEach((symbol, axis) => {
      if (!sizes.has(symbol)) return;
      const { largest, multiple, smallest } = sizes.get(symbol);
      const size = dims[axis];
      const before = seen.get(symbol) ?? size;
      if (size < smallest || size > largest || size % multiple || size !== before) {
        const rule = `from ${smallest} to ${largest}, a multiple of ${multiple}, and equal in all inputs`;
        usage(`the input has shape [${dims}]; its size \`${symbol}\` is ${size}, not ${rule}`, `input \`${name}\``, "resize the samples");
      }
      seen.set(symbol, size);
    });
  });
}

/** Input -> axis of its samples; -1 for an input that all samples share. */
export function sampleAxes({ inputs }) {
  return new Map(inputs.map(({ name, shape }) => [name, shape.indexOf("N")]));
}

/** The number of samples in the inputs. */
export function sampleCount(inputs, axes) {
  const [name, axis] = [...axes].find(([, at]) => at >= 0);
  return inputs.get(name).dims[axis];
}

function checked(tensor, { name, dtype, shape }, { smallest, planned }) {
  const where = `input \`${name}\``;
  if (!tensor?.dims || !tensor.data) usage("the input is no tensor", where, "pass a `Tensor` of the engine for each input");
  if (tensor.type !== DTYPES.get(dtype).type) {
    usage(`the input has dtype ${tensor.type}; the model takes ${dtype}`, where, "scale and normalise the values as in training");
  }
  if (tensor.dims.length !== shape.length || !shape.every((size, at) => typeof size === "string" || size === tensor.dims[at])) {
    usage(`the input has shape [${tensor.dims}]; the model takes [${shape}]`, where, "the samples lie along the axis `N`");
  }
  const samples = tensor.dims[shape.indexOf("N")] ?? smallest;
  if (samples < smallest || samples > planned) {
    usage(`the input has ${samples} samples; the bundle takes ${smallest} to ${planned}`, where, "pass a batch of that size");
  }
  return tensor;
}

/** `{ inputs, finite, learns }`: the batch for the graphs (null without a finite sample), and which samples are finite. */
export function finiteSamples(inputs, axes, smallest) {
  if ([...inputs.values()].every((tensor) => isFinite(tensor.type, tensor.data))) return { inputs, finite: null, learns: true };
  const finite = Array.from({ length: sampleCount(inputs, axes) }, (_, row) =>
    [...inputs].every(([name, tensor]) => {
      const part = axes.get(name) < 0 ? tensor : pick(tensor, axes.get(name), [row]);
      return isFinite(part.type, part.data);
    }),
  );
  const chosen = [...finite.keys()].filter((row) => finite[row]);
  const learns = chosen.length >= smallest;
  if (!chosen.length) return { inputs: null, finite, learns: false };
  while (chosen.length < smallest) chosen.push(chosen.at(-1));
  const picked = [...inputs].map(([name, tensor]) => [name, axes.get(name) < 0 ? tensor : pick(tensor, axes.get(name), chosen)]);
  return { inputs: new Map(picked), finite, learns };
}

/** The given rows of a tensor along an axis. */
export function pick(tensor, axis, rows) {
  const { dims } = tensor;
  const [outer, inner] = [count(dims.slice(0, axis)), count(dims.slice(axis + 1))];
  const data = new tensor.data.constructor(outer * rows.length * inner);
  for (let block = 0; block < outer; block += 1) {
    rows.forEach((row, at) => {
      const from = (block * dims[axis] + row) * inner;
      data.set(tensor.data.subarray(from, from + inner), (block * rows.length + at) * inner);
    });
  }
  return new tensor.constructor(tensor.type, data, dims.map((size, at) => (at === axis ? rows.length : size)));
}

/** The output with a row for each sample of the user; an output without a samples axis stays unchanged. */
export function spread(tensor, { dtype, shape }, finite, axis = shape.indexOf("N")) {
  if (axis < 0) return tensor;
  const dims = tensor.dims.map((size, at) => (at === axis ? finite.length : size));
  const whole = blank(dtype, dims, tensor.constructor);
  const [outer, inner, given] = [count(dims.slice(0, axis)), count(dims.slice(axis + 1)), tensor.dims[axis]];
  const rows = [...finite.keys()].filter((row) => finite[row]);
  for (let block = 0; block < outer; block += 1) {
    rows.forEach((row, at) => {
      const from = (block * given + at) * inner;
      whole.data.set(tensor.data.subarray(from, from + inner), (block * finite.length + row) * inner);
    });
  }
  return whole;
}

/** An output without a finite sample; a size that only a run decides is 1. */
export function blankOutput({ dtype, shape }, samples, Tensor) {
  const dims = shape.map((size) => (size === "N" ? samples : typeof size === "string" ? 1 : size));
  return blank(dtype, dims, Tensor);
}

function blank(dtype, dims, Tensor) {
  const { type, array } = DTYPES.get(dtype);
  const data = new array(count(dims));
  if (dtype.startsWith("float")) data.fill(array === Uint16Array ? 0x7e00 : NaN);
  return new Tensor(type, data, dims);
}
