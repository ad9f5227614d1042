// The manifest of a bundle, parsed strictly: format 3 of `docs/bundle.md`.

import { DTYPES } from "./dtypes.js";
import { TtacError, damaged, refuse } from "./errors.js";
import { Digits, byCodePoints, canonical, parseStrict, plain } from "./json.js";
import { parseProgram, allWords } from "./program.js";
import { aCount, aDigest, aFile, aList, aName, anObject, checkDistinct } from "./values.js";

export const FORMAT = 3;
export const WEIGHTS = "weights.safetensors";
export const BATCH_AXIS = "N";
const LARGEST = 64 * 2 ** 20;
const KEYS =
  "format ttac method target source files inputs outputs head batch preprocessing state sites graphs programs memory verified executed_on".split(
    " ",
  );
const ROLES = ["parameter", "optimizer", "statistic", "counter", "sparsity"];
const HEADS = ["classes", "binary", "dense", "detection", "ctc"];
const VALUES = ["logits", "probabilities", "log_probabilities"];
const LEVELS = ["basic", "extended", "all"];
const ORDERS = ["OIHWBiBo", "OIHWBo"];
const COUNTED = ["steps", "samples", "rejected", "resets", "not_finite", "milliseconds", "form", "form_reason"];

/** The checked manifest in the bytes of `manifest.json`. */
export async function parseManifest(bytes, sha256) {
  if (bytes.length > LARGEST) damaged("the manifest is larger than 64 MiB", "`manifest.json`");
  const raw = decoded(bytes);
  checkFormat(raw);
  const keys = Object.keys(raw).filter((key) => !["forms", "sizes"].includes(key));
  const odd = keys.filter((key) => !KEYS.includes(key))[0] ?? KEYS.filter((key) => !keys.includes(key))[0];
  if (odd) refuse("the top level", `has or lacks the key \`${odd}\``);
  checkInformative(raw);
  const files = new Map(Object.entries(anObject(raw.files, "files")));
  for (const [name, digest] of files) {
    aFile(name, "files");
    aDigest(digest, `files["${name}"]`);
  }
  if (files.has("manifest.json")) refuse("files", "lists `manifest.json` itself");
  const { stateFile, state } = stateOf(raw.state, files);
  const graphs = new Map(Object.entries(anObject(raw.graphs, "graphs")).map(([name, entry]) => [name, graph(name, entry, files, state)]));
  const outputs = tensors(raw.outputs, "outputs");
  if (!outputs.length) refuse("outputs", "is empty");
  const sizes = sizesOf(raw.sizes ?? []);
  const inputs = inputsOf(raw.inputs, sizes);
  checkHead(raw.head, inputs, outputs);
  const batch = batchOf(raw.batch);
  const programs = programsOf(raw.programs, graphs, state, outputs.length);
  checkForms(raw.forms ?? [], files, graphs);
  const identity = await identityOf(raw, sha256);
  const threads = aCount(raw.target.threads, "target.threads", 0, 1024);
  return { raw: plain(raw), identity, threads, files, inputs, outputs, sizes, ...batch, stateFile, state, graphs, programs };
}

function decoded(bytes) {
  let value;
  try {
    value = parseStrict(bytes);
  } catch (error) {
    damaged(`the file is not valid JSON: ${error.message}`, "`manifest.json`", undefined, error);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value) || value instanceof Digits) {
    damaged("the file is not a JSON object", "`manifest.json`");
  }
  return value;
}

/** SHA-256 over source, method, settings, state table and initial state; a saved state is bound to it. */
async function identityOf(raw, sha256) {
  const table = raw.state.tensors.map((tensor) => canonical(tensor)).sort(byCodePoints);
  const facts = [raw.source.sha256, raw.method.name, raw.method.settings, table, raw.files[raw.state.file]];
  return sha256(new TextEncoder().encode(canonical(facts, ",", ":")));
}

