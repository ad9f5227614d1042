import type { Adapter, Source } from "./index.js";

/** The bundle in a folder; the engine maps the weights from there. */
export function folder(path: string): Source;

/** Write the adapter's state to `path`, whole or not at all. */
export function saveState(adapter: Adapter, path: string): Promise<void>;

/** Restore the adapter's state from `path`. */
export function restoreState(adapter: Adapter, path: string): Promise<void>;
