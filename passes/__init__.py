"""The rooms of the compiler, in the order `ttac.driver` walks through them.

load, normalise (simplify, traced), norms, calibration, insert, adapt, losses, differentiate (autodiff, gradients), plan,
partition (schedule), stages, optimizers, lower (vocabulary), feed, emit, verify.
"""
