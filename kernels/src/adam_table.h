// The inner loop of Adam's step.
#pragma once
#include <cstdint>

namespace ttac {

struct AdamPiece {
  const float *w, *g, *m, *v;
  float *next, *mean, *square;
  int64_t length;
  float decay1, share1, decay2, share2, epsilon;
  float rate, root;  // learning rate and second moment, each with its correction for the first steps
};

struct AdamTable {
  void (*step)(const AdamPiece&);
};

}  // namespace ttac
