// The inner loops on maps of bytes whose channels lie side by side: [positions][channels].
#pragma once
#include <cstdint>

namespace ttac {

constexpr int64_t kMostPositions = 1 << 16;  // so many squares of a byte fit into 32 bits

// A signed byte with its first bit turned is its value plus 128 without a sign; the loops compute with such numbers.
constexpr int kFlip = 128;

// Some positions of one sample.
struct BytesPiece {
  const uint8_t* x;
  uint8_t* y;
  int64_t positions, channels;
  const float *slope, *offset;  // y = round(x * slope + offset), from `low` to `high`; one number for each channel
  float low, high;
};

struct BytesTable {
  // Both for unsigned and for signed bytes.  Add the bytes and their squares to the sums of each channel; at most
  // `kMostPositions` at a time.
  void (*moments[2])(const BytesPiece&, uint32_t* sums, uint32_t* squares);
  void (*map[2])(const BytesPiece&);
};

}  // namespace ttac
