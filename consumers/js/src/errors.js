/** An error with a place and a way out; `kind` is "usage", "verification" or "runtime-missing". */
export class TtacError extends Error {
  constructor(kind, problem, { where = "", hint = "", cause } = {}) {
    super([problem, where && `at ${where}`, hint && `hint: ${hint}`].filter(Boolean).join("; "), { cause });
    this.name = "TtacError";
    Object.assign(this, { kind, problem, where, hint });
  }
}

export const HINT = "copy the bundle again from where it was compiled, or recompile it";

/** Throw the error for bad input of the caller. */
export function usage(problem, where, hint) {
  throw new TtacError("usage", problem, { where, hint });
}

/** Throw the error for content that does not fit the manifest. */
export function damaged(problem, where, hint = HINT, cause = undefined) {
  throw new TtacError("verification", problem, { where, hint, cause });
}

/** Throw the error for a `problem` at `where` in the manifest. */
export function refuse(where, problem) {
  damaged(`the manifest is not valid: \`${where}\` ${problem}`, "`manifest.json`");
}
