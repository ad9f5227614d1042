"""The codecs: how a value crosses from the forward to the backward, with its bytes and its error.

Time of encode and decode on onnxruntime 1.19, one x86-64 thread, in multiples of a float Relu on as many elements:
int8 2.3 + 1.1; blocks with 30 % kept 4 + 2.5; levels 12 in all; bits 6.5 in all; sparse 45 + 40; topk 90 in all, of
which the TopK takes 80.

| file | idea |
|---|---|
| `codec` | the protocol, and the tensors that several codecs build |
| `dense` | the value unchanged |
| `bits` | a mask, one bit an element |
| `int8` | eight bits an element, scaled row by row |
| `block_layout` | size and layout of blocks of neighbouring elements |
| `block_readers` | operators that read encoded blocks without decoding |
| `blocks` | some blocks in eight bits, all means |
| `levels` | as `blocks`, with two levels for each dropped block |
| `sparse` | the elements above a sampled threshold |
| `topk` | exactly the largest magnitudes |
| `dropped_channels` | random channels |
"""

from ttac.passes.plan.codecs import bits, blocks, dense, dropped_channels, int8, levels, sparse, topk
from ttac.passes.plan.codecs.codec import Codec

CODECS: dict[str, Codec] = {
    module.CODEC.name: module.CODEC for module in (dense, bits, int8, blocks, levels, sparse, topk, dropped_channels)
}

__all__ = ["CODECS", "Codec"]
