// The inner loops of the codec `blocks`: saving some blocks of neighbouring elements, and the gradient of a norm from
// these blocks and the means of all blocks.  A tile is a stretch of memory that holds one block of each channel.
#pragma once
#include "norm_table.h"

namespace ttac {

constexpr int64_t kLargestKept = 128;  // elements of the largest block

// The tensors of the codec.  Block b of the plain tensor holds the elements [b * size, (b + 1) * size).
struct Kept {
  const int8_t* values;   // [kept, size]
  const float* scale;     // [kept]
  const int64_t* places;  // [kept], ascending: the numbers of the kept blocks
  const float* mean;      // of all blocks
  int64_t size, single;   // `single` kept blocks are read element by element in dx
};

// The tiles of one block of channels in one sample.
struct SparsePiece {
  Kept kept;
  const float* dy;
  const uint8_t *mask, *bits;
  float *out, *du;
  int64_t tiles;
  int block;
  int64_t numbers[kMaxBlock];                // of the first block of each channel
  int64_t first[kMaxBlock], last[kMaxBlock];  // the kept blocks of each channel
  Lanes mean, slope, constant, linear;       // dx = slope * du + constant + (x - mean) * linear
};

// How the gradient of a norm finds du: dy, or dy where a byte or a bit is set.
enum SparseRule : int { kAllOfIt, kWhereBytes, kWhereBits, kSparseRules };

struct SparseTable {
  // Means of the channels of a tile, one for each of sixteen lanes.
  void (*means)(const float* tile, int64_t size, int block, float* means);
  // A block as bytes; its elements lie `stride` floats apart.
  void (*keep)(const float* from, int64_t size, int stride, float mean, int8_t* values, float* scale);
  // Sums of du, and of du times the distance of x from its mean.
  void (*sums[kSparseRules])(const SparsePiece&, Sums& into);
  void (*backward[kSparseRules])(const SparsePiece&);
};

}  // namespace ttac
