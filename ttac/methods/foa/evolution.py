"""Candidates for prompts by CMA-ES (Hansen, "The CMA evolution strategy: a tutorial", arXiv:1604.00772).

The form is that of the library `cma`, which the official code of FOA calls: active updates, and an injected solution
that is no farther from the mean than usual.  The step size follows its path, as in the `cma` of 2024; `cma` 4.5 takes
another rule from 300 numbers on.  In place of eigenvectors, the graph takes the symmetric square root of the
covariance, by the coupled iteration of Newton and Schulz (Higham, "Functions of matrices", 2008, eq. 6.35).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.methods.foa import KEPT
from ttac.methods.foa.prompts import CENTRE, FITNESS, MEAN, PROMPTS, SCORES, SEEN
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.step_graphs.answer import ANSWER, in_output_form
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read

AVERAGE, COVARIANCE, PATH, SIGMA_PATH, SIGMA, STEPS = (
    f"evolution.{name}" for name in ("mean", "covariance", "path", "sigma_path", "sigma", "steps")
)
SEED = "evolution.seed"
CANDIDATES, CANDIDATE, INVERSE, FIRST = "candidates", "candidate", "inverse.root", "first.fitness"
ITERATIONS = 14
"""Steps of the iteration for the root: enough for a ratio of 1,000 between the largest variance and the least."""
SMALLEST = 1e-9
"""Added to the length of a candidate with a negative weight, as in `cma`."""
FLOAT = int(ir.DataType.FLOAT)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The constants of CMA-ES for n numbers.

    Attributes:
        weights: of the candidates from the best to the worst, and of the injected one in the middle.
        parents: number of candidates with a positive weight; effective: their effective number.
        path, rank_one, rank_many: the learning rates of the path, and of the covariance by path and candidates.
        sigma_path, damping: the learning rate of the step size's path, and its damping.
        usual: the usual length of n standard normal numbers.
    """

    weights: np.ndarray
    parents: int
    effective: float
    path: float
    rank_one: float
    rank_many: float
    sigma_path: float
    damping: float
    usual: float


def rates(n: int, candidates: int) -> Rates:
    """The default constants of CMA-ES, with `cma`'s decay of the step size's path."""
    raw = math.log((candidates + 1) / 2) - np.log(np.arange(1, candidates + 1))
    parents = int((raw > 0).sum())
    positive, negative = raw[:parents] / raw[:parents].sum(), raw[parents:]
    effective = float(1 / (positive**2).sum())
    one = min(1.0, candidates / 6) * 2 / ((n + 1.3) ** 2 + effective)
    many = min(1 - one, 2 * (0.25 + effective - 2 + 1 / effective) / ((n + 2) ** 2 + effective))
    against = float(negative.sum() ** 2 / (negative**2).sum())
    bounds = (1 + one / many, (1 - one - many) / many / n, 1 + 2 * against / (effective + 2))
    negative = negative / -negative.sum() * min(bounds)
    path = (4 + effective / n) / (n + 4 + 2 * effective / n)
    sigma_path = (effective + 2) / (n + effective + 3)
    return Rates(
        weights=np.concatenate([positive, [0.0], negative]).astype(np.float32),
        parents=parents,
        effective=effective,
        path=path,
        rank_one=one,
        rank_many=many,
        sigma_path=sigma_path,
        damping=1 + 2 * max(0.0, math.sqrt((effective - 1) / (n + 1)) - 1) + sigma_path,
        usual=math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
    )