function checkFormat(raw) {
  const format = raw.format;
  if (!(format instanceof Digits && format.whole && format.value >= 1)) refuse("format", `is not ${FORMAT}`);
  if (format.value === FORMAT) return;
  const hint = format.value > FORMAT ? "install a newer version of this package" : "recompile the model";
  throw new TtacError("runtime-missing", `the bundle has format ${format.text}, this reader reads format ${FORMAT}`, {
    where: "`manifest.json`",
    hint,
  });
}

/** Check the types of the entries that people and other tools read; these objects may have further keys. */
function checkInformative(raw) {
  aName(raw.ttac, "ttac");
  const method = anObject(raw.method, "method", { needs: ["name", "settings"] });
  aName(method.name, "method.name");
  anObject(method.settings, "method.settings");
  const target = anObject(raw.target, "target", { needs: ["name", "engine", "opset", "ir_version", "threads"] });
  aName(target.name, "target.name");
  if (target.engine !== "onnxruntime") refuse("target.engine", "is not `onnxruntime`");
  const source = anObject(raw.source, "source", { needs: ["file", "sha256"] });
  aName(source.file, "source.file");
  aDigest(source.sha256, "source.sha256");
  checkPreprocessing(raw.preprocessing);
  aList(raw.sites, "sites").forEach((site, number) => {
    const needs = ["name", "kind", "statistics"];
    anObject(site, `sites[${number}]`, { needs });
    for (const key of needs) aName(site[key], `sites[${number}].${key}`);
  });
  anObject(raw.memory, "memory");
  anObject(raw.verified, "verified");
  aList(raw.executed_on, "executed_on").forEach((engine, number) => {
    const needs = ["package", "version"];
    anObject(engine, `executed_on[${number}]`, { needs });
    for (const key of needs) aName(engine[key], `executed_on[${number}].${key}`);
  });
}

function checkPreprocessing(value) {
  if (value === null) return;
  const entry = anObject(value, "preprocessing");
  if (!["NCHW", "NHWC", undefined].includes(entry.layout)) refuse("preprocessing.layout", "is not `NCHW` or `NHWC`");
  for (const [key, least] of [["mean", 1], ["std", 1], ["range", 2]]) {
    if (!(key in entry)) continue;
    const items = aList(entry[key], `preprocessing.${key}`);
    const numbers = items.map((number) => (number instanceof Digits ? number.value : NaN));
    if (numbers.length < least || !numbers.every(Number.isFinite)) refuse(`preprocessing.${key}`, "is not a list of finite numbers");
    if (key === "range" && (numbers.length !== 2 || numbers[0] >= numbers[1])) refuse("preprocessing.range", "is not two numbers, the lower first");
    if (key === "std" && Math.min(...numbers) <= 0) refuse("preprocessing.std", "is not above 0");
  }
}

function listed(value, where, files) {
  const name = aFile(value, where);
  if (!files.has(name)) refuse(where, `names \`${name}\`, which \`files\` does not list`);
  return name;
}

function graphFile(value, where, files) {
  const file = listed(value, where, files);
  if (!file.endsWith(".onnx")) refuse(where, `is \`${file}\`, not an \`.onnx\` file`);
  return file;
}

/** The open sizes of the inputs: name -> `{ largest, multiple, smallest }`. */
function sizesOf(value) {
  const entries = aList(value, "sizes").map((entry, number) => {
    const where = `sizes[${number}]`;
    anObject(entry, where, { only: ["name", "largest", "multiple"], also: ["smallest"] });
    const filled = { smallest: entry.multiple, ...entry };
    const keys = ["largest", "multiple", "smallest"];
    const [largest, multiple, smallest] = keys.map((key) => aCount(filled[key], `${where}.${key}`, 1));
    if (largest % multiple || smallest % multiple) refuse(where, `has a size that is no multiple of ${multiple}`);
    if (smallest > largest) refuse(`${where}.smallest`, "is above `largest`");
    return [aName(entry.name, `${where}.name`), { largest, multiple, smallest }];
  });
  checkDistinct([BATCH_AXIS, ...entries.map(([name]) => name)], "sizes");
  return new Map(entries);
}

