// The inner loops of a convolution's weight gradient.
#pragma once
#include "pool_table.h"

namespace ttac {

// Rows [first, last) of dy in a few samples, for a few inputs and a few blocks of outputs.
struct WeightRows {
  const float* x;         // the map of the first input, in the first sample
  const float* dy;        // the map of the first block of outputs, in the first sample
  float* sums;            // [taps][inputs][outs][block]; the task adds to them
  Axis rows, columns;     // of the forward convolution
  int64_t samples, first, last;
  int64_t x_sample, dy_sample;  // floats from one sample to the next
  int64_t x_map, dy_map;        // floats from one block of inputs, and one block of outputs, to the next
  int64_t input_step, position_step;  // floats from one input of a block, and one position, of x to the next
  int inputs, in_block, outs;         // in_block: inputs of a block
};

struct WeightTable {
  void (*gradient[kBlockSizes])(const WeightRows&);
};

}  // namespace ttac