def ask(context: Context) -> MethodGraph:
    """New candidates x = m + s * C^(1/2) z [candidates, n], the first of them, and the best so far as the first judged.

    z are standard normal numbers, m, s and C the state of the strategy.
    """
    op = new_graph("ask", context.opset)
    prompts = context.constants[PROMPTS]
    count, n = int(context.settings["candidates"]), prompts.size
    judged = _judged(op, context)
    state = _strategy(op, context, (AVERAGE, COVARIANCE, SIGMA))
    root, inverse = roots(op, state[COVARIANCE].value, n)
    seed, initial = _seed(op, context)
    numbers = Numbers(op, seed)
    drawn = numbers.normal(0, op.constant(np.array([count], np.int64)), count, [n])
    drawn.shape = ir.Shape([count, n])
    new = op.Add(state[AVERAGE].value, op.Mul(op.MatMul(drawn, root), state[SIGMA].value))
    best = state_input(op.graph, PROMPTS, prompts)
    zero = op.Mul(judged[FITNESS], 0.0)
    outputs = {
        CANDIDATES: new,
        CANDIDATE: _shaped(op, op.Gather(new, 0, axis=0), prompts),
        INVERSE: inverse,
        FIRST: op.Identity(judged[FITNESS]),
        "best.fitness": op.Identity(judged[FITNESS]),
        "best.scores": op.Identity(judged[SCORES]),
        "best.prompts": op.Identity(best),
        "centres": op.Identity(judged[MEAN]),
        "fitnesses": op.Add(op.Mul(op.ReduceSum(new, [1], keepdims=0), 0.0), zero),
        "number": zero,
    }
    following = numbers.following(count * (n + n % 2))
    moved = StateTensor(name=SEED, role="counter", initial=initial, value=seed, next=following)
    return finished(op, outputs, [moved])


def compare(context: Context) -> MethodGraph:
    """The values in `KEPT` with one more candidate, and the next candidate.

    `number` counts candidates, `fitnesses` [candidates] are those so far, and `centres` is the sum of features' means.
    """
    op = new_graph("compare", context.opset)
    prompts = context.constants[PROMPTS]
    count = int(context.settings["candidates"])
    judged = _judged(op, context)
    new = read(op, CANDIDATES, [count, prompts.size])
    shapes = [(), context.head.shape, prompts.shape, context.constants[CENTRE].shape, [count], (), prompts.shape]
    before = {name: read(op, f"before.{name}", shape) for name, shape in zip(KEPT, shapes, strict=True)}
    better = op.Less(judged[FITNESS], before["best.fitness"])
    here = op.Equal(op.constant(np.arange(count, dtype=np.float32)), before["number"])
    number = op.Add(before["number"], 1.0)
    index = op.Cast(op.Min(number, float(count - 1)), to=int(ir.DataType.INT64))
    outputs = {
        "best.fitness": op.Where(better, judged[FITNESS], before["best.fitness"]),
        "best.scores": op.Where(better, judged[SCORES], before["best.scores"]),
        "best.prompts": op.Where(better, before[CANDIDATE], before["best.prompts"]),
        "centres": op.Add(before["centres"], judged[MEAN]),
        "fitnesses": op.Where(here, judged[FITNESS], before["fitnesses"]),
        "number": number,
        CANDIDATE: _shaped(op, op.Gather(new, index, axis=0), prompts),
    }
    return finished(op, outputs)


def tell(context: Context) -> MethodGraph:
    """The strategy after the fitness of all candidates, the best prompts, the stream's mean, and the answer."""
    op = new_graph("tell", context.opset)
    prompts, settings = context.constants[PROMPTS], context.settings
    count, n = int(settings["candidates"]), prompts.size
    best_prompts, best_fitness = read(op, "best.prompts", prompts.shape), read(op, "best.fitness", ())
    before = state_input(op.graph, PROMPTS, prompts)
    state = _strategy(op, context, (AVERAGE, COVARIANCE, PATH, SIGMA_PATH, SIGMA, STEPS))
    values = {name: tensor.value for name, tensor in state.items()}
    inverse = read(op, INVERSE, [n, n])
    apart = op.Sub(read(op, CANDIDATES, [count, n]), values[AVERAGE])
    kept = _near(op, op.Sub(op.Reshape(before, [1, n]), values[AVERAGE]), inverse, values[SIGMA], n)
    losses = op.Concat(read(op, "fitnesses", [count]), op.Reshape(read(op, FIRST, ()), [1]), axis=0)
    _, order = op.TopK(losses, [count + 1], largest=0, sorted=1)
    steps = op.Div(op.Gather(op.Concat(apart, kept, axis=0), order, axis=0), values[SIGMA])
    moved = updated(op, values, steps, inverse, rates(n, count))
    best = op.Identity(best_prompts)
    tensors = [StateTensor(name=PROMPTS, role="parameter", initial=prompts, value=before, next=best)]
    tensors += [_moved(tensor, moved[name]) for name, tensor in state.items()]
    answer = in_output_form(op, read(op, "best.scores", context.head.shape), context.head)
    outputs = {ANSWER: answer, "least.fitness": op.Identity(best_fitness)}
    return finished(op, outputs, [*tensors, *_followed(op, context)], {"least.fitness": "fitness"})


