#include "packbits.h"

#include "simd.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr int64_t CELLS_PER_TASK = 1 << 15;
constexpr int EDGE = 8;  // of the blocks that are dilated together: 512 cells, one after the other in Morton order
constexpr int ROW = EDGE + 2, PLANE = ROW * ROW;

constexpr uint32_t spread(uint32_t v) {
  v &= 0x3FF;
  v = (v | (v << 16)) & 0x030000FFu;
  v = (v | (v << 8)) & 0x0300F00Fu;
  v = (v | (v << 4)) & 0x030C30C3u;
  return (v | (v << 2)) & 0x09249249u;
}

constexpr uint32_t gathered(uint32_t v) {
  v &= 0x09249249u;
  v = (v | (v >> 2)) & 0x030C30C3u;
  v = (v | (v >> 4)) & 0x0300F00Fu;
  v = (v | (v >> 8)) & 0x030000FFu;
  return (v | (v >> 16)) & 0x3FF;
}

constexpr uint32_t code(uint32_t x, uint32_t y, uint32_t z) {
  return spread(x) | (spread(y) << 1) | (spread(z) << 2);
}

// Where the cells of a block lie in its padded raster: (z + 1, y + 1, x + 1); and spread() within a block.
struct Table {
  uint16_t raster[EDGE * EDGE * EDGE];
  uint32_t spread[EDGE];
};

constexpr Table table() {
  Table out{};
  for (uint32_t m = 0; m < EDGE * EDGE * EDGE; ++m)
    out.raster[m] =
        static_cast<uint16_t>((gathered(m >> 2) + 1) * PLANE + (gathered(m >> 1) + 1) * ROW + gathered(m) + 1);
  for (uint32_t i = 0; i < EDGE; ++i) out.spread[i] = spread(i);
  return out;
}
constexpr Table TABLE = table();

// The larger of two, NaN if either is.
template <typename T>
TKJAX_INLINE T larger(T a, T b) {
  const T m = a > b ? a : b;
  return a != a ? a : m;
}

// Grids too small for blocks: cell by cell.
void dilate_small(const float* density, int32_t side, float* out) {
  const uint32_t n = static_cast<uint32_t>(side);
  for (uint32_t m = 0; m < n * n * n; ++m) {
    const uint32_t at[3] = {gathered(m), gathered(m >> 1), gathered(m >> 2)};
    float v = density[m];
    for (int axis = 0; axis < 3; ++axis)
      for (int step = -1; step <= 1; step += 2) {
        uint32_t to[3] = {at[0], at[1], at[2]};
        to[axis] += static_cast<uint32_t>(step);
        if (to[axis] < n) v = larger(v, density[code(to[0], to[1], to[2])]);  // below 0 wraps to beyond n
      }
    out[m] = v;
  }
}

// Copies the face of a neighbouring block that touches ours into the border of the raster.
template <int axis, int step>
void copy_face(const float* density, const uint32_t block[3], uint32_t blocks, float* raster) {
  constexpr int stride[3] = {1, ROW, PLANE}, u = (axis + 1) % 3, v = (axis + 2) % 3;
  constexpr uint32_t layer = spread(step > 0 ? 0 : EDGE - 1) << axis;
  float* border = raster + (step > 0 ? EDGE + 1 : 0) * stride[axis] + stride[u] + stride[v];
  uint32_t to[3] = {block[0], block[1], block[2]};
  to[axis] += static_cast<uint32_t>(step);
  if (to[axis] >= blocks) {  // below 0 wraps to beyond
    for (int i = 0; i < EDGE; ++i)
      for (int j = 0; j < EDGE; ++j) border[i * stride[u] + j * stride[v]] = -__builtin_inff();
    return;
  }
  const float* from = density + static_cast<size_t>(code(to[0], to[1], to[2])) * (EDGE * EDGE * EDGE) + layer;
  for (int i = 0; i < EDGE; ++i)
    for (int j = 0; j < EDGE; ++j)
      border[i * stride[u] + j * stride[v]] = from[(TABLE.spread[i] << u) + (TABLE.spread[j] << v)];
}

void dilate_block(const float* density, int32_t side, uint32_t b, float* out) {
  const uint32_t block[3] = {gathered(b), gathered(b >> 1), gathered(b >> 2)}, blocks = side / EDGE;
  const float* from = density + static_cast<size_t>(b) * (EDGE * EDGE * EDGE);
  float* to = out + static_cast<size_t>(b) * (EDGE * EDGE * EDGE);
  float raster[ROW * PLANE + W] = {}, largest[ROW * PLANE + W];
  for (int m = 0; m < EDGE * EDGE * EDGE; ++m) raster[TABLE.raster[m]] = from[m];
  copy_face<0, -1>(density, block, blocks, raster);
  copy_face<0, 1>(density, block, blocks, raster);
  copy_face<1, -1>(density, block, blocks, raster);
  copy_face<1, 1>(density, block, blocks, raster);
  copy_face<2, -1>(density, block, blocks, raster);
  copy_face<2, 1>(density, block, blocks, raster);
  // Rows run through the borders: what comes out there is not used.
  for (int i = PLANE; i < ROW * PLANE - PLANE; i += W) {
    const F x = larger(load(raster + i - 1), load(raster + i + 1));
    const F y = larger(load(raster + i - ROW), load(raster + i + ROW));
    const F z = larger(load(raster + i - PLANE), load(raster + i + PLANE));
    store(largest + i, larger(larger(load(raster + i), x), larger(y, z)));
  }
  for (int m = 0; m < EDGE * EDGE * EDGE; ++m) to[m] = largest[TABLE.raster[m]];
}

}  // namespace

void packbits(const float* density, int64_t cells, float threshold, uint8_t* out, Pool& pool) {
  parallel_for(pool, (cells + CELLS_PER_TASK - 1) / CELLS_PER_TASK, [&](int64_t task) {
    const int64_t begin = task * CELLS_PER_TASK;
    const int64_t end = begin + CELLS_PER_TASK < cells ? begin + CELLS_PER_TASK : cells;
    int64_t i = begin;
    for (; i + 16 <= end; i += 16) {
      uint32_t bits = 0;
      for (int j = 0; j < 16; j += W) bits |= lane_bits(load(density + i + j) > threshold) << j;
      out[i / 8] = static_cast<uint8_t>(bits);
      out[i / 8 + 1] = static_cast<uint8_t>(bits >> 8);
    }
    for (; i < end; i += 8) {
      uint32_t bits = 0;
      for (int j = 0; j < 8; ++j) bits |= static_cast<uint32_t>(density[i + j] > threshold) << j;
      out[i / 8] = static_cast<uint8_t>(bits);
    }
  });
}

void dilate_morton(const float* density, int32_t side, float* out, Pool& pool) {
  if (side < EDGE) return dilate_small(density, side, out);
  const int64_t edge = side / EDGE, blocks = edge * edge * edge;
  constexpr int64_t BLOCKS_PER_TASK = 64;
  parallel_for(pool, (blocks + BLOCKS_PER_TASK - 1) / BLOCKS_PER_TASK, [&](int64_t task) {
    const int64_t end = (task + 1) * BLOCKS_PER_TASK < blocks ? (task + 1) * BLOCKS_PER_TASK : blocks;
    for (int64_t b = task * BLOCKS_PER_TASK; b < end; ++b) dilate_block(density, side, static_cast<uint32_t>(b), out);
  });
}

}  // namespace tkjax::TKJAX_ISA
