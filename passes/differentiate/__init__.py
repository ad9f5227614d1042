"""Read the head, attach the loss, append the gradients.

| in | out | ensures |
|---|---|---|
| the adaptive model, a loss, parameters | the joint graph | one gradient per parameter, of the same shape |
"""
