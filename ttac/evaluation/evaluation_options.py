"""The options of one evaluation: the compared methods, the streams and the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ttac.errors import UsageError
from ttac.evaluation import corruptions as images_of
from ttac.evaluation.protocols import ORDERS, PROTOCOLS
from ttac.methods import COMPARED
from ttac.options import one_of, parsed, whole_number
from ttac.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The options of one evaluation.

    Attributes:
        methods: names, or `name:option=value` for another setting.
        settings: hyperparameters for all methods that have them.
        batches: samples of one step, each number in turn; empty for the target's, or the bundle's.
        arrays: names of the arrays to stream as shifts; None for all arrays if no corruption is named.
        corruptions: names, or `all`; computed from the first array.
        severities: of the corruptions, 1 to 5.
        protocols, orders, seeds: all combinations are run.
        concentration: parameter of the order `dirichlet`.
        samples: number of samples to use, the same at every call; None for all.
        options: further arguments of `ttac.compile`: `target`, `calibration`, `norms`, `train` and so on.
        output: folder that keeps every finished cell, so that a second evaluation continues; None keeps nothing.
        jobs: number of parallel processes.
        cluster: `ray` or `ray:ADDRESS` runs the cells on a Ray cluster; None runs them here.
        threads: of each worker's engine; 0 leaves the number to the engine, None shares the cores out.
    """

    methods: Sequence[str] = COMPARED
    settings: Mapping[str, Any] = field(default_factory=dict)
    batches: Sequence[int] = ()
    arrays: Sequence[str] | None = None
    corruptions: Sequence[str] = ()
    severities: Sequence[int] = (5,)
    protocols: Sequence[str] = ("continual",)
    orders: Sequence[str] = ("shuffled",)
    concentration: float = 0.1
    seeds: Sequence[int] = (0,)
    samples: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    jobs: int = 1
    cluster: str | None = None
    threads: int | None = None

    @property
    def engine_threads(self) -> int:
        """Threads of each worker's engine; 0 leaves the number to the engine."""
        if self.threads is not None:
            return self.threads
        return 0 if self.jobs == 1 and self.cluster is None else 1

    @classmethod
    def from_mapping(cls, choices: Mapping[str, Any]) -> EvaluationOptions:
        """Return the options of `choices`; `batch` may be one number or several, None leaves an option out.

        Raises UsageError for an unknown option or a value that does not exist, before anything is opened.
        """
        stated = {name: value for name, value in choices.items() if value is not None}
        known = ["batch", *(entry.name for entry in fields(cls) if entry.name != "batches")]
        for name in stated:
            if name not in known:
                raise UsageError(f"an evaluation has no option `{name}`", hint=did_you_mean(name, known))
        batch = stated.pop("batch", ())
        stated["batches"] = [batch] if isinstance(batch, int) else list(batch)
        if "output" in stated:
            stated["output"] = Path(stated["output"])
        options = cls(**stated)
        options.refuse()
        return options

    def refuse(self) -> None:
        """Raise UsageError for the first choice that does not exist."""
        images_of.chosen(self.corruptions)
        for protocol in self.protocols:
            one_of(*PROTOCOLS)(protocol, "`--protocol`")
        for order in self.orders:
            one_of(*ORDERS)(order, "`--order`")
        for severity in self.severities:
            if severity not in images_of.SEVERITIES:
                raise UsageError(f"there is no severity {severity}", where="`--severity`", hint="give some of 1 to 5")
        for batch in self.batches:
            whole_number()(batch, "`--batch`")
        if self.samples is not None:
            whole_number()(self.samples, "`--samples`")
        parsed(self.options)
