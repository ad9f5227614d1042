"""The rooms of the compiler, in the order `ttac.pipeline` walks through them.

load, normalise (simplify, traced, fuse), norms, calibration, insert, adapt, losses, differentiate (autodiff,
gradients), plan, partition (schedule), stages, steps (selection, sharpness, optimizers), lower (vocabulary), feed,
emit, verify.
"""
