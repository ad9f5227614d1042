"""The executor of a bundle: it performs the programs with the graphs of the form that fits this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ttac.errors import RuntimeMissingError
from ttac.runtime.bundle import OpenBundle
from ttac.runtime.commit import State
from ttac.runtime.engine import EngineDevice, EngineSettings
from ttac.runtime.events import log
from ttac.runtime.finite_samples import sample_count
from ttac.runtime.form_cache import remember
from ttac.runtime.form_table import PORTABLE, FormSpec
from ttac.runtime.forms import Choice, Outcome, choose_form, disagreement
from ttac.runtime.loaded_form import LoadedForm
from ttac.runtime.program.perform import Step
from ttac.runtime.providers import only_cpu
from ttac.runtime.tensors import check_output, return_freed_memory


class Executor:
    """Performs the programs of a bundle.

    Args:
        settings: of the sessions; with another provider than the CPU the portable graphs run.
        device: the engine's tensors.
        state: the state, which a program reads and never changes.
        form, compare: as for `Adapter`.

    Attributes:
        choice: the form that runs, and the reason.
        form: the graphs of this form.
        reference: the portable graphs until a step has confirmed the form, then None.
    """

    def __init__(
        self,
        path: Path,
        opened: OpenBundle,
        settings: EngineSettings,
        device: EngineDevice,
        state: State,
        form: str,
        *,
        compare: bool = True,
    ) -> None:
        self._path, self._opened, self._manifest = path, opened, opened.manifest
        self._settings, self._device, self._state = settings, device, state
        self.choice = choose_form(path, opened, form if only_cpu(settings.providers) else PORTABLE)
        self.form = self._load_chosen()
        self.reference = None if self.choice.confirmed or not compare else self._load(None)
        return_freed_memory()

    def perform(
        self, program: str, inputs: Mapping[str, np.ndarray], form: LoadedForm | None = None
    ) -> tuple[list[np.ndarray], Step]:
        """Return the outputs of `step` or `predict` for finite inputs, and the step with its pending state.

        Raises VerificationError for an output that does not fit the manifest, RuntimeMissingError if the engine fails.
        """
        form = form or self.form
        values = {name: self._device.tensor(array) for name, array in inputs.items()}
        step = Step(world=form.world(self._state), values=values)
        tensors = step.perform(form.programs[program])
        assert tensors is not None, "parse_program checked that every path returns"
        arrays = [self._device.array(tensor).copy() for tensor in tensors]
        samples = sample_count(inputs, self._manifest.inputs)
        for spec, array in zip(self._manifest.outputs, arrays):
            check_output(array, spec, samples, f"`{self._path}`")
        step.values = {}
        return arrays, step

    def confirm(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Compare a step of another form with the portable graphs; change to them if the steps differ.

        The compared step leaves no trace.  Each call compares until a step changes a parameter.
        """
        if self.reference is None or self.choice.spec is None or not inputs:
            return
        expected, key = self._outcome(inputs, self.reference), self.choice.key
        try:
            reason = disagreement(self._outcome(inputs, self.form), expected, self.choice.spec.agreed)
        except RuntimeMissingError as error:
            reason, key = f"the engine fails in its blocked layout ({error.problem})", ""
        if not reason and not expected.trains:
            return
        if reason:
            self.form = self.reference
        self.choice = Choice(None if reason else self.choice.spec, reason or self.choice.reason)
        self.reference = None
        return_freed_memory()
        if key and (problem := remember(self._path, key, self.choice.name, self.choice.reason)):
            log("WARNING", "`%s`: each process compares the forms of the graphs again: %s", self._path, problem)

    def _outcome(self, inputs: Mapping[str, np.ndarray], form: LoadedForm) -> Outcome:
        """A step that is not committed."""
        outputs, step = self.perform("step", inputs, form)
        roles = {entry["name"]: entry["role"] for entry in self._manifest.raw["state"]["tensors"]}
        new = {name: np.array(self._device.array(tensor)) for name, tensor in step.pending.items()}
        return Outcome(outputs=outputs, old=self._state.arrays(), new=new, roles=roles)

    def _load_chosen(self) -> LoadedForm:
        """The chosen form; the portable one if the engine refuses a graph of a form that no caller asked for."""
        try:
            return self._load(self.choice.spec)
        except RuntimeMissingError as error:
            if not self.choice.key:
                raise
            self.choice = Choice(None, f"{self.choice.name}: {error.problem}")
            return self._load(None)

    def _load(self, spec: FormSpec | None) -> LoadedForm:
        return LoadedForm(self._path, self._opened, self._settings, self._state, spec)
