"""Learning to recognise turns of images, with a rotation head that was trained jointly with the classifier.

Sun et al., "Test-time training with self-supervision for generalization under distribution shifts", ICML 2020, with
the official code for CIFAR.  The code adapts to one image at a time.  The defaults are its online form;
`fresh=true` with `iterations=10` is its standard form.
"""

from __future__ import annotations

from ttac.shared_options import DISTORTIONS, GUARD, SOURCE_WEIGHT
from ttac.spec import Facts, Method, Option, Settings

ROTATION, COPIES = "ttac.methods.ttt.rotation", "ttac.methods.ttt.copies"


def settle(settings: Settings, facts: Facts) -> Settings:
    """The settings with as many copies of each image as make 32 in a step, if none are set."""
    return {**settings, "copies": settings["copies"] or max(1, 32 // facts.batch)}


PROGRAM = (
    {"run": "forward"},
    {"run": "doubt"},
    {
        "when": "unsure",
        "then": (
            {
                "repeat": "iterations",
                "do": (
                    {"run": "no_gradient"},
                    {
                        "repeat": "copies",
                        "do": (
                            {"run": "turn"},
                            {"run": "forward", "again": True, "on": "turned"},
                            {"run": "backward", "on": "turned"},
                            {"run": "add_gradient", "feed": {"rotation.before": "rotation.gradient"}},
                        ),
                    },
                    {"run": "mean_gradient"},
                    {"run": "update"},
                ),
            },
            {"run": "forward", "only": "outputs"},
        ),
    },
    {"return": "logits"},
)

METHOD = Method(
    name="ttt",
    title="learn to recognise turns of the images, with a jointly trained rotation head, then predict",
    paper="arXiv:1909.13231",
    needs="square images, and a model with a second output [N, 4] that recognises turns by 0, 90, 180 and 270 degrees",
    trains=True,
    check=f"{ROTATION}:check",
    refine=f"{ROTATION}:with_rotation",
    loss=f"{ROTATION}:rotation_loss",
    options=(
        Option("rotation", "", "output with the scores of the four turns; empty takes the only other output [N, 4]"),
        Option("lr", 1e-3, "learning rate", low=0.0),
        Option("iterations", 1, "updates of a step", low=1, high=1000),
        Option("copies", 0, "copies of each image for an update; 0 makes 32 in a step, at least one", low=0, high=1000),
        Option("shift", 4, "largest shift of a copy in pixels, up or down, and left or right", low=0, high=1000),
        Option("threshold", 1.0, "adapts if the turn 0 of the images has at most this probability", low=0.0, high=1.0),
        Option("fresh", False, "begin every step with the compiled weights: the standard form, `iterations=10`"),
        SOURCE_WEIGHT,
        *GUARD,
        *DISTORTIONS,
    ),
    settle=settle,
    pixels=lambda black, white: {"black": black, "white": white},
    graphs={
        "doubt": f"{ROTATION}:doubt",
        "turn": f"{COPIES}:turn",
        "no_gradient": f"{COPIES}:no_gradient",
        "add_gradient": f"{COPIES}:add_gradient",
        "mean_gradient": f"{COPIES}:mean_gradient",
        "update": f"{COPIES}:update",
    },
    program=PROGRAM,
    variants={"fresh": {"program": ({"reset": ("parameter",)}, *PROGRAM)}},
    oracle="tests/golden/make/official_ttt.py",
)
