"""The conformance kit: bundles, calls, and the outputs and the state after each call, for readers in any language.

    python -m benchmarks.conformance_kit FOLDER

The folder gets:

| file                       | content                                                             |
|----------------------------|---------------------------------------------------------------------|
| `kit.json`                 | the cases, their calls, and the bundles that a reader must refuse   |
| `bundles/NAME/`            | the bundle of a case                                                |
| `tensors/NAME.safetensors` | inputs, expected outputs and expected state of the calls of a case  |
| `states/FILE`              | saved states, which a reader restores                               |
| `refused/NAME/`            | bundles that are not valid                                          |

`docs/consumers.md` describes `kit.json`.  The expected numbers come from ONNX's reference evaluator and a plain reading
of `docs/bundle.md` (`reference`), not from `ttac.runtime`: a test compares both.
"""
