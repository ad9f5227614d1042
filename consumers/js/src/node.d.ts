import type { Adapter, Source } from "./index.js";

/** The bundle at a path: a folder, from which the engine maps the weights, or one file, which is read whole. */
export function bundle(path: string): Source;

/** Write the adapter's state to `path`, whole or not at all. */
export function saveState(adapter: Adapter, path: string): Promise<void>;

/** Restore the adapter's state from `path`. */
export function restoreState(adapter: Adapter, path: string): Promise<void>;
