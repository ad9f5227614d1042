"""A teacher predicts, and a student learns from a memory of balanced classes: for streams in an order of classes.

Yuan et al., "Robust test-time adaptation in dynamic scenarios", CVPR 2023, with the official code.  The teacher
predicts with its running averages.  Each sample may enter a memory that holds the classes in equal numbers, and prefers
new and certain samples.  Once in `interval` samples, the student learns the teacher's predictions of the memory on
distorted images.  The code can learn within a batch, where `interval` is no multiple of the batch; ttac learns at the
end of a step, and at most once a step.
"""

from __future__ import annotations

from ttac.shared_options import DISTORTIONS, optimizer_options
from ttac.spec import AVERAGE_STATISTICS, TEACHER_SET, Facts, Method, Option, Settings

SAMPLES, DISTORTED = "memory.samples", "augmented"
ABSENT = ("prior_correction", "estimate")
"""Shared options that do not fit: most steps only store samples, and the teacher predicts."""
INFORMATION = Option(
    "guard_information",
    0.0,
    "with `guard`: a batch with less than this fraction of the usual information does not enter the memory; 0 admits "
    "batches of one class, and shifts that the source hardly predicts",
    low=0.0,
    high=1.0,
)
"""The memory balances the classes, so batches need not, and its running averages need batches of any shift."""
MEMORY, TEACHING = "ttac.methods.rotta.memory", "ttac.methods.rotta.teaching"


def _options() -> tuple[Option, ...]:
    """The options of a method that trains, as they fit."""
    options = (option for option in optimizer_options("adam", 1e-3) if option.name not in ABSENT)
    return tuple(INFORMATION if option.name == INFORMATION.name else option for option in options)


def settle(settings: Settings, facts: Facts) -> Settings:
    """The settings with one insertion for each sample of a batch, if no number is set."""
    return {**settings, "insertions": settings["insertions"] or facts.batch}


METHOD = Method(
    name="rotta",
    title="a teacher with running averages, and a student that learns from a memory of balanced classes",
    paper="arXiv:2303.13899",
    needs="images with one class each, and norms of any kind; for streams whose neighbours share a class",
    statistics=lambda settings: AVERAGE_STATISTICS,
    trains=True,
    running=True,
    loss=f"{TEACHING}:aged",
    check=f"{TEACHING}:check",
    options=(
        *_options(),
        Option("teacher_decay", 0.999, "weight of the teacher's past in each update", low=0.0, high=1.0),
        Option("statistics_momentum", 0.05, "weight of the memory in the averages of the norms", low=0.0, high=1.0),
        Option("capacity", 64, "most samples in the memory", low=2, high=4096),
        Option("interval", 64, "number of samples from update to update", low=1, high=65536),
        Option("age_weight", 1.0, "weight of the age of a sample in the choice of the one to replace", low=0.0),
        Option("doubt_weight", 1.0, "weight of the entropy of its prediction in the choice", low=0.0),
        Option(
            "insertions",
            0,
            "most samples of a step that may enter the memory, the first ones; 0 takes all of a batch",
            low=0,
        ),
        *DISTORTIONS,
    ),
    settle=settle,
    pixels=lambda black, white: {"black": black, "white": white},
    graphs={
        "classify": f"{TEACHING}:classify",
        "insert": f"{MEMORY}:insert",
        "store": f"{MEMORY}:store",
        "teach": f"{TEACHING}:teach",
        "augment": f"{TEACHING}:augment",
        "follow_memory": f"{TEACHING}:follow_memory",
        "update": f"{TEACHING}:update",
    },
    program=(
        {"run": "predict", "set": TEACHER_SET},
        {"run": "classify"},
        {
            "repeat": "insertions",
            "do": ({"run": "insert", "feed": {"before.places": "places", "before.number": "number"}},),
        },
        {"run": "store"},
        {
            "when": "memory.due",
            "then": (
                {"run": "forward", "again": True, "on": SAMPLES, "set": TEACHER_SET},
                {"run": "teach"},
                {"run": "augment", "on": SAMPLES},
                {"run": "forward", "on": DISTORTED},
                {"run": "follow_memory"},
                {"run": "backward", "on": DISTORTED},
                {"run": "update"},
            ),
        },
        {"return": "answer"},
    ),
    predicts=TEACHER_SET,
    oracle="tests/golden/make/official_rotta.py",
)
