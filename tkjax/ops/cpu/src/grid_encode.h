// Multi-resolution grid encoding (tkjax/ops/grid_encode.py has the formula): whole op, and the tile functions that
// field kernels call. No C++ standard library code: this header is part of every per-ISA source.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace tkjax {

constexpr int GRID_MAX_LEVELS = 32;

// index(cell) = (sum_d cell[d] * stride[d]) & mask, or (xor_d cell[d] * prime[d]) & mask where hashed.
// mask is ~0 where the index stays below the entries by itself.
struct GridLevel {
  float scale;
  int32_t hashed;
  uint32_t entries, offset, mask;
  uint32_t stride[3];
};

struct GridArgs {
  int32_t dims, levels, features;  // 2 or 3; at most GRID_MAX_LEVELS; 1, 2, 4 or 8
  int32_t smoothstep;
  uint32_t entries;  // of all levels together
  GridLevel level[GRID_MAX_LEVELS];

  __attribute__((always_inline)) int channels() const { return levels * features; }
};

// Words as tkjax.ops.cpu.grid_encode.words(spec) writes them: dims, levels, features, smoothstep, then per level
// scale (bits of the float), resolution, entries, offset, hashed, stride of each of the three axes.
// Returns nullptr, or a sentence where they describe no grid that these kernels do.
const char* grid_parse(const int32_t* words, size_t count, GridArgs* out);

// A matrix of samples stored tile by tile: channel c of sample n is data[c * channel + (n / 64) * tile + n % 64].
// [C][N] is {data, N, 64}; [N/64][C][64] is {data, 64, 64 * C}. The last tile is read whole, so its memory must exist;
// what lies beyond the last sample is ignored.
struct TileView {
  const float* data;
  int64_t channel, tile;
};

// Floats of scratch that grid_encode_backward needs.
int64_t grid_backward_scratch(const GridArgs& args, int64_t samples, int planes, bool table_gradient);

// The backward goes through the samples in slabs that stay in cache once they are transposed.
static inline int64_t grid_slab(const GridArgs& args, int64_t samples, int planes) {
  int64_t fit = (int64_t{2} << 20) / (planes * (args.channels() + args.dims)) / 64 * 64, all = (samples + 63) / 64 * 64;
  int64_t slab = fit < 256 ? 256 : fit;
  return slab < all ? slab : all;
}

// Samples of a slab are split into this many parts with a table of their own, summed in order at the end: as many as
// cost little beside the work itself, where there are few levels to share among threads. Depends on sizes alone.
static inline int grid_parts(const GridArgs& args, int level, int64_t samples, int planes) {
  int64_t updates = samples << args.dims, most = 64 / (planes * args.levels);
  int64_t parts = updates / (16 * static_cast<int64_t>(args.level[level].entries));
  parts = parts < most ? parts : most;
  return parts < 1 ? 1 : static_cast<int>(parts);
}

}  // namespace tkjax

// Whole op. points [N,P,D], tables [P,T,F], out and dout [N,P,L*F] float32 or bfloat16.
TKJAX_DECLARE_KERNEL(void, grid_encode_forward,
                     (const GridArgs& args, int64_t samples, int planes, const float* points, const float* tables,
                      void* out, bool bfloat16, Pool& pool))
// dtables or dpoints may be null: not asked for. tables may be null where dpoints is. Outputs are overwritten.
// Every table entry sums its samples in an order that depends on the sizes alone, never on threads.
TKJAX_DECLARE_KERNEL(void, grid_encode_backward,
                     (const GridArgs& args, int64_t samples, int planes, const float* points, const float* tables,
                      const void* dout, bool bfloat16, float* dtables, float* dpoints, float* scratch, Pool& pool))

// One tile of 64 samples of one plane. coords_unit: D pointers to 64 floats; out [L*F][64]. Outside [0,1], NaN
// included, gives zeros. Lanes that are no samples may hold anything: they influence no other lane.
TKJAX_DECLARE_KERNEL(void, grid_encode_tile,
                     (const GridArgs& args, const float* table, const float* const* coords_unit, float* out))
// dcoords: D pointers to 64 floats, overwritten with the gradient to coords_unit for dout [L*F][64].
TKJAX_DECLARE_KERNEL(void, grid_encode_tile_points_grad,
                     (const GridArgs& args, const float* table, const float* const* coords_unit, const float* dout,
                      float* const* dcoords))
// dtable [T*F] += gradient of levels [level_begin, level_end) from all samples, in their order. coords: D pointers to
// sample 0 of each coordinate; the coordinate of sample n is coords[d][(n / 64) * coords_tile + n % 64].
// Different levels write different entries, so levels may run on different threads.
TKJAX_DECLARE_KERNEL(void, grid_table_grad,
                     (const GridArgs& args, int64_t samples, const float* const* coords, int64_t coords_tile,
                      const TileView& dout, float* dtable, int level_begin, int level_end))
