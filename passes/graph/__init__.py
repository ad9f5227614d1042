"""The ground floor: what every room builds graphs with.

| in | out | ensures |
|---|---|---|
| nothing | builder, shapes, state tensors, composites, graph files | nothing about norms or methods |
"""
