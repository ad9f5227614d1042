"""Cut the joint graph into a forward and a backward graph.

| in | out | ensures |
|---|---|---|
| the joint graph and the plan | two graphs | the residuals of both halves agree in name, type and shape |
"""
