// The inner loops of pools and of interleaving.  They run over rows of one block of channels in one sample.
#pragma once
#include "window.h"

namespace ttac {

constexpr int kBlockSizes = 5;  // 1, 2, 4, 8 and 16 channels

constexpr int block_index(int block) { return block == 16 ? 4 : block == 8 ? 3 : block == 4 ? 2 : block == 2 ? 1 : 0; }

// Rows [first, last) of a map: of y forward, of dx backward.  Pointers are those of the whole map.
struct PoolRows {
  const float *x, *dy;
  float *y, *dx;
  uint8_t* taps;
  Axis rows, columns;
  int64_t first, last;
};

// Rows [first, last) of x; phase [a][b] holds the places (2i + a, 2j + b) of x, and is null where these are zero.
struct InterleaveRows {
  const float* phases[2][2];
  const float* sum;  // added to x; may be null
  float* x;
  int64_t width, first, last;
};

struct PoolTable {
  void (*forward[kBlockSizes])(const PoolRows&);
  void (*backward[kBlockSizes])(const PoolRows&);
  void (*interleave[kBlockSizes])(const InterleaveRows&);
};

}  // namespace ttac
