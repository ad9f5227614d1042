"""Recognise the norms of a model, choose those that adapt, and insert folded ones.

| in | out | ensures |
|---|---|---|
| the model in normal form, calibration samples | norm sites | a site has kind, epsilon and parameters |

| file | idea |
|---|---|
| `norm_sites` | recognise the norms that can adapt |
| `folded_norms` | find the convolutions that a norm was folded into |
| `norm_choice` | decide which norms adapt and which convolutions get one |
| `insert` | give a folded convolution its norm back |
| `calibration` | calibration samples and the statistics of values on them |
| `selectors` | the grammar of `--train SELECTOR` |
| `drift` | how far each norm's input drifts under disturbances |
"""
