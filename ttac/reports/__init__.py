"""Reports for a person about a model, a bundle or this machine; each is data that JSON can hold.

| file           | holds                                                                  |
|----------------|------------------------------------------------------------------------|
| `progress`     | the line of each room while `ttac compile` runs, and `--dump`          |
| `measure`      | memory and time of a bundle's step, measured in a fresh process        |
| `comparison`   | `ttac inspect A B`: nodes that were added, removed or rewired          |
| `plan_picture` | `ttac inspect BUNDLE --svg`: the memory plan, one bar per layer        |
| `doctor`       | `ttac doctor`: Python, engine, packages, and the demands of a target   |
| `engines.toml` | opset and IR version that each release of onnxruntime accepts          |
"""