function inputsOf(value, sizes) {
  const inputs = tensors(value, "inputs");
  if (!inputs.length) refuse("inputs", "is empty");
  if (inputs.every(({ shape }) => !shape.includes(BATCH_AXIS))) refuse("inputs", `has no shape with \`${BATCH_AXIS}\``);
  inputs.forEach(({ shape }, number) => {
    const odd = shape.find((size) => typeof size === "string" && size !== BATCH_AXIS && !sizes.has(size));
    if (odd !== undefined) refuse(`inputs[${number}].shape`, `has the size \`${odd}\`, which \`sizes\` lacks`);
  });
  return inputs;
}

function tensors(value, where) {
  const specs = aList(value, where).map((entry, number) => tensor(entry, `${where}[${number}]`));
  checkDistinct(specs.map(({ name }) => name), where);
  return specs;
}

function tensor(value, where, more = [], symbolic = true) {
  const entry = anObject(value, where, { only: ["name", "dtype", "shape", ...more] });
  if (typeof entry.dtype !== "string" || !DTYPES.has(entry.dtype)) refuse(`${where}.dtype`, "is not a dtype");
  const shape = aList(entry.shape, `${where}.shape`).map((size, axis) =>
    symbolic && typeof size === "string" && size ? size : aCount(size, `${where}.shape[${axis}]`, 0),
  );
  if (shape.filter((size) => size === BATCH_AXIS).length > 1) refuse(`${where}.shape`, `has \`${BATCH_AXIS}\` twice`);
  return { name: aName(entry.name, `${where}.name`), dtype: entry.dtype, shape };
}

function checkHead(value, inputs, outputs) {
  if (value === null) return;
  const entry = anObject(value, "head", { only: ["output", "kind", "axis", "values"], also: SCORES });
  if (![undefined, true, false].includes(entry.objectness)) refuse("head.objectness", "is not true or false");
  if (!HEADS.includes(entry.kind)) refuse("head.kind", "is not a kind of head");
  if (!VALUES.includes(entry.values)) refuse("head.values", "is not a meaning of numbers");
  const output = outputs.find(({ name }) => name === entry.output);
  if (!output?.shape.includes(BATCH_AXIS)) refuse("head.output", `is not an output with \`${BATCH_AXIS}\``);
  if (entry.axis === null && entry.kind === "classes") refuse("head.axis", "is null, and a head of classes has an axis of them");
  const axis = entry.axis === null ? null : aCount(entry.axis, "head.axis", 0);
  if (axis !== null && (axis >= output.shape.length || output.shape[axis] === BATCH_AXIS)) refuse("head.axis", `is ${axis}`);
  const [first, number] = ["first", "count", "ignored"].map((key) => aCount(entry[key] ?? ZERO, `head.${key}`, 0));
  if (typeof (entry.objectness ?? false) !== "boolean") refuse("head.objectness", "is neither true nor false");
  if (entry.boxes !== undefined && !outputs.some(({ name }) => name === entry.boxes)) refuse("head.boxes", "is no output");
  if (entry.mask !== undefined) checkMask(entry.mask, inputs);
  const size = axis === null ? 1 : output.shape[axis];
  if (typeof size === "number" && first + number > size) refuse("head.count", `is above the ${size} numbers of the axis`);
}

function checkMask(value, inputs) {
  const { input, counts } = anObject(value, "head.mask", { only: ["input", "counts"] });
  if (typeof counts !== "boolean") refuse("head.mask.counts", "is neither true nor false");
  if (!inputs.some(({ name, shape }) => name === input && shape[0] === BATCH_AXIS))
    refuse("head.mask.input", "is no input with the samples first");
}

const ZERO = new Digits("0", true);
const SCORES = ["first", "count", "ignored", "objectness", "mask", "boxes"];

function batchOf(value) {
  const batch = anObject(value, "batch", { only: ["planned", "smallest"] });
  const [planned, smallest] = ["planned", "smallest"].map((key) => aCount(batch[key], `batch.${key}`, 1));
  if (smallest > planned) refuse("batch.smallest", `is ${smallest}, more than the planned ${planned}`);
  return { planned, smallest };
}

