// The adapter: a model that predicts and adapts, one batch at a time.

import { DTYPES, first, isFinite } from "./dtypes.js";
import { HINT, TtacError, damaged } from "./errors.js";
import { checkGraph } from "./graph.js";
import { WEIGHTS, parseManifest } from "./manifest.js";
import { Pass, allWords, bind } from "./program.js";
import { parseTensors } from "./safetensors.js";
import { blankOutput, checkInputs, finiteSamples, sampleAxes, sampleCount, spread } from "./samples.js";
import { checkPlausible, checkTensors, formatState, parseState } from "./state.js";

const REJECTED_IN_A_ROW = 10;
const FAULTY = "MatMul_BatchNormalization_Fusion;SkipLayerNormFusion";

/** SHA-256 of the bytes in lower-case hexadecimal. */
async function sha256(bytes) {
  const digest = new Uint8Array(await globalThis.crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Open the bundle of `source` (`{ where, read, path? }`) on the engine `ort`, the module of onnxruntime. */
export async function open(source, ort, options = {}) {
  const manifest = await parseManifest(await source.read("manifest.json"), sha256);
  const files = new Map();
  for (const [name, digest] of manifest.files) {
    const bytes = await source.read(name);
    if ((await sha256(bytes)) !== digest) damaged("a file of the bundle is not the one the manifest was written for", `\`${name}\``);
    files.set(name, bytes);
  }
  const weights = files.get(WEIGHTS);
  const checked = new Map();
  for (const { file } of manifest.graphs.values()) {
    checked.set(file, checkGraph(files.get(file), `\`${file}\``));
    for (const { location, offset, length } of checked.get(file).external) {
      if (location !== WEIGHTS || offset + length > (weights?.length ?? 0)) {
        damaged(`the graph wants ${length} bytes at ${offset} of \`${location}\``, `\`${file}\``);
      }
    }
  }
  const state = parseTensors(files.get(manifest.stateFile), `\`${manifest.stateFile}\``).tensors;
  checkTensors(state, manifest.state, `\`${manifest.stateFile}\``);
  checkPlausible(state, `\`${manifest.stateFile}\``, HINT);
  const stored = weights ? parseTensors(weights, `\`${WEIGHTS}\``).tensors : new Map();
  const ports = new Map([...manifest.graphs].map(([name, spec]) => [name, checkPorts(spec, checked.get(spec.file), manifest)]));
  const world = { ...manifest, graphs: ports, inputs: sampleAxes(manifest) };
  const programs = Object.fromEntries(
    Object.entries(manifest.programs).map(([name, words]) => {
      return [name, bind(words, { ...world, state: state.keys(), weights: stored.keys() }, `programs.${name}`)];
    }),
  );
  const words = Object.values(programs).flatMap((program) => [...allWords(program)]);
  const used = new Set(words.map((word) => word.run));
  const graphs = new Map();
  for (const [name, spec] of manifest.graphs) {
    if (used.has(name)) graphs.set(name, await load(source, ort, { ...spec, ...ports.get(name) }, files, options, manifest));
  }
  const fed = words.flatMap((word) => [...(word.feed?.values() ?? [])]);
  const needed = new Set([...[...graphs.values()].flatMap(({ inputs }) => inputs), ...fed]);
  const tensor = (entry) => new ort.Tensor(DTYPES.get(entry.dtype).type, entry.data, entry.shape);
  const tensors = (entries) => new Map([...entries].map(([name, entry]) => [name, tensor(entry)]));
  return new Adapter(ort, manifest, { ...world, graphs, weights: tensors([...stored].filter(([name]) => needed.has(name))) }, programs, tensors(state));
}

/** Inputs and outputs of a graph, checked against the manifest. */
function checkPorts(spec, { inputs, outputs }, manifest) {
  const declared = new Map([...manifest.state, ...manifest.inputs.map((input) => [input.name, input])]);
  for (const { name, dtype, shape } of inputs) {
    const other = declared.get(name);
    const fits = (size, axis) => typeof size !== "number" || size === other.shape[axis];
    if (other && !(dtype === other.dtype && shape.length === other.shape.length && shape.every(fits))) {
      damaged(`the graph takes \`${name}\` as ${dtype} [${shape}], the manifest has ${other.dtype} [${other.shape}]`, `\`${spec.file}\``);
    }
  }
  const names = outputs.map(({ name }) => name);
  const missing = [...spec.state.keys(), ...spec.stats.keys()].find((name) => !names.includes(name));
  if (missing !== undefined) damaged(`the manifest reads output \`${missing}\`, which the graph lacks`, `\`${spec.file}\``);
  return { inputs: inputs.map(({ name }) => name), outputs: names, state: spec.state, stats: spec.stats };
}

async function load(source, ort, graph, files, options, manifest) {
  const settings = {
    graphOptimizationLevel: graph.optimization || "all",
    intraOpNumThreads: manifest.threads || undefined,
    enableMemPattern: false,
    logSeverityLevel: 4,
    extra: { optimization: { disable_specified_optimizers: FAULTY }, session: { intra_op: { allow_spinning: "0" } } },
    ...options,
  };
  if (settings.intraOpNumThreads === undefined) delete settings.intraOpNumThreads;
  const failed = (doing) => (error) => {
    throw new TtacError("runtime-missing", `onnxruntime ${doing}: ${error.message}`, { where: `\`${graph.file}\``, cause: error });
  };
  const external = source.path || !files.has(WEIGHTS) ? {} : { externalData: [{ path: WEIGHTS, data: files.get(WEIGHTS) }] };
  const place = source.path ? source.path(graph.file) : files.get(graph.file);
  const session = await ort.InferenceSession.create(place, { ...settings, ...external }).catch(failed("does not load the graph"));
  return {
    ...graph,
    run: (feed, fetch) => session.run(feed, fetch, { logSeverityLevel: 4 }).catch(failed("failed")),
    release: () => session.release(),
  };
}

/** Runs a bundle; calls happen in their order, one at a time. */
export class Adapter {
  #ort;
  #manifest;
  #world;
  #programs;
  #state;
  #stats;
  #rejectedInARow = 0;
  #last = Promise.resolve();

  constructor(ort, manifest, world, programs, initial) {
    this.#ort = ort;
    this.#manifest = manifest;
    this.#world = { ...world, initial };
    this.#programs = programs;
    this.#restart();
  }

  get manifest() {
    return this.#manifest.raw;
  }

  get stats() {
    return { ...this.#stats };
  }

  /** A copy of the state, name -> tensor. */
  get state() {
    const copies = [...this.#state].map(([name, tensor]) => [name, new this.#ort.Tensor(tensor.type, tensor.data.slice(), tensor.dims)]);
    return Object.fromEntries(copies);
  }

  /** Predict and adapt: inputs by name -> outputs by name. */
  step(inputs) {
    return this.#turn(async () => {
      const start = performance.now();
      const given = checkInputs(inputs, this.#manifest);
      const batch = finiteSamples(given, this.#world.inputs, this.#manifest.smallest);
      const { outputs, pass } = await this.#run(batch, batch.learns ? "step" : "predict");
      const adapted = !batch.learns || this.#commit(pass.pending);
      this.#rejectedInARow = adapted ? 0 : this.#rejectedInARow + 1;
      const stuck = this.#rejectedInARow >= REJECTED_IN_A_ROW;
      const stats = this.#stats;
      this.#stats = {
        ...stats,
        steps: stats.steps + 1,
        samples: stats.samples + sampleCount(given, this.#world.inputs),
        rejected: stats.rejected + Number(!adapted),
        resets: stats.resets + Number(stuck),
        not_finite: stats.not_finite + (batch.finite ?? []).filter((finite) => !finite).length,
        milliseconds: performance.now() - start,
        ...pass?.reported,
      };
      if (stuck) this.#take(this.#world.initial);
      return outputs;
    });
  }

  /** Predict with the adapted state; change neither state nor stats. */
  predict(inputs) {
    return this.#turn(async () => {
      const batch = finiteSamples(checkInputs(inputs, this.#manifest), this.#world.inputs, this.#manifest.smallest);
      return (await this.#run(batch, "predict")).outputs;
    });
  }

  /** Set the state to its compiled values, and all counters to zero. */
  reset() {
    return this.#turn(async () => this.#restart());
  }

  /** The bytes of a state file. */
  save() {
    return this.#turn(() => {
      const entries = [...this.#state].map(([name, { data, dims }]) => {
        return [name, { dtype: this.#manifest.state.get(name).dtype, shape: [...dims], data }];
      });
      return formatState(new Map(entries), this.#manifest.identity, sha256);
    });
  }

  /** Set the state to the content of a state file; the counters go on. */
  restore(bytes, where = "the state file") {
    return this.#turn(async () => {
      const tensors = await parseState(bytes, this.#manifest, sha256, where);
      const { Tensor } = this.#ort;
      this.#take(new Map([...tensors].map(([name, { dtype, shape, data }]) => [name, new Tensor(DTYPES.get(dtype).type, data, shape)])));
    });
  }

  /** Free the engine's sessions. */
  release() {
    return this.#turn(async () => {
      for (const graph of this.#world.graphs.values()) await graph.release();
    });
  }

  #turn(work) {
    const result = this.#last.then(work);
    this.#last = result.catch(() => {});
    return result;
  }

  #restart() {
    this.#stats = { steps: 0, samples: 0, rejected: 0, resets: 0, not_finite: 0, milliseconds: 0 };
    this.#take(this.#world.initial);
  }

  /** Make the tensors the state, and report what they count. */
  #take(tensors) {
    this.#state = new Map(tensors);
    this.#rejectedInARow = 0;
    this.#stats = { ...this.#stats, ...this.#counted() };
  }

  /** The reports that the state has before their graphs run; a negative value is unknown. */
  #counted() {
    const counts = {};
    for (const { state, stats } of this.#manifest.graphs.values()) {
      for (const [output, name] of stats) {
        const tensor = this.#state.get(state.get(output));
        if (tensor?.data.length && first(tensor) >= 0) counts[name] = first(tensor);
      }
    }
    return counts;
  }

  async #run({ inputs, finite }, program) {
    const specs = this.#manifest.outputs;
    if (!inputs) {
      const blanks = specs.map((spec) => [spec.name, blankOutput(spec, finite.length, this.#ort.Tensor)]);
      return { outputs: Object.fromEntries(blanks), pass: null };
    }
    const pass = new Pass({ ...this.#world, state: this.#state }, inputs);
    const returned = await pass.perform(this.#programs[program]);
    const samples = sampleCount(inputs, this.#world.inputs);
    const outputs = specs.map((spec, number) => {
      checkOutput(returned[number], spec, samples);
      return [spec.name, finite ? spread(returned[number], spec, finite) : returned[number]];
    });
    return { outputs: Object.fromEntries(outputs), pass };
  }

  /** Make the pending tensors the state if all are finite; returns whether they are. */
  #commit(pending) {
    for (const [name, tensor] of pending) {
      const spec = this.#manifest.state.get(name);
      if (tensor.type !== DTYPES.get(spec.dtype).type || tensor.dims.join() !== spec.shape.join()) {
        damaged(`a graph made state \`${name}\` ${tensor.type} [${tensor.dims}], the state table says ${spec.dtype} [${spec.shape}]`, "the program");
      }
    }
    if (![...pending.values()].every((tensor) => isFinite(tensor.type, tensor.data))) return false;
    this.#state = new Map([...this.#state, ...pending]);
    return true;
  }
}

function checkOutput(tensor, { name, dtype, shape }, samples) {
  const sizes = shape.map((size) => (size === "N" ? samples : size));
  const fits = tensor.dims.length === sizes.length && sizes.every((size, axis) => typeof size === "string" || size === tensor.dims[axis]);
  if (!fits || tensor.type !== DTYPES.get(dtype).type) {
    damaged(`\`${name}\` is ${tensor.type} [${tensor.dims}], the manifest says ${dtype} [${sizes}]`, "the program");
  }
}
