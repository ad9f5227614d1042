#include "rows.h"

namespace ttac {

Maps::Maps(const std::vector<int64_t>& shape, int block) {
  require(shape.size() == 4, "an input is not of the shape [N, C, H, W]");
  samples = shape[0];
  channels = shape[1];
  height = shape[2];
  width = shape[3];
  require(channels % block == 0, "the channels of an input are no multiple of the block");
  maps = samples * (channels / block);
}

}  // namespace ttac
