// How the work on an activation is divided: blocks of channels, and pieces of them that fit a cache.
//
// The division depends on the shape alone, so that results do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "call.h"

namespace ttac {

// The attribute `block`: channels that lie side by side in memory.
int block_of(const Attributes& attributes);

constexpr int64_t kPiece = 1 << 16;      // floats of a piece: 256 KiB
constexpr int64_t kOwnCache = 1 << 17;   // floats that stay in the cache of one core: 512 KiB
constexpr int64_t kWave = 1 << 20;       // floats that stay in the cache of all cores: 4 MiB

// A part of the memory of one block of channels in one sample, in floats.
struct Stretch {
  int64_t offset, length;
};

// An activation [N, C, ...] whose memory is [N][C/block][...][block].
struct Layout {
  Layout(const std::vector<int64_t>& shape, int block_, int64_t piece_ = kPiece);
  Stretch stretch(int64_t channel_block, int64_t sample, int64_t index) const;
  int64_t pieces_of_block() const { return samples * pieces; }
  bool fits_cache() const;

  int64_t samples, channels, positions, blocks;
  int64_t run;     // floats of one block of channels in one sample
  int64_t piece;   // floats of a piece
  int64_t pieces;  // pieces of a run
};

// Call `body(channel_block, stretch)` for each stretch of the blocks [first, last), in parallel.
template <class Body>
void each_stretch(const Call& call, const Layout& layout, int64_t first, int64_t last, Body body) {
  const int64_t each = layout.pieces_of_block();
  call.parallel(static_cast<size_t>((last - first) * each), [&](size_t index) {
    const int64_t block = first + static_cast<int64_t>(index) / each, rest = static_cast<int64_t>(index) % each;
    body(block, rest, layout.stretch(block, rest / layout.pieces, rest % layout.pieces));
  });
}

template <class Steps>
void reduce_block(const Layout& layout, int64_t block, const Steps& steps) {
  typename Steps::Partial found;
  for (int64_t i = 0; i < layout.pieces_of_block(); ++i) {
    steps.partial(block, layout.stretch(block, i / layout.pieces, i % layout.pieces), found);
  }
  steps.finish(block, found);
}

template <class Steps>
void apply_block(const Layout& layout, int64_t block, const Steps& steps) {
  for (int64_t i = 0; i < layout.pieces_of_block(); ++i) {
    steps.apply(block, layout.stretch(block, i / layout.pieces, i % layout.pieces));
  }
}

// One block of channels per task: the second pass finds the block in the cache of its core.
template <class Body>
void block_by_block(const Call& call, const Layout& layout, Body body) {
  call.parallel(static_cast<size_t>(layout.blocks), [&](size_t index) { body(static_cast<int64_t>(index)); });
}

// All threads together reduce the blocks [first, last).
template <class Steps>
void reduce_blocks(const Call& call, const Layout& layout, int64_t first, int64_t last, const Steps& steps) {
  const int64_t each = layout.pieces_of_block();
  std::vector<typename Steps::Partial> parts(static_cast<size_t>((last - first) * each));
  each_stretch(call, layout, first, last, [&](int64_t block, int64_t i, const Stretch& stretch) {
    steps.partial(block, stretch, parts[static_cast<size_t>((block - first) * each + i)]);
  });
  for (int64_t block = first; block < last; ++block) {
    typename Steps::Partial found;
    for (int64_t i = 0; i < each; ++i) steps.join(parts[static_cast<size_t>((block - first) * each + i)], found);
    steps.finish(block, found);
  }
}

template <class Steps>
void apply_blocks(const Call& call, const Layout& layout, int64_t first, int64_t last, const Steps& steps) {
  each_stretch(call, layout, first, last,
               [&](int64_t block, int64_t, const Stretch& stretch) { steps.apply(block, stretch); });
}

// Call `body(first, last)` for as many blocks at once as the shared cache holds.
template <class Body>
void each_wave(const Layout& layout, Body body) {
  const int64_t width = std::max<int64_t>(1, kWave / std::max<int64_t>(1, layout.run * layout.samples));
  for (int64_t first = 0; first < layout.blocks; first += width) body(first, std::min(first + width, layout.blocks));
}

// `steps` has partial(block, stretch, into), join(part, into), finish(block, found) and apply(block, stretch).
template <class Steps>
void reduce_then_apply(const Call& call, const Layout& layout, const Steps& steps) {
  if (layout.fits_cache()) {
    block_by_block(call, layout, [&](int64_t block) {
      reduce_block(layout, block, steps);
      apply_block(layout, block, steps);
    });
  } else {
    each_wave(layout, [&](int64_t first, int64_t last) {
      reduce_blocks(call, layout, first, last, steps);
      apply_blocks(call, layout, first, last, steps);
    });
  }
}

}  // namespace ttac