def updated(
    op: Builder, values: Mapping[str, ir.Value], steps: ir.Value, inverse: ir.Value, rate: Rates
) -> dict[str, ir.Value]:
    """The next values of the strategy, from the `steps` y = (x - m)/s [candidates + 1, n], the best first."""
    n = int(dims(values[AVERAGE])[0])
    parents = op.Slice(steps, [0], [rate.parents], [0])
    step = op.Squeeze(op.MatMul(rate.weights[None, : rate.parents], parents), [0])
    passed, cs, cc = op.Add(values[STEPS], 1.0), rate.sigma_path, rate.path
    whitened = op.Squeeze(op.MatMul(op.Unsqueeze(step, [0]), inverse), [0])
    sigma_path = _path(op, values[SIGMA_PATH], whitened, cs, rate)
    square = op.ReduceSumSquare(sigma_path, keepdims=0)
    known = op.Sub(1.0, op.Exp(op.Mul(passed, 2 * math.log(1 - cs))))
    usual = op.Cast(op.Less(op.Div(square, op.Mul(known, float(n))), 2 + 4 / (n + 1)), to=FLOAT)
    path = _path(op, values[PATH], op.Mul(step, usual), cc, rate)
    lost = op.Mul(op.Sub(1.0, usual), rate.rank_one * cc * (2 - cc))
    lengths = op.ReduceL2(op.MatMul(steps, inverse), [1], keepdims=1)
    shorter = op.Div(float(n), op.Pow(op.Add(lengths, SMALLEST), op.constant(np.array(2.0, np.float32))))
    weights = op.constant(rate.weights[:, None])
    each = op.Mul(op.Where(op.Less(weights, 0.0), op.Mul(weights, shorter), weights), rate.rank_many)
    decay = op.Add(lost, 1 - rate.rank_one - rate.rank_many * float(rate.weights.astype(np.float64).sum()))
    outer = op.Mul(op.Mul(op.Unsqueeze(path, [1]), op.Unsqueeze(path, [0])), rate.rank_one)
    many = op.MatMul(op.Transpose(op.Mul(steps, each), perm=[1, 0]), steps)
    growth = op.Mul(op.Sub(op.Div(op.Sqrt(square), rate.usual), 1.0), cs / rate.damping)
    return {
        AVERAGE: op.Add(values[AVERAGE], op.Mul(step, values[SIGMA])),
        COVARIANCE: op.Add(op.Add(op.Mul(values[COVARIANCE], decay), outer), many),
        PATH: path,
        SIGMA_PATH: sigma_path,
        SIGMA: op.Mul(values[SIGMA], op.Exp(op.Min(growth, 1.0))),
        STEPS: passed,
    }


