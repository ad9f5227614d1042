import type { InferenceSession, Tensor, TensorConstructor } from "onnxruntime-common";

/** The part of onnxruntime's module that a reader uses; `onnxruntime-node` and `onnxruntime-web` have it. */
export interface Engine {
  Tensor: TensorConstructor;
  InferenceSession: { create(model: any, options?: InferenceSession.SessionOptions): Promise<InferenceSession> };
}

/** The files of a bundle. */
export interface Source {
  /** The bundle, for error messages. */
  where: string;
  /** The bytes of a file. */
  read(name: string): Promise<Uint8Array>;
  /** The path of a file, from which the engine loads a graph and maps the weights; without it, the engine gets bytes. */
  path?(name: string): string;
}

export type Tensors = Record<string, Tensor>;

/** Counters since the bundle was opened or reset, and the last scalars of the graphs, such as `entropy`. */
export interface Stats {
  steps: number;
  samples: number;
  rejected: number;
  resets: number;
  not_finite: number;
  milliseconds: number;
  [scalar: string]: number;
}

export interface Manifest {
  format: number;
  method: { name: string; settings: Record<string, unknown> };
  inputs: { name: string; dtype: string; shape: (number | string)[] }[];
  outputs: { name: string; dtype: string; shape: (number | string)[] }[];
  head: { output: string; kind: string; axis: number | null; values: string } | null;
  batch: { planned: number; smallest: number };
  /** Open sizes of the inputs. */
  sizes?: { name: string; largest: number; multiple: number; smallest?: number }[];
  preprocessing: { layout?: string; mean?: number[]; std?: number[]; range?: number[] } | null;
  [key: string]: unknown;
}

/** Runs a bundle; calls happen in their order, one at a time. */
export class Adapter {
  private constructor();
  readonly manifest: Manifest;
  readonly stats: Stats;
  /** A copy of the state. */
  readonly state: Tensors;
  /** Predict and adapt.  The state changes only if the step succeeds and all new values are finite. */
  step(inputs: Tensors): Promise<Tensors>;
  /** Predict with the adapted state; change neither state nor stats. */
  predict(inputs: Tensors): Promise<Tensors>;
  /** Set the state to its compiled values, and all counters to zero. */
  reset(): Promise<void>;
  /** The bytes of a state file, which Python's `adapter.restore` also reads. */
  save(): Promise<Uint8Array>;
  /** Set the state to the content of a state file; the counters go on. */
  restore(bytes: Uint8Array, where?: string): Promise<void>;
  /** Free the engine's sessions. */
  release(): Promise<void>;
}

/** An error with a place and a way out. */
export class TtacError extends Error {
  /** "usage": bad input.  "verification": damaged content.  "runtime-missing": another reader or engine is needed. */
  readonly kind: "usage" | "verification" | "runtime-missing";
  readonly problem: string;
  readonly where: string;
  readonly hint: string;
}

/** Open and verify a bundle; `options` are session options that replace this package's. */
export function open(source: Source, ort: Engine, options?: InferenceSession.SessionOptions): Promise<Adapter>;

/** The bundle at a URL: a folder, if the URL ends with "/", and else one file. */
export function hosted(url: string | URL, fetcher?: typeof fetch): Source;

/** The bundle in the bytes of one file; `where` names it in messages. */
export function packed(bytes: Uint8Array, where?: string): Source;

/** A bundle in memory: file name -> bytes. */
export function inMemory(files: Record<string, Uint8Array>): Source;

/** The tensors of a safetensors file. */
export function parseTensors(
  bytes: Uint8Array,
  where: string,
): { tensors: Map<string, { dtype: string; shape: number[]; data: Tensor.DataType }>; metadata: Record<string, string> };
