"""The version of the package and of its library."""

VERSION = "0.1.0"
