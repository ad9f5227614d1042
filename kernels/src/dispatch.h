// Kernels for the instructions of this processor, chosen once at run time.
#pragma once
#include "adam_table.h"
#include "bytes_table.h"
#include "depthwise_table.h"
#include "layer_table.h"
#include "norm_table.h"
#include "pool_table.h"
#include "rows_table.h"
#include "sparse_table.h"
#include "weight_table.h"

namespace ttac {

struct Instructions {
  const char* name;
  NormTable norm;
  PoolTable pool;
  DepthwiseTable depthwise;
  SparseTable sparse;
  LayerTable layer;
  WeightTable weight;
  RowsTable rows;
  AdamTable adam;
  BytesTable bytes;
};

// The build compiles tables.cpp once for each of these.
#if defined(__x86_64__)
extern const Instructions kAvx512, kAvx2;
#endif
extern const Instructions kBaseline;

// The fastest of them that the processor has; TTAC_KERNELS_INSTRUCTIONS names a slower one.
const Instructions& instructions();

}  // namespace ttac
