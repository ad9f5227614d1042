"""The form of the graphs that fits the engine of this machine: chosen by a probe, its weights reordered once.

A blocked form uses the engine's internal layout.  Engines do not promise it, and its block differs between processors.
So a small graph of the bundle runs first, which computes the same numbers in internal and in standard operators.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttac.errors import RuntimeMissingError, TtacError, UsageError, VerificationError
from ttac.runtime.bundle import OpenBundle
from ttac.runtime.engine import open_session
from ttac.runtime.form_cache import cache_key, recall
from ttac.runtime.form_table import AGREED, PORTABLE, FormSpec
from ttac.runtime.hash_check import digest_of
from ttac.runtime.json_values import HINT
from ttac.runtime.kernel_library import KernelLibrary, kernel_library
from ttac.runtime.packed_graph import PackedGraph
from ttac.runtime.reorder import reordered
from ttac.runtime.tensors import leave_on_disk

FORMS = ("auto", PORTABLE, "blocked", "kernels")
PROBED = 1e-4
"""Largest relative difference between internal and standard operators in a probe."""
MOVED, STEPPED = 0.1, 0.5
"""Largest difference of the changes of the state in one step, by their length: of moments and statistics, and of
parameters.  The first step of Adam turns rounding errors of small gradients into whole steps of parameters: up to 0.2
in deep networks."""
LEARNED = ("optimizer", "parameter")
"""Roles of the state that gradients change.  Gradients from kept blocks jump if a keep ratio changes by a rounding
error: one block more shifts the places of all blocks.  So their changes count only where all ratios are equal; the
ratios follow from gradients with everything kept."""

_failures: dict[tuple[str, KernelLibrary], str] = {}
"""SHA-256 of a probe, and its library -> the reason against the form; empty for a form that runs."""


@dataclass(frozen=True)
class Choice:
    """The form to load, None for the portable graphs.

    Attributes:
        reason: why the portable graphs run, or blocked graphs without kernels in a bundle that has both.
        confirmed: whether a step was compared with the portable graphs.
        key: under which the form is remembered when a step has confirmed it; empty for a form that a caller named.
    """

    spec: FormSpec | None
    reason: str = ""
    confirmed: bool = True
    key: str = ""

    @property
    def name(self) -> str:
        """Name of the form."""
        return self.spec.name if self.spec else PORTABLE

    @property
    def stats(self) -> dict[str, str]:
        """Entries of `adapter.stats`; the reason appears where a form was refused."""
        return {"form": self.name, **({"form_reason": self.reason} if self.reason else {})}


def choose_form(folder: Path, opened: OpenBundle, form: str) -> Choice:
    """Return the form of the bundle that this engine runs.

    Args:
        form: "portable", "blocked", "kernels" for blocked graphs with nodes of `ttac-kernels`, or "auto" for the first
            of kernels, blocked and portable that fits.

    Raises:
        UsageError: `form` is another word.
        RuntimeMissingError: `form` is "blocked" or "kernels", and none fits.
    """
    if form not in FORMS:
        hint = "use " + ", ".join(f'"{name}"' for name in FORMS)
        raise UsageError(f"there is no form {form!r}", where="`form=`", hint=hint)
    if form == PORTABLE:
        return Choice(None)
    manifest = opened.manifest
    key = cache_key(manifest.raw, _library_identity(manifest.forms)) if manifest.forms and form == "auto" else ""
    if (remembered := recall(folder, key) if key else None) is not None:
        name, reason = remembered
        spec = next((spec for spec in manifest.forms if spec.name == name), None)
        return Choice(spec, reason)
    forms = [spec for spec in manifest.forms if form == "auto" or bool(spec.kernels) == (form == "kernels")]
    spec, reason = _first_that_runs(opened, forms)
    if spec is not None:
        return Choice(spec, reason, confirmed=False, key=key)
    if form == "auto":
        return Choice(None, reason)
    reason = reason or f"the bundle has no graphs of the form {form}"
    raise RuntimeMissingError(
        f"no {form} form runs here: {reason}", where=f"`{folder}`", hint='load it with form="auto"'
    )


def _first_that_runs(opened: OpenBundle, forms: Sequence[FormSpec]) -> tuple[FormSpec | None, str]:
    """The first form that this engine runs, and the reason against the form with kernels of the same block.

    Without a form, the reason is that against the last one.
    """
    reasons: dict[tuple[bool, int], str] = {}
    for spec in forms:
        reason = probe_failure(opened.files.graph(spec.probe), spec.kernels)
        if not reason:
            return spec, reasons.get((True, spec.block), "")
        reasons[bool(spec.kernels), spec.block] = f"{spec.name}: {reason}"
    return None, list(reasons.values())[-1] if reasons else ""


def _library_identity(forms: Sequence[FormSpec]) -> str:
    return next((kernel_library(spec.kernels).identity for spec in forms if spec.kernels), "")


def probe_failure(probe: Path | PackedGraph, kernels: int = 0) -> str:
    """Return the reason why this engine does not run the form of the graph `probe`; empty if it does.

    Args:
        kernels: version of the operators of `ttac-kernels` in the probe; 0 for none.
    """
    library = kernel_library(kernels) if kernels else KernelLibrary(None)
    if library.reason:
        return library.reason
    # The path of a probe may lead through a descriptor, whose number differs from load to load.
    digest = digest_of(probe) if isinstance(probe, Path) else hashlib.sha256(probe.data).hexdigest()
    if (digest, library) not in _failures:
        _failures[digest, library] = _probe_failure(probe, library)
    return _failures[digest, library]


def _probe_failure(probe: Path | PackedGraph, library: KernelLibrary) -> str:
    try:
        session = open_session(probe, threads=1, optimised=False, library=library.path)
        random = np.random.default_rng(0)
        feed = {port.name: random.standard_normal(port.shape, dtype=np.float32) for port in session.get_inputs()}
        internal, standard = session.run(None, feed)
    except TtacError as error:
        return f"the engine refuses its blocked layout ({error.problem})"
    except Exception as error:
        return f"the engine fails in its blocked layout ({error})"
    if internal.shape != standard.shape or not np.abs(internal - standard).max() <= PROBED * np.abs(standard).max():
        return "the engine has another block size"
    return ""


def form_weights(arrays: Mapping[str, np.ndarray], spec: FormSpec, folder: Path) -> dict[str, np.ndarray]:
    """Return the stored weights `arrays` in the layout of a form, by graph input; they take as much memory again.

    Raises VerificationError if the weights file lacks one, or one does not fit the layout.
    """
    try:
        made = {
            name: reordered(arrays[weight.of], spec.block, weight.order, weight.taps, weight.groups)
            for name, weight in spec.weights.items()
        }
    except (KeyError, ValueError, IndexError) as error:
        what = f"the form `{spec.name}` cannot be made of the stored weights: {error}"
        raise VerificationError(what, where=f"`{folder}`", hint=HINT) from error
    leave_on_disk(arrays.values())
    return made


@dataclass(frozen=True)
class Outcome:
    """Outputs of a step, and its new state tensors beside the old ones.

    Attributes:
        roles: state tensor -> role in the state table.
    """

    outputs: Sequence[np.ndarray]
    old: Mapping[str, np.ndarray]
    new: Mapping[str, np.ndarray]
    roles: Mapping[str, str]

    @property
    def trains(self) -> bool:
        """Whether a parameter changed, or the method has no parameters."""
        parameters = [name for name, role in self.roles.items() if role == "parameter"]
        return not parameters or any(self.change(name).any() for name in parameters)

    def change(self, name: str) -> np.ndarray:
        """The new value minus the old value, in float64; zero if the step does not change the tensor."""
        old = self.old[name].astype(np.float64)
        return self.new[name].astype(np.float64) - old if name in self.new else np.zeros_like(old)


def disagreement(found: Outcome, portable: Outcome, agreed: float = AGREED) -> str:
    """Return a sentence on the distance between the same step of two forms; empty if they agree.

    Args:
        agreed: largest difference of outputs, relative to the largest value of an output.
    """
    if not all(np.isfinite(array).all() for array in portable.outputs):
        return ""
    for array, expected in zip(found.outputs, portable.outputs):
        scale, difference = float(np.abs(expected).max()), float(np.abs(array - expected).max())
        if not difference <= agreed * scale:
            return f"its first outputs differ by {difference:.1e} of at most {scale:.1e} from the portable graphs"
    roles = set(portable.roles.values())
    if "sparsity" in roles and not _equal(found, portable, "sparsity"):
        roles -= set(LEARNED)
    for role in sorted(roles):
        names = [name for name in portable.roles if portable.roles[name] == role]
        length = _length(portable.change(name) for name in names)
        apart = _length(found.change(name) - portable.change(name) for name in names)
        if not apart <= (STEPPED if role == "parameter" else MOVED) * length and math.isfinite(length):
            return f"its first changes of {role} tensors differ by {apart:.1e} of {length:.1e} from the portable graphs"
    return ""


def _equal(found: Outcome, portable: Outcome, role: str) -> bool:
    """Whether a step gives the tensors of `role` the same values."""
    names = [name for name, held in portable.roles.items() if held == role]
    return all(np.array_equal(found.change(name), portable.change(name)) for name in names)


def _length(arrays: Iterable[np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(array).sum()) for array in arrays))
