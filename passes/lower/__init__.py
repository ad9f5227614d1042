"""Write the graphs in the operators of the target.

| in | out | ensures |
|---|---|---|
| graphs and a target | standard operators, the backward in stages | operator set and IR version of the target |
"""
