// What a grid's description means; compiled once, shared by all kernels that hold a grid. Needs no XLA headers.
#include <climits>
#include <cstring>

#include "grid_encode.h"

namespace tkjax {

const char* grid_parse(const int32_t* words, size_t count, GridArgs* out) {
  constexpr size_t HEAD = 4, PER_LEVEL = 8;
  if (count < HEAD) return "grid: the description is too short";
  GridArgs args{};
  args.dims = words[0], args.levels = words[1], args.features = words[2], args.smoothstep = words[3];
  if (args.dims != 2 && args.dims != 3) return "grid: dims must be 2 or 3";
  if (args.levels < 1 || args.levels > GRID_MAX_LEVELS) return "grid: levels must be 1 to 32";
  if (args.features != 1 && args.features != 2 && args.features != 4 && args.features != 8)
    return "grid: features must be 1, 2, 4 or 8";
  if (count != HEAD + PER_LEVEL * args.levels) return "grid: the description has the wrong length";
  int64_t total = 0;
  for (int l = 0; l < args.levels; ++l) {
    const int32_t* w = words + HEAD + PER_LEVEL * l;
    GridLevel& level = args.level[l];
    std::memcpy(&level.scale, w, 4);
    const int64_t resolution = w[1], entries = w[2];
    if (!(level.scale >= 0) || resolution < 1 || level.scale > resolution || resolution >= (1 << 24))
      return "grid: a level's scale must be 0 to its resolution, and that below 2^24";
    if (entries < 1 || w[3] != total || total + entries > INT32_MAX / args.features)
      return "grid: levels must follow each other and hold less than 2^31 numbers";
    level.hashed = w[4] != 0, level.entries = entries, level.offset = total;
    int64_t highest = 0;  // index
    for (int d = 0; d < args.dims; ++d) {
      if (w[5 + d] < 0) return "grid: strides must not be negative";
      level.stride[d] = w[5 + d];
      highest += w[5 + d] * resolution;
    }
    const bool wraps = level.hashed || highest >= entries;
    if (wraps && (entries & (entries - 1))) return "grid: the entries of a level that wraps must be a power of two";
    if (!wraps && level.stride[0] != 1) return "grid: the first axis of a dense level must have stride 1";
    level.mask = wraps ? static_cast<uint32_t>(entries - 1) : ~0u;
    total += entries;
  }
  args.entries = static_cast<uint32_t>(total);
  *out = args;
  return nullptr;
}

int64_t grid_backward_scratch(const GridArgs& args, int64_t samples, int planes, bool table_gradient) {
  int64_t floats = grid_slab(args, samples, planes) * planes * (args.dims + args.channels());
  for (int l = 0; table_gradient && l < args.levels; ++l)
    floats += (grid_parts(args, l, samples, planes) - 1) * static_cast<int64_t>(args.level[l].entries) *
              args.features * planes;
  return floats;
}

}  // namespace tkjax