function stateOf(value, files) {
  const entry = anObject(value, "state", { only: ["file", "tensors"] });
  const specs = aList(entry.tensors, "state.tensors").map((item, number) => {
    const where = `state.tensors[${number}]`;
    const spec = tensor(item, where, ["role"], false);
    if (!ROLES.includes(item.role)) refuse(`${where}.role`, "is not a role");
    return { ...spec, role: item.role };
  });
  checkDistinct(specs.map(({ name }) => name), "state.tensors");
  return { stateFile: listed(entry.file, "state.file", files), state: new Map(specs.map((spec) => [spec.name, spec])) };
}

function graph(name, value, files, state) {
  const where = `graphs["${aName(name, "graphs")}"]`;
  const entry = anObject(value, where, { only: ["file", "state", "stats"], also: ["optimization"] });
  const [moved, stats] = ["state", "stats"].map((key) => {
    const table = anObject(entry[key], `${where}.${key}`);
    return new Map(Object.entries(table).map(([output, into]) => [output, aName(into, `${where}.${key}`)]));
  });
  for (const into of moved.values()) {
    if (!state.has(into)) refuse(`${where}.state`, `names \`${into}\`, which the state table lacks`);
  }
  checkDistinct([...moved.values()], `${where}.state`);
  for (const reported of stats.values()) {
    if (COUNTED.includes(reported)) refuse(`${where}.stats`, `takes the name \`${reported}\`, which the reader counts itself`);
  }
  if (entry.optimization && !LEVELS.includes(entry.optimization)) refuse(`${where}.optimization`, "is not a level");
  return { name, file: graphFile(entry.file, `${where}.file`, files), state: moved, stats, optimization: entry.optimization };
}

function programsOf(value, graphs, state, outputs) {
  const entries = anObject(value, "programs", { only: ["step", "predict"] });
  const programs = {};
  for (const [name, words] of Object.entries(entries)) {
    programs[name] = parseProgram(words, `programs.${name}`, [...state.keys()]);
    for (const word of allWords(programs[name])) {
      if (word.return && word.return.length !== outputs) {
        refuse(`programs.${name}`, `returns ${word.return.length} values, and \`outputs\` has ${outputs}`);
      }
      if (word.run && !graphs.has(word.run)) refuse(`programs.${name}`, `runs \`${word.run}\`, which \`graphs\` lacks`);
    }
  }
  return programs;
}

/** Check the table of forms, which this reader does not use. */
function checkForms(value, files, graphs) {
  const names = aList(value, "forms").map((form, number) => {
    const where = `forms[${number}]`;
    const entry = anObject(form, where, { only: ["name", "block", "probe", "graphs", "weights"], also: ["kernels"] });
    aCount(entry.block, `${where}.block`, 1);
    aCount(entry.kernels ?? ZERO, `${where}.kernels`, 0);
    graphFile(entry.probe, `${where}.probe`, files);
    for (const [name, file] of Object.entries(anObject(entry.graphs, `${where}.graphs`))) {
      if (!graphs.has(name)) refuse(`${where}.graphs`, `has \`${name}\`, which \`graphs\` lacks`);
      graphFile(file, `${where}.graphs`, files);
    }
    for (const weight of Object.values(anObject(entry.weights, `${where}.weights`))) checkWeight(weight, `${where}.weights`);
    return aName(entry.name, `${where}.name`);
  });
  checkDistinct(["portable", ...names], "forms");
}

function checkWeight(value, where) {
  const entry = anObject(value, where, { only: ["of", "order"], also: ["taps", "groups"] });
  aName(entry.of, `${where}.of`);
  if (!ORDERS.includes(entry.order)) refuse(`${where}.order`, "is not an order");
  const taps = aList(entry.taps ?? [], `${where}.taps`);
  if (![0, 2].includes(taps.length)) refuse(`${where}.taps`, `has ${taps.length} axes, not 2`);
  for (const line of taps) for (const tap of aList(line, `${where}.taps`)) aCount(tap, `${where}.taps`, 0);
  aCount(entry.groups ?? ZERO, `${where}.groups`, 0);
}
