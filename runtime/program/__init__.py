"""The program of a bundle: five words, no method names.

    {"run": graph, "rows": k?, "feed": {input: value}?, "only": [outputs]?, "deferred": true?}
    {"when": value, "then": [...], "otherwise": [...]?}    {"repeat": n, "do": [...]}
    {"reset": "all" | [state names]}    {"return": [values]}

A name means the value of the step (user input, output of an earlier run).  If there is none, it means the state tensor
with the pending updates of this step on top, and else a weight.  Pending state is an overlay: the caller that performs
a program decides whether to keep it.  Each value is freed right after the last word that can read it, so a residual
ends with the run that consumes it.  A deferred run gives state only, which no later word reads.  The commit may do this
run.

`words` has the records, `parse` reads them from JSON, `bind` checks them against the graphs, `perform` executes them.
"""
