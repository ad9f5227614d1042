// The inner loops of operators over the channels of each position: layer norms, and the gradient of a softmax.
#pragma once
#include "pool_table.h"

namespace ttac {

// Some positions.  The channels of a position lie in `vectors` groups, `stride` floats apart, and positions lie `step`
// floats apart.  Absent tensors are null.
struct LayerPiece {
  const float *x, *residual, *dy, *more, *scale, *bias;  // pointers of maps: to the first position of the piece
  float *mean, *reciprocal;                              // one number for each position
  float *out, *sum;                                      // y or dx, and x + residual
  float *dscale, *dbias;                                 // partial sums, for whole vectors; backward only
  int64_t positions, channels, vectors, step, stride;
  float epsilon;
};

struct LayerTable {
  // The first ones read rows of neighbouring channels, the others blocks of channels.
  void (*forward_rows)(const LayerPiece&);
  void (*backward_rows)(const LayerPiece&);
  void (*forward[kBlockSizes])(const LayerPiece&);
  void (*backward[kBlockSizes])(const LayerPiece&);
  // dx = y * (dy - sum of dy * y) over rows.
  void (*softmax_backward)(const float* dy, const float* y, float* dx, int64_t rows, int64_t width);
};

}  // namespace ttac
