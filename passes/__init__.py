"""The rooms of the compiler, in the order of `ttac.pipeline`.

`load`, `normalise`, `norms`, `quantize`, `adapt`, `differentiate`, `plan`, `partition`, `step_graphs`, `lower` and
`verify`.  `graph` and `operators` are the base of all rooms.
"""
