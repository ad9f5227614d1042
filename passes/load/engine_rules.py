"""All rules that write fused operators as standard ones; importing this file registers them."""

import ttac.passes.load.engine_attention
import ttac.passes.load.engine_integers  # noqa: F401  (registers QLinear operators and dynamic products)
from ttac.passes.load.engine_operators import unfuse

__all__ = ["unfuse"]
