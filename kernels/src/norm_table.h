// The inner loops of the norms.  All of them run over a piece: a stretch of the memory of one block of channels in
// one sample, in which float i belongs to channel i % block.
#pragma once
#include <cstdint>

namespace ttac {

constexpr int kMaxBlock = 16;

enum Activation : int { kNone, kRelu, kClip, kSilu, kHardSwish, kGelu, kTanhGelu, kActivations };

// How the backward pass finds du.
enum Rule : int {
  kStored,      // du was written before
  kDirect,      // there is no activation: du = dy
  kMasked,      // du = dy where the byte of the mask is set
  kMaskedBits,  // du = dy where the bit of the mask is set
  kRecomputed,  // u is computed again from x; one rule for each activation, without and with the residual
  kRules = kRecomputed + 2 * (kActivations - 1)
};

constexpr int recomputed(Activation act, bool residual) { return kRecomputed + 2 * (act - 1) + (residual ? 1 : 0); }

// Moments of the channels of a block: count, mean, and sum of squared distances from the mean.
struct Moments {
  double count = 0;
  double mean[kMaxBlock] = {};
  double squares[kMaxBlock] = {};
};

// Sums of du, and of du times the distance of x from its mean.
struct Sums {
  double plain[kMaxBlock] = {};
  double centred[kMaxBlock] = {};
};

// Coefficients of each lane of a vector of 16 floats, so that blocks of 1, 2, 4 and 8 channels repeat.
struct Lanes {
  float value[kMaxBlock];
};

// What all pieces of a block of channels have in common.
struct Coefficients {
  Lanes mean, slope, offset;  // u = (x - mean) * slope + offset + residual
  Lanes constant, linear;     // dx = slope * du + constant + (x - mean) * linear + more
};

struct NormPiece : Coefficients {
  const float *x, *residual, *dy, *more;
  float *out, *du;
  uint8_t *mask, *bits;  // one byte or one bit an element; at most one of them
  int64_t length;
  int block;
  float low, high;
};

// How the forward pass keeps the mask.
enum MaskKind : int { kNoMask, kMaskBytes, kMaskBits, kMaskKinds };

struct NormTable {
  // Moments of the piece, joined with those in `into`.
  void (*moments)(const float* x, int64_t length, int block, Moments& into);
  void (*join)(const Moments& part, Moments& into);
  // out = activation(u), and mask = its derivative is not zero; the indices say whether there is a residual, and
  // how the mask is kept.  Only Relu and Clip have masks.
  void (*forward[kActivations][2][kMaskKinds])(const NormPiece&);
  // du is stored where the piece has a place for it, and its sums are added to `into`.
  void (*sums[kRules])(const NormPiece&, Sums& into);
  // out = dx; the indices say whether the statistics are constants, so that dx = slope * du, and whether `more` is added.
  void (*backward[kRules][2][2])(const NormPiece&);
  // The activation alone, and its gradient.
  void (*activate[kActivations])(const float* x, float* y, int64_t length, float low, float high);
  void (*differentiate[kActivations])(const float* dy, const float* x, float* dx, int64_t length, float low, float high);
};

}  // namespace ttac
