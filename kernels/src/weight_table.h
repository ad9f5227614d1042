// The inner loops of a convolution's weight gradient.
#pragma once
#include "pool_table.h"

namespace ttac {

constexpr int kWeightOuts = 2;  // blocks of outputs of one task

// Rows [first, last) of dy in one sample, for a few inputs and one or two blocks of outputs.
struct WeightRows {
  const float* x;         // the map of the first input
  const float* dy;        // the map of the first block of outputs
  float* sums;            // [taps][inputs][outs][block]; the task adds to them
  Axis rows, columns;     // of the forward convolution
  int64_t first, last;
  int64_t input_step, position_step;  // floats from one input, and one position, of x to the next
  int64_t dy_step;        // floats from one block of dy to the next
  int inputs, outs;
};

struct WeightTable {
  void (*gradient[kBlockSizes])(const WeightRows&);
};

}  // namespace ttac
