"""The gradient rules, one function per operator, by family; importing this package registers all of them."""

from ttac.passes.gradients import channels, elementwise

__all__ = ["channels", "elementwise"]