def roots(op: Builder, covariance: ir.Value, n: int) -> tuple[ir.Value, ir.Value]:
    """The symmetric square root of the covariance [n, n], and its inverse.

    With A = C/a, Y = A and Z = 1: T = (3 - Z Y)/2, Y <- Y T, Z <- T Z.  The bound a is the largest sum of a row, so
    that no eigenvalue of A is above 1.
    """
    bound = op.ReduceMax(op.ReduceSum(op.Abs(covariance), [1], keepdims=0), keepdims=0)
    thrice = 3 * np.eye(n, dtype=np.float32)
    y = op.Div(covariance, bound)
    turn = op.Mul(op.Sub(thrice, y), 0.5)
    y, z = op.MatMul(y, turn), turn
    for _ in range(ITERATIONS - 1):
        turn = op.Mul(op.Sub(thrice, op.MatMul(z, y)), 0.5)
        y, z = op.MatMul(y, turn), op.MatMul(turn, z)
    length = op.Sqrt(bound)
    return op.Mul(y, length), op.Div(z, length)


def _path(op: Builder, before: ir.Value, step: ir.Value, rate: float, rates: Rates) -> ir.Value:
    """(1 - c) p + sqrt(c (2 - c) mu) step."""
    return op.Add(op.Mul(before, 1 - rate), op.Mul(step, math.sqrt(rate * (2 - rate) * rates.effective)))


def _near(op: Builder, apart: ir.Value, inverse: ir.Value, sigma: ir.Value, n: int) -> ir.Value:
    """The injected x - m [1, n], at most sqrt(n) + 2n/(n + 2) deviations long."""
    length = op.Div(op.ReduceL2(op.MatMul(apart, inverse), keepdims=0), sigma)
    return op.Div(apart, op.Max(op.Div(length, math.sqrt(n) + 2 * n / (n + 2)), 1.0))


def _judged(op: Builder, context: Context) -> dict[str, ir.Value]:
    """The outputs of the forward for one candidate."""
    shapes = {FITNESS: (), SCORES: context.head.shape, MEAN: context.constants[CENTRE].shape}
    return {name: read(op, name, shape) for name, shape in shapes.items()}


def _strategy(op: Builder, context: Context, names: tuple[str, ...]) -> dict[str, StateTensor]:
    """The named state of the strategy as graph inputs, with its first values."""
    n = context.constants[PROMPTS].size
    zeros, scalar = np.zeros(n, np.float32), np.zeros((), np.float32)
    first = np.array(context.settings["step_size"], np.float32)
    initial = {AVERAGE: zeros, PATH: zeros, SIGMA_PATH: zeros, SIGMA: first, STEPS: scalar}
    initial[COVARIANCE] = np.eye(n, dtype=np.float32)
    return {
        name: StateTensor(
            name=name, role="optimizer", initial=initial[name], value=state_input(op.graph, name, initial[name])
        )
        for name in names
    }


def _seed(op: Builder, context: Context) -> tuple[ir.Value, np.ndarray]:
    initial = seeded(int(context.settings["seed"]))
    return state_input(op.graph, SEED, initial), initial


def _moved(tensor: StateTensor, following: ir.Value) -> StateTensor:
    return StateTensor(name=tensor.name, role=tensor.role, initial=tensor.initial, value=tensor.value, next=following)


def _followed(op: Builder, context: Context) -> list[StateTensor]:
    """The mean of the stream's features after this batch, averaged over all candidates, and that it is known."""
    zeros, none = context.constants[CENTRE], context.constants[SEEN]
    centre, seen = state_input(op.graph, CENTRE, zeros), state_input(op.graph, SEEN, none)
    found = op.Div(read(op, "centres", zeros.shape), float(int(context.settings["candidates"]) + 1))
    average = op.Add(centre, op.Mul(op.Sub(found, centre), float(context.settings["newest"])))
    following = op.Where(op.Greater(seen, 0.0), average, found)
    one = op.Add(op.Mul(seen, 0.0), 1.0)
    return [
        StateTensor(name=CENTRE, role="statistic", initial=zeros, value=centre, next=following),
        StateTensor(name=SEEN, role="counter", initial=none, value=seen, next=one),
    ]


def _shaped(op: Builder, flat: ir.Value, prompts: np.ndarray) -> ir.Value:
    return op.Reshape(flat, list(prompts.shape))
