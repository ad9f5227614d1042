// The inner loops of the codec `int8`: each row, one channel of a sample, in 255 steps.
#pragma once
#include "norm_table.h"

namespace ttac {

// The rows of one block of channels in one sample.
struct RowsPiece {
  float* x;
  uint8_t* values;
  int64_t length;  // floats of all rows
  int block;
  Lanes scale, zero;
};

struct RowsTable {
  // Least and largest value of each row, at most 0 and at least 0, and their sums, lane by lane.
  void (*range)(const RowsPiece&, Lanes& low, Lanes& high, Lanes& sum);
  void (*quantize)(const RowsPiece&);
  void (*dequantize)(const RowsPiece&);
};

}  // namespace ttac
