// The programs of a bundle: read from JSON, checked against the graphs, and performed.

import { TtacError, damaged, refuse } from "./errors.js";
import { first } from "./dtypes.js";
import { pick } from "./samples.js";
import { aCount, aList, aName, anObject } from "./values.js";

const MOST_WORDS = 10_000;
const DEEPEST = 16;

/** The words of the JSON value; every path ends with `return`.  `state` are the names of the state tensors. */
export function parseProgram(words, where, state) {
  const program = parse(words, where, state, DEEPEST);
  if (!alwaysReturns(program)) refuse(where, "does not end with `return` on every path");
  const count = countWords(program);
  if (count > MOST_WORDS) refuse(where, `does ${count} words with all repetitions, and ${MOST_WORDS} is the limit`);
  return program;
}

function parse(words, where, state, depth) {
  if (depth === 0) refuse(where, `is more than ${DEEPEST} levels deep`);
  const parsed = aList(words, where).map((entry, number) => parseWord(entry, `${where}[${number}]`, state, depth));
  const early = parsed.slice(0, -1).findIndex((word) => alwaysReturns([word]));
  if (early >= 0) refuse(`${where}[${early}]`, "returns, so the next word is never reached");
  return parsed;
}

function parseWord(value, where, state, depth) {
  const entry = anObject(value, where);
  const names = Object.keys(entry).filter((key) => Object.hasOwn(PARSERS, key));
  if (names.length === 1) return PARSERS[names[0]](entry, where, state, depth);
  const known = Object.keys(PARSERS).join(", ");
  throw new TtacError("runtime-missing", `this reader knows the program words ${known}; the manifest has ${Object.keys(entry)}`, {
    where: `\`manifest.json\`, \`${where}\``,
    hint: "install a newer version of this package, or recompile the bundle",
  });
}

const names = (value, where) => aList(value, where).map((name) => aName(name, where));

const PARSERS = {
  run(entry, where) {
    anObject(entry, where, { only: ["run"], also: ["rows", "feed", "only", "deferred"] });
    const feed = new Map(Object.entries(anObject(entry.feed ?? {}, `${where}.feed`)));
    for (const [name, other] of feed) [name, other].forEach((text) => aName(text, `${where}.feed`));
    const only = "only" in entry ? names(entry.only, `${where}.only`) : null;
    const rows = "rows" in entry ? aCount(entry.rows, `${where}.rows`, 1) : 0;
    if ("deferred" in entry && entry.deferred !== true) refuse(`${where}.deferred`, "is not `true`");
    if ("deferred" in entry && only) refuse(`${where}.deferred`, "excludes outputs by `only`");
    return { run: aName(entry.run, where), rows, feed, only, deferred: "deferred" in entry };
  },
  when(entry, where, state, depth) {
    anObject(entry, where, { only: ["when", "then"], also: ["otherwise"] });
    const [then, otherwise] = ["then", "otherwise"].map((key) => parse(entry[key] ?? [], `${where}.${key}`, state, depth - 1));
    return { when: aName(entry.when, where), then, otherwise };
  },
  repeat(entry, where, state, depth) {
    anObject(entry, where, { only: ["repeat", "do"] });
    const body = parse(entry.do, `${where}.do`, state, depth - 1);
    for (const word of allWords(body)) {
      if (word.return) refuse(`${where}.do`, "returns inside `repeat`");
      if (word.deferred) refuse(`${where}.do`, "has a deferred run inside `repeat`");
    }
    return { repeat: aCount(entry.repeat, where, 1), do: body };
  },
  reset(entry, where, state) {
    anObject(entry, where, { only: ["reset"] });
    const list = entry.reset === "all" ? state : names(entry.reset, where);
    const unknown = list.find((name) => !state.includes(name));
    if (unknown !== undefined) refuse(where, `resets \`${unknown}\`, which the state table lacks`);
    return { reset: list };
  },
  return(entry, where) {
    anObject(entry, where, { only: ["return"] });
    return { return: names(entry.return, where) };
  },
};

/** The words and the words inside them, in order. */
export function* allWords(words) {
  for (const word of words) {
    yield word;
    yield* allWords([...(word.then ?? []), ...(word.otherwise ?? []), ...(word.do ?? [])]);
  }
}

function countWords(words) {
  return words.reduce((sum, word) => {
    if (word.when) return sum + 1 + Math.max(countWords(word.then), countWords(word.otherwise));
    return sum + 1 + (word.repeat ? word.repeat * countWords(word.do) : 0);
  }, 0);
}

function alwaysReturns(words) {
  const last = words.at(-1);
  if (last?.when) return alwaysReturns(last.then) && alwaysReturns(last.otherwise);
  return last?.return !== undefined;
}

/**
 * The program with `fetch`, the outputs to compute, and `keep`, the values that later words read, in every run.
 *
 * `world` has `graphs` (name -> `{ inputs, outputs, state, stats }`), the map `inputs`, and the names `state` and `weights`.
 */
export function bind(words, world, where) {
  checkNames(words, world, new Set([...world.inputs.keys(), ...world.state, ...world.weights]), where);
  checkDeferred(words, world, new Set(), where);
  return bound(words, world, new Set())[0];
}

function reads(word, world) {
  if (word.run) return world.graphs.get(word.run).inputs.map((name) => word.feed.get(name) ?? name);
  return word.when ? [word.when] : (word.return ?? []);
}

function writes(word, world) {
  if (!word.run) return word.reset ?? [];
  const graph = world.graphs.get(word.run);
  return [...graph.outputs, ...graph.state.values()];
}

