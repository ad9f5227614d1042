"""Independent pieces of work in this process, in several processes of this machine, or on a Ray cluster.

The work is a module-level function with picklable items, so it runs in all three places.  A piece whose worker is lost
runs again.  The caller writes the results, so each result is written once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ttac.errors import RuntimeMissingError, TtacError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3
"""Number of further starts of pieces whose worker was lost."""

CLUSTERS = ("ray",)


@dataclass(frozen=True)
class PieceOutcome(Generic[Result]):
    """The number of a piece, and either its result or its failure."""

    number: int
    result: Result | None = None
    failure: TtacError | None = None


def attempt(function: Callable[[Item], Result], number: int, item: Item) -> PieceOutcome[Result]:
    """Call the function and return its outcome; an exception becomes a value, so that the other pieces continue."""
    try:
        return PieceOutcome(number, function(item))
    except TtacError as error:
        return PieceOutcome(number, failure=error)
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        failure = TtacError(f"internal error, {type(error).__name__}: {text}")
        failure.__cause__ = error
        return PieceOutcome(number, failure=failure)


def perform(
    function: Callable[[Item], Result], items: Sequence[Item], *, jobs: int = 1, cluster: str | None = None
) -> Iterator[PieceOutcome[Result]]:
    """Yield the outcome of the function for every item, in the order in which they finish.

    Args:
        function: a function of a module, so that other processes find it.
        jobs: number of processes on this machine, or of workers of a Ray that is started here.
        cluster: "ray" for the cluster in the environment variable RAY_ADDRESS, or for one that is started here;
            "ray:ADDRESS" for the cluster at an address.  Its workers must see the files that the items name.

    Raises:
        UsageError: there is no such cluster.
        RuntimeMissingError: joblib or Ray is needed and not installed, or workers were lost too often.
    """
    if cluster is not None:
        kind, _, address = cluster.partition(":")
        if kind not in CLUSTERS:
            raise UsageError(f"there is no cluster `{kind}`", where="`--cluster`", hint="`--cluster ray`")
        return _on_ray(function, items, jobs, address)
    if jobs > 1 and len(items) > 1:
        return _in_processes(function, items, jobs)
    return (attempt(function, number, item) for number, item in enumerate(items))


def _in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[PieceOutcome[Result]]:
    try:
        from joblib import Parallel, delayed
        from joblib.externals.loky.process_executor import TerminatedWorkerError
    except ImportError as error:
        raise RuntimeMissingError("several jobs need joblib", hint="`pip install 'ttac[eval]'`") from error
    waiting = dict(enumerate(items))
    for _ in range(1 + RETRIES):
        run = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
        finished: Any = None
        try:
            # A worker may be lost before the call returns: the first pieces start inside it.
            finished = run(delayed(attempt)(function, number, item) for number, item in list(waiting.items()))
            for done in finished:
                del waiting[done.number]
                yield done
        except TerminatedWorkerError:
            continue
        finally:
            with suppress(Exception):
                finished.close()
        return
    raise _lost(len(waiting))


def _on_ray(
    function: Callable[[Item], Result], items: Sequence[Item], jobs: int, address: str
) -> Iterator[PieceOutcome[Result]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RuntimeMissingError("`--cluster ray` needs Ray", hint="`pip install 'ttac[cluster]'`") from error
    started = not ray.is_initialized()
    if started:
        _start(ray, jobs, address)
    try:
        run: Any = ray.remote(attempt).options(max_retries=RETRIES, num_cpus=1)
        pending = [run.remote(function, number, item) for number, item in enumerate(items)]
        while pending:
            finished, pending = ray.wait(pending)
            try:
                yield from ray.get(finished)
            except ray.exceptions.RayError as error:
                raise _lost(len(pending) + 1) from error
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, jobs: int, address: str) -> None:
    place = address or os.environ.get("RAY_ADDRESS")
    try:
        if place:
            ray.init(address=place, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(num_cpus=jobs, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError) as error:
        hint = "start it with `ray start --head`, or leave the address out"
        raise RuntimeMissingError("no Ray cluster answers", where=f"`{place}`", hint=hint) from error


def _lost(count: int) -> RuntimeMissingError:
    return RuntimeMissingError(
        f"workers were lost {1 + RETRIES} times over, {count} pieces of work are left",
        hint="they may lack memory: use fewer `--jobs`; the same command goes on where it stopped",
    )
