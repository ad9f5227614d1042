#include "pieces.h"

namespace ttac {

int block_of(const Attributes& attributes) {
  const int64_t block = attributes.integer("block", 1);
  require(block == 1 || block == 2 || block == 4 || block == 8 || block == 16, "attribute block: not 1, 2, 4, 8 or 16");
  return static_cast<int>(block);
}

Layout::Layout(const std::vector<int64_t>& shape, int block_, int64_t piece_) : piece(piece_) {
  require(shape.size() >= 2, "input x: fewer than two axes");
  samples = shape[0];
  channels = shape[1];
  require(channels % block_ == 0, "input x: its channels are no multiple of the block");
  positions = 1;
  for (size_t axis = 2; axis < shape.size(); ++axis) positions *= shape[axis];
  blocks = channels / block_;
  run = positions * block_;
  pieces = std::max<int64_t>(1, (run + piece - 1) / piece);
}

Stretch Layout::stretch(int64_t channel_block, int64_t sample, int64_t index) const {
  const int64_t start = index * piece;
  return {(sample * blocks + channel_block) * run + start, std::min(piece, run - start)};
}

// Few large blocks are left to all threads together.
bool Layout::fits_cache() const {
  const int64_t size = run * samples;
  return size <= kOwnCache / 16 || (size <= kOwnCache && blocks >= 8);
}

}  // namespace ttac
