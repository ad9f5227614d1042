"""A student that learns from a teacher, the average of its past, and forgets at random: for streams without an end.

Wang et al., "Continual test-time domain adaptation", CVPR 2022, with the official code in its two forms.  The form for
CIFAR is the default.  For ImageNet the code takes `symmetric=true`, `restored=0.001`, `optimizer=sgd`, `lr=0.01` and
`nesterov=true`.  The code trains all weights, `--train all`; without, scale and bias of the norms train.  Both forms
average the views only where the source is unsure: the code for CIFAR computes the views for each batch.
"""

from __future__ import annotations

from ttac.shared_options import DISTORTIONS, STATISTICS, chosen_statistics, optimizer_options
from ttac.spec import TEACHER_SET, Facts, Method, Option, Settings


def settle(settings: Settings, facts: Facts) -> Settings:
    """The confidence that was published for data sets of about this many classes, if none is set."""
    published = 0.92 if facts.classes <= 10 else 0.72 if facts.classes <= 100 else 0.1
    return {**settings, "confidence": settings["confidence"] or published}


METHOD = Method(
    name="cotta",
    title="a student learns from the average of its past, on distorted views, and forgets at random",
    paper="arXiv:2203.13591",
    needs="images with one class each, and norms of any kind; `--train all` as published; 3 or 35 forwards a step",
    statistics=chosen_statistics,
    trains=True,
    loss="ttac.methods.cotta.teacher:taught",
    check="ttac.methods.cotta.teacher:check",
    options=(
        *optimizer_options("adam", 1e-3),
        Option("symmetric", False, "half of the loss teaches the teacher's classes, half the student's (ImageNet)"),
        Option("teacher_decay", 0.999, "weight of the teacher's past in each step", low=0.0, high=1.0),
        Option(
            "restored",
            0.01,
            "fraction of the trained numbers that return to the source in each step",
            low=0.0,
            high=1.0,
        ),
        Option(
            "confidence",
            0.0,
            "the views are averaged where the source's mean confidence is below this; 0 takes the published value: "
            "0.92 up to 10 classes, 0.72 up to 100, else 0.1",
            low=0.0,
        ),
        Option("views", 32, "number of distorted views", low=1, high=1000),
        *DISTORTIONS,
        *STATISTICS,
    ),
    settle=settle,
    pixels=lambda black, white: {"black": black, "white": white},
    graphs={
        "confidence": "ttac.methods.cotta.teacher:confidence",
        "plain_view": "ttac.methods.cotta.teacher:plain_view",
        "no_view": "ttac.methods.cotta.teacher:no_view",
        "augment": "ttac.passes.step_graphs.two_views:augment",
        "add_view": "ttac.methods.cotta.teacher:add_view",
        "answer": "ttac.methods.cotta.teacher:answer",
        "update": "ttac.methods.cotta.follow:update",
    },
    program=(
        {"run": "forward", "again": True, "set": "source"},
        {"run": "confidence"},
        {"run": "forward", "again": True, "set": TEACHER_SET},
        {"run": "plain_view"},
        {
            "when": "unsure",
            "then": (
                {"run": "no_view"},
                {
                    "repeat": "views",
                    "do": (
                        {"run": "augment"},
                        {"run": "forward", "again": True, "on": "augmented", "set": TEACHER_SET},
                        {"run": "add_view", "feed": {"teacher.before": "teacher.scores"}},
                    ),
                },
            ),
        },
        {"run": "answer"},
        {"run": "forward"},
        {"run": "backward"},
        {"run": "update"},
        {"return": "answer"},
    ),
    predicts=TEACHER_SET,
    variants={"symmetric": {"loss": "ttac.methods.cotta.teacher:taught_both_ways"}},
    oracle="tests/golden/make/official_methods.py",
)
