// The inner loops of depthwise convolutions, over rows of one block of channels in one sample.
#pragma once
#include "pool_table.h"

namespace ttac {

// Rows [first, last) of `out`.  `in` begins at row `in_first` of its map.
struct DepthwiseRows {
  const float* in;
  float* out;
  const float* weights;  // [taps][block]
  const float* bias;     // [block]; null for none, and unused backward
  Axis rows, columns;    // of the forward convolution
  int64_t first, last, in_first;
};

struct DepthwiseTable {
  // From rows of the input to rows of the output.
  void (*forward[kBlockSizes])(const DepthwiseRows&);
  // From rows of the output's gradient to rows of the input's.
  void (*backward[kBlockSizes])(const DepthwiseRows&);
};

}  // namespace ttac
