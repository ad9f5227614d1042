// The window of a pool or of a convolution, along one axis.
#pragma once
#include <cstdint>

namespace ttac {

struct Axis {
  int64_t size, outs;  // of the input, of the output
  int64_t kernel, stride, begin;
};

// A range of the taps of an output, or of the outputs that read an input.
struct Range {
  int64_t first, last;
};

}  // namespace ttac