const describe = (word) => (word.run ? `graph \`${word.run}\`` : `\`${Object.keys(word)[0]}\``);

function checkNames(words, world, before, where) {
  let known = before;
  for (const word of words) {
    const missing = reads(word, world).find((name) => !known.has(name));
    if (missing !== undefined) refuse(where, `reads \`${missing}\` in ${describe(word)}, and nothing provides it`);
    if (word.run) {
      const graph = world.graphs.get(word.run);
      const odd = (word.only ?? []).find((name) => !graph.outputs.includes(name));
      if (odd !== undefined) refuse(where, `wants \`${odd}\` of ${describe(word)}, which has no such output`);
      const unfed = [...word.feed.keys()].find((name) => !graph.inputs.includes(name));
      if (unfed !== undefined) refuse(where, `feeds \`${unfed}\` to ${describe(word)}, which has no such input`);
      known = new Set([...known, ...(word.only ?? graph.outputs)]);
    } else if (word.repeat) {
      known = checkNames(word.do, world, known, where);
    } else if (word.when) {
      const other = checkNames(word.otherwise, world, known, where);
      known = new Set([...checkNames(word.then, world, known, where)].filter((name) => other.has(name)));
    }
  }
  return known;
}

/** No word after a deferred run reads or writes its outputs or its state. */
function checkDeferred(words, world, before, where) {
  let closed = before;
  for (const word of words) {
    const touched = [...reads(word, world), ...writes(word, world)].find((name) => closed.has(name));
    if (touched !== undefined) refuse(where, `touches \`${touched}\` in ${describe(word)}, and a deferred run updates it`);
    if (word.deferred) {
      const graph = world.graphs.get(word.run);
      const other = graph.outputs.find((name) => !graph.state.has(name));
      if (other !== undefined) refuse(where, `defers ${describe(word)}, and its output \`${other}\` is no state`);
      closed = new Set([...closed, ...graph.outputs, ...graph.state.values()]);
    } else if (word.when) {
      closed = new Set([word.then, word.otherwise].flatMap((branch) => [...checkDeferred(branch, world, closed, where)]));
    } else if (word.repeat) {
      closed = checkDeferred(word.do, world, closed, where);
    }
  }
  return closed;
}

function bound(words, world, last) {
  let after = last;
  const result = [];
  for (const word of [...words].reverse()) {
    if (word.run) {
      const graph = world.graphs.get(word.run);
      const wanted = (name) => after.has(name) || graph.state.has(name) || graph.stats.has(name);
      const fetch = (word.only ?? graph.outputs).filter(wanted);
      result.push({ ...word, fetch, keep: after });
      after = new Set([...[...after].filter((name) => !fetch.includes(name)), ...reads(word, world)]);
    } else if (word.when) {
      const [then, one] = bound(word.then, world, after);
      const [otherwise, other] = bound(word.otherwise, world, after);
      result.push({ ...word, then, otherwise });
      after = new Set([...one, ...other, word.when]);
    } else if (word.repeat) {
      after = new Set([...after, ...[...allWords(word.do)].flatMap((inner) => reads(inner, world))]);
      result.push({ ...word, do: bound(word.do, world, after)[0] });
    } else {
      result.push(word);
      after = new Set([...after, ...reads(word, world)]);
    }
  }
  return [result.reverse(), after];
}

/** One pass through a bound program: its values, and the state that it makes pending. */
export class Pass {
  /**
   * `world` has `graphs`, `inputs` (name -> axis of the samples, -1 without one), `state`, `initial` and `weights`; `values`
   * are the user's inputs.
   */
  constructor(world, values) {
    this.world = world;
    this.values = new Map(values);
    this.pending = new Map();
    this.reported = {};
  }

  /** The returned tensors; undefined if the words hold no `return`. */
  async perform(words) {
    for (const word of words) {
      let result;
      if (word.run) await this.run(word);
      else if (word.when) result = await this.perform(this.scalar(this.find(word.when)) > 0 ? word.then : word.otherwise);
      else if (word.repeat) for (let i = 0; i < word.repeat; i += 1) await this.perform(word.do);
      else if (word.reset) for (const name of word.reset) this.pending.set(name, this.world.initial.get(name));
      else result = word.return.map((name) => this.find(name));
      if (result) return result;
    }
    return undefined;
  }

  find(name) {
    const places = [this.values, this.pending, this.world.state, this.world.weights];
    return places.find((place) => place.has(name)).get(name);
  }

  scalar(tensor) {
    if (!tensor.data.length) damaged("a graph gave an empty tensor as a scalar", "the program");
    return first(tensor);
  }

  async run(word) {
    const graph = this.world.graphs.get(word.run);
    if (word.fetch.length) {
      const feed = Object.fromEntries(graph.inputs.map((name) => [name, this.rows(name, word)]));
      const outputs = await graph.run(feed, word.fetch);
      for (const name of word.fetch) {
        if (graph.state.has(name)) this.pending.set(graph.state.get(name), outputs[name]);
        if (graph.stats.has(name)) this.reported[graph.stats.get(name)] = this.scalar(outputs[name]);
        this.values.set(name, outputs[name]);
      }
    }
    for (const name of this.values.keys()) if (!word.keep.has(name)) this.values.delete(name);
  }

  rows(name, word) {
    const tensor = this.find(word.feed.get(name) ?? name);
    const axis = this.world.inputs.get(name) ?? -1;
    if (!word.rows || axis < 0 || tensor.dims[axis] <= word.rows) return tensor;
    return pick(tensor, axis, [...Array(word.rows).keys()]);
  }
}
